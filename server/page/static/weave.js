// The picture of an answer: passes from left to right, positions from top to bottom, and what was known of each.

const ROOMY = 32;

/** The next of 32, 64, 128, ... : the picture is not rescaled with every pass. */
function roomFor(count) {
  let room = ROOMY;
  while (room < count) room *= 2;
  return room;
}

/** The scale that several answers share, so that they can be compared. */
export function sharedScale(recordings) {
  const done = recordings.every((recording) => !recording.running);
  let columns = 1;
  let rows = 1;
  for (const { frames } of recordings) {
    columns = Math.max(columns, frames.length);
    for (const frame of frames) rows = Math.max(rows, frame.settled + Math.max(frame.cells.length, frame.rejectedCells));
  }
  return done ? { columns: Math.max(columns, 12), rows: Math.max(rows, 12) } : { columns: roomFor(columns), rows: roomFor(rows) };
}

/** Which of the ten shades a confidence has; a token that no confidence chose has the middle one. */
export const shadeOf = (confidence) => (confidence === null ? 5 : Math.min(9, Math.max(0, Math.floor(confidence * 10))));

/** The colours of the page as it is now, light or dark. */
function colours(element) {
  const style = getComputedStyle(element);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    past: read("--weave-past"), front: read("--ink"), mask: read("--weave-mask"), rejected: read("--rejected"),
    shades: Array.from({ length: 10 }, (_, index) => read(`--shade-${index}`)),
  };
}

export class Weave {
  #drawn = { key: "", columns: 0 };

  constructor(canvas) {
    this.canvas = canvas;
    this.palette = null;
    new ResizeObserver(() => this.repaint()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
  }

  /** Paints everything anew at the next draw. */
  repaint() {
    this.palette = null;
    this.#drawn.key = "";
    if (this.recording) this.draw(this.recording, this.scale);
  }

  /** Paints what is new of a recording. */
  draw(recording, scale) {
    Object.assign(this, { recording, scale });
    const { canvas } = this;
    const density = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * density);
    const height = Math.round(canvas.clientHeight * density);
    if (!width) return;
    const key = [width, height, scale.columns, scale.rows].join();
    if (key !== this.#drawn.key) {
      canvas.width = width;
      canvas.height = height;
      this.#drawn = { key, columns: 0 };
    }
    this.palette ??= colours(canvas);
    const context = canvas.getContext("2d");
    const { frames } = recording;
    while (this.#drawn.columns < frames.length) {
      this.#column(context, frames, this.#drawn.columns, width / scale.columns, height / scale.rows);
      this.#drawn.columns += 1;
    }
  }

  #column(context, frames, index, wide, high) {
    const frame = frames[index];
    const before = frames[index - 1]?.settled ?? 0;
    const gap = wide > 4 ? 1 : 0;
    const left = Math.round(index * wide);
    const width = Math.max(Math.round((index + 1) * wide) - left - gap, 1);
    const fill = (colour, from, to) => {
      if (to <= from) return;
      const top = Math.round(from * high);
      const space = high > 5 ? 1 : 0;
      context.fillStyle = colour;
      context.fillRect(left, top, width, Math.max(Math.round(to * high) - top - space, 1));
    };
    fill(this.palette.past, 0, before);
    for (let row = before; row < frame.settled; row += 1) fill(this.palette.front, row, row + 1);
    frame.cells.forEach((cell, offset) => {
      const row = frame.settled + offset;
      fill(cell.text === null ? this.palette.mask : this.palette.shades[shadeOf(cell.confidence)], row, row + 1);
    });
    for (let row = 0; row < frame.rejectedCells && !frame.cells.length; row += 1) {
      fill(this.palette.rejected, frame.settled + row, frame.settled + row + 1);
    }
  }

  /** Where a frame ends, as a share of the width. */
  position(index) {
    return this.scale ? (index + 1) / this.scale.columns : 0;
  }
}
