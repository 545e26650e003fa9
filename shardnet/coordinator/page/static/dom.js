// Elements out of data. Text only ever becomes text: nothing here takes markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element; `onclick: f` listens. */
export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element. */
export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

/** Put children in the place of those that are there; who had the focus has it again, found by `data-key`; what was unfolded stays so. */
export function replace(container, ...children) {
  const key = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const open = new Set([...container.querySelectorAll("details[open][data-key]")].map((one) => one.dataset.key));
  container.replaceChildren(...children.flat(Infinity).filter(Boolean));
  for (const one of container.querySelectorAll("details[data-key]")) if (open.has(one.dataset.key)) one.open = true;
  if (key !== undefined) container.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** Say something to those who listen to the page. */
export function announce(text) {
  byId("live").textContent = text;
}

/** A button that copies what `text()` gives, which `shown` shows. */
export function copier(text, shown, attributes = {}) {
  const button = h("button", { type: "button", class: "quiet copy", ...attributes }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
      announce("Copied");
    } catch {
      getSelection().selectAllChildren(shown); // no clipboard on plain HTTP from another machine
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return button;
}

/** A command to type, with a button that copies it. */
export function command(text, key) {
  const code = h("code", {}, text);
  return h("div", { class: "command" }, code, copier(() => text, code, { "aria-label": `Copy: ${text}`, "data-key": key ?? text }));
}

export function table(caption, heads, rows) {
  return h("table", {}, h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, index) => index ? h("td", {}, cell) : h("th", { scope: "row" }, cell))))));
}
