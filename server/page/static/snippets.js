// The request as people send it elsewhere: by curl, or by OpenAI's package for Python.

import { absolute } from "./api.js";

const OPENAI = new Set([
  "model", "messages", "prompt", "suffix", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop",
  "presence_penalty", "frequency_penalty", "logit_bias", "response_format", "stream", "echo",
]);

/** Python for a JSON value. */
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** One argument of a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A command line. needsKey: the server wants a key, which is named and not shown. */
export function curl(path, body, needsKey) {
  const key = needsKey ? ` \\\n  -H "Authorization: Bearer $LIGHTCONE_API_KEY"` : "";
  return `curl -N ${quoted(absolute(path))}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body, null, 2))}`;
}

/** A program of a few lines. */
export function openai(path, body, needsKey) {
  const own = Object.entries(body).filter(([name]) => !OPENAI.has(name));
  const chat = path.includes("chat");
  const lines = Object.entries(body).filter(([name]) => OPENAI.has(name)).map(([name, value]) => `    ${name}=${python(value)},`);
  if (own.length) lines.push(`    extra_body=${python(Object.fromEntries(own))},`);
  const piece = chat ? "chunk.choices[0].delta.content" : "chunk.choices[0].text";
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(absolute("v1"))}, api_key=${needsKey ? 'os.environ["LIGHTCONE_API_KEY"]' : '"unused"'})`,
    `stream = client.${chat ? "chat.completions" : "completions"}.create(`,
    ...lines,
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    `        print(${piece} or "", end="", flush=True)`,
  ].join("\n");
}
