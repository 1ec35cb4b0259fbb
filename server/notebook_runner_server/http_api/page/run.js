// One run, as it is executed.

import { html, useEffect, useRef, useState } from "/page/preact.js";
import { artefact, call, follow } from "/page/api.js";
import { duration, elapsed, hasEnded, instant, moment, size, stateOf, title, words } from "/page/format.js";
import { RunModel } from "/page/model.js";
import { State, useClock, useInfo, useRedraw } from "/page/runs.js";
import { Timeline } from "/page/timeline.js";

const DISPLAY_BYTES = 256 * 1024; // the server keeps no larger representations
const KILL_GRACE = "5s";

/** One run: its state, cells, failure, values and artefacts. */
export function RunPage({ runId, go, announce }) {
  const { model, isLinked, problem } = useRun(runId);
  const run = model?.run;
  const state = run ? stateOf(run) : "";
  const now = useClock(run && !hasEnded(run));
  useEffect(() => {
    document.title = run ? `${words(state)}: ${title(run)}` : "Run – notebook-runner";
    if (run) announce(`Run ${title(run)}: ${words(state)}`);
  }, [state]);
  return html`
    <div class="heading">
      <h1 tabindex="-1">${run ? title(run) : "Run"}</h1>
      ${run && html`<${State} run=${run} /><${Actions} run=${run} go=${go} />`}
    </div>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    ${!isLinked && !problem && !(run && hasEnded(run)) && html`<p class="link-state">Connecting to the server …</p>`}
    ${run && html`<${Content} model=${model} now=${now} />`}`;
}

function Content({ model, now }) {
  const timeline = useRef();
  const { run, cellsCompleted, cellsTotal } = model;
  return html`
    <div class="progress">
      <progress aria-label="Cells that are done" max=${cellsTotal || 1} value=${cellsCompleted}></progress>
      <span>${cellsCompleted} of ${cellsTotal} cells</span>
      <span class="time">${duration(elapsed(run, now))}</span>
    </div>
    <${Failure} failure=${run.failure} show=${(cell) => timeline.current.show(cell)} />
    <${Facts} run=${run} />
    <h2>Cells</h2>
    ${model.cells.length
      ? html`<${Timeline} ref=${timeline} model=${model} now=${now} isFollowing=${!hasEnded(run) || model.wasActive} />`
      : html`<p class="empty">No cell has been started.</p>`}
    <${Values} heading="Parameters" json=${run.parametersJson} />
    <${Values} heading="Result values" json=${run.resultsJson} />
    ${run.startTime && html`<${Artefacts} run=${run} />`}`;
}

function useRun(runId) {
  const redraw = useRedraw();
  const state = useRef({ model: null, isLinked: false, problem: "" }).current;
  useEffect(() => {
    const stopped = new AbortController();
    read(state, runId, stopped.signal, redraw).catch((error) => {
      if (stopped.signal.aborted) return;
      state.problem = error.message;
      redraw();
    });
    return () => stopped.abort();
  }, [runId]);
  return state;
}

async function read(state, runId, signal, redraw) {
  const path = () => `/v1/runs/${state.model.run.runId}/progress?display_data_max_bytes=${DISPLAY_BYTES}` +
    `&after_sequence=${state.model.sequence}`;
  const onLink = (isLinked) => {
    if (isLinked !== state.isLinked) redraw();
    state.isLinked = isLinked;
  };
  const { run } = await call("GET", `/v1/runs/${encodeURIComponent(runId)}`, undefined, signal);
  const wasActive = !hasEnded(run);
  const begin = (known) => {
    state.model = new RunModel(known);
    state.model.wasActive = wasActive;
    redraw();
  };
  const onMessage = (event) => {
    state.model.apply(event);
    redraw();
    return event.runChanged && hasEnded(event.runChanged);
  };
  begin(run);
  for (;;) {
    try {
      await follow(path, signal, onMessage, onLink);
      return;
    } catch (error) {
      // The history is older than what is shown here: it was restored from a backup.
      if (error.reason !== "SEQUENCE_AHEAD") throw error;
      begin(state.model.run);
    }
  }
}

function Actions({ run, go }) {
  const info = useInfo();
  return html`<div class="actions">
    <a class="button" href=${`/start?from=${run.runId}`}>Run again</a>
    ${info && mayChange(info, run) && (hasEnded(run) ? html`<${Delete} run=${run} go=${go} />` : html`<${Kill} run=${run} />`)}
  </div>`;
}

/** Return whether the caller may kill and delete a run that it sees. */
function mayChange({ caller = "", scopes = [] }, { owner = "" }) {
  return scopes.includes("run-all") || (scopes.includes("run") && owner === caller);
}

