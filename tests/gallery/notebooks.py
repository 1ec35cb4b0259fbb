"""Notebooks of the gallery: one that shows much, and one that tries to run what it may not."""

from nbformat import NotebookNode

from tests.gallery.record import RECORDED
from tests.support.notebooks import code, markdown

# Every way leaves its name in the page when it runs, and none may.
EVIL = """
<script>document.documentElement.dataset.owned = '{0} script'</script>
<img src="missing.png" onerror="document.documentElement.dataset.owned = '{0} onerror'">
<img src="http://127.0.0.1:9/{0}.png">
<a class="evil" href="javascript:document.documentElement.dataset.owned = '{0} link'">here</a>
<a class="evil" href="data:text/html,<script>1</script>">data</a>
<iframe srcdoc="<script>parent.document.documentElement.dataset.owned = '{0} frame'</script>"></iframe>
<iframe src="http://127.0.0.1:9/{0}.html"></iframe>
<svg onload="document.documentElement.dataset.owned = '{0} svg'"><script>alert('{0}')</script></svg>
<style>@import url(http://127.0.0.1:9/{0}.css); body {{ display: none; }}</style>
<link rel="stylesheet" href="http://127.0.0.1:9/{0}-link.css">
<div style="background: url(http://127.0.0.1:9/{0}-style.png); position: fixed">styled</div>
<meta http-equiv="refresh" content="0; url=http://127.0.0.1:9/{0}"><base href="http://127.0.0.1:9/">
<object data="http://127.0.0.1:9/{0}.swf"></object><embed src="http://127.0.0.1:9/{0}.pdf">
<form action="http://127.0.0.1:9/"><input autofocus onfocus="document.title = 'owned'"></form>
<math><mtext><img src="missing.png"
  onerror="document.documentElement.dataset.owned = '{0} math'"></mtext></math>
$\\text{{<img src="missing.png" onerror="document.documentElement.dataset.owned = '{0} formula'>"}}$
<p data-background-iframe="http://127.0.0.1:9/{0}">words of {0}</p>
"""
_SVG = """
from IPython.display import HTML, SVG, Javascript, Latex, Markdown, display
svg = '''<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20"
  onload="document.documentElement.dataset.owned = 'svg picture'">
  <script>document.documentElement.dataset.owned = 'svg picture'</script>
  <image href="http://127.0.0.1:9/svg.png"/><rect width="60" height="20" fill="teal"/></svg>'''
display(SVG(svg))
"""


def _shown(call: str, name: str) -> str:
    return f"display({call.format(f'{EVIL.format(name)!r}')})"


ATTACK: list[str | NotebookNode] = [
    markdown(f"# Attack\n\n{EVIL.format('markdown')}"),
    markdown("[x](javascript:document.documentElement.dataset.owned='markdown-link')"),
    _SVG,
    _shown("HTML({})", "html"),
    _shown("Markdown({})", "markdown-output"),
    _shown("Latex({})", "latex"),
    _shown("{{'text/vnd.mermaid': '</pre>' + {}}}, raw=True", "mermaid"),
    "display(Javascript(\"document.documentElement.dataset.owned = 'javascript'\"))",
    f"import ipywidgets; ipywidgets.HTML({EVIL.format('widget')!r})",
    f"print({EVIL.format('printed')!r})",
    f"raise RuntimeError({EVIL.format('error')!r})",
]

SHOW: list[str | NotebookNode] = [
    markdown(
        "# A page of everything\n\nText with `code`, **bold**, [a link](https://example.org) and a formula "
        "$e^{i\\pi} + 1 = 0$.\n\n$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt\\pi}{2}$$\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n```python\nx = 'text'  # comment\n```"
    ),
    code("import pandas as pd\ntable = pd.DataFrame({f'c{n}': range(n, n + 3) for n in range(30)})\ntable"),
    (
        "styled = table.iloc[:, :4].style.highlight_max(color='yellow')\n"
        "styled.highlight_min(props='background-color: navy; color: white')"
    ),
    "for colour in range(30, 38):\n    print(f'\\x1b[{colour}mcolour {colour}\\x1b[0m', end=' ')",
    "import sys\nprint('a warning', file=sys.stderr)",
    "from IPython.display import HTML, Latex\nHTML('<div id=\"plot\"></div><script>draw()</script>')",
    "Latex(r'$\\sum_{n=1}^\\infty 1/n^2 = \\pi^2/6$')",
    "import ipywidgets\nipywidgets.IntSlider(3)",
    (
        'class Thing:\n    """A docstring."""\n    value: float = 1.5e3  # a comment\n    @property\n'
        "    def name(self): return f'{self!r}' if self is not None else None"
    ),
    "def f(x):\n    return 1 / x\nf(0)",
]

