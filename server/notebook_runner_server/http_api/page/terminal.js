// Printed text as a terminal shows it: colours, carriage returns and backspaces.

// A control sequence, another escape sequence, or a control character that moves the cursor.
// eslint-disable-next-line no-control-regex
const CONTROL = /\x1b\[([0-?]*)([ -/]*[@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[^[\]]|[\r\n\b]/g;
// The beginning of a sequence at the end of a text; the rest comes with the next text.
// eslint-disable-next-line no-control-regex
const UNFINISHED = /\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]{0,200}\x1b?)?$/;
const PLAIN = Object.freeze({});

/**
 * The lines of a printed text. Each line is a list of pieces, `{text, style}`.
 *
 * A style has `color` and `background`, each the number of a colour or "rgb(…)", and `bold`, `faint`,
 * `italic`, `underline`, `inverse`.
 */
export class Terminal {
  constructor() {
    this.lines = [[]];
    this._style = PLAIN;
    this._column = null; // null: at the end of the line
    this._rest = "";
  }

  /** Print a text. */
  write(text) {
    text = this._rest + text;
    this._rest = UNFINISHED.exec(text)?.[0] ?? "";
    if (this._rest) text = text.slice(0, -this._rest.length);
    let end = 0;
    for (const match of text.matchAll(CONTROL)) {
      this._print(text.slice(end, match.index));
      end = match.index + match[0].length;
      this._control(match);
    }
    this._print(text.slice(end));
  }

  /** The number of lines; an empty last line does not count. */
  get length() {
    return this.lines.length - (this.lines.at(-1).length ? 0 : 1);
  }

  _control([sequence, numbers, kind]) {
    if (sequence === "\n") {
      this.lines.push([]);
      this._column = null;
    } else if (sequence === "\r") {
      this._column = 0;
    } else if (sequence === "\b") {
      this._column = Math.max((this._column ?? width(this.lines.at(-1))) - 1, 0);
    } else if (kind === "m") {
      this._style = restyled(this._style, numbers.split(/[;:]/).map(Number));
    } else if (kind === "K" && !Number(numbers)) {
      this._replaceLine(cut(this.lines.at(-1), 0, this._column ?? Infinity));
    } else if (kind === "K") {
      this._replaceLine([]);
    }
  }

  _print(text) {
    if (!text) return;
    const line = this.lines.at(-1);
    const piece = { text, style: this._style };
    if (this._column === null) {
      add(line, piece);
      return;
    }
    const end = this._column + text.length;
    const before = cut(line, 0, this._column);
    const after = cut(line, end, Infinity);
    const replaced = [];
    for (const one of [...before, piece, ...after]) add(replaced, one);
    this._replaceLine(replaced);
    this._column = after.length ? end : null;
  }

  _replaceLine(line) {
    this.lines[this.lines.length - 1] = line;
  }
}

function add(line, piece) {
  const last = line.at(-1);
  if (last?.style === piece.style) line[line.length - 1] = { text: last.text + piece.text, style: last.style };
  else line.push(piece);
}

const width = (line) => line.reduce((sum, one) => sum + one.text.length, 0);

function cut(line, begin, end) {
  const found = [];
  let at = 0;
  for (const { text, style } of line) {
    const part = text.slice(Math.max(begin - at, 0), Math.max(end - at, 0));
    if (part) found.push({ text: part, style });
    at += text.length;
  }
  return found;
}

function restyled(style, codes) {
  const changed = { ...style };
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i];
    if (code === 0) for (const name of Object.keys(changed)) delete changed[name];
    else if (code === 1) changed.bold = true;
    else if (code === 2) changed.faint = true;
    else if (code === 3) changed.italic = true;
    else if (code === 4) changed.underline = true;
    else if (code === 7) changed.inverse = true;
    else if (code === 22) changed.bold = changed.faint = false;
    else if (code === 23) changed.italic = false;
    else if (code === 24) changed.underline = false;
    else if (code === 27) changed.inverse = false;
    else if (code >= 30 && code <= 37) changed.color = code - 30;
    else if (code >= 90 && code <= 97) changed.color = code - 82;
    else if (code === 39) delete changed.color;
    else if (code >= 40 && code <= 47) changed.background = code - 40;
    else if (code >= 100 && code <= 107) changed.background = code - 92;
    else if (code === 49) delete changed.background;
    else if (code === 38 || code === 48) {
      const name = code === 38 ? "color" : "background";
      if (codes[i + 1] === 5) changed[name] = indexed(codes[i + 2]);
      if (codes[i + 1] === 2) changed[name] = `rgb(${codes.slice(i + 2, i + 5).map((one) => one & 255)})`;
      i += codes[i + 1] === 5 ? 2 : 4;
    }
  }
  return changed;
}

/** Return one of xterm's 256 colours. */
function indexed(number) {
  if (!(number >= 16 && number <= 255)) return number >= 0 && number < 16 ? number : 0;
  if (number >= 232) return `rgb(${Array(3).fill(8 + 10 * (number - 232))})`;
  const levels = [0, 95, 135, 175, 215, 255];
  const cube = number - 16;
  return `rgb(${[levels[Math.floor(cube / 36)], levels[Math.floor(cube / 6) % 6], levels[cube % 6]]})`;
}
