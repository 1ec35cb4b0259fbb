// How states, times and sizes are written.

const ENDED = ["SUCCEEDED", "FAILED", "TIMED_OUT", "KILLED", "CRASHED", "INTERRUPTED"];
export const STATES = ["QUEUED", "STARTING", "RUNNING", "KILLING", ...ENDED];

/** Return a run's state in the contract, without its prefix. */
export const stateOf = (run) => (run.state ?? "").replace("RUN_STATE_", "");

export const hasEnded = (run) => ENDED.includes(stateOf(run));

/** Return a state as words: "timed out". */
export const words = (state) => state.toLowerCase().replaceAll("_", " ");

/** Return what a run is called. */
export const title = (run) => run.name || run.notebookPath || run.notebookUri || run.runId;

/** Return a time of the contract in milliseconds, or NaN. */
export const instant = (time) => Date.parse(time ?? "");

/** Return a moment for readers: the time today, and the date as well on other days. */
export function moment(time) {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? date.toLocaleTimeString() : date.toLocaleString();
}

/** Return a number of milliseconds as a duration. */
export function duration(milliseconds) {
  if (!Number.isFinite(milliseconds)) return "";
  const seconds = Math.max(milliseconds, 0) / 1000;
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Return a number of bytes with a unit. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let [value, unit] = [bytes, 0];
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

/** Return how long a run has been executed, in milliseconds. */
export function elapsed(run, now) {
  const end = run.endTime ? instant(run.endTime) : now;
  return end - instant(run.startTime);
}
