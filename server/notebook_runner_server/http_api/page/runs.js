// The list of runs, which follows the server.

import { html, useEffect, useReducer, useRef, useState } from "/page/preact.js";
import { call, follow } from "/page/api.js";
import { duration, elapsed, hasEnded, instant, moment, stateOf, STATES, title, words } from "/page/format.js";
import { Scroller } from "/page/virtual.js";

const REDRAW_DELAY = 100; // milliseconds
const ROW = 58; // pixels, as in style.css
const GONE = ["CURSOR_EXPIRED", "INVALID_FIELD"];

/** The list of runs; its filter is the query of the address. */
export function RunsPage({ query, go, announce }) {
  const [state, label, owner] = ["state", "label", "owner"].map((name) => query.get(name) ?? "");
  const filter = { state, label, owner };
  const { runs, isComplete, isLinked, problem } = useRuns(label, owner);
  const info = useInfo();
  const now = useClock(runs.some((one) => !hasEnded(one)));
  useEffect(() => {
    document.title = "Runs – notebook-runner";
  }, []);
  const shown = runs.filter((one) => isShown(one, state)).reverse();
  useEffect(() => {
    if (isComplete) announce(`${shown.length} runs`);
  }, [isComplete, shown.length]);
  const onChange = (event) => {
    const changed = { ...filter, [event.target.name]: event.target.value.trim() };
    const found = new URLSearchParams(Object.entries(changed).filter(([, value]) => value));
    go(`/${found.size ? `?${found}` : ""}`, true);
  };
  return html`
    <div class="heading"><h1 tabindex="-1">Runs</h1>${info && html`<span class="facts">${load(info)}</span>`}
      <a class="button primary" href="/start">Start a notebook</a></div>
    ${info?.problem && html`<p class="problem">${info.problem}</p>`}
    <form class="filter" role="search" aria-label="Filter" onSubmit=${(event) => event.preventDefault()} onChange=${onChange}>
      <label>State <select name="state" value=${state}>
        <option value="">all</option><option value="active">active</option>
        ${STATES.map((one) => html`<option value=${one.toLowerCase()}>${words(one)}</option>`)}
      </select></label>
      <label>Label <input name="label" placeholder="key=value" value=${label} /></label>
      <label>Owner <input name="owner" value=${owner} /></label>
    </form>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    ${!isLinked && !problem && html`<p class="link-state">Connecting to the server …</p>`}
    ${isComplete && !shown.length && html`<p class="empty">No runs${query.size ? " match the filter" : " yet"}.</p>`}
    ${shown.length > 0 && html`<${Scroller} class="runs" role="list" label="Runs" height=${shown.length * ROW}
      render=${(top, bottom) => rows(shown, now, top, bottom)} />`}`;
}

function rows(runs, now, top, bottom) {
  const first = Math.max(Math.floor(top / ROW), 0);
  return runs.slice(first, Math.ceil(bottom / ROW)).map((run, i) => html`
    <div key=${run.runId} role="listitem" aria-setsize=${runs.length} aria-posinset=${first + i + 1} class="row"
      style=${{ top: `${(first + i) * ROW}px` }}>
      <a href=${`/runs/${run.runId}`}>
        <${State} run=${run} />
        <span class="title">${title(run)}</span>
        <span class="labels">${Object.entries(run.labels ?? {}).map(([name, value]) => html`<span>${name}=${value}</span>`)}</span>
        <span class="owner">${run.owner}</span>
        <span class="time">${duration(elapsed(run, now))}</span>
        <time class="when" datetime=${run.createTime}>${moment(instant(run.createTime))}</time>
      </a>
    </div>`);
}

/** The state of a run. */
export function State({ run }) {
  const state = stateOf(run);
  return html`<span class="state ${state.toLowerCase()}">${words(state)}</span>`;
}

/** Return the time, again each second while something is being executed. */
export function useClock(isRunning) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (!isRunning) return undefined;
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [isRunning]);
  return Math.max(now, Date.now());
}

/** Return a function that renders a component again: soon, and at most ten times a second. */
export function useRedraw() {
  const [, redraw] = useReducer((count) => count + 1, 0);
  const timer = useRef(0);
  return () => {
    timer.current ||= setTimeout(() => {
      timer.current = 0;
      redraw();
    }, REDRAW_DELAY);
  };
}

/** Follow the runs with a label and of an owner, oldest first. */
function useRuns(label, owner) {
  const redraw = useRedraw();
  const state = useRef();
  state.current ??= { runs: new Map(), isComplete: false, isLinked: false, problem: "" };
  useEffect(() => {
    const stopped = new AbortController();
    watch(state.current, filterQuery(label, owner), stopped.signal, redraw);
    return () => stopped.abort();
  }, [label, owner]);
  const { runs, ...rest } = state.current;
  return { ...rest, runs: [...runs.values()] };
}

async function watch(state, query, signal, redraw) {
  let cursor = "";
  const restart = () => {
    cursor = "";
    Object.assign(state, { runs: new Map(), isComplete: false, isLinked: false, problem: "" });
  };
  const path = () => `/v1/watch?include_existing=true&${query}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`;
  const onMessage = (message) => {
    cursor = message.cursor ?? cursor;
    if (message.run) state.runs.set(message.run.runId, message.run);
    if (message.deletedRunId) state.runs.delete(message.deletedRunId);
    if (message.existingSent) state.isComplete = true;
    redraw();
  };
  const onLink = (isLinked) => {
    if (isLinked !== state.isLinked) redraw();
    state.isLinked = isLinked;
  };
  restart();
  for (;;) {
    try {
      await follow(path, signal, onMessage, onLink);
      return;
    } catch (error) {
      // A cursor of another history, or of a later state of this one: it was replaced or restored from a backup.
      if (cursor && GONE.includes(error.reason)) {
        restart();
        continue;
      }
      state.problem = error.message;
      redraw();
      return;
    }
  }
}

function filterQuery(label, owner) {
  const query = new URLSearchParams();
  const [name, ...value] = label.split("=");
  if (label) query.set(`labels[${name}]`, value.join("="));
  if (owner) query.set("owner", owner);
  return query;
}

const isShown = (run, state) =>
  !state || (state === "active" ? !hasEnded(run) : stateOf(run).toLowerCase() === state);

function load({ runsActive = 0, workers = 0, runsQueued = 0 }) {
  return `${runsActive} of ${workers} workers busy, ${runsQueued} queued`;
}

/** Return the description of the server, once it is known. */
export function useInfo() {
  const [info, setInfo] = useState(null);
  useEffect(() => {
    const stopped = new AbortController();
    call("GET", "/v1/info", undefined, stopped.signal).then(setInfo, () => {});
    return () => stopped.abort();
  }, []);
  return info;
}
