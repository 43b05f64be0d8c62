// The fields of a request, from the server's own description of them: name, kind, range, default and meaning.

import { h } from "./dom.js";

/** What this page sets itself, or has no way to show. */
const OWN = new Set([
  "model", "prompt", "messages", "decoding", "stream", "stream_options", "diffusing", "n", "logprobs", "top_logprobs",
]);
export const FIRST = ["temperature", "max_tokens", "seed"];
const INITIAL = { temperature: "0", max_tokens: "200" };

/** The part of a field's schema that says what a value looks like, null left aside. */
function shapeOf(schema, schemas) {
  let shape = schema;
  for (;;) {
    if (shape.$ref) shape = schemas[shape.$ref.split("/").at(-1)];
    else if (shape.anyOf) {
      const branches = shape.anyOf.filter((branch) => branch.type !== "null");
      if (branches.length !== 1) return { anyOf: branches };
      [shape] = branches;
    } else return shape;
  }
}

const LIMITS = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]];
const spelled = (limit) => (Math.abs(limit) >= 2 ** 31 ? `2^${Math.round(Math.log2(Math.abs(limit)))}` : String(limit));

/** The range of a number in words. */
function rangeOf(shape) {
  if (shape.minimum < -(2 ** 31)) return "any whole number";
  const { minimum, maximum } = shape;
  if (minimum !== undefined && maximum < 2 ** 31) return `${minimum} to ${maximum}`;
  const limits = LIMITS.filter(([name]) => shape[name] !== undefined && Math.abs(shape[name]) < 2 ** 31);
  return limits.map(([name, sign]) => `${sign} ${spelled(shape[name])}`).join(", ");
}

/** Text is one of several kinds of value: a string, or a list of them. */
const takesText = (shape) => shape.anyOf?.some((branch) => branch.type === "string") ?? false;

/** A value out of what was typed. Throws an Error that says what would be valid. */
function parse(text, shape) {
  if (text === "null") return null;
  if (shape.type === "integer" || shape.type === "number") {
    const value = Number(text);
    const whole = shape.type === "integer";
    const inside = LIMITS.every(([name, sign]) => {
      const limit = shape[name];
      if (limit === undefined) return true;
      return { "≥": value >= limit, ">": value > limit, "≤": value <= limit, "<": value < limit }[sign];
    });
    if (Number.isFinite(value) && inside && (!whole || Number.isSafeInteger(value))) return value;
    throw new Error(`must be a ${whole ? "whole " : ""}number ${rangeOf(shape)}`.trim());
  }
  if (shape.type === "string") return text;
  if (takesText(shape) && !/^\s*[[{"]/.test(text)) return text;
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("must be JSON");
  }
}

class Field {
  constructor(name, schema, schemas) {
    const shape = shapeOf(schema, schemas);
    Object.assign(this, { name, shape, modes: schema["x-decodings"] ?? null, default: schema.default });
    const id = `field-${name}`;
    this.input = this.#input(id, shape);
    const initial = INITIAL[name];
    if (initial !== undefined) this.input.value = initial;
    this.problem = h("p", { className: "problem", id: `${id}-problem` });
    this.note = h("p", { className: "only" });
    const kind = shape.type === "boolean" || shape.enum || shape.const !== undefined ? "" : this.#kind(shape);
    const label = h("label", { htmlFor: id }, name);
    const about = h("p", { className: "about", id: `${id}-about` }, (schema.description ?? "").replaceAll("`", ""));
    this.input.setAttribute("aria-describedby", `${id}-about ${id}-problem`);
    this.input.addEventListener("input", () => this.complain(""));
    const range = h("span", { className: "range" }, kind);
    this.element = h("div", { className: "field", data: { field: name } }, label, this.input, range, this.note, about, this.problem);
  }

  #kind(shape) {
    const range = rangeOf(shape);
    const unset = this.default ?? null;
    const simple = unset !== null && typeof unset !== "object" && unset !== "";
    const kind = range || { string: "text", integer: "whole number", number: "number" }[shape.type] || (takesText(shape) ? "text, or JSON" : "JSON");
    return simple ? `${kind}, default ${unset}` : kind;
  }

  #input(id, shape) {
    const values = shape.type === "boolean" ? [true, false] : (shape.enum ?? (shape.const !== undefined ? [shape.const] : null));
    if (values) {
      const unset = this.default === undefined || this.default === null ? "unset" : `default: ${this.default}`;
      const options = values.map((value) => h("option", { value: JSON.stringify(value) }, String(value)));
      return h("select", { id }, h("option", { value: "" }, unset), ...options);
    }
    const numeric = shape.type === "integer" || shape.type === "number";
    const properties = { id, type: "text", autocomplete: "off", spellcheck: false };
    if (numeric) properties.inputMode = "decimal";
    return h("input", properties);
  }

  get text() {
    return this.shape.type === "string" ? this.input.value : this.input.value.trim();
  }

  meansSomethingIn(decoding) {
    return this.modes === null || this.modes.includes(decoding);
  }

  /** The value that was typed; undefined where nothing was. Throws an Error that names the field. */
  value() {
    if (this.text === "") return undefined;
    try {
      return this.input.tagName === "SELECT" ? JSON.parse(this.input.value) : parse(this.text, this.shape);
    } catch (error) {
      this.complain(`It ${error.message}.`);
      this.input.focus();
      throw new Error(`${this.name}: it ${error.message}.`, { cause: error });
    }
  }

  complain(text) {
    this.problem.textContent = text;
    this.input.setAttribute("aria-invalid", String(text !== ""));
  }

  /** Marks the field as useless if it means nothing in any of the modes that are chosen. */
  offer(decodings) {
    const useful = decodings.filter((decoding) => this.meansSomethingIn(decoding));
    this.input.disabled = useful.length === 0;
    const some = this.modes !== null && useful.length < decodings.length;
    this.note.textContent = some ? `only ${this.modes.join(", ")}` : "";
  }
}

/** The fields of one endpoint. */
export class Fields {
  /** schemas: of the OpenAPI document. kind: the name of the request's. */
  constructor(schemas, kind) {
    const { properties } = schemas[kind];
    const names = Object.keys(properties).filter((name) => !OWN.has(name) && !properties[name]["x-without-use"]);
    this.fields = names.map((name) => new Field(name, properties[name], schemas));
    const isFirst = (field) => FIRST.includes(field.name);
    this.first = this.fields.filter(isFirst).map((field) => field.element);
    this.others = this.fields.filter((field) => !isFirst(field)).map((field) => field.element);
  }

  offer(decodings) {
    for (const field of this.fields) field.offer(decodings);
  }

  /** What was typed into the fields that mean something in a mode. Throws an Error that names a field at fault. */
  values(decoding) {
    const found = {};
    for (const field of this.fields) {
      const value = field.meansSomethingIn(decoding) ? field.value() : undefined;
      if (value !== undefined) found[field.name] = value;
    }
    return found;
  }

  /** What was typed, to be carried over to another endpoint. */
  get texts() {
    return Object.fromEntries(this.fields.map((field) => [field.name, field.input.value]));
  }

  set texts(texts) {
    for (const field of this.fields) {
      if (field.name in texts) field.input.value = texts[field.name];
    }
  }

  /** Shows what the server said about a field. Returns whether there is such a field. */
  complain(name, message) {
    const field = this.fields.find((candidate) => candidate.name === name);
    field?.complain(message);
    return field !== undefined;
  }
}
