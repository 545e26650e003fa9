// What was said: messages, and the elements that show them. It is kept in this tab, so that a reload does not lose it, and nowhere else.
import { byId } from "./dom.js";

const NAME = "shardnet-chat";

function stored(name) {
  try {
    return JSON.parse(sessionStorage.getItem(name));
  } catch {
    return null;
  }
}

function store(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch { /* no storage, or no room in it: it lives as long as the page, then */ }
}

/** What these fields hold is there again after a reload. */
export function keepFields(ids) {
  for (const field of ids.map(byId)) {
    const name = `${NAME}-${field.id}`;
    field.value = stored(name) ?? field.value;
    field.addEventListener("input", () => store(name, field.value));
  }
}

export class Conversation {
  /** `list` shows it. */
  constructor(list) {
    this.list = list;
    this.turns = [];
  }

  get messages() {
    return this.turns.map((turn) => turn.message);
  }

  /** Take a message in that `element` shows. `foot` is what stands below an answer. */
  add(message, element, foot = "") {
    this.turns.push({ message, element, foot });
    if (!element.isConnected) this.list.append(element);
    this.save();
  }

  /** Forget an element's message, and all that was said after it. Returns: the message. */
  cut(element) {
    const at = this.turns.findIndex((turn) => turn.element === element);
    const message = this.turns[at].message;
    this.turns.length = at;
    while (this.list.contains(element)) this.list.lastElementChild.remove();
    this.save();
    return message;
  }

  clear() {
    this.turns = [];
    this.save();
  }

  save() {
    store(NAME, this.turns.map(({ message, foot }) => ({ message, foot })));
  }

  /** Returns: `{message, foot}` of all that was said in this tab before the page was loaded again. */
  static stored() {
    return stored(NAME) ?? [];
  }
}
