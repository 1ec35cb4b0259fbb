// What is known of one run, from its events.

import { instant } from "/page/format.js";
import { Terminal } from "/page/terminal.js";

// What a representation of rich data is shown as, the richest first.
const SHOWN = ["image/png", "image/jpeg", "image/gif", "image/svg+xml", "text/html", "text/markdown",
  "application/json", "text/plain"];

/**
 * A run and its cells.
 *
 * A cell has `blocks`, its output in order: {kind: "text", name, terminal}, {kind: "rich", mimeType, content},
 * {kind: "value", name, text}, {kind: "error", text} and {kind: "note", text}.
 */
export class RunModel {
  constructor(run) {
    this.run = run;
    this.sequence = "0";
    this.cellsCompleted = run.cellsCompleted ?? 0;
    this.cellsTotal = run.cellsTotal ?? 0;
    this.cells = []; // those that were started, in this order
    this.changedFrom = 0; // the first of them that has changed since this was last set
    this._places = new Map();
  }

  /** Apply an event. */
  apply(event) {
    if (event.heartbeat) return;
    this.sequence = event.sequence;
    this.cellsCompleted = event.cellsCompleted ?? 0;
    this.cellsTotal = event.cellsTotal ?? 0;
    if (event.runChanged) this.run = event.runChanged;
    if (event.cellStarted) this._start(event.cellStarted, event.time);
    if (event.cellOutput) this._output(event.cellOutput);
    if (event.cellFinished) this._finish(event.cellFinished, event.time);
  }

  /** Return the cell that is being executed. */
  get current() {
    const last = this.cells.at(-1);
    return last && !last.end ? last : undefined;
  }

  _start({ cellIndex = 0, firstLine = "" }, time) {
    this._places.set(cellIndex, this.cells.length);
    this._touch(this.cells.length);
    this.cells.push({
      index: cellIndex, firstLine, begin: instant(time), end: 0, outcome: "", blocks: [], willClear: false,
    });
  }

  _finish({ cellIndex = 0, outcome = "", duration }, time) {
    const cell = this._cell(cellIndex);
    if (!cell) return;
    cell.end = instant(time);
    cell.duration = parseFloat(duration ?? "0") * 1000;
    cell.outcome = outcome.replace("CELL_OUTCOME_", "");
  }

  _output({ cellIndex = 0, stream, display, error, clear, cut }) {
    const cell = this._cell(cellIndex);
    if (!cell) return;
    if (clear?.wait) cell.willClear = true;
    else if (clear || cell.willClear) [cell.blocks, cell.willClear] = [[], false];
    if (stream) print(cell.blocks, stream.name ?? "stdout", stream.text ?? "");
    if (display?.result) cell.blocks.push({ kind: "value", ...value(display.result) });
    else if (display) cell.blocks.push(rich(display));
    if (error) cell.blocks.push({ kind: "error", text: `${error.exceptionName}: ${error.exceptionMessage ?? ""}` });
    if (cut) cell.blocks.push({ kind: "note", text: "Further output is left out: the limit is reached." });
  }

  _cell(index) {
    const place = this._places.get(index);
    if (place !== undefined) this._touch(place);
    return this.cells[place];
  }

  _touch(place) {
    this.changedFrom = Math.min(this.changedFrom, place);
  }
}

function print(blocks, name, text) {
  let block = blocks.at(-1);
  if (block?.kind !== "text" || block.name !== name) {
    block = { kind: "text", name, terminal: new Terminal() };
    blocks.push(block);
  }
  block.terminal.write(text);
}

const value = ({ name, valueJson }) => ({ name, text: `${name} = ${valueJson}` });

function rich({ data = [], omitted }) {
  const shown = SHOWN.map((type) => data.find((one) => one.mimeType === type && one.content !== undefined))
    .find((one) => one);
  if (shown) {
    const { mimeType, content } = shown;
    if (["text/plain", "text/markdown", "application/json"].includes(mimeType)) {
      const terminal = new Terminal();
      terminal.write(text(content));
      return { kind: "text", name: "display", terminal };
    }
    return { kind: "rich", mimeType, content: mimeType === "text/html" ? text(content) : content };
  }
  const types = data.map((one) => one.mimeType).join(", ") || `${omitted ?? "no"} representations`;
  return { kind: "note", text: `${types}: too large to show here. The notebook has it.` };
}

/** Return what is encoded as base64 and UTF-8. */
export function text(content) {
  return new TextDecoder().decode(Uint8Array.from(atob(content), (one) => one.charCodeAt(0)));
}
