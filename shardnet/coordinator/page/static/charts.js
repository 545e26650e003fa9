// Figures over the last minutes, each a line; the last value in digits beside it.
import { byId, h, s } from "./dom.js";
import { counted, digits, duration, percent } from "./format.js";

const SAMPLES = 300, FEWEST = 60, WIDTH = 300, HEIGHT = 60;

const CHARTS = [
  { key: "tokens_per_s", title: "Tokens per second", show: digits },
  { key: "first_token_s", title: "Time to first token", show: duration, keeps: true },
  { key: "batch_tokens", title: "Rows in a batch", show: digits },
  { key: "running", title: "Requests running", show: digits },
];

/** A path through values, the last at the right edge; where there is none the line is broken, or goes on where `keeps`. */
export function path(values, most, { width = WIDTH, height = HEIGHT, keeps = false } = {}) {
  const parts = [];
  let draws = false;
  let last = null;
  values.forEach((value, index) => {
    const here = value ?? (keeps ? last : null);
    last = here;
    if (here === null) {
      draws = false;
      return;
    }
    const x = width - ((values.length - 1 - index) * width) / (Math.max(FEWEST, values.length) - 1);
    const y = height - 2 - ((height - 4) * here) / (most || 1);
    parts.push(`${draws ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`);
    draws = true;
  });
  return parts.length === 1 ? `${parts[0]}h0.5` : parts.join("");
}

function chart({ title }) {
  const value = h("span", { class: "value" }, "–"), top = h("span", { class: "hint" });
  const line = s("path", { class: "line" });
  const drawing = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, line);
  return { value, top, line, drawing, element: h("figure", { class: "chart" }, h("figcaption", {}, h("span", {}, title), h("span", { class: "now" }, value, top)), drawing) };
}

export class Charts {
  constructor(container) {
    this.samples = [];
    this.views = CHARTS.map((one) => ({ ...one, ...chart(one) }));
    this.busy = h("div", { class: "busy-rows" });
    this.rows = new Map();
    this.busyFigure = h("figure", { class: "chart wide" }, h("figcaption", {}, h("span", {}, "Busy share of each stage")), this.busy);
    container.replaceChildren(...this.views.map((one) => one.element), this.busyFigure);
  }

  reset(samples) {
    this.samples = samples;
    this.draw();
  }

  add(sample) {
    this.samples = [...this.samples, sample].slice(-SAMPLES);
    this.draw();
  }

  setNames(names) {
    this.names = names;
    this.draw();
  }

  draw() {
    for (const view of this.views) {
      const values = this.samples.map((one) => one[view.key]);
      const known = values.filter((one) => one !== null);
      const most = Math.max(0, ...known);
      const now = view.keeps ? known.at(-1) : values.at(-1);
      view.value.textContent = now === undefined || now === null ? "–" : view.show(now);
      view.top.textContent = most > 0 ? `most ${view.show(most)}` : "";
      view.line.setAttribute("d", path(values, most, view));
      view.drawing.setAttribute("aria-label", [`${view.title}: ${view.value.textContent} now`, view.top.textContent].filter(Boolean).join(", "));
    }
    this.drawBusy();
  }

  drawBusy() {
    const now = this.samples.at(-1)?.busy ?? {};
    for (const [nodeId, row] of this.rows) {
      if (nodeId in now) continue;
      row.element.remove();
      this.rows.delete(nodeId);
    }
    this.busyFigure.hidden = !Object.keys(now).length;
    const nameOf = (nodeId) => this.names?.get(nodeId) ?? nodeId.slice(0, 12);
    for (const nodeId of Object.keys(now).sort((a, b) => nameOf(a).localeCompare(nameOf(b)))) {
      if (!this.rows.has(nodeId)) {
        const name = h("span", { class: "who" }), value = h("span", { class: "value" }), line = s("path", { class: "line" });
        const drawing = s("svg", { viewBox: `0 0 ${WIDTH} 24`, preserveAspectRatio: "none", "aria-hidden": "true" }, line);
        const element = h("div", { class: "busy-row" }, name, drawing, value);
        this.rows.set(nodeId, { name, value, line, element });
      }
      const row = this.rows.get(nodeId);
      this.busy.append(row.element);
      row.name.textContent = nameOf(nodeId);
      row.value.textContent = percent(now[nodeId]);
      row.line.setAttribute("d", path(this.samples.map((one) => one.busy[nodeId] ?? null), 1, { height: 24 }));
    }
  }
}

export function showCounters(pulse) {
  const all = pulse.requests;
  byId("counters").textContent = `${counted(all.finished, "request")} finished, ${all.failed} failed, ${all.queued} waiting; ${counted(all.completion_tokens, "token")} written, `
    + `${counted(all.prompt_tokens, "token")} of prompts read, ${all.prefix_tokens_reused} of them in KV already, for ${counted(all.prefix_hits, "request")} `
    + `(${all.prefix_copies} by a copy, ${all.prefix_waits} waited for one${all.waiting ? `, ${all.waiting} still` : ""}). Up ${duration(pulse.uptime_s)}.`;
}
