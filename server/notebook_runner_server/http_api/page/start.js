// The form that starts a notebook.

import { html, useEffect, useState } from "/page/preact.js";
import { artefact, call } from "/page/api.js";
import { title } from "/page/format.js";
import { notebookAgain, notebookFields, parametersJson, parseJson, runFields } from "/page/parameters.js";
import { useInfo } from "/page/runs.js";

/**
 * The form that starts a notebook.
 *
 * A notebook is `{name, content}` of a file, or `{path}`, `{uri}`, or {} for the server's default notebook.
 */
export function StartPage({ from, go }) {
  const info = useInfo();
  const [earlier, setEarlier] = useState(null);
  const [notebook, setNotebook] = useState({});
  const [fields, setFields] = useState([]);
  const [problem, setProblem] = useState("");
  const [isSending, setSending] = useState(false);
  const fail = (error) => setProblem(error.message);
  useEffect(() => {
    document.title = "Start a notebook – notebook-runner";
    if (from) load(from).then((found) => (setEarlier(found.run), setNotebook(found.notebook), setFields(found.fields)), fail);
  }, []);
  const onFile = async ([file]) => {
    if (!file) return;
    setProblem("");
    try {
      const content = await file.text();
      setFields(notebookFields(parseJson(content)));
      setNotebook({ name: file.name.replace(/\.ipynb$/, ""), content });
    } catch (error) {
      setProblem(`${file.name} is not a notebook (${error.message}).`);
    }
  };
  const name = ({ target }, kind) => {
    target.form.elements.file.value = "";
    setNotebook({ [kind]: target.value.trim() });
  };
  const onSubmit = async (event) => {
    event.preventDefault();
    setProblem("");
    setSending(true);
    try {
      const { elements } = event.target;
      const { run } = await call("POST", "/v1/runs", JSON.stringify({
        requestId: requestId(),
        ...named(notebook),
        name: elements.name.value || undefined,
        kernelName: elements.kernel.value || undefined,
        labels: labels(elements.labels.value),
        parametersJson: parametersJson(fields) || undefined,
        runTimeout: elements.timeout.value ? `${elements.timeout.value}s` : undefined,
        allowErrors: elements.errors.checked || undefined,
      }));
      go(`/runs/${run.runId}`);
    } catch (error) {
      setSending(false);
      fail(error);
      if (error.reason === "UNKNOWN_PARAMETER") setFields(known(fields, error.values));
    }
  };
  const change = (place, changed) => setFields(fields.map((one, i) => (i === place ? { ...one, ...changed } : one)));
  const add = () => setFields([...fields, { name: "", kind: "json", isSet: true, isNew: true, initial: "", value: "", help: "" }]);
  return html`
    <h1 tabindex="-1">${from ? "Run again" : "Start a notebook"}</h1>
    <form class="start" onSubmit=${onSubmit}>
      <fieldset><legend>Notebook</legend>
        ${earlier && html`<p>The notebook of <a href=${`/runs/${earlier.runId}`}>${title(earlier)}</a>, or another one:</p>`}
        <label>File <input type="file" name="file" accept=".ipynb" onChange=${(event) => onFile(event.target.files)} /></label>
        ${info?.hasNotebookRoot && html`<label>Path on the server <input name="path" value=${notebook.path ?? ""}
          placeholder=${info.defaultNotebook ?? ""} onInput=${(event) => name(event, "path")} /></label>`}
        ${info?.uriSchemes && html`<label>URI <input name="uri" value=${notebook.uri ?? ""} placeholder=${`${info.uriSchemes[0]}://…`}
          onInput=${(event) => name(event, "uri")} /></label>`}
      </fieldset>
      <fieldset><legend>Parameters</legend>
        ${!fields.length && html`<p class="hint">The fields of a file appear when it is chosen; for other notebooks, add
          the parameters by name.</p>`}
        ${fields.map((one, i) => html`<${Field} key=${one.isNew ? `new-${i}` : one.name} field=${one} change=${(changed) => change(i, changed)} />`)}
        <button type="button" onClick=${add}>Add a parameter</button>
      </fieldset>
      <details><summary>Options</summary>
        <label>Name <input name="name" maxlength="200" value=${earlier?.name ?? notebook.name ?? ""} /></label>
        <label>Labels <input name="labels" placeholder="key=value, key=value" value=${joined(earlier?.labels)} /></label>
        <label>Kernel <select name="kernel" value=${earlier?.kernelName ?? ""}><option value="">the notebook's</option>
          ${(info?.kernels ?? []).map((one) => html`<option>${one.name}</option>`)}</select></label>
        <label>Time limit in seconds <input name="timeout" type="number" min="1" /></label>
        <label class="check"><input name="errors" type="checkbox" /> Go on after cells that fail</label>
      </details>
      ${problem && html`<p class="problem" role="alert">${problem}</p>`}
      <div class="actions left"><button class="primary" disabled=${isSending}>Start</button></div>
    </form>`;
}