function Kill({ run }) {
  const kill = ({ interrupt }) => call("POST", `/v1/runs/${run.runId}:kill`,
    JSON.stringify({ gracePeriod: interrupt.checked ? KILL_GRACE : undefined, noWait: true }));
  return html`<${Confirmed} name="Kill" isDisabled=${stateOf(run) === "KILLING"} act=${kill}>
    <p>${title(run)} is ${words(stateOf(run))}. What it has done so far stays in its notebook.</p>
    <label class="check"><input type="checkbox" name="interrupt" /> Interrupt the cell first, and wait 5 seconds</label>
  <//>`;
}

function Delete({ run, go }) {
  const remove = async () => {
    await call("DELETE", `/v1/runs/${run.runId}`);
    go("/");
  };
  return html`<${Confirmed} name="Delete" act=${remove}>
    <p>This removes the history, the executed notebook and the files of ${title(run)}. It cannot be undone.</p>
  <//>`;
}

/** A button for what cannot be undone: it asks before it calls `act` with the fields of the question. */
function Confirmed({ name, isDisabled, act, children }) {
  const dialog = useRef();
  const [problem, setProblem] = useState("");
  const heading = `${name.toLowerCase()}-title`;
  const onSubmit = async (event) => {
    setProblem("");
    try {
      await act(event.target.elements);
    } catch (error) {
      setProblem(error.message);
    }
  };
  return html`
    <button class="danger" disabled=${isDisabled} onClick=${() => dialog.current.showModal()}>${name}</button>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    <dialog ref=${dialog} aria-labelledby=${heading}>
      <form method="dialog" onSubmit=${onSubmit}>
        <h2 id=${heading}>${name} this run?</h2>
        ${children}
        <div class="actions">
          <button type="button" onClick=${() => dialog.current.close()}>Cancel</button>
          <button class="danger" name="confirm">${name} the run</button>
        </div>
      </form>
    </dialog>`;
}

function Failure({ failure, show }) {
  if (!failure) return null;
  const { message, cellIndex, traceback } = failure;
  return html`<section class="failure" aria-labelledby="failure-title">
    <h2 id="failure-title">Why it did not succeed</h2>
    <p>${message} ${cellIndex !== undefined && html`
      <button class="link" onClick=${() => show(cellIndex)}>Show cell ${cellIndex}</button>`}</p>
    ${traceback && html`<pre tabindex="0" role="region" aria-label="Traceback">${traceback}</pre>`}
  </section>`;
}

function Facts({ run }) {
  const facts = [
    ["Created", moment(instant(run.createTime))],
    ["Queue", run.queuePosition !== undefined && `${run.queuePosition} runs ahead`],
    ["Not before", run.notBefore && moment(instant(run.notBefore))],
    ["Owner", run.owner],
    ["Notebook", run.notebookPath || run.notebookUri],
    ["Kernel", run.kernelName],
    ["Labels", Object.entries(run.labels ?? {}).map((one) => one.join("=")).join(", ")],
    ["Processor time", run.cpuTime && duration(1000 * parseFloat(run.cpuTime))],
    ["Peak memory", run.peakMemoryBytes && size(Number(run.peakMemoryBytes))],
    ["Attempt", run.attempt > 1 && run.attempt],
    ["Repeats", run.retryOf && html`<a href=${`/runs/${run.retryOf}`}>${run.retryOf}</a>`],
    ["Repeated by", run.retriedBy && html`<a href=${`/runs/${run.retriedBy}`}>${run.retriedBy}</a>`],
    ["Written to", run.outputUri && (run.outputError || run.outputUri)],
    ["Repaired", (run.notebookRepairs ?? []).join(" ")],
    ["Run", html`<code>${run.runId}</code>`],
  ];
  return html`<dl class="facts">${facts.filter(([, value]) => value).map(([name, value]) => html`
    <div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function Values({ heading, json }) {
  if (!json) return null;
  return html`<h2>${heading}</h2><pre class="values" tabindex="0" role="region" aria-label=${heading}>${json}</pre>`;
}

function Artefacts({ run }) {
  const [page, setPage] = useState("");
  const [problem, setProblem] = useState("");
  const guarded = (action) => async () => {
    setProblem("");
    try {
      await action();
    } catch (error) {
      setProblem(error.message);
    }
  };
  const show = guarded(async () => setPage(await (await artefact(run.runId, "html")).text()));
  const save = (format, extension) => guarded(async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await artefact(run.runId, format));
    link.download = `${run.runId}.${extension}`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  return html`<h2>Executed notebook</h2>
    <div class="actions left">
      <button onClick=${show}>Show it here</button>
      <button onClick=${save("notebook", "ipynb")}>Save the notebook</button>
      <button onClick=${save("html", "html")}>Save as HTML</button>
      <button onClick=${save("files", "zip")}>Save its files</button>
    </div>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    ${page && html`<iframe class="notebook" sandbox="" title="Executed notebook" srcdoc=${page}></iframe>`}`;
}
