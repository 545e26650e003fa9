// What to do next, and a join token by a button.
import { askJson, wantKey } from "./access.js";
import { announce, byId, command, h, replace } from "./dom.js";
import { clock } from "./format.js";
import { errorOf } from "./sse.js";

let token = null;
let failed = "";
let last = [];

async function makeToken() {
  failed = "";
  const response = await askJson("page/join-token", {});
  if (response.status === 401) {
    await wantKey();
    return makeToken();
  }
  if (response.ok) {
    token = await response.json();
    announce("A join token was made");
  } else failed = (await errorOf(response)).message;
  return showGuide(last);
}

function button() {
  const element = h("button", { type: "button", id: "make-token", "data-key": "make-token" }, token ? "Make another token" : "Make a join token");
  element.addEventListener("click", async () => {
    element.disabled = true;
    try {
      await makeToken();
    } catch (error) {
      failed = `The coordinator does not answer: ${error.message}`;
      showGuide(last);
    }
    byId("make-token")?.focus();
  });
  return element;
}

function tokenPart(step) {
  if (!step.takes_token) return [];
  return [
    button(),
    failed ? h("p", { class: "error", role: "alert" }, failed) : null,
    token ? h("p", { class: "hint", id: "token-about" }, `For one machine, once, until ${clock(token.expires_at_s)}, at ${token.address}${token.only_this_machine ? ", which only this machine reaches" : ""}.`) : null,
  ];
}

function stepItem(step) {
  let commands = step.commands;
  if (token && step.takes_token) commands = commands.some((one) => one.includes("TOKEN")) ? commands.map((one) => one.replace("TOKEN", token.token)) : [...commands, `shardnet join ${token.token}`];
  return h("li", { "data-done": String(step.done), "data-step": step.step },
    h("details", { open: !step.done, "data-key": `step-${step.step}-${step.done}` },
      h("summary", {}, step.title, step.done ? h("span", { class: "tag", "data-ready": "true" }, "done") : null),
      step.says.map((text) => h("p", {}, text)),
      commands.map((text) => command(text)),
      tokenPart(step)));
}

function askStep() {
  const base = new URL("v1", document.baseURI).href;
  return h("li", { "data-step": "ask" }, h("details", { "data-key": "step-ask" }, h("summary", {}, "Ask it from your own programs"),
    h("p", {}, "Any OpenAI client works with this base URL; in a terminal:"),
    command(base), command('shardnet generate "Why is the sky blue?"')));
}

export function showGuide(steps) {
  last = steps;
  replace(byId("steps"), steps.map(stepItem), askStep());
}
