// The cells of a run with their output, of which only the visible part is in the document.

import { Component, html } from "/page/preact.js";
import { duration, elapsed, instant, words } from "/page/format.js";
import { lastAtMost, Scroller } from "/page/virtual.js";

// Heights in pixels, as in style.css.
const HEAD = 32;
const LINE = 20;
const PICTURE = 320;
const TABLE_ROW = 30;
const MARKS = { SUCCEEDED: "✓", FAILED: "✗", ERROR_ALLOWED: "!", STOPPED: "■" };
const FRAME = `<!doctype html><meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"><style>
  :root { color-scheme: light dark; } body { margin: 0; font: 14px system-ui, sans-serif; }
  table { border-collapse: collapse; } td, th { padding: .3em .7em; border-bottom: 1px solid #8884; text-align: right; }
</style>`;

/** The cells of a `RunModel`. */
export class Timeline extends Component {
  constructor() {
    super();
    this._tops = [];
    this._height = 0;
  }

  /** Show a cell of the notebook. */
  show(cellIndex) {
    const place = this.props.model.cells.findIndex((one) => one.index === cellIndex);
    if (place >= 0) this._scroller.scrollTo(this._tops[place]);
  }

  render({ model, isFollowing, now }) {
    this._measure(model);
    const part = (top, bottom) => this._part(model, now, top, bottom);
    return html`<${Scroller} ref=${(one) => (this._scroller = one)} label="Cells and their output" class="timeline"
      height=${this._height} isFollowing=${isFollowing} render=${part} />`;
  }

  _measure(model) {
    const { cells, changedFrom } = model;
    if (changedFrom >= cells.length) return;
    let top = changedFrom ? this._tops[changedFrom - 1] + cells[changedFrom - 1].height : 0;
    for (let i = changedFrom; i < cells.length; i++) {
      this._tops[i] = top;
      cells[i].height = HEAD + cells[i].blocks.reduce((sum, one) => sum + heightOf(one), 0);
      top += cells[i].height;
    }
    this._height = top;
    this._tops.length = cells.length; // a stream that starts afresh has fewer
    model.changedFrom = cells.length;
  }

  _part(model, now, top, bottom) {
    const shown = [];
    for (let i = lastAtMost(this._tops, top); i < model.cells.length && this._tops[i] < bottom; i++) {
      const cell = model.cells[i];
      shown.push(head(cell, model.run, now, this._tops[i]));
      let at = this._tops[i] + HEAD;
      cell.blocks.forEach((block, place) => {
        const height = heightOf(block);
        if (at + height > top && at < bottom) shown.push(blockView(block, `${i}-${place}`, at, height, top, bottom));
        at += height;
      });
    }
    return shown;
  }
}

function heightOf(block) {
  if (block.kind === "text") return block.terminal.length * LINE;
  if (block.kind !== "rich") return LINE + 8;
  if (block.mimeType.startsWith("image/")) return PICTURE;
  block.height ??= Math.min(Math.max((block.content.match(/<(?:tr|p|li|br|div)\b/g)?.length ?? 0) + 1, 2), 12) * TABLE_ROW;
  return block.height;
}

function head(cell, run, now, top) {
  const time = cell.end ? (cell.duration ?? cell.end - cell.begin) : now - cell.begin;
  const state = cell.end ? cell.outcome : "RUNNING";
  const whole = elapsed(run, now);
  const begin = Math.max(cell.begin - instant(run.startTime), 0);
  const bar = { left: `${(100 * begin) / whole}%`, width: `max(2px, ${(100 * Math.max(time, 0)) / whole}%)` };
  return html`<div key=${`cell-${cell.index}`} class="cell ${words(state)}" style=${{ top: `${top}px` }}>
    <span class="mark" role="img" aria-label=${words(state)}>${MARKS[state] ?? "▸"}</span>
    <span class="number">${cell.index}</span>
    <code>${cell.firstLine}</code>
    <span class="span" aria-hidden="true"><span style=${bar}></span></span>
    <span class="time">${duration(time)}</span>
  </div>`;
}

function blockView(block, key, at, height, top, bottom) {
  const style = { top: `${at}px` };
  if (block.kind === "text") return textView(block, key, at, top, bottom);
  if (block.kind !== "rich") return html`<div key=${key} class="note ${block.kind}" style=${style}>${block.text}</div>`;
  style.height = `${height}px`;
  if (block.mimeType.startsWith("image/")) {
    const source = `data:${block.mimeType};base64,${block.content}`;
    return html`<img key=${key} class="rich" style=${style} src=${source} alt="Picture that the cell displayed" />`;
  }
  return html`<iframe key=${key} class="rich" style=${style} sandbox="" title="Table or page that the cell displayed"
    srcdoc=${FRAME + block.content}></iframe>`;
}

function textView({ name, terminal }, key, at, top, bottom) {
  const first = Math.max(Math.floor((top - at) / LINE), 0);
  const lines = terminal.lines.slice(first, Math.min(Math.ceil((bottom - at) / LINE), terminal.length));
  const style = { top: `${at + first * LINE}px` };
  return html`<pre key=${key} class="text ${name}" style=${style}>${lines.map((line, place) => html`<div
    key=${first + place}>${line.map(piece)}</div>`)}</pre>`;
}

function piece({ text, style }) {
  const names = ["bold", "faint", "italic", "underline"].filter((one) => style[one]);
  let { color, background } = style;
  if (style.inverse) [color, background] = [background ?? "ground", color ?? "ink"];
  const own = {};
  for (const [name, value] of [["color", color], ["background", background]]) {
    if (value !== undefined) own[name] = Number.isInteger(value) ? `var(--ansi-${value})` : named(value);
  }
  return names.length || color !== undefined || background !== undefined
    ? html`<span class=${names.join(" ")} style=${own}>${text}</span>`
    : text;
}

const named = (color) => (color === "ink" || color === "ground" ? `var(--${color})` : color);
