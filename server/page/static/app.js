// The page: what is asked for, what comes back, and what the server is doing.

import { chunks, hasKey, health, json, setKey } from "./api.js";
import { byId, copy, h, plural } from "./dom.js";
import { Fields } from "./fields.js";
import { Lane, MODES } from "./lane.js";
import { Monitor } from "./monitor.js";
import { Player } from "./player.js";
import { Recording } from "./recording.js";
import { curl, openai } from "./snippets.js";
import { sharedScale } from "./weave.js";

const ENDPOINTS = {
  chat: { path: "v1/chat/completions", schema: "ChatRequest", prompt: (text) => ({ messages: [{ role: "user", content: text }] }) },
  completion: { path: "v1/completions", schema: "CompletionRequest", prompt: (text) => ({ prompt: text }) },
};
const STATES = { loading: "Loading the model", restarting: "The engine is restarting", draining: "Shutting down", failed: "The engine has failed" };
const [SOON_MS, LATER_MS] = [1000, 5000];
const MAX_DRAWN_SEED = 2 ** 31;

let model = null; // what /v1/models says of the served model
let schemas = null; // of the OpenAPI document
let fields = null;
let lanes = [];
let running = null; // the AbortController of what is being generated
let needsKey = false;
let timer = 0;
const player = new Player(show);
const monitor = new Monitor(unlessRefused);

// --- The server's state ---

function tell(kind, text) {
  const line = byId("server-state");
  line.dataset.kind = kind;
  if (line.textContent !== text) line.textContent = text;
}

/** Asks how the server is, and asks again: soon while it is not ready, later while it is. */
async function watch() {
  clearTimeout(timer);
  const state = document.hidden ? "serving" : await health();
  const ready = state === "serving";
  let known = model !== null;
  if (ready && !known && byId("key-form").hidden) known = await learn();
  if (known) tell(ready ? "ready" : "waiting", ready ? model.root : (STATES[state] ?? "The server cannot be reached"));
  else if (!ready) tell("waiting", STATES[state] ?? "The server cannot be reached");
  offerToRun(ready && known);
  clearTimeout(timer);
  timer = setTimeout(watch, ready ? LATER_MS : SOON_MS);
}

/** Reads what the server serves and takes. Returns whether it was told. */
async function learn() {
  try {
    const [list, description] = await Promise.all([json("v1/models"), json("openapi.json")]);
    [model] = list.data;
    schemas = description.components.schemas;
    needsKey = Boolean(description.security);
    byId("about").textContent = `Lightcone ${description.info.version} · context ${plural(model.max_model_len, "token")} · `;
  } catch (error) {
    unlessRefused(error);
    return false;
  }
  byId("docs-link").hidden = needsKey; // a link carries no key
  byId("forget").hidden = !hasKey();
  for (const id of ["choices", "disclosures"]) byId(id).hidden = false;
  byId("suggestions").hidden = lanes.length > 0;
  offerModes();
  offerFields();
  return true;
}

/** Asks for a key if that is what was missing. Returns whether it was. */
function unlessRefused(error) {
  if (error.status !== 401) return false;
  const form = byId("key-form");
  byId("key-problem").textContent = hasKey() ? error.message : "";
  setKey("");
  model = null;
  form.hidden = false;
  route();
  tell("waiting", "A key is wanted");
  offerToRun(false);
  byId("key").focus();
  return true;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  byId("key-problem").textContent = "";
  route();
  watch();
});
byId("forget").addEventListener("click", () => {
  setKey("");
  location.reload();
});

// --- What is asked for ---

const endpoint = () => ENDPOINTS[new FormData(byId("composer")).get("endpoint")];
const chosen = () => [...byId("modes").querySelectorAll("input:checked")].map((box) => box.value);

function offerModes() {
  const order = Object.keys(MODES);
  const rank = (mode) => (order.indexOf(mode) + order.length + 1) % (order.length + 1);
  const modes = [...model.decodings].sort((one, other) => rank(one) - rank(other));
  const first = modes.includes("diffusion") && modes.includes("ar") ? ["ar", "diffusion"] : [model.decoding];
  const boxes = modes.map((mode) => {
    const box = h("input", { type: "checkbox", name: "mode", value: mode, checked: first.includes(mode) });
    return h("label", { title: MODES[mode] ?? "" }, box, h("span", {}, mode));
  });
  byId("modes").replaceChildren(byId("modes").querySelector("legend"), ...boxes);
}

function offerFields() {
  const texts = fields?.texts;
  fields = new Fields(schemas, endpoint().schema);
  if (texts) fields.texts = texts;
  byId("first-fields").replaceChildren(...fields.first);
  byId("other-fields").replaceChildren(...fields.others);
  changed();
}

/** What was typed as a request. Throws an Error that names a field at fault. */
function bodyOf(decoding) {
  const { prompt } = endpoint();
  const streamed = { stream: true, stream_options: { include_usage: true } };
  return { model: model.root, ...prompt(byId("prompt").value), decoding, ...fields.values(decoding), ...streamed };
}

/** Keeps what depends on the form up to date. */
function changed() {
  if (!fields) return;
  const modes = chosen();
  fields.offer(modes);
  const select = byId("code-mode");
  const kept = select.value;
  select.replaceChildren(...modes.map((mode) => h("option", { value: mode }, mode)));
  if (modes.includes(kept)) select.value = kept;
  if (!byId("code").hidden && modes.length) writeCode(select.value);
}

function writeCode(decoding) {
  const language = byId("code").querySelector("[aria-pressed=true]").dataset.language;
  try {
    const write = { curl, openai }[language];
    byId("snippet").textContent = write(endpoint().path, bodyOf(decoding), needsKey);
  } catch (error) {
    byId("snippet").textContent = `# ${error.message}`;
  }
}

