// Calls of the HTTP API. A token is asked for when the server wants one.

const TOKEN = "notebook-runner-token";
const FIRST_DELAY = 250; // milliseconds before a stream is opened again
const MAX_DELAY = 5000;
const TRANSIENT = [408, 429, 499, 500, 502, 503, 504];
const TRANSIENT_CODES = [1, 4, 8, 10, 13, 14]; // of gRPC, in the last line of a stream that failed
const JSON_LINES = "application/x-ndjson";

let token = sessionStorage.getItem(TOKEN) ?? "";
let asking = null;
let askForToken = async () => {};

/** A call that the server refused. */
export class ApiError extends Error {
  constructor(status, isTransient) {
    super(status.message || "The server refused the call.");
    const info = (status.details ?? []).find((one) => one["@type"]?.endsWith(".ErrorInfo"));
    this.reason = info?.reason ?? "";
    this.values = info?.metadata ?? {};
    this.isTransient = isTransient;
  }
}

/** Set what asks the reader for a token; it calls `setToken` before it returns. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

/** Keep a token in memory and, if wished, until the tab is closed. */
export function setToken(value, isKept) {
  token = value;
  sessionStorage.removeItem(TOKEN);
  if (isKept) sessionStorage.setItem(TOKEN, value);
}

/** Make a call, and return the response in JSON. */
export async function call(method, path, body, signal) {
  const response = await request(method, path, body, "application/json", signal);
  return response.json();
}

/** Return an artefact of a run. */
export async function artefact(runId, format, signal) {
  const path = `/v1/runs/${encodeURIComponent(runId)}/output?format=${encodeURIComponent(format)}`;
  return (await request("GET", path, undefined, "*/*", signal)).blob();
}

/**
 * Read a stream until it is complete, and open it again when it breaks.
 *
 * @param path Returns the path that continues the stream.
 * @param onMessage Called with each message; returns whether the stream is complete.
 * @param onLink Called with whether the stream is open.
 */
export async function follow(path, signal, onMessage, onLink) {
  let delay = FIRST_DELAY;
  while (!signal.aborted) {
    try {
      for await (const message of messages(path(), signal)) {
        onLink(true);
        delay = FIRST_DELAY;
        if (onMessage(message)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && !error.isTransient) throw error;
    }
    onLink(false);
    await pause(delay, signal);
    delay = Math.min(2 * delay, MAX_DELAY);
  }
}

async function* messages(path, signal) {
  const response = await request("GET", path, undefined, JSON_LINES, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const message = JSON.parse(line);
        if (message.error) throw new ApiError(message.error, TRANSIENT_CODES.includes(message.error.code));
        yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function request(method, path, body, accept, signal) {
  for (;;) {
    const headers = { accept };
    const used = token;
    if (used) headers.authorization = `Bearer ${used}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    const response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
    if (response.ok) return response;
    const status = await response.json().catch(() => ({ message: `HTTP ${response.status}` }));
    if (response.status !== 401) throw new ApiError(status, TRANSIENT.includes(response.status));
    // Several calls may be refused at once: one question is enough.
    if (used === token) {
      asking ??= askForToken(used ? status.message : "").finally(() => (asking = null));
      await asking;
    }
    signal?.throwIfAborted();
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
