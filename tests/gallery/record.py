"""Records the outputs of plotting libraries for the gallery, which then needs none of them.

Run `python -m tests.gallery.record` where plotly, altair, vl-convert-python, bokeh, ipykernel and nbclient
are installed; it writes `recorded.json`.
"""

import json
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

RECORDED = Path(__file__).with_name("recorded.json")
CELLS = {
    "plotly": "import plotly.graph_objects as go\ngo.Figure(go.Bar(y=[1, 3, 2]), {'template': 'none'})",
    "altair": (
        "import altair as alt\n"
        "data = alt.Data(values=[{'a': n, 'b': n * n % 7} for n in range(8)])\n"
        "chart = alt.Chart(data, width=240, height=120).mark_line().encode(x='a:Q', y='b:Q')\nchart"
    ),
    "altair_png": "alt.renderers.enable('png', scale_factor=1)\nchart",
    "altair_svg": "alt.renderers.enable('svg')\nchart",
    "bokeh_load": "from bokeh.plotting import figure, output_notebook, show\noutput_notebook()",
    "bokeh": "plot = figure(width=300, height=200)\nplot.line([1, 2, 3], [1, 3, 2])\nshow(plot)",
}
"""The source of each recorded cell; all are cells of one notebook."""


def record() -> dict[str, list[dict[str, Any]]]:
    """Return the data of the outputs of each cell."""
    cells = {name: new_code_cell(source) for name, source in CELLS.items()}
    NotebookClient(new_notebook(cells=list(cells.values())), kernel_name="python3").execute()
    return {
        name: [
            output.data for output in cell.outputs if output.output_type in {"display_data", "execute_result"}
        ]
        for name, cell in cells.items()
    }


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(), indent=1, sort_keys=True) + "\n")
