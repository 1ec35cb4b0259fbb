// The page: its frame, what its address shows, and the question for a token.

import { html, render, useEffect, useRef, useState } from "/page/preact.js";
import { onTokenNeeded, setToken } from "/page/api.js";
import { RunPage } from "/page/run.js";
import { RunsPage } from "/page/runs.js";
import { StartPage } from "/page/start.js";

/** Show another address of the page. */
function go(address, isReplaced = false) {
  history[isReplaced ? "replaceState" : "pushState"](null, "", address);
  dispatchEvent(new PopStateEvent("popstate"));
}

function Page() {
  const [address, setAddress] = useState(location.href);
  const [news, setNews] = useState("");
  const main = useRef();
  const path = new URL(address).pathname;
  useEffect(() => {
    const onChange = () => setAddress(location.href);
    addEventListener("popstate", onChange);
    return () => removeEventListener("popstate", onChange);
  }, []);
  useEffect(() => {
    // As after a link of another page, readers of screens begin at the heading.
    if (history.state !== null || path !== Page.first) main.current.querySelector("h1")?.focus();
    Page.first = undefined;
    setNews("");
  }, [path]);
  return html`
    <a class="skip" href="#main">Skip to the content</a>
    <header class="top" onClick=${follow}>
      <a class="brand" href="/">notebook-runner</a>
      <nav aria-label="Page">
        <a href="/" aria-current=${path === "/" ? "page" : undefined}>Runs</a>
        <a href="/start" aria-current=${path === "/start" ? "page" : undefined}>Start</a>
        <a href="/docs">API</a>
      </nav>
    </header>
    <main id="main" ref=${main} onClick=${follow}>${shown(address, setNews)}</main>
    <div class="news" role="status" aria-live="polite">${news}</div>
    <${TokenDialog} />`;
}
Page.first = location.pathname;

function shown(address, announce) {
  const { pathname, searchParams } = new URL(address);
  if (pathname === "/start") {
    const from = searchParams.get("from") ?? "";
    return html`<${StartPage} key=${`start-${from}`} from=${from} go=${go} />`;
  }
  if (pathname.startsWith("/runs/")) {
    const runId = decodeURIComponent(pathname.slice("/runs/".length));
    return html`<${RunPage} key=${runId} runId=${runId} go=${go} announce=${announce} />`;
  }
  return html`<${RunsPage} query=${searchParams} go=${go} announce=${announce} />`;
}

/** Follow a link of the page without loading it again. */
function follow(event) {
  const link = event.target.closest("a");
  const isOther = !link || link.target || link.origin !== location.origin || !isOwn(link.pathname) || link.hash;
  if (isOther || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(link.href);
  scrollTo(0, 0);
}

const isOwn = (path) => path === "/" || path === "/start" || path.startsWith("/runs/");

function TokenDialog() {
  const dialog = useRef();
  const [why, setWhy] = useState("");
  useEffect(() => {
    onTokenNeeded((message) => {
      setWhy(message);
      dialog.current.showModal();
      return new Promise((resolve) => dialog.current.addEventListener("close", resolve, { once: true }));
    });
  }, []);
  const onSubmit = (event) => {
    const fields = event.target.elements;
    setToken(fields.token.value.trim(), fields.keep.checked);
    fields.token.value = "";
  };
  return html`<dialog ref=${dialog} aria-labelledby="token-title">
    <form method="dialog" onSubmit=${onSubmit}>
      <h2 id="token-title">The server asks for a token</h2>
      ${why && html`<p class="problem">${why}</p>`}
      <label>Token <input name="token" type="password" autocomplete="off" required /></label>
      <label class="check"><input name="keep" type="checkbox" /> Keep it until this tab is closed</label>
      <div class="actions"><button class="primary">Use the token</button></div>
    </form>
  </dialog>`;
}

render(html`<${Page} />`, document.getElementById("page"));
