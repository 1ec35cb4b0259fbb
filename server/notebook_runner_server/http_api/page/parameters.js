// The parameters of a notebook, as far as a browser can read them, and the form's fields made of them.

const ASSIGNMENT = /^([\p{L}_][\p{L}\p{M}\p{N}_]*)\s*(?::[^=]+)?=(?!=)\s*(.*)$/u;
// eslint-disable-next-line no-control-regex
const LITERALS = [
  ["text", /^"([^"\\\x00-\x1f]*)"/],
  ["text", /^'([^'\\\x00-\x1f]*)'/],
  ["boolean", /^(True|False)\b/],
  ["number", /^(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])/],
];
const NUMBER = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;
const TOKENS = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

/**
 * Return the fields of a notebook's cell tagged `parameters`.
 *
 * A line `name = literal` is a field of its kind if the literal is a text without a backslash, a number, True or
 * False. Any other value is left to the notebook unless the reader gives one in JSON.
 */
export function notebookFields(notebook) {
  const sheets = notebook.worksheets ?? [notebook];
  const cells = sheets.flatMap((sheet) => sheet.cells ?? []);
  const cell = cells.find((one) => one.cell_type === "code" && tags(one).includes("parameters"));
  return cell ? sourceFields([cell.source ?? cell.input ?? []].flat().join("")) : [];
}

/** Parse JSON as Python writes it: NaN and infinities, which JSON does not have, become null. */
export function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|NaN|-?Infinity/g, (one) => (one.startsWith('"') ? one : "null")));
  }
}

/** Return the fields of the source of such a cell. */
export function sourceFields(source) {
  const fields = new Map();
  for (const line of source.split(/\r?\n/)) {
    const match = ASSIGNMENT.exec(line);
    if (match) fields.set(match[1], { name: match[1], isSet: false, ...literal(match[2]) });
  }
  return [...fields.values()];
}

/** Return the fields for the parameters of an earlier run, whose values are sent again as they are. */
export function runFields(parametersJson) {
  return members(parametersJson || "{}").map(([name, raw]) => ({ isSet: true, ...field(name, raw) }));
}

/** Return the parameters as a JSON object, with the values that are set or that the reader has changed. */
export function parametersJson(fields) {
  const members = fields
    .filter((one) => one.name && (one.isSet || one.value !== one.initial))
    .map((one) => `${JSON.stringify(one.name)}: ${json(one)}`);
  return members.length ? `{${members.join(", ")}}` : "";
}

/** Return the notebook of a run without the cell that the server injected, and without outputs. */
export function notebookAgain(notebook, wasInjected) {
  for (const sheet of notebook.worksheets ?? [notebook]) {
    sheet.cells = (sheet.cells ?? []).filter((one) => !(wasInjected && tags(one).includes("injected-parameters")));
    for (const cell of sheet.cells) if (cell.cell_type === "code") cell.outputs = [];
  }
  return notebook;
}

function tags(cell) {
  return Array.isArray(cell.metadata?.tags) ? cell.metadata.tags : [];
}

function literal(rest) {
  for (const [kind, pattern] of LITERALS) {
    const match = pattern.exec(rest);
    const after = match && rest.slice(match[0].length).trim();
    if (match && (!after || after.startsWith("#"))) {
      const initial = kind === "boolean" ? String(match[1] === "True") : match[1];
      return { kind, initial, value: initial, help: after.replace(/^#\s*/, "") };
    }
  }
  return { kind: "json", initial: "", value: "", help: `Default: ${rest}` };
}

function field(name, raw) {
  let [kind, value] = ["json", raw];
  if (raw.startsWith('"')) [kind, value] = ["text", JSON.parse(raw)];
  else if (raw === "true" || raw === "false") kind = "boolean";
  else if (NUMBER.test(raw)) kind = "number";
  // A field of one line would lose line breaks.
  if (kind === "text" && /[\r\n]/.test(value)) [kind, value] = ["json", raw];
  return { name, kind, value, initial: value, help: "" };
}

function json({ name, kind, value }) {
  if (kind === "text") return JSON.stringify(value);
  if (kind === "boolean") return value;
  const found = value.trim();
  if (kind === "number" && !NUMBER.test(found)) throw new Error(`${name} must be a number (got ${found || "nothing"}).`);
  try {
    parseJson(found);
  } catch {
    throw new Error(`${name} must be JSON, such as "text", 1.5, true, null or [1, 2] (got ${found || "nothing"}).`);
  }
  return found;
}

/** Return the members of a JSON object, each with the text of its value: numbers keep all their digits. */
function members(text) {
  const found = [];
  let [depth, name, raw] = [0, null, ""];
  for (const [token] of text.matchAll(TOKENS)) {
    if (depth === 1 && (token === "," || token === "}")) {
      if (name !== null) found.push([name, raw]);
      [name, raw] = [null, ""];
    } else if (depth === 1 && name === null) name = JSON.parse(token);
    else if (depth === 1 && token === ":" && !raw) continue;
    else if (depth >= 1) raw += token;
    if ("{[".includes(token)) depth += 1;
    if ("}]".includes(token)) depth -= 1;
  }
  return found;
}
