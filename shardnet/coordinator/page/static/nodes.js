// Nodes, devices, links and downloads as rows.
import { h, replace, table } from "./dom.js";
import { bytes, counted, duration, percent } from "./format.js";

export function showNodes(container, picture, pulse) {
  const figures = new Map(pulse.nodes.map((one) => [one.node_id, one]));
  const rows = picture.nodes.map((node) => {
    const now = figures.get(node.node_id);
    return [
      `${node.name} (${node.node_id.slice(0, 12)})`,
      node.state,
      node.devices.map((one) => `${one.name}${one.about ? `: ${one.about}` : ""}, ${bytes(one.total_bytes)}`).join("; ") || "–",
      now ? bytes(now.memory_free_bytes) + (node.memory_limit ? ` (${node.memory_limit})` : "") : "–",
      now ? percent(now.load) : "–",
      now ? String(now.sequences) : "–",
      `${node.shards_loaded} of ${node.shards_held}${node.streamed ? `, ${node.streamed} streamed` : ""}`,
      node.address ?? "not told",
    ];
  });
  replace(container, rows.length ? table("Nodes", ["Node", "State", "Devices", "Free memory", "Busy", "Sequences", "Shards loaded", "Address"], rows) : h("p", { class: "empty" }, "No node is connected."));
}

export function showLinks(container, picture) {
  const names = new Map([["", "coordinator"], ...picture.nodes.map((one) => [one.node_id, one.name])]);
  const rows = picture.links.map((link) => [`${names.get(link.a) ?? link.a.slice(0, 12)} – ${names.get(link.b) ?? link.b.slice(0, 12)}`,
    link.round_trip_s === null ? "–" : duration(link.round_trip_s), link.bytes_per_s === null ? "–" : `${bytes(link.bytes_per_s)}/s`, link.relayed ? "by the coordinator" : link.used ? "yes" : "no"]);
  replace(container, rows.length ? table("Links", ["Between", "Round trip", "Rate", "In a pipeline"], rows) : h("p", { class: "empty" }, "No link was measured yet."));
}

const STAGES = { fetch: "fetching", verify: "verifying", load: "into memory", asked: "asked for" };

export function showDownloads(container, loads) {
  replace(container, loads.map((load) => {
    const share = load.total_bytes ? load.done_bytes / load.total_bytes : 0;
    const parts = [load.total_bytes ? `${percent(share)} of ${bytes(load.total_bytes)}` : "begins"];
    if (load.bytes_per_s) parts.push(`${bytes(load.bytes_per_s)}/s`);
    if (load.left_s !== null) parts.push(`${duration(Math.max(1, Math.round(load.left_s)))} left`);
    if (load.peers) parts.push(counted(load.peers, "peer"));
    const what = `Shard ${load.shard_id} of ${load.model} on ${load.node}`;
    return h("div", { class: "load" },
      h("p", {}, h("strong", {}, what), ` ${STAGES[load.stage] ?? load.stage}`),
      h("progress", { max: 1, value: share, "aria-label": `${what}, ${parts.join(", ")}` }),
      h("p", { class: "hint" }, parts.join(" · ")));
  }));
}

/** What is wrong, told by nodes and coordinator. */
export function showProblems(container, picture) {
  const told = [
    ...picture.kept_out.map((reason) => `Kept out: ${reason}`),
    ...picture.refused.map((reason) => `The coordinator's models cache: ${reason}`),
    ...picture.nodes.flatMap((node) => node.problems.map((reason) => `${node.name}: ${reason}`)),
  ];
  replace(container, told.length ? [h("ul", { class: "problems" }, told.map((one) => h("li", {}, one)))] : []);
}
