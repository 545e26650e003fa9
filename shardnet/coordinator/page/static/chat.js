// The chat box: asks the same HTTP API as everybody. The conversation lives in this page and nowhere else.
import { askJson, wantKey } from "./access.js";
import { byId, h } from "./dom.js";
import { AnswerView } from "./message.js";
import { errorOf, events } from "./sse.js";

const NEAR = 60;

export class Chat {
  constructor() {
    this.messages = [];
    this.running = null;
    this.list = byId("messages");
    this.question = byId("question");
    this.nameOf = (nodeId) => nodeId.slice(0, 12);
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.question.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    byId("chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this.clear());
    byId("tools").addEventListener("input", () => this.tools());
    this.showEmpty();
  }

  showEmpty() {
    if (!this.messages.length) this.list.replaceChildren(h("p", { class: "empty" }, "Nothing was asked yet. What you write goes to the machines of this swarm, and to nobody else."));
  }

  clear() {
    this.stop();
    this.messages = [];
    this.showEmpty();
    this.question.focus();
  }

  stop() {
    this.running?.stopping.abort();
  }

  /** The models of the swarm, as the picture has them. */
  setModels(models) {
    const select = byId("model"), before = select.value;
    const options = models.map((one) => [one.model_id, `${one.model}${one.ready ? "" : " (not ready)"}`]);
    const shown = JSON.stringify(options);
    if (shown === this.shownModels) return;
    this.shownModels = shown;
    select.replaceChildren(...(options.length ? options : [["", "no model"]]).map(([value, text]) => h("option", { value }, text)));
    select.disabled = !options.length;
    if (options.some(([value]) => value === before)) select.value = before;
    else select.value = models.find((one) => one.ready)?.model_id ?? options[0]?.[0] ?? "";
  }

  /** What the swarm says of requests in progress. */
  setAnswers(answers) {
    const mine = this.running && answers.find((one) => one.request_id === this.running.view.requestId);
    if (mine) this.running.view.look(mine, this.nameOf);
  }

  tools() {
    const text = byId("tools").value.trim(), error = byId("tools-error");
    error.hidden = true;
    if (!text) return undefined;
    try {
      const tools = JSON.parse(text);
      return Array.isArray(tools) ? tools : [tools];
    } catch (wrong) {
      error.textContent = `This is no JSON: ${wrong.message}`;
      error.hidden = false;
      return null;
    }
  }

  body() {
    const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
    const system = byId("system").value.trim();
    return {
      model: byId("model").value || undefined,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.messages],
      stream: true,
      stream_options: { include_usage: true },
      return_token_ids: true, // then the last event says which nodes it was
      temperature: number("temperature"),
      max_tokens: number("most"),
      tools: this.tools(),
    };
  }

  send() {
    const text = this.question.value.trim();
    if (!text || this.running) return;
    if (this.tools() === null) {
      byId("options").open = true;
      byId("tools").focus();
      return;
    }
    this.say({ role: "user", content: text }, h("article", { class: "message user", "aria-label": "You" }, text));
    this.question.value = "";
    this.answer();
  }

  say(message, element) {
    this.list.querySelector(".empty")?.remove();
    this.messages.push(message);
    this.list.append(element);
    this.list.scrollTop = this.list.scrollHeight;
  }

  async answer() {
    const view = new AnswerView(), stopping = new AbortController();
    this.running = { view, stopping };
    let follows = true;
    this.list.addEventListener("scroll", () => { follows = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < NEAR; }, { signal: stopping.signal });
    view.onPaint = () => { if (follows) this.list.scrollTop = this.list.scrollHeight; };
    this.list.append(view.element);
    this.show(true);
    const again = () => {
      view.element.remove();
      this.answer();
    };
    try {
      const response = await askJson("v1/chat/completions", this.body(), { signal: stopping.signal });
      if (response.status === 401) {
        view.element.remove();
        this.running = null;
        await wantKey();
        this.answer();
        return;
      }
      if (!response.ok) {
        const error = await errorOf(response);
        const wait = error.wait ? ` The coordinator asks to wait ${error.wait} s.` : "";
        view.fail(`${error.message}${wait}`, again);
        return;
      }
      await this.read(response, view, again);
    } catch (error) {
      if (!stopping.signal.aborted) view.fail(`The connection to the coordinator broke: ${error.message}`, again);
      else {
        view.wasStopped = true;
        view.end();
        this.keep(view);
      }
    } finally {
      if (this.running?.view === view) this.running = null;
      stopping.abort();
      this.show(false);
    }
  }

  async read(response, view, again) {
    for await (const { data } of events(response)) {
      if (data === "[DONE]") {
        view.end();
        this.keep(view);
        return;
      }
      const part = JSON.parse(data);
      if (part.error) {
        view.fail(part.error.message, again);
        return;
      }
      view.add(part);
    }
    view.fail("The answer broke off: the coordinator went away in the middle of it.", again);
  }

  /** The answer is part of the conversation now; what it calls is asked of whoever reads it. */
  keep(view) {
    const message = view.message();
    if (message.content || message.tool_calls) this.messages.push(message);
    if (message.tool_calls) this.list.append(this.resultForm(message.tool_calls));
    this.list.scrollTop = this.list.scrollHeight;
  }

  resultForm(calls) {
    const fields = calls.map((call, index) => {
      const id = `result-${this.messages.length}-${index}`;
      return { call, id, input: h("textarea", { id, rows: 2, class: "code" }) };
    });
    const form = h("form", { class: "message results", "aria-label": "Results of the calls" },
      fields.map(({ call, id, input }) => [h("label", { for: id }, `What ${call.function.name} gives`), input]),
      h("button", { type: "submit" }, "Give it to the model"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) return;
      form.remove();
      for (const { call, input } of fields) {
        const element = h("details", { class: "message fold" }, h("summary", {}, `${call.function.name} gave ${input.value.length} characters`), h("pre", { tabindex: 0 }, input.value));
        this.say({ role: "tool", tool_call_id: call.id, content: input.value }, element);
      }
      this.answer();
    });
    return form;
  }

  show(isRunning) {
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
  }
}
