// The swarm as a picture: the coordinator in the middle, nodes around it in the order of the pipeline, links with round trip and bytes a second.
// Where there is no width, all stand in one column.
import { replace, s } from "./dom.js";
import { bytes, digits, duration, span } from "./format.js";

const WIDTH = 152, HEIGHT = 58, NARROW = 480, NEAR = 50, AROUND = 34;

/** Places on an ellipse that grows with the number of boxes, the first one at the left. */
export function around(count) {
  const rx = Math.max(210, count * 36), ry = count < 3 ? 0 : Math.max(105, count * 22);
  const centre = { x: rx + WIDTH / 2 + 8, y: ry + HEIGHT / 2 + (count < 3 ? 50 : 26) };
  const spots = Array.from({ length: count }, (_, index) => {
    const angle = Math.PI + (2 * Math.PI * index) / count;
    return { x: centre.x + rx * Math.cos(angle), y: centre.y + ry * Math.sin(angle) };
  });
  return { centre, spots, width: 2 * centre.x, height: 2 * centre.y };
}

/** Places one below the other, the coordinator on top. */
export function below(count) {
  const x = 10 + WIDTH / 2;
  const spots = Array.from({ length: count }, (_, index) => ({ x, y: 100 + 92 * index }));
  return { centre: { x, y: 22 }, spots, width: 360, height: 100 + 92 * count - 50, isColumn: true };
}

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
  return node.shards_held ? `${node.shards_held} ${node.shards_held === 1 ? "shard" : "shards"} on disk` : "has nothing yet";
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export function linkText(link) {
  const parts = [];
  if (link.round_trip_s !== null) parts.push(duration(link.round_trip_s));
  if (link.bytes_per_s !== null) parts.push(`${bytes(link.bytes_per_s)}/s`);
  if (link.relayed) parts.push("by the coordinator");
  return parts.join(" · ");
}

/** A line, and where its words stand: outside of the ring, so that they are not in the way of others. */
function way(from, to, centre, isColumn) {
  const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
  if (!isColumn) {
    const dx = middle.x - centre.x, dy = middle.y - centre.y, far = Math.hypot(dx, dy);
    const length = Math.hypot(to.x - from.x, to.y - from.y);
    if (far < NEAR && from !== centre && to !== centre) { // it goes around the coordinator, below it
      const side = Math.sign(to.x - from.x) || 1, down = { x: (-side * (to.y - from.y)) / length, y: (side * (to.x - from.x)) / length };
      const bend = { x: middle.x + 2 * AROUND * down.x, y: middle.y + 2 * AROUND * down.y };
      return { d: `M${from.x} ${from.y}Q${bend.x} ${bend.y} ${to.x} ${to.y}`, x: (middle.x + bend.x) / 2, y: (middle.y + bend.y) / 2 + 14, anchor: "middle" };
    }
    const anchor = far < 1 || Math.abs(dx) < 0.4 * far ? "middle" : dx > 0 ? "start" : "end";
    const out = far < 1 ? { x: 0, y: -8 } : { x: (10 * dx) / far, y: (14 * dy) / far };
    return { d: `M${from.x} ${from.y}L${to.x} ${to.y}`, x: middle.x + out.x, y: middle.y + out.y + 4, anchor };
  }
  const gap = Math.abs(from.y - to.y);
  if (gap < 100) return { d: `M${from.x} ${from.y}L${to.x} ${to.y}`, x: middle.x + 10, y: middle.y + 4, anchor: "start" };
  const right = from.x + WIDTH / 2, bend = right + Math.max(140, Math.min(170, gap / 3));
  return { d: `M${right} ${from.y}Q${bend} ${middle.y} ${right} ${to.y}`, x: (right + bend) / 2 + 6, y: middle.y + 4, anchor: "start" };
}

function line(link, from, to, { centre, isColumn }) {
  const { d, x, y, anchor } = way(from, to, centre, isColumn);
  return s("g", { class: `link${link.used ? " used" : ""}`, "data-a": link.a, "data-b": link.b },
    s("path", { d }),
    s("text", { x, y, class: "label", "text-anchor": anchor }, linkText(link)));
}

function box(picture, node, at) {
  const isGone = node.state === "gone";
  const about = layersOf(picture, node);
  return s("g", { class: "node", "data-state": node.state, "data-id": node.node_id, "data-key": node.node_id, tabindex: 0, role: "img",
    "aria-label": `${node.name}: ${isGone ? "missing" : node.state}, ${about}` },
  s("title", {}, `${node.name} ${node.node_id.slice(0, 12)}\n${about}`),
  s("rect", { x: at.x - WIDTH / 2, y: at.y - HEIGHT / 2, width: WIDTH, height: HEIGHT, rx: 8 }),
  s("text", { x: at.x, y: at.y - 11, class: "name" }, short(node.name, 18)),
  s("text", { x: at.x, y: at.y + 6, class: "about" }, short(about, 24)),
  isGone
    ? s("text", { x: at.x, y: at.y + 21, class: "about missing", "data-gone": node.at_s }, "MISSING")
    : [s("rect", { class: "meter", x: at.x - 60, y: at.y + 15, width: 120, height: 4, rx: 2 }), s("rect", { class: "busy", x: at.x - 60, y: at.y + 15, width: 0, height: 4, rx: 2 })]);
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
    const layout = (this.wasNarrow ? below : around)(nodes.length);
    const { centre, spots, width, height } = layout;
    const at = new Map(nodes.map((node, index) => [node.node_id, spots[index]]));
    at.set("", centre);
    const links = picture.links.filter((link) => at.has(link.a) && at.has(link.b));
    const behind = (link) => (link.used ? 1 : 0);
    const drawing = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `The swarm: a coordinator and ${picture.nodes.length} nodes` },
      links.sort((a, b) => behind(a) - behind(b)).map((link) => line(link, at.get(link.a), at.get(link.b), layout)),
      s("g", { class: "coordinator" },
        s("title", {}, `coordinator ${picture.coordinator.node_id.slice(0, 12)}, version ${picture.coordinator.version}`),
        s("rect", { x: centre.x - 52, y: centre.y - 15, width: 104, height: 30, rx: 15 }),
        s("text", { x: centre.x, y: centre.y + 5 }, "coordinator")),
      nodes.map((node, index) => box(picture, node, spots[index])));
    for (const node of drawing.querySelectorAll(".node")) {
      const light = (on) => {
        for (const link of drawing.querySelectorAll(".link")) link.classList.toggle("lit", on && [link.dataset.a, link.dataset.b].includes(node.dataset.id));
      };
      for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) node.addEventListener(event, () => light(on));
    }
    replace(this.container, drawing);
  }

  /** What moves: how busy each node is, whether something flows, how long somebody is missing. */
  pulse(pulse) {
    for (const node of pulse.nodes) {
      const bar = this.container.querySelector(`[data-id="${CSS.escape(node.node_id)}"] .busy`);
      bar?.setAttribute("width", digits(120 * Math.min(1, node.load)));
    }
    for (const gone of this.container.querySelectorAll("[data-gone]")) gone.textContent = `MISSING for ${duration(Math.max(1, Math.round(pulse.at_s - gone.dataset.gone)))}`;
    this.container.classList.toggle("flowing", pulse.answers.length > 0);
  }
}
