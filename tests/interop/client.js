"use strict";
// Runs a notebook from Node.js: starts it, waits its turn where the server is busy, follows it through broken
// connections, and reads the executed notebook in pages.
//
//     PROTO_PATH=proto:FOLDER node client.js HOST:PORT NOTEBOOK EXECUTED [PARAMETERS]
//
// PROTO_PATH names the folders that hold the contract and google/rpc/error_details.proto, separated by colons;
// PARAMETERS is a JSON object. What happens is told on standard output, one JSON object a line.

const { createHash, randomUUID } = require("node:crypto");
const { readFileSync, writeFileSync } = require("node:fs");
const { setTimeout: pause } = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const PROTOS = ["notebook_runner/v1/notebook_runner.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"];
const PAGE_BYTES = 4096; // small, so that a small notebook has several
const CALL_SECONDS = 30;

const definition = loader.loadSync(PROTOS, {
  includeDirs: process.env.PROTO_PATH.split(":"),
  keepCase: true, // names as in the contract
  longs: Number,
  enums: String,
  oneofs: true,
  json: true, // so that the details of a status are decoded
});
const { NotebookRunner } = grpc.loadPackageDefinition(definition).notebook_runner.v1;

const tell = (what) => console.log(JSON.stringify(what));

/** Calls a method that answers once. */
function call(client, method, request) {
  const deadline = Date.now() + CALL_SECONDS * 1000;
  return new Promise((resolve, reject) => {
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** Returns a detail of the status that a call ended with, by the name of its message; undefined where there is none. */
function detail(error, name) {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const status = packed && definition["google.rpc.Status"].deserialize(packed);
  return status?.details.find((each) => each["@type"].endsWith(`/google.rpc.${name}`));
}

/** Starts a run; where the server is busy, waits as long as it says and tries again. */
async function start(client, request) {
  for (;;) {
    try {
      return (await call(client, "start", request)).run;
    } catch (error) {
      const info = detail(error, "ErrorInfo");
      if (info?.domain !== "notebook-runner" || info.reason !== "RUNNER_BUSY") throw error;
      const { seconds = 0, nanos = 0 } = detail(error, "RetryInfo").retry_delay;
      tell({ busy: info.metadata.run_id, retry_after: seconds + nanos / 1e9 });
      await pause(seconds * 1000 + nanos / 1e6);
    }
  }
}

/** Yields each event of a run once and in order, until it has ended. */
async function* follow(client, run_id) {
  let after_sequence = 0;
  for (;;) {
    try {
      for await (const event of client.progress({ run_id, after_sequence })) {
        if (event.event === "heartbeat") continue;
        after_sequence = event.sequence;
        yield event;
      }
      return; // it ends well only after the run has
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE) throw error;
      await pause(200);
    }
  }
}

/** Reads the executed notebook of a run that has ended, page by page. */
async function read(client, run_id) {
  const pages = [];
  let page = { next_offset: 0, as_of_sequence: 0 };
  do {
    const { next_offset: offset, as_of_sequence } = page;
    page = await call(client, "output", { run_id, offset, as_of_sequence, max_bytes: PAGE_BYTES });
    pages.push(page.content);
  } while (page.next_offset < page.total_bytes);
  const whole = Buffer.concat(pages);
  if (createHash("sha256").update(whole).digest("hex") !== page.sha256) throw new Error("the sum is another");
  tell({ pages: pages.length, bytes: whole.length });
  return whole;
}

/** Returns a JSON object as a google.protobuf.Struct. */
function struct(object) {
  return { fields: Object.fromEntries(Object.entries(object).map(([name, each]) => [name, value(each)])) };
}

function value(each) {
  if (each === null) return { nullValue: "NULL_VALUE" };
  if (Array.isArray(each)) return { listValue: { values: each.map(value) } };
  if (typeof each === "object") return { structValue: struct(each) };
  return { [{ boolean: "boolValue", number: "numberValue", string: "stringValue" }[typeof each]]: each };
}

async function main([target, notebook, executed, parameters = "{}"]) {
  const client = new NotebookRunner(target, grpc.credentials.createInsecure());
  const run = await start(client, {
    request_id: randomUUID(),
    notebook_content: readFileSync(notebook),
    parameters: struct(JSON.parse(parameters)),
  });
  tell({ started: run.run_id });
  let ended;
  for await (const event of follow(client, run.run_id)) {
    tell({ sequence: event.sequence, event: event.event });
    if (event.cell_output?.stream) tell({ printed: event.cell_output.stream.text });
    if (event.run_changed) ended = event.run_changed;
  }
  writeFileSync(executed, await read(client, run.run_id));
  tell({ ended: ended.state, exception: ended.failure?.exception_name ?? "" });
  client.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
