// The coverage strip: every layer of a model in one line, and who has it. A gap is seen at once, with and without colours.
import { h, replace } from "./dom.js";
import { bytes, layers, span } from "./format.js";

const WORDS = { ready: "ready", coming: "on its way", "on disk": "on a disk only", nobody: "MISSING" };

function cell(run) {
  const who = run.holders.map((one) => `${one.node} (${one.state})`).join(", ") || "nobody";
  const text = `${layers(run.first, run.end)}: ${WORDS[run.state]}; ${who}`;
  const element = h("li", { class: "cell", "data-state": run.state, title: text },
    h("span", { class: "unseen" }, text),
    h("span", { "aria-hidden": "true", class: "span" }, run.end - run.first === 1 ? String(run.first) : `${run.first}–${run.end - 1}`),
    h("span", { "aria-hidden": "true", class: "word" }, run.state === "ready" ? (run.copies > 1 ? `× ${run.copies}` : run.holders.find((one) => one.state === "ready").node) : WORDS[run.state]));
  element.style.flexGrow = String(run.end - run.first);
  return element;
}

const MOST_STAGES = 8;

/** The way of a token, in short where it is long: the picture and the strip say the rest. */
function wayOf(pipeline) {
  const stages = pipeline.map((stage) => `${stage.node} ${span(stage.layers)}`);
  return stages.length > MOST_STAGES ? `${stages.length} stages, ${stages[0]} → … → ${stages.at(-1)}` : stages.join(" → ");
}

function model(one) {
  const way = one.pipelines.length ? wayOf(one.pipelines[0]) : "";
  return h("div", { class: "model", "data-ready": String(one.ready) },
    h("h3", {}, one.model, " ", h("span", { class: "tag", "data-ready": String(one.ready) }, one.ready ? "ready" : "not ready")),
    h("p", { class: "hint" }, `${one.architecture}, ${one.quantisation}, ${one.n_layers} layers, ${bytes(one.total_bytes)}`),
    h("ol", { class: "strip", "aria-label": `Layers of ${one.model}` }, one.coverage.map(cell)),
    one.reason ? h("p", { class: one.coverage.some((run) => run.state === "coming") ? "soon" : "error" }, one.reason) : null,
    way ? h("p", { class: "hint" }, `${one.pipelines.length > 1 ? `${one.pipelines.length} pipelines, the first: ` : "Pipeline: "}${way}`) : null,
    one.unproved_reason ? h("p", { class: "hint" }, `Not proved: ${one.unproved_reason}`) : null,
    one.notes.map((note) => h("p", { class: "hint" }, note)));
}

export function showModels(container, models) {
  replace(container, models.length ? models.map(model) : [h("p", { class: "empty" }, "No model is known yet.")]);
}
