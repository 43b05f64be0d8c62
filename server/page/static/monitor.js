// The server now: its metrics, asked for once a second while somebody looks.

import { call } from "./api.js";
import { byId, duration, h, number } from "./dom.js";

const PERIOD_MS = 1000;
const KEPT = 120;
const SVG = "http://www.w3.org/2000/svg";

/** The samples of an exposition by name, labels added up but for phase and bucket. */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^lightcone_(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const [, name, labels = "", value] = match;
    const kind = /(?:^|,)(?:phase|le)="([^"]*)"/.exec(labels)?.[1];
    const key = kind === undefined ? name : `${name}/${kind}`;
    found.set(key, (found.get(key) ?? 0) + Number(value));
  }
  return found;
}

/** A quantile of a histogram's growth, within the bucket it falls into. */
function quantile(now, then, name, share) {
  const buckets = [...now.keys()].filter((key) => key.startsWith(`${name}_bucket/`));
  const growth = buckets.map((key) => [key.split("/")[1], now.get(key) - (then.get(key) ?? 0)]);
  const bounds = growth.map(([bound, count]) => [bound === "+Inf" ? Infinity : Number(bound), count]);
  bounds.sort(([one], [other]) => one - other);
  const wanted = (bounds.at(-1)?.[1] ?? 0) * share;
  if (!wanted) return NaN;
  let [low, below] = [0, 0];
  for (const [bound, count] of bounds) {
    if (count >= wanted) return bound === Infinity ? low : low + ((bound - low) * (wanted - below)) / (count - below);
    [low, below] = [bound, count];
  }
  return NaN;
}

/** What grew between two samples, a second or as a share of something else that grew. */
const growth = (now, then, name) => (now.get(name) ?? 0) - (then.get(name) ?? 0);
function passes(now, then) {
  const names = [...now.keys()].filter((key) => key.startsWith("passes_total/") && !key.endsWith("/prefill"));
  return names.reduce((sum, name) => sum + growth(now, then, name), 0);
}
const ratio = (one, other) => (other > 0 ? one / other : NaN);
const percent = (value) => (Number.isFinite(value) ? `${number(value * 100, value < 0.1 ? 1 : 0)} %` : "–");

/** name, unit, explanation, value from (now, a second ago, ten seconds ago, seconds), format, a fixed top of the scale */
const TILES = [
  ["Throughput", "tokens a second", (now, then, _, seconds) => growth(now, then, "generation_tokens_total") / seconds, number],
  ["Running", "choices that hold pages", (now) => now.get("requests_running"), number],
  ["Waiting", "choices that wait for pages", (now) => now.get("requests_waiting"), number],
  ["KV pages", "held by running choices", (now) => now.get("kv_cache_usage_ratio"), percent, 1],
  ["Tokens a pass", "over ten seconds; prompts not counted", (now, _, old) => ratio(growth(now, old, "generation_tokens_total"), passes(now, old)), (value) => number(value, 2)],
  ["Acceptance", "of drafted tokens, over ten seconds", (now, _, old) => ratio(growth(now, old, "accepted_draft_tokens_total"), growth(now, old, "draft_tokens_total")), percent, 1],
  ["First text", "median over ten seconds", (now, _, old) => quantile(now, old, "time_to_first_token_seconds", 0.5), duration],
  ["Speed of light", "of what the device could do, last passes", (now) => now.get("speed_of_light_ratio") || NaN, percent, 1],
];

class Tile {
  constructor([label, unit, read, format, top]) {
    Object.assign(this, { read, format, top, values: [] });
    this.value = h("dd", {}, "–");
    this.line = document.createElementNS(SVG, "path");
    const drawing = document.createElementNS(SVG, "svg");
    drawing.setAttribute("viewBox", "0 0 120 32");
    drawing.setAttribute("preserveAspectRatio", "none");
    drawing.setAttribute("aria-hidden", "true");
    this.area = document.createElementNS(SVG, "path");
    this.area.setAttribute("class", "area");
    drawing.append(this.area, this.line);
    this.element = h("div", { className: "tile" }, h("dt", {}, label), this.value, h("dd", { className: "unit" }, unit), drawing);
  }

  add(value) {
    this.values = [...this.values, Number.isFinite(value) ? value : null].slice(-KEPT);
    this.value.textContent = this.format(value ?? NaN);
    const top = this.top ?? Math.max(...this.values.map((item) => item ?? 0), 1e-9) * 1.1;
    let line = "";
    let area = "";
    let begun = null;
    this.values.forEach((item, index) => {
      const x = KEPT - this.values.length + index + 1;
      if (item === null) {
        if (begun !== null) area += `L${x - 1} 32L${begun} 32Z`;
        begun = null;
        return;
      }
      const y = (30 - Math.min(item / top, 1) * 28).toFixed(2);
      line += `${begun === null ? "M" : "L"}${x} ${y}`;
      area += `${begun === null ? `M${x} 32L` : "L"}${x} ${y}`;
      begun ??= x;
    });
    if (begun !== null) area += `L${KEPT} 32L${begun} 32Z`;
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }
}

export class Monitor {
  #samples = [];
  #timer = 0;
  #wanted = false;

  /** failed(error): told about each failure to read the metrics. */
  constructor(failed) {
    this.failed = failed;
    this.tiles = TILES.map((tile) => new Tile(tile));
    byId("tiles").append(...this.tiles.map((tile) => tile.element));
    document.addEventListener("visibilitychange", () => this.#schedule(0));
  }

  /** Begins or stops asking. */
  watch(wanted) {
    this.#wanted = wanted;
    this.#schedule(0);
  }

  #schedule(ms) {
    clearTimeout(this.#timer);
    if (this.#wanted && !document.hidden) this.#timer = setTimeout(() => this.#sample(), ms);
  }

  async #sample() {
    try {
      const values = parseMetrics(await (await call("metrics")).text());
      this.#add({ at: performance.now(), values });
      byId("monitor-state").textContent = "";
    } catch (error) {
      this.#samples = [];
      byId("monitor-state").textContent = error.message;
      if (this.failed(error)) return;
    }
    this.#schedule(PERIOD_MS);
  }

  #add(sample) {
    const last = this.#samples.at(-1);
    this.#samples = [...this.#samples, sample].slice(-11);
    if (!last) return;
    const seconds = (sample.at - last.at) / 1000;
    const restarted = growth(sample.values, last.values, "generation_tokens_total") < 0;
    if (restarted) this.#samples = [sample]; // another process counts from nothing
    else for (const tile of this.tiles) tile.add(tile.read(sample.values, last.values, this.#samples[0].values, seconds));
  }
}
