// One answer on the page: its text as it resolves, the picture of its passes, and what it cost.

import { duration, h, number, plural } from "./dom.js";
import { Weave, shadeOf } from "./weave.js";

const FIGURES = [
  ["tokensPerSecond", "tokens a second", (value) => number(value, value < 100 ? 1 : 0)],
  ["tokensPerPass", "tokens a pass", (value) => number(value, 2)],
  ["passes", "passes", (value) => number(value)],
  ["firstText", "to first text", duration],
];

export const MODES = {
  auto: "Drafts by diffusion, verified; as wide as pays",
  speculative: "Drafts by diffusion, verified; a fixed width",
  ar: "One token a pass",
  diffusion: "Blocks refined until every token is sure",
};

export class Lane {
  #shown = -2;
  #figures = {};

  /** before and after: given text that the answer stands between. */
  constructor(recording, { before = "", after = "" } = {}) {
    this.recording = recording;
    this.settled = h("span", { className: "settled" });
    this.fresh = h("span", { className: "fresh" });
    this.draft = h("span", { className: "draft", aria: { hidden: "true" } });
    const given = (text) => h("span", { className: "given" }, text);
    this.text = h("div", { className: "text" }, given(before), this.settled, this.fresh, this.draft, given(after));
    this.state = h("p", { className: "state" });
    this.cover = h("div", { className: "cover" });
    const canvas = h("canvas", { className: "weave" });
    this.weave = new Weave(canvas);
    const figures = FIGURES.map(([name, label]) => {
      this.#figures[name] = h("dd", {}, "–");
      return h("div", { data: { figure: name } }, h("dt", {}, label), this.#figures[name]);
    });
    this.element = h(
      "article",
      { className: "lane", data: { decoding: recording.decoding }, aria: { label: recording.decoding, busy: "true" } },
      h("header", {}, h("h3", {}, recording.decoding), h("p", { className: "about" }, MODES[recording.decoding] ?? "")),
      h("dl", { className: "figures" }, ...figures),
      h("div", { className: "picture", aria: { hidden: "true" } }, canvas, this.cover),
      this.text,
      this.state,
    );
  }

  /** Shows the answer as it was at a time. now: for the figures while it runs. */
  show(time, now, scale) {
    const index = this.recording.indexAt(time);
    this.weave.draw(this.recording, scale);
    const share = Math.max(0, Math.min(1, index < 0 ? 0 : this.weave.position(index)));
    this.cover.style.left = `${share * 100}%`;
    if (index !== this.#shown) this.#write(index);
    this.#count(now);
  }

  #write(index) {
    const frame = this.recording.frames[index];
    const before = index === this.#shown + 1 && index > 0 ? this.recording.frames[index - 1].length : frame?.length ?? 0;
    this.#shown = index;
    const end = frame?.length ?? 0;
    this.settled.textContent = this.recording.text.slice(0, before);
    if (end > before) {
      const fresh = h("span", { className: "fresh" }, this.recording.text.slice(before, end));
      this.fresh.replaceWith(fresh); // a new element, so that its animation begins anew
      this.fresh = fresh;
    } else this.fresh.textContent = "";
    this.draft.replaceChildren(...(frame ? this.#draft(frame) : []));
  }

  #draft(frame) {
    const parts = [h("span", { className: "held" }, frame.held)];
    if (frame.rejected) parts.push(h("s", { className: "rejected" }, frame.rejected));
    for (const cell of frame.cells) {
      if (cell.text === null) parts.push(h("span", { className: "mask" }));
      else {
        const classes = `token shade-${shadeOf(cell.confidence)}${cell.edited ? " edited" : ""}`;
        const title = cell.confidence === null ? "" : `confidence ${number(cell.confidence, 2)}`;
        parts.push(h("span", { className: classes, title }, cell.text));
      }
    }
    return parts;
  }

  #count(now) {
    const figures = this.recording.figures(now);
    for (const [name, , format] of FIGURES) {
      const text = format(figures[name]);
      if (this.#figures[name].textContent !== text) this.#figures[name].textContent = text;
    }
    const { kind, text } = this.#status(figures);
    if (this.state.textContent !== text) this.state.textContent = text;
    this.state.dataset.kind = kind;
    this.element.setAttribute("aria-busy", String(this.recording.running));
    this.element.classList.toggle("refused", kind === "error" && !this.recording.frames.length);
  }

  #status(figures) {
    const { recording } = this;
    const cost = `${plural(figures.tokens, "token")} in ${duration(figures.seconds)}`;
    if (recording.error) return { kind: "error", text: recording.error.message };
    if (recording.stopped) return { kind: "stopped", text: `Stopped after ${cost}` };
    if (recording.running) return { kind: "running", text: recording.frames.length ? cost : "Waiting for the first pass" };
    const cut = recording.finishReason === "length" ? " · cut at max_tokens" : "";
    const kept = Number.isFinite(figures.accepted) ? ` · ${number(figures.accepted * 100)} % of drafts kept` : "";
    return { kind: "done", text: `${cost}${kept} · seed ${figures.seed ?? "unknown"}${cut}` };
  }

  /** One line about how the answer ended. */
  get outcome() {
    const { recording } = this;
    return `${recording.decoding}: ${this.#status(recording.figures(recording.ended)).text}`;
  }
}
