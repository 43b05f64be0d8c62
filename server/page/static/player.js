// Playback of one or several answers: at the pace at which they came, slower, or state by state.

import { duration, h, number } from "./dom.js";

export const PACES = [1, 1 / 2, 1 / 4, 1 / 10, 1 / 25, 1 / 100];
const READABLE_MS = 4000;

/** A pace as people say it. */
const paceName = (pace) => (pace === 1 ? "real time" : `${number(1 / pace)} times slower`);

/** The fastest pace at which a run of so many milliseconds can be followed. */
export const readablePace = (ms) => PACES.find((pace) => ms / pace >= READABLE_MS) ?? PACES.at(-1);

export class Player {
  #pace = 1;
  #chosen = null;
  #touched = false;
  #playing = false;
  #following = false;
  #recordings = [];
  #times = [];
  #time = 0;
  #last = 0;
  #request = 0;

  /** show(time, now): draws the answers as they were at a time. */
  constructor(show) {
    this.show = show;
    const button = (label, title, action) =>
      h("button", { type: "button", title, aria: { label: title }, on: { click: action } }, label);
    this.back = button("‹", "One state back (,)", () => this.step(-1));
    this.toggle = h("button", { type: "button", className: "toggle", on: { click: () => this.playOrPause() } }, "Pause");
    this.forward = button("›", "One state on (.)", () => this.step(1));
    this.slider = h("input", { type: "range", min: 0, max: 0, step: 1, aria: { label: "State" } });
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    const options = PACES.map((pace) => h("option", { value: String(pace) }, paceName(pace)));
    this.paces = h("select", { aria: { label: "Pace" } }, ...options);
    this.paces.addEventListener("change", () => this.choosePace(Number(this.paces.value)));
    this.readout = h("output", { className: "readout" });
    const controls = h("div", { className: "controls" }, this.back, this.toggle, this.forward, this.paces);
    const attributes = { className: "player", hidden: true, aria: { label: "Playback" } };
    this.element = h("section", attributes, controls, this.slider, this.readout);
  }

  /** Follows answers that are about to arrive. */
  start(recordings, now) {
    this.#recordings = recordings;
    this.#times = [];
    this.#time = now;
    this.#touched = false;
    this.#setPace(this.#chosen ?? 1);
    this.#following = this.#pace === 1;
    this.element.hidden = false;
    this.#play();
  }

  /** A state has arrived. */
  arrived(at) {
    this.#times.push(at);
  }

  /** Nothing more will arrive. A run too short to be seen is shown once more, slower, unless somebody took over. */
  finished() {
    const times = this.#times;
    this.element.hidden = !times.length; // nothing came that could be played
    const length = times.length > 1 ? times.at(-1) - this.#recordings[0].begun : 0;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const complete = this.#recordings.every((recording) => !recording.error && !recording.stopped);
    if (complete && times.length > 3 && length < READABLE_MS / 2 && !this.#touched && this.#chosen === null && !still) {
      this.#setPace(readablePace(length));
      this.#time = this.#recordings[0].begun;
      this.#following = false;
    }
    this.#play();
  }

  get #live() {
    return this.#recordings.some((recording) => recording.running);
  }

  #edge(now) {
    return this.#live ? now : (this.#times.at(-1) ?? now);
  }

  get #index() {
    let index = this.#times.length;
    while (index > 0 && this.#times[index - 1] > this.#time) index -= 1;
    return index;
  }

  playOrPause() {
    this.#touched = true;
    if (this.#playing) {
      this.#playing = false;
      this.#following = false;
    } else {
      if (!this.#live && this.#index >= this.#times.length) this.#time = this.#recordings[0].begun;
      this.#play();
    }
    this.draw(performance.now());
  }

  /** So many states on, or back. */
  step(count) {
    this.seek(this.#index + count);
  }

  /** The state with a number, from 0 (nothing yet) on. */
  seek(index) {
    this.#touched = true;
    this.#playing = false;
    this.#following = false;
    const bounded = Math.max(0, Math.min(this.#times.length, index));
    this.#time = bounded ? this.#times[bounded - 1] : (this.#recordings[0]?.begun ?? 0);
    this.draw(performance.now());
  }

  choosePace(pace) {
    this.#touched = true;
    this.#chosen = pace;
    this.#following = false;
    this.#setPace(pace);
  }

  #setPace(pace) {
    this.#pace = pace;
    this.paces.value = String(pace);
  }

  #play() {
    this.#playing = true;
    this.#last = performance.now();
    cancelAnimationFrame(this.#request);
    this.#request = requestAnimationFrame(() => this.#tick());
  }

  #tick() {
    const now = performance.now();
    const edge = this.#edge(now);
    if (this.#playing) {
      this.#time = this.#following ? edge : Math.min(this.#time + (now - this.#last) * this.#pace, edge);
      if (!this.#live && this.#time >= edge) this.#playing = false;
    }
    this.#last = now;
    this.draw(now);
    if (this.#playing || this.#live) this.#request = requestAnimationFrame(() => this.#tick());
  }

  /** Draws the answers and the controls. */
  draw(now) {
    const index = this.#index;
    const count = this.#times.length;
    this.show(this.#time, now);
    this.slider.max = count;
    this.slider.value = index;
    const seconds = duration(Math.max(0, this.#time - (this.#recordings[0]?.begun ?? 0)) / 1000);
    const said = `state ${number(index)} of ${number(count)}, ${seconds}`;
    this.slider.setAttribute("aria-valuetext", said);
    this.readout.textContent = `${number(index)} / ${number(count)} · ${seconds}`;
    const word = this.#playing ? "Pause" : !this.#live && index >= count ? "Play again" : "Play";
    if (this.toggle.textContent !== word) this.toggle.textContent = word;
    this.back.disabled = index === 0;
    this.forward.disabled = index >= count;
  }
}
