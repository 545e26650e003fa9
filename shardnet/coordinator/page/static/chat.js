// The chat box: asks the same HTTP API as everybody.
import { askJson, wantKey } from "./access.js";
import { Conversation, keepFields } from "./conversation.js";
import { byId, copier, h } from "./dom.js";
import { AnswerView } from "./message.js";
import { errorOf, events } from "./sse.js";

const NEAR = 60;

export class Chat {
  constructor() {
    this.running = null;
    this.list = byId("messages");
    this.said = new Conversation(this.list);
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
    keepFields(["system", "temperature", "most", "tools"]);
    for (const { message, foot } of Conversation.stored()) this.restore(message, foot);
    this.ask();
    this.showEmpty();
  }

  /** Show what was said before the page was loaded again. */
  restore(message, foot) {
    if (message.role === "assistant") this.said.add(message, this.withButtons(AnswerView.of(message, foot)).element, foot);
    else if (message.role === "tool") this.said.add(message, this.resultElement(message));
    else this.said.add(message, this.questionElement(message.content));
  }

  showEmpty() {
    if (!this.said.turns.length) this.list.replaceChildren(h("p", { class: "empty" }, "Nothing was asked yet. What you write goes to the machines of this swarm, and to nobody else."));
  }

  clear() {
    this.stop();
    this.said.clear();
    this.list.replaceChildren();
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
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.said.messages],
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
    this.say({ role: "user", content: text }, this.questionElement(text));
    this.question.value = "";
    this.answer();
  }

  questionElement(text) {
    const element = h("article", { class: "message user", "aria-label": "You" }, text);
    return h("div", { class: "asked" }, element, h("div", { class: "actions" }, copier(() => text, element), this.action("Edit", (event) => {
      this.question.value = this.said.cut(event.target.closest(".asked")).content;
      this.showEmpty();
      this.question.focus();
    })));
  }

  action(name, does) {
    return h("button", { type: "button", class: "quiet copy", onclick: (event) => this.running || does(event) }, name);
  }

  /** What can be done with an answer that is there. */
  withButtons(view) {
    view.foot.after(h("div", { class: "actions" }, copier(() => view.content, view.body), this.action("Answer again", () => {
      this.said.cut(view.element);
      this.answer();
    })));
    return view;
  }

  say(message, element) {
    this.list.querySelector(".empty")?.remove();
    this.said.add(message, element);
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
        view.fail(error.wait ? `${error.message}. Try again in ${error.wait} s` : error.message, again);
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

  /** The answer is part of the conversation now. */
  keep(view) {
    if (!view.element.isConnected) return; // a new chat was begun meanwhile
    const message = view.message();
    if (message.content || message.tool_calls) this.said.add(message, this.withButtons(view).element, view.foot.textContent);
    this.ask();
  }

  /** What the last answer calls is asked of whoever reads it; a question without an answer can be asked again. */
  ask() {
    const last = this.said.messages.at(-1);
    if (last?.tool_calls) this.list.append(this.resultForm(last.tool_calls));
    else if (last && last.role !== "assistant" && !this.running) {
      const view = new AnswerView();
      this.list.append(view.element);
      view.fail("The page was left before the answer was whole.", () => {
        view.element.remove();
        this.answer();
      });
    }
    this.list.scrollTop = this.list.scrollHeight;
  }

  resultForm(calls) {
    const fields = calls.map((call, index) => {
      const id = `result-${this.said.turns.length}-${index}`;
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
        const message = { role: "tool", tool_call_id: call.id, content: input.value };
        this.say(message, this.resultElement(message));
      }
      this.answer();
    });
    return form;
  }

  resultElement({ tool_call_id: id, content }) {
    const call = this.said.messages.flatMap((one) => one.tool_calls ?? []).findLast((one) => one.id === id);
    return h("details", { class: "message fold" }, h("summary", {}, `${call.function.name} gave ${content.length} characters`), h("pre", { tabindex: 0 }, content));
  }

  show(isRunning) {
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
  }
}