function Field({ field, change }) {
  const { name, kind, value, help, isNew } = field;
  const onInput = (event) => change({ value: event.target.value });
  if (isNew) {
    return html`<div class="pair">
      <label>Name <input value=${name} onInput=${(event) => change({ name: event.target.value.trim() })} /></label>
      <label>Value as JSON <input value=${value} onInput=${onInput} /></label>
    </div>`;
  }
  if (kind === "boolean") {
    return html`<label class="check"><input type="checkbox" name=${`p:${name}`} checked=${value === "true"}
      onChange=${(event) => change({ value: String(event.target.checked) })} /> <code>${name}</code> ${help}</label>`;
  }
  return html`<label><span><code>${name}</code> ${kind === "json" ? "(JSON) " : ""}${help}</span>
    <input name=${`p:${name}`} value=${value} inputmode=${kind === "number" ? "decimal" : undefined} onInput=${onInput} /></label>`;
}

async function load(runId) {
  const { run } = await call("GET", `/v1/runs/${encodeURIComponent(runId)}`);
  const set = runFields(run.parametersJson);
  if (run.notebookPath) return { run, fields: set, notebook: { path: run.notebookPath } };
  if (run.notebookUri) return { run, fields: set, notebook: { uri: run.notebookUri } };
  const executed = parseJson(await (await artefact(run.runId, "notebook")).text());
  const notebook = notebookAgain(executed, Boolean(run.parametersJson));
  const names = new Set(set.map((one) => one.name));
  const fields = [...set, ...notebookFields(notebook).filter((one) => !names.has(one.name))];
  return { run, fields, notebook: { name: run.name, content: JSON.stringify(notebook) } };
}

/** Return the fields that name the notebook in a request. */
function named({ path, uri, content }) {
  if (path) return { notebookPath: path };
  if (uri) return { notebookUri: uri };
  return content === undefined ? {} : { notebookContent: base64(content) };
}

function base64(text) {
  const bytes = new TextEncoder().encode(text);
  let found = "";
  // In parts: a call takes no more arguments than fit on the stack.
  for (let i = 0; i < bytes.length; i += 0x8000) found += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(found);
}

/** Return the fields with those that the notebook has, as the server names them. */
function known(fields, { known: names = "" }) {
  const found = names.split(",").filter((name) => name && !fields.some((one) => one.name === name));
  return [...fields, ...found.map((name) => ({ name, kind: "json", isSet: false, initial: "", value: "", help: "" }))];
}

function labels(text) {
  const pairs = text.split(",").map((one) => one.trim()).filter(Boolean).map((one) => one.split("="));
  return Object.fromEntries(pairs.map(([name, ...value]) => [name.trim(), value.join("=").trim()]));
}

const joined = (labels) => Object.entries(labels ?? {}).map((one) => one.join("=")).join(", ");

/** Return a random id, so that a request that is sent twice starts one run. */
function requestId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("");
}
