// Brings the parts together: what comes down the stream goes to whoever shows it.
import { Charts, showCounters } from "./charts.js";
import { Chat } from "./chat.js";
import { showModels } from "./coverage.js";
import { announce, byId } from "./dom.js";
import { follow } from "./feed.js";
import { counted, layers } from "./format.js";
import { showGuide } from "./guide.js";
import { Log } from "./log.js";
import { showDownloads, showLinks, showNodes, showProblems } from "./nodes.js";
import { SwarmPicture } from "./swarm.js";

const chat = new Chat(), charts = new Charts(byId("charts")), log = new Log(), drawing = new SwarmPicture(byId("picture"));
let picture = null, pulse = null, told = "";

function summary(state, text) {
  byId("summary").dataset.state = state;
  byId("summary-text").textContent = text;
  document.body.classList.toggle("stale", state === "lost");
  if (text !== told) announce(text);
  told = text;
}

function sayHowItStands() {
  const nodes = counted(picture.nodes.length, "node");
  const ready = picture.models.filter((one) => one.ready), waiting = picture.models.filter((one) => !one.ready);
  if (waiting.length) {
    const gaps = waiting[0].coverage.filter((run) => run.state === "nobody").map((run) => layers(run.first, run.end));
    const what = gaps.length ? `${gaps.join(", ")} of ${waiting[0].model} on no node` : `${waiting[0].model} is not ready`;
    summary(gaps.length ? "gap" : "coming", `${nodes}, ${what}`);
  } else if (ready.length) summary("ready", `${nodes}, ${ready.map((one) => one.model).join(", ")} ready`);
  else summary("waiting", `${nodes}, no model yet`);
}

function showPicture(next) {
  const before = picture;
  picture = next;
  const names = new Map([...picture.gone, ...picture.nodes].map((one) => [one.node_id, one.name]));
  chat.nameOf = (nodeId) => names.get(nodeId) ?? nodeId.slice(0, 12);
  chat.setModels(picture.models);
  charts.setNames(names);
  showModels(byId("models"), picture.models);
  showProblems(byId("problems"), picture);
  drawing.show(picture);
  showLinks(byId("links"), picture);
  showGuide(picture.guide);
  sayHowItStands();
  for (const gone of picture.gone) {
    if (before && !before.gone.some((one) => one.node_id === gone.node_id && one.at_s === gone.at_s)) announce(`${gone.name} is gone. ${byId("summary-text").textContent}`);
  }
}

function showPulse(next) {
  pulse = next;
  drawing.pulse(pulse);
  showNodes(byId("nodes"), picture, pulse);
  showDownloads(byId("downloads"), pulse.loads);
  showCounters(pulse);
  chat.setAnswers(pulse.answers);
}

follow({
  all(whole) {
    showPicture(whole.picture);
    showPulse(whole.pulse);
    charts.reset(whole.samples);
    log.reset(whole.log);
  },
  picture(next) {
    showPicture(next);
    if (pulse) drawing.pulse(pulse);
  },
  pulse(next) {
    showPulse(next);
    if (next.sample) charts.add(next.sample);
  },
  log: (lines) => log.add(lines),
  lost: (sentence) => summary("lost", sentence),
});

// -- dark and light --------------------------------------------------------------------------------------------------------------------------

const THEMES = ["system", "dark", "light"];

function theme(next) {
  const root = document.documentElement;
  if (next) {
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("shardnet-theme", next);
    } catch { /* it lasts until the page is left */ }
  }
  const now = root.dataset.theme ?? "system";
  byId("theme").textContent = `Theme: ${now}`;
  return now;
}

theme();
byId("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]));