PLOTS: list[str | NotebookNode] = [
    markdown(
        "# Plots, widgets and formulas\n\n- [x] done\n- [ ] to do\n\n"
        "$$\\hat\\beta = \\operatorname*{arg\\,min}_{\\beta \\in B} \\lVert y - X\\beta \\rVert^2$$\n\n"
        "$$\\left\\{\\begin{aligned} x + y &= 1 \\\\ 2x - y &= 0 \\end{aligned}\\right.$$"
    ),
    code("rows, name = 3, 'a name'", "parameters"),
    f"import json\nrecorded = json.load(open({str(RECORDED)!r}))",
    *(
        f"for output in recorded[{name!r}]: display(output, raw=True)"
        for name in ("plotly", "altair", "altair_png", "altair_svg", "bokeh_load", "bokeh")
    ),
    (
        "from tqdm import tqdm\nfor outer in tqdm(range(2), desc='outer'):\n"
        "    for inner in tqdm(range(300), desc='inner', leave=False): pass"
    ),
    "from tqdm.notebook import tqdm\nfor one in tqdm(range(40), desc='widget'): pass",
    (
        "import ipywidgets\nbox = ipywidgets.Output()\n"
        "with box: display(ipywidgets.HTML('<b>bold</b> in a widget'))\n"
        "ipywidgets.VBox([ipywidgets.IntSlider(3, description='size'), box, ipywidgets.Label('a label')])"
    ),
    (
        "def deep(n):\n    if n:\n        return deep(n - 1)\n"
        "    raise ValueError('a long message ' * 8)\n"
        "def outer():\n    try:\n        deep(4)\n    except ValueError as error:\n"
        "        raise RuntimeError('the outer error') from error\nouter()"
    ),
]

# A script of an output that tries to get out of its frame, and says how each way ended.
_ESCAPE = """
<div></div><script>
const seen = document.documentElement.dataset, to = 'http://127.0.0.1:9/';
const attempt = (name, way) => {
  try { seen[name] = String(way()) } catch (error) { seen[name] = error.name }
};
attempt('eval', () => Function('return 1 + 1')());
attempt('cookie', () => document.cookie);
attempt('storage', () => localStorage.length);
attempt('parent', () => parent.document.title);
attempt('popup', () => open(to + 'popup'));
attempt('navigate', () => { parent.location = to + 'parent' });
new Image().src = to + 'image.png';
for (const [tag, name, value] of [
  ['script', 'src', to + 'script.js'], ['link', 'href', to + 'sheet.css'], ['iframe', 'src', to + 'frame'],
  ['video', 'src', to + 'video'], ['object', 'data', to + 'object'], ['embed', 'src', to + 'embed'],
]) {
  const element = document.createElement(tag);
  if (tag === 'link') element.rel = 'stylesheet';
  element[name] = value;
  document.body.append(element);
}
document.body.insertAdjacentHTML('beforeend', `<form action="${to}form"></form>`);
document.forms[0].submit();
navigator.sendBeacon(to + 'beacon');
document.addEventListener('leave', () => { location = to + 'away' });
fetch(to + 'fetch').catch((error) => {
  seen.fetch = error.name;
  seen.tried = 'yes';
});
</script>
"""
ESCAPE: list[str | NotebookNode] = [
    "from IPython.display import HTML, Javascript",
    "Javascript('element.ownerDocument.documentElement.dataset.element = \"from element\"')",
    f"HTML({_ESCAPE!r})",
]
