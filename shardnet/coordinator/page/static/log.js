// The coordinator's log lines, the newest at the end.
import { byId, h } from "./dom.js";
import { clock } from "./format.js";

const MOST = 300, NEAR = 30;

export class Log {
  constructor() {
    this.list = byId("lines");
    this.last = 0;
    byId("warnings").addEventListener("change", (event) => {
      this.list.classList.toggle("warnings-only", event.target.checked);
      this.list.scrollTop = this.list.scrollHeight;
    });
  }

  reset(lines) {
    this.list.replaceChildren();
    this.last = 0;
    this.add(lines);
  }

  add(lines) {
    const follows = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < NEAR;
    for (const line of lines) {
      if (line.number <= this.last) continue;
      this.last = line.number;
      this.list.append(h("li", { "data-level": line.level }, h("time", {}, clock(line.at_s)), " ", line.text));
    }
    while (this.list.childElementCount > MOST) this.list.firstElementChild.remove();
    if (follows) this.list.scrollTop = this.list.scrollHeight;
  }
}
