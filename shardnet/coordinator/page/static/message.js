// One answer on the page as it comes: reasoning and calls folded, text as Markdown, and beneath it how it went.
import { h } from "./dom.js";
import { digits, duration } from "./format.js";
import { Written } from "./markdown.js";

export class AnswerView {
  constructor() {
    this.content = "";
    this.reasoning = "";
    this.calls = [];
    this.requestId = "";
    this.nodes = [];
    this.tries = 1;
    this.body = h("div", { class: "body" });
    this.notes = h("div", { class: "notes" });
    this.foot = h("p", { class: "foot" });
    this.element = h("article", { class: "message assistant", "aria-label": "Answer", "aria-busy": "true" }, this.body, this.notes, this.foot);
    this.written = null;
    this.thought = null;
    this.began = performance.now();
    this.firstAt = null;
    this.due = false;
  }

  /** One that was written before, with what stood below it. */
  static of({ content, reasoning_content: reasoning, tool_calls: calls }, foot) {
    const view = new AnswerView();
    view.content = content ?? "";
    view.reasoning = reasoning ?? "";
    view.calls = (calls ?? []).map((call) => ({ id: call.id, ...call.function }));
    view.element.setAttribute("aria-busy", "false");
    view.paint();
    view.foot.textContent = foot;
    return view;
  }

  /** Take in one part of the stream. */
  add(part) {
    this.requestId ||= (part.id ?? "").replace(/^chatcmpl-/, "");
    if (part.usage) this.usage = part.usage;
    if (part.shardnet) {
      this.nodes = part.shardnet.stages.map((stage) => stage.node);
      this.rebuilt(part.shardnet.attempts);
    }
    const choice = part.choices?.[0];
    if (!choice) return;
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
    if ((content || reasoning || calls) && this.firstAt === null) this.firstAt = performance.now();
    if (reasoning) this.reasoning += reasoning;
    if (content) this.content += content;
    for (const call of calls ?? []) {
      const known = (this.calls[call.index] ??= { id: call.id, name: "", arguments: "" });
      known.id ??= call.id;
      known.name += call.function?.name ?? "";
      known.arguments += call.function?.arguments ?? "";
    }
    if (choice.finish_reason) this.finishReason = choice.finish_reason;
    this.paintSoon();
  }

  paintSoon() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      this.paint();
    });
  }

  paint() {
    if (this.reasoning) {
      if (!this.thought) {
        this.thought = { label: h("summary"), text: h("div", { class: "reasoning" }) };
        this.body.prepend(h("details", { class: "fold" }, this.thought.label, this.thought.text));
      }
      const still = !this.content && !this.calls.length && this.element.getAttribute("aria-busy") === "true";
      this.thought.label.textContent = `${still ? "Thinking …" : "Reasoning"} (${this.reasoning.length} characters)`;
      this.thought.text.textContent = this.reasoning;
    }
    if (this.content) {
      if (!this.written) {
        this.written = new Written(h("div", { class: "text" }));
        this.body.append(this.written.element);
      }
      this.written.show(this.content);
    }
    for (const call of this.calls.filter(Boolean)) {
      if (!call.view) {
        call.view = { label: h("summary"), code: h("code") };
        this.body.append(h("details", { class: "fold call" }, call.view.label, h("pre", { tabindex: 0 }, call.view.code)));
      }
      call.view.label.textContent = `Calls ${call.name}`;
      call.view.code.textContent = pretty(call.arguments);
    }
    this.onPaint?.();
  }

  /** What the swarm says of the request while it runs. */
  look(answer, nameOf) {
    this.nodes = answer.nodes.map(nameOf);
    this.tokens = answer.tokens;
    if (answer.waits) this.note("waits", "A node of this answer was lost. It goes on as soon as somebody else has the layers; what is written stays.");
    else this.rebuilt(answer.attempts);
    if (this.element.getAttribute("aria-busy") === "true") this.foot.textContent = this.figures();
  }

  rebuilt(attempts) {
    if (attempts <= this.tries) return;
    this.tries = attempts;
    this.note("rebuilt", `A node was lost in the middle. The answer was rebuilt on ${this.nodes.join(" → ")} and went on where it was.`);
  }

  note(kind, text) {
    const there = this.notes.querySelector(`[data-kind="${kind}"]`);
    if (there) there.textContent = text;
    else this.notes.replaceChildren(h("p", { class: "note", role: "status", "data-kind": kind }, text)); // the last that happened is what holds
  }

  figures() {
    const parts = [];
    const tokens = this.usage?.completion_tokens ?? this.tokens;
    if (tokens) parts.push(`${tokens} tokens`);
    if (this.firstAt !== null) {
      const seconds = ((this.endedAt ?? performance.now()) - this.firstAt) / 1000;
      if (tokens > 1 && seconds > 0) parts.push(`${digits((tokens - 1) / seconds)} per second`);
      parts.push(`first after ${duration((this.firstAt - this.began) / 1000)}`);
    }
    if (this.nodes.length) parts.push(`by ${this.nodes.join(" → ")}`);
    if (this.finishReason === "length") parts.push("cut off: no more tokens were allowed");
    if (this.wasStopped) parts.push("stopped");
    return parts.join(" · ");
  }

  end() {
    this.endedAt = performance.now();
    this.element.setAttribute("aria-busy", "false");
    this.notes.querySelector('[data-kind="waits"]')?.remove();
    this.paint();
    this.foot.textContent = this.figures();
  }

  fail(sentence, again) {
    this.end();
    this.notes.append(h("div", { class: "note bad", role: "alert" }, sentence, again ? h("button", { type: "button", class: "quiet", onclick: again }, "Try again") : null));
  }

  /** As the next question has to repeat it. */
  message() {
    const message = { role: "assistant", content: this.content || null };
    const calls = this.calls.filter(Boolean);
    if (calls.length) message.tool_calls = calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
    if (this.reasoning) message.reasoning_content = this.reasoning;
    return message;
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // it is still being written
  }
}
