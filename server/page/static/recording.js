// One answer as it arrived, state by state, so that it can be shown again at any pace.

const MASK = "\u2592";

/** Characters at the beginning that are the same in both. */
function agreeing(one, other) {
  let count = 0;
  while (count < one.length && count < other.length && one[count] === other[count]) count += 1;
  return count;
}

/** The settled characters that a draft's text begins with: they are held back, as a stop string may claim them. */
function heldIn(draft) {
  const joined = draft.tokens.map((token) => token.text ?? MASK).join("");
  for (let start = 0; start < draft.text.length; start += 1) {
    if (joined.startsWith(draft.text.slice(start))) return draft.text.slice(0, start);
  }
  return draft.text;
}

/** Nothing that is shown has changed from one state to the next. */
function sameCells(one, other) {
  const texts = (frame) => frame.cells.map((cell) => cell.text ?? MASK);
  return one.settled === other.settled && texts(one).join("\0") === texts(other).join("\0");
}

export class Recording {
  /** begun: when the request was sent, in the milliseconds of performance.now(). */
  constructor(decoding, begun) {
    Object.assign(this, { decoding, begun, text: "", frames: [], usage: null, finishReason: null });
    Object.assign(this, { error: null, stopped: false, ended: null, firstText: null });
  }

  get running() {
    return this.ended === null;
  }

  /** Adds a chunk that arrived at a time. */
  add(chunk, at) {
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const delta = choice.text ?? choice.delta?.content ?? "";
    this.text += delta;
    if (delta && this.firstText === null) this.firstText = at;
    this.finishReason = choice.finish_reason ?? this.finishReason;
    const last = this.frames.at(-1);
    const settled = this.usage?.completion_tokens ?? (last?.settled ?? 0) + (delta ? 1 : 0);
    const frame = { at, length: this.text.length, settled, passes: this.usage?.diffusion?.passes ?? 0 };
    Object.assign(frame, { cells: [], held: "", rejected: "", rejectedCells: 0, raw: null });
    if (choice.draft) this.#draw(frame, choice.draft, last);
    if (last?.raw && last.raw.masked === 0 && delta && choice.draft?.block !== last.raw.block) {
      this.#reject(frame, last, delta, choice.finish_reason);
    }
    if (!last || delta || frame.rejected || !sameCells(frame, last)) this.frames.push(frame);
  }

  /** The draft as cells: one a position, with what was written there before if that has changed. */
  #draw(frame, draft, last) {
    frame.raw = draft;
    frame.held = heldIn(draft);
    frame.block = draft.block;
    frame.step = draft.step;
    let left = draft.text.length - frame.held.length;
    draft.tokens.forEach((token, index) => {
      const text = token.text === null ? null : token.text.slice(0, left);
      left -= Math.min((token.text ?? MASK).length, left);
      const before = last?.raw?.block === draft.block ? last.cells[frame.settled + index - last.settled] : undefined;
      const edited = Boolean(before && before.text !== null && text !== null && before.text !== text);
      frame.cells.push({ text, confidence: token.confidence, edited });
    });
  }

  /** What verification has just taken back of a complete draft. */
  #reject(frame, last, delta, finishReason) {
    const drafted = last.held + last.cells.map((cell) => cell.text ?? "").join("");
    const same = agreeing(drafted, delta);
    if (same >= drafted.length || (finishReason && same >= delta.length)) return;
    let kept = last.held.length; // whole tokens: two that differ may begin alike
    for (const cell of last.cells) {
      if (kept + cell.text.length > same) break;
      kept += cell.text.length;
    }
    frame.rejected = drafted.slice(kept);
    frame.rejectedCells = Math.max(last.cells.length - Math.max(frame.settled - last.settled - 1, 0), 0);
  }

  /** The answer is complete, was stopped, or has failed. */
  end(at, { error = null, stopped = false } = {}) {
    Object.assign(this, { ended: at, error, stopped });
  }

  /** The newest frame at a time, as an index; -1 before the first. */
  indexAt(time) {
    let low = 0;
    let high = this.frames.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.frames[middle].at <= time) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** Figures of the answer so far, as they were measured, whatever the pace at which it is shown. */
  figures(now) {
    const seconds = ((this.ended ?? now) - this.begun) / 1000;
    const tokens = this.usage?.completion_tokens ?? 0;
    const diffusion = this.usage?.diffusion;
    return {
      seconds,
      tokens,
      tokensPerSecond: tokens ? tokens / seconds : NaN,
      tokensPerPass: diffusion?.passes ? tokens / diffusion.passes : NaN,
      passes: diffusion ? diffusion.passes : NaN,
      firstText: this.firstText === null ? NaN : (this.firstText - this.begun) / 1000,
      accepted: diffusion?.draft_tokens ? diffusion.accepted_draft_tokens / diffusion.draft_tokens : NaN,
      seed: diffusion?.seed,
    };
  }
}
