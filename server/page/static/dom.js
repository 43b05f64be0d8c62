// Elements without markup: text stays text, whatever a model says.

/** An element. Properties are set as they are; `on` holds listeners, `data` and `aria` what their names say. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { on = {}, data = {}, aria = {}, ...rest } = properties;
  for (const [name, value] of Object.entries(rest)) {
    if (value !== undefined) element[name] = value;
  }
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  for (const [name, value] of Object.entries(data)) element.dataset[name] = value;
  for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

const NUMBERS = [0, 1, 2].map(
  (digits) => new Intl.NumberFormat(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits }),
);

/** A number as people read it; a dash where there is none. */
export function number(value, digits = 0) {
  return Number.isFinite(value) ? NUMBERS[digits].format(value) : "–";
}

/** A time span as people read it. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  return seconds < 1 ? `${number(seconds * 1000)} ms` : `${number(seconds, seconds < 10 ? 2 : 1)} s`;
}

export const plural = (count, noun, nouns = `${noun}s`) => `${number(count)} ${count === 1 ? noun : nouns}`;

/** Copies text, and says so on the button that was pressed. */
export async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy"; // a page that is not served securely may not touch the clipboard
  }
  setTimeout(() => (button.textContent = label), 1600);
}
