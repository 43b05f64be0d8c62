// The server, as this page speaks to it: the paths are relative, so that a prefix before the page is one before them.

const KEY = "lightcone.key";
let key = sessionStorage.getItem(KEY) ?? "";

export const hasKey = () => key !== "";

/** Keeps a key for as long as this tab is open; an empty one forgets it. */
export function setKey(value) {
  key = value;
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** What the server refused, or could not be asked. status is 0 where no answer came. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param });
  }
}

/** The URL of a path of the API, for people to use elsewhere. */
export const absolute = (path) => new URL(path, document.baseURI).href;

/** A response with status 200. Throws ApiError, or what an aborted fetch throws. */
export async function call(path, { body, signal } = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy's answer: the status says all that is known.
  }
  const message = error.message ?? `The server answered ${response.status} ${response.statusText}.`;
  throw new ApiError(message, { status: response.status, code: error.code, param: error.param });
}

export const json = async (path, options) => (await call(path, options)).json();

/** The server's word for its state, or null where it does not answer. Needs no key; /ready would be no 200 while it loads. */
export async function health() {
  try {
    const response = await fetch("health", { cache: "no-store" });
    return (await response.json()).status;
  } catch {
    return null;
  }
}

/** The chunks of a streamed answer. Throws ApiError, also for a stream that breaks off. */
export async function* chunks(path, body, signal) {
  const response = await call(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.code });
        yield chunk;
      }
    }
  } catch (error) {
    if (signal?.aborted || error instanceof ApiError) throw error;
    throw new ApiError("The connection was lost before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ApiError("The stream ended before the answer was complete.");
}
