// Markdown as models write it, into elements. What a model says is never markup: every character of it becomes text of an element that was made
// here, links go to web and mail addresses alone, and a picture is a link, so that nothing is loaded from anywhere.
import { copier, h } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MOST_DEPTH = 8;

/** Lines as blocks: `{kind, ...}`. */
export function blocks(text) {
  const lines = text.split("\n"), found = [];
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    const fence = FENCE.exec(line), heading = HEADING.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      const body = [];
      const ends = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
      for (at += 1; at < lines.length && !ends.test(lines[at]); at += 1) body.push(lines[at]);
      at += 1;
      found.push({ kind: "code", language: fence[2].trim().split(/\s/)[0], text: body.join("\n") });
    } else if (heading) {
      found.push({ kind: "heading", level: heading[1].length, text: heading[2] });
      at += 1;
    } else if (RULE.test(line)) {
      found.push({ kind: "rule" });
      at += 1;
    } else if (QUOTE.test(line)) {
      const body = [];
      for (; at < lines.length && QUOTE.test(lines[at]); at += 1) body.push(QUOTE.exec(lines[at])[1]);
      found.push({ kind: "quote", text: body.join("\n") });
    } else if (ITEM.test(line)) {
      at = list(lines, at, found);
    } else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      const rows = [cells(line)];
      for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) rows.push(cells(lines[at]));
      found.push({ kind: "table", rows });
    } else {
      const body = [];
      for (; at < lines.length && lines[at].trim() && !begins(lines[at], body.length); at += 1) body.push(lines[at].trim());
      found.push({ kind: "paragraph", text: body.join("\n") });
    }
  }
  return found;
}

const begins = (line, already) => already > 0 && (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line));

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|").trim());

function list(lines, from, found) {
  const first = ITEM.exec(lines[from]);
  const ordered = /\d/.test(first[2]), indent = first[1].length, items = [];
  let at = from;
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    const inner = lines[at].length - lines[at].trimStart().length > indent;
    if (item && !inner) {
      if (/\d/.test(item[2]) !== ordered || item[1].length < indent) break;
      items.push([item[3]]);
    } else if (!lines[at].trim()) {
      const next = lines[at + 1] ?? "";
      if (!next.trim() || (next.length - next.trimStart().length <= indent && !ITEM.test(next))) break;
      items.at(-1).push("");
    } else if (inner || !begins(lines[at], 1)) {
      items.at(-1).push(lines[at].slice(Math.min(indent + first[2].length + 1, lines[at].length - lines[at].trimStart().length)));
    } else break;
    at += 1;
  }
  found.push({ kind: "list", ordered, start: ordered ? Number.parseInt(first[2], 10) : 1, items: items.map((one) => one.join("\n")) });
  return at;
}

/** A block as an element. */
export function render(block, depth = 0) {
  switch (block.kind) {
    case "code": {
      const code = h("code", { "data-language": block.language || null }, block.text);
      return h("div", { class: "program" }, h("pre", { tabindex: 0 }, code), copier(() => block.text, code, { "aria-label": "Copy the code" }));
    }
    case "heading": return h(`h${Math.min(6, block.level + 2)}`, {}, inline(block.text));
    case "rule": return h("hr");
    case "quote": return h("blockquote", {}, inside(block.text, depth));
    case "list": return h(block.ordered ? "ol" : "ul", { start: block.ordered && block.start !== 1 ? block.start : null },
      block.items.map((item) => h("li", {}, tight(item, depth))));
    case "table": return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, block.rows[0].map((cell) => h("th", { scope: "col" }, inline(cell))))),
      h("tbody", {}, block.rows.slice(1).map((row) => h("tr", {}, row.map((cell) => h("td", {}, inline(cell))))))));
    default: return h("p", {}, inline(block.text));
  }
}

const inside = (text, depth) => (depth < MOST_DEPTH ? blocks(text).map((one) => render(one, depth + 1)) : [text]);

function tight(text, depth) {
  const found = depth < MOST_DEPTH ? blocks(text) : [{ kind: "paragraph", text }];
  return found.map((one) => (one.kind === "paragraph" && found.filter((other) => other.kind === "paragraph").length === 1 ? inline(one.text) : render(one, depth + 1)));
}

const INLINE = new RegExp([
  "(?<ticks>`+)(?<code>.+?)(?<!`)\\k<ticks>(?!`)",
  "\\\\(?<escaped>[!-/:-@[-`{-~])",
  "!?\\[(?<label>[^\\]\\n]{0,500})\\]\\((?<target>[^\\s()]{1,2000}(?:\\([^\\s()]*\\)[^\\s()]*)?)(?:\\s+\"[^\"\\n]*\")?\\)",
  "(?<bare>https?://[^\\s<>()\\[\\]\"'`]{1,2000}[^\\s<>()\\[\\]\"'`.,;:!?])",
  "\\*\\*(?<strong>(?=\\S)[^\\n]+?(?<=\\S))\\*\\*",
  "(?<![\\w*])\\*(?<em>(?=[^\\s*])[^\\n*]+?(?<=\\S))\\*(?!\\*)",
  "(?<![\\w_])_(?<em2>(?=[^\\s_])[^\\n_]+?(?<=\\S))_(?![\\w_])",
  "~~(?<struck>(?=\\S)[^\\n]+?(?<=\\S))~~",
].join("|"), "gs");

/** What stands in one line: texts and elements. */
export function inline(text, depth = 0) {
  if (depth > MOST_DEPTH) return [text];
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > from) parts.push(...broken(text.slice(from, found.index)));
    from = found.index + found[0].length;
    const one = found.groups;
    const inner = (what) => inline(what, depth + 1);
    if (one.code !== undefined) parts.push(h("code", {}, one.code.replace(/^ (.+) $/s, "$1")));
    else if (one.escaped !== undefined) parts.push(one.escaped);
    else if (one.target !== undefined) parts.push(link(one.target, one.label ? inner(one.label) : [one.target]) ?? found[0]);
    else if (one.bare !== undefined) parts.push(link(one.bare, [one.bare]));
    else if (one.strong !== undefined) parts.push(h("strong", {}, inner(one.strong)));
    else if (one.struck !== undefined) parts.push(h("del", {}, inner(one.struck)));
    else parts.push(h("em", {}, inner(one.em ?? one.em2)));
  }
  if (from < text.length) parts.push(...broken(text.slice(from)));
  return parts;
}

const broken = (text) => text.split(/(?: {2,}|\\)?\n/).flatMap((line, index) => (index ? [h("br"), line] : [line]));

function link(target, children) {
  let url;
  try {
    url = new URL(target);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, children);
}

/** Writes a growing text into an element: blocks that stay the same are left alone. */
export class Written {
  constructor(element) {
    this.element = element;
    this.known = [];
  }

  show(text) {
    const now = blocks(text), keys = now.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < keys.length && keys[same] === this.known[same]) same += 1;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    this.element.append(...now.slice(same).map((block) => render(block)));
    this.known = keys;
  }
}