byId("composer").addEventListener("input", (event) => (event.target.name === "endpoint" ? offerFields() : changed()));
for (const button of byId("composer").querySelectorAll("[aria-controls]")) {
  button.addEventListener("click", () => {
    const section = byId(button.getAttribute("aria-controls"));
    section.hidden = !section.hidden;
    button.ariaExpanded = String(!section.hidden);
    changed();
  });
}
for (const button of byId("code").querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    for (const other of byId("code").querySelectorAll("[data-language]")) other.setAttribute("aria-pressed", String(other === button));
    changed();
  });
}
byId("copy").addEventListener("click", () => copy(byId("snippet").textContent, byId("copy")));
for (const button of byId("suggestions").querySelectorAll("button")) {
  button.addEventListener("click", () => {
    byId("prompt").value = button.textContent;
    changed();
    if (!byId("run").disabled) run();
  });
}

// --- Generating ---

function offerToRun(possible) {
  const button = byId("run");
  button.textContent = running ? "Stop" : "Generate";
  button.disabled = !running && !possible;
}

const problem = (text) => (byId("request-problem").textContent = text);

async function run() {
  problem("");
  if (!byId("prompt").value.trim() && !byId("suggestions").hidden) {
    byId("prompt").value = byId("suggestions").querySelector("button").textContent; // the first thing a visitor presses works
    changed();
  }
  const modes = chosen();
  let bodies;
  try {
    if (!modes.length) throw new Error("Choose at least one way to decode.");
    if (!byId("prompt").value.trim()) throw new Error("Write a prompt first.");
    // Those that run beside each other draw the same seed, so that ar, speculative and auto give the same text.
    const seed = Math.floor(Math.random() * MAX_DRAWN_SEED);
    bodies = modes.map((mode) => ({ seed, ...bodyOf(mode) }));
  } catch (error) {
    problem(error.message);
    return;
  }
  const given = endpoint() === ENDPOINTS.completion;
  const around = { before: given ? byId("prompt").value : "", after: given ? (bodies[0].suffix ?? "") : "" };
  const begun = performance.now();
  running = new AbortController();
  offerToRun(true);
  const recordings = modes.map((mode) => new Recording(mode, begun));
  lanes = recordings.map((recording) => new Lane(recording, around));
  byId("lanes").replaceChildren(...lanes.map((lane) => lane.element));
  byId("stage").hidden = false;
  byId("shared").hidden = lanes.length < 2;
  byId("suggestions").hidden = true;
  byId("said").replaceChildren();
  say(`Generating with ${modes.join(", ")}`);
  player.start(recordings, begun);
  const voice = lanes.length === 1 ? aloud() : () => {};
  const { path } = endpoint();
  const { signal } = running;
  await Promise.all(recordings.map((recording, index) => follow(recording, path, bodies[index], signal, voice)));
  running = null;
  player.finished();
  for (const lane of lanes) {
    voice(lane.recording.text, true);
    say(lanes.length === 1 ? lane.outcome : `${lane.outcome}. ${lane.recording.text}`);
  }
  watch();
}

/** Records one answer as it arrives. */
async function follow(recording, path, body, signal, voice) {
  const options = { include_usage: true, include_drafts: true, continuous_usage_stats: true };
  try {
    for await (const chunk of chunks(path, { ...body, stream_options: options }, signal)) {
      const at = performance.now();
      const before = recording.frames.length;
      recording.add(chunk, at);
      if (recording.frames.length > before) player.arrived(at);
      voice(recording.text);
    }
    recording.end(performance.now());
  } catch (error) {
    const stopped = signal.aborted;
    recording.end(performance.now(), stopped ? { stopped } : { error });
    if (!stopped && !unlessRefused(error) && error.param) fields.complain(error.param, error.message);
  }
}

function show(time, now) {
  const scale = sharedScale(lanes.map((lane) => lane.recording));
  for (const lane of lanes) lane.show(time, now, scale);
}

/** Says something to people who hear the page. */
const say = (text) => byId("said").append(h("span", {}, `${text}\n`));

/** A function that says a growing text sentence by sentence; at the end, what is left of it. */
function aloud() {
  let said = 0;
  return (text, ended = false) => {
    const end = ended ? text.length : 1 + Math.max(...[". ", "! ", "? ", "\n"].map((mark) => text.lastIndexOf(mark)));
    if (end > said) say(text.slice(said, end));
    said = Math.max(said, end);
  };
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else run();
});

// --- Keys and views ---

const TYPING = "input:not([type=checkbox], [type=radio], [type=range]), textarea, select";
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    if (!running && !byId("run").disabled) run();
  } else if (event.key === "Escape" && running) running.abort();
  else if (event.target.closest?.(TYPING) || event.ctrlKey || event.metaKey || event.altKey || !lanes.length) return;
  else if (event.key === " " && !event.target.closest("button, a, summary, input")) player.playOrPause();
  else if (event.key === ",") player.step(-1);
  else if (event.key === ".") player.step(1);
  else return;
  event.preventDefault();
});

function route() {
  const server = location.hash === "#server";
  const open = byId("key-form").hidden;
  byId("server-view").hidden = !server || !open;
  byId("generate-view").hidden = server || !open;
  byId("to-server").ariaCurrent = server ? "page" : null;
  byId("to-generate").ariaCurrent = server ? null : "page";
  monitor.watch(server && open);
}

window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => document.hidden || watch());
byId("player").replaceWith(player.element);
route();
watch();
