// The server, as the page asks it. Every failure becomes one `Trouble` with one clear line; no other error leaves here.

import { t, number } from "./words.js";

const KEY = "afina.key";
export const state = { onKeyRefused: () => {} };

/** kind: "key", "busy", "lost", "refused", "stopped". */
export class Trouble extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

// -- the key ---------------------------------------------------------------------------------------------------------

/** The key of the link, taken out of the address bar at once; a fragment is never sent to anybody. */
export function takeKeyFromAddress() {
  const found = /^#key=([\x21-\x7e]{8,200})$/.exec(location.hash);
  if (!found) return false;
  history.replaceState(null, "", location.pathname + location.search);
  setKey(decodeURIComponent(found[1]));
  return true;
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

// -- requests --------------------------------------------------------------------------------------------------------

async function send(path, { method = "GET", body, signal } = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw lost(error);
  }
  if (!response.ok) throw await refused(response);
  return response;
}

function lost(error) {
  return error?.name === "AbortError" ? new Trouble("stopped", t("stopped")) : new Trouble("lost", t("lost"));
}

async function refused(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    said = "";
  }
  if (response.status === 401) {
    forgetKey();
    state.onKeyRefused();
    return new Trouble("key", t("key_refused"));
  }
  if (response.status === 429) return busy(t("too_many"), response);
  if (response.status === 503) return busy(said || t("busy"), response);
  return new Trouble("refused", one_line(said) || t("failed", { status: response.status }));
}

function busy(text, response) {
  const wait = Number(response.headers.get("Retry-After"));
  return new Trouble("busy", wait > 0 ? `${text} ${t("again_in", { s: number(wait) })}` : text);
}

export const one_line = (text) => String(text).replace(/\s+/g, " ").trim().slice(0, 600);

export async function get(path, signal) {
  return read(await send(path, { signal }));
}

export async function post(path, body, signal) {
  return read(await send(path, { method: "POST", body, signal }));
}

async function read(response) {
  try {
    return await response.json();
  } catch (error) {
    throw lost(error);
  }
}

/** Server-sent events of a POST: yields {event, data} with data parsed; ends with the stream, or raises Trouble. */
export async function* stream(path, body, signal) {
  const response = await send(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      let chunk;
      try {
        chunk = await reader.read();
      } catch (error) {
        throw lost(error);
      }
      if (chunk.done) return;
      const events = (rest + chunk.value).split("\n\n");
      rest = events.pop();
      for (const text of events) {
        const found = parsed(text);
        if (found) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(text) {
  let event = "message";
  const data = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) event = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  const joined = data.join("\n");
  if (!joined || joined === "[DONE]") return joined ? { event: "end", data: null } : null;
  const value = JSON.parse(joined);
  if (value.error && typeof value.error.message === "string") throw new Trouble("refused", one_line(value.error.message));
  return { event, data: value };
}
