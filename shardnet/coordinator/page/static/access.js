// The key, where the coordinator wants one: asked for once, kept for this tab alone.
import { byId } from "./dom.js";

const NAME = "shardnet-key";
let waiting = [];

function stored() {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}

let key = stored();

/** Ask the coordinator something, with the key if there is one. Paths are relative to the page. */
export function ask(path, { headers = {}, ...rest } = {}) {
  const own = key ? { Authorization: `Bearer ${key}` } : {};
  return fetch(new URL(path, document.baseURI), { ...rest, headers: { ...headers, ...own }, cache: "no-store", credentials: "omit" });
}

export const askJson = (path, body, more = {}) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...more });

/** The coordinator refused us: show the door, and wait until a key was given. */
export function wantKey() {
  const error = byId("door-error");
  error.hidden = !key;
  error.textContent = key ? "The coordinator does not know this key." : "";
  const door = byId("door");
  if (door.hidden) {
    door.hidden = false;
    byId("key").focus();
  }
  return new Promise((resolve) => waiting.push(resolve));
}

export function letIn() {
  byId("door").hidden = true;
}

byId("door").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  byId("key").value = "";
  try {
    sessionStorage.setItem(NAME, key);
  } catch { /* it lives as long as the page, then */ }
  const all = waiting;
  waiting = [];
  for (const one of all) one();
});
