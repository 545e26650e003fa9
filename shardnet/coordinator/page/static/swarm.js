// The swarm as a picture: the coordinator and the nodes in the order of the pipeline, links with round trip and bytes a second. Where they stand is
// `places.js`'s affair.
import { replace, s } from "./dom.js";
import { bytes, counted, digits, duration, span } from "./format.js";
import { HEIGHT, WIDTH, placed, way } from "./places.js";

const NARROW = 480, METER = 120;

/** Nodes in the order in which pipelines go through them, then the others, then who is missing. */
export function ordered(picture) {
  const first = new Map();
  for (const stage of picture.models.flatMap((model) => model.pipelines.flat())) if (!first.has(stage.node_id)) first.set(stage.node_id, first.size);
  const rank = (node) => first.get(node.node_id) ?? first.size;
  return [...[...picture.nodes].sort((a, b) => rank(a) - rank(b)), ...picture.gone.map((one) => ({ ...one, state: "gone" }))];
}

const ofRun = (run) => (run.end - run.first === 1 ? `${run.first}` : `${run.first}–${run.end - 1}`);

function layersOf(picture, node) {
  if (node.state === "gone") return node.layers ? `had layers ${node.layers}` : "had no layers ready";
  const stages = picture.models.flatMap((model) => model.pipelines.flat()).filter((stage) => stage.node_id === node.node_id);
  if (stages.length) return `layers ${[...new Set(stages.map((stage) => span(stage.layers)))].join(", ")}`;
  const coverage = picture.models.flatMap((model) => model.coverage);
  const ready = coverage.filter((run) => run.holders.some((one) => one.node_id === node.node_id && one.state === "ready"));
  if (ready.length) return `holds ${ready.map(ofRun).join(", ")}`;
  const coming = coverage.filter((run) => run.holders.some((one) => one.node_id === node.node_id && !["on disk", "loaded"].includes(one.state)));
  if (coming.length) return `gets ${coming.map(ofRun).join(", ")}`;
  return node.shards_held ? `${counted(node.shards_held, "shard")} on disk` : "has nothing yet";
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function line(link, path) {
  return s("g", { class: `link${link.used ? " used" : ""}`, "data-a": link.a, "data-b": link.b }, s("path", { d: path.d }));
}

/** The words of a link, one below the other: they have to stand between two boxes. */
function label(link, { x, y, anchor }) {
  const parts = [link.round_trip_s !== null && duration(link.round_trip_s), link.bytes_per_s !== null && `${bytes(link.bytes_per_s)}/s`, link.relayed && "relayed"].filter(Boolean);
  return s("text", { class: `label${link.used ? " used" : ""}`, "data-a": link.a, "data-b": link.b, x, y: y - 6 * (parts.length - 1), "text-anchor": anchor },
    parts.map((part, index) => s("tspan", { x, dy: index ? 13 : 4 }, part)));
}

function box(picture, node, at) {
  const isGone = node.state === "gone";
  const about = layersOf(picture, node);
  return s("g", { class: "node", "data-state": node.state, "data-id": node.node_id, "data-key": node.node_id, tabindex: 0, role: "img",
    "aria-label": `${node.name}: ${isGone ? "missing" : node.state}, ${about}` },
  s("title", {}, `${node.name} ${node.node_id.slice(0, 12)}\n${about}`),
  s("rect", { x: at.x - WIDTH / 2, y: at.y - HEIGHT / 2, width: WIDTH, height: HEIGHT, rx: 8 }),
  s("text", { x: at.x, y: at.y - 16, class: "name" }, short(node.name, 16)),
  s("text", { x: at.x, y: at.y, class: "about" }, short(about, 24)),
  isGone
    ? s("text", { x: at.x, y: at.y + 17, class: "about missing", "data-gone": node.at_s }, "MISSING")
    : [s("text", { x: at.x, y: at.y + 14, class: "about memory" }),
      s("rect", { class: "meter", x: at.x - METER / 2, y: at.y + 22, width: METER, height: 4, rx: 2 }), s("rect", { class: "busy", x: at.x - METER / 2, y: at.y + 22, width: 0, height: 4, rx: 2 })]);
}

export class SwarmPicture {
  constructor(container) {
    this.container = container;
    new ResizeObserver(() => {
      if (this.picture && this.isNarrow() !== this.wasNarrow) this.show(this.picture);
    }).observe(container);
  }

  isNarrow() {
    return this.container.clientWidth < NARROW;
  }

  show(picture) {
    this.picture = picture;
    this.wasNarrow = this.isNarrow();
    const nodes = ordered(picture);
    if (!nodes.length) {
      replace(this.container);
      return;
    }
    const layout = placed(nodes.length, this.wasNarrow);
    const { centre, spots, width, height } = layout;
    const at = new Map(nodes.map((node, index) => [node.node_id, spots[index]]));
    at.set("", centre);
    const behind = (link) => (link.used ? 1 : 0);
    const links = picture.links.filter((link) => at.has(link.a) && at.has(link.b)).sort((a, b) => behind(a) - behind(b));
    const paths = links.map((link) => way(at.get(link.a), at.get(link.b), layout));
    const drawing = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "data-layout": layout.kind, "aria-label": `The swarm: a coordinator and ${picture.nodes.length} nodes` },
      links.map((link, index) => line(link, paths[index])),
      s("g", { class: "coordinator" },
        s("title", {}, `coordinator ${picture.coordinator.node_id.slice(0, 12)}, version ${picture.coordinator.version}`),
        s("rect", { x: centre.x - 52, y: centre.y - 15, width: 104, height: 30, rx: 15 }),
        s("text", { x: centre.x, y: centre.y + 5 }, "coordinator")),
      nodes.map((node, index) => box(picture, node, spots[index])),
      links.map((link, index) => label(link, paths[index])));
    for (const node of drawing.querySelectorAll(".node")) {
      const light = (on) => {
        for (const part of drawing.querySelectorAll("[data-a]")) part.classList.toggle("lit", on && [part.dataset.a, part.dataset.b].includes(node.dataset.id));
      };
      for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) node.addEventListener(event, () => light(on));
    }
    replace(this.container, drawing);
  }

  /** What moves: how busy each node is, how much memory it has left, whether something flows, how long somebody is missing. */
  pulse(pulse) {
    for (const node of pulse.nodes) {
      const drawn = this.container.querySelector(`[data-id="${CSS.escape(node.node_id)}"] .busy`)?.parentNode;
      if (!drawn) continue;
      drawn.querySelector(".busy").setAttribute("width", digits(METER * Math.min(1, node.load)));
      drawn.querySelector(".memory").textContent = `${bytes(node.memory_free_bytes)} free`;
    }
    for (const gone of this.container.querySelectorAll("[data-gone]")) gone.textContent = `MISSING for ${duration(Math.max(1, Math.round(pulse.at_s - gone.dataset.gone)))}`;
    this.container.classList.toggle("flowing", pulse.answers.length > 0);
  }
}
