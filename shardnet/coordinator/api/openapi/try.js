// The page to try the HTTP API: everything on it is made of /openapi.json. Text of the server goes in as text, never as markup.

const MOST_SHOWN = 200_000; // characters of an answer; a browser lays more out slowly
const DEEPEST = 4; // a schema may hold itself

const find = (selector, within = document) => within.querySelector(selector);
const said = (error) => (error instanceof Error ? error.message : String(error));

function headers(more = {}) {
  const key = find("#key").value.trim();
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** Follow "$ref" within the document. */
function resolved(api, schema) {
  while (schema && schema.$ref) schema = schema.$ref.slice(2).split("/").reduce((at, name) => at[name], api);
  return schema ?? {};
}

/** A schema's kind in a few words. */
function kindOf(api, schema) {
  if (schema.$ref) return kindOf(api, resolved(api, schema));
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  const among = schema.anyOf ?? schema.oneOf;
  if (among) return [...new Set(among.map((one) => kindOf(api, one)).filter((one) => one !== "null"))].join(" or ");
  if (schema.type === "array") return `list of ${kindOf(api, schema.items ?? {})}`;
  const bounds = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]];
  const limits = bounds.filter(([name]) => schema[name] !== undefined).map(([name, sign]) => `${sign} ${schema[name]}`);
  return [schema.type ?? "anything", ...limits].join(" ");
}

function addRow(table, ...cells) {
  const row = table.insertRow();
  for (const [text, style] of cells) {
    const cell = row.insertCell();
    if (style === "code") cell.appendChild(document.createElement("code")).textContent = text;
    else cell.textContent = text;
    if (style === "kind") cell.className = style;
  }
}

/** Schemas of the objects that a value may be, or be a list of, each with what stands between their names. */
function* within(api, schema) {
  if (schema.properties) yield [".", schema];
  if (schema.$ref) yield* within(api, resolved(api, schema));
  for (const one of schema.anyOf ?? []) yield* within(api, one);
  if (schema.items) for (const [between, one] of within(api, schema.items)) yield [`[]${between}`, one];
}

function addFields(api, schema, table, before = "", depth = 0) {
  for (const [name, one] of Object.entries(schema.properties ?? {})) {
    const kind = kindOf(api, one) + (schema.required?.includes(name) ? ", needed" : "");
    addRow(table, [before + name, "code"], [kind, "kind"], [one.description ?? "", ""]);
    if (depth === DEEPEST) continue;
    for (const [between, inner] of within(api, one)) addFields(api, inner, table, before + name + between, depth + 1);
  }
}

function showFields(api, operation, node) {
  const schema = operation.requestBody?.content["application/json"].schema;
  if (!schema) return node.remove();
  addFields(api, resolved(api, schema), find("tbody", node));
}

function showStatuses(api, operation, node) {
  for (const [status, one] of Object.entries(operation.responses)) {
    addRow(find("tbody", node), [status, "code"], [resolved(api, one).description, ""]);
  }
}

/** The text that an event of a stream brings, whatever the endpoint. */
function textIn(event) {
  const parts = (event.choices ?? []).map((one) => one.text ?? one.delta?.content ?? "");
  if (typeof event.delta === "string") parts.push(event.delta);
  if (typeof event.delta?.text === "string") parts.push(event.delta.text);
  return parts.join("");
}

async function showStream(answer, shown, text) {
  const decoder = new TextDecoder();
  let unread = "";
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const came = decoder.decode(value, { stream: true });
    shown.append(came);
    shown.scrollTop = shown.scrollHeight;
    const lines = (unread + came).split("\n");
    unread = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const piece = textIn(JSON.parse(line.slice(6)));
      if (piece) text.hidden = false;
      text.append(piece);
    }
  }
}

async function showWhole(answer, shown) {
  const came = await answer.text();
  let pretty = came;
  try {
    pretty = JSON.stringify(JSON.parse(came), null, 2);
  } catch {
    // what is not JSON is shown as it came
  }
  shown.textContent = pretty.length > MOST_SHOWN ? `${pretty.slice(0, MOST_SHOWN)}\n[...]` : pretty;
}

function targetOf(node, path) {
  return [...node.querySelectorAll(".names input")].reduce(
    (target, input) => target.replace(`{${input.name}}`, encodeURIComponent(input.value)),
    path,
  );
}

function bodyOf(node) {
  let body;
  try {
    body = JSON.parse(find("textarea", node).value);
  } catch (error) {
    throw new Error(`the body is not JSON: ${said(error)}`);
  }
  const model = find("#model").value;
  if (model && body.model === undefined) body.model = model;
  if (find(".stream", node).checked) body.stream = true;
  return body;
}

function curlOf(method, target, body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = ["curl", method === "GET" ? "" : `-X ${method}`, quoted(location.origin + target)];
  if (find("#key").value) parts.push('-H "Authorization: Bearer $KEY"');
  if (body) parts.push("-H 'Content-Type: application/json'", "-d", quoted(JSON.stringify(body)));
  return parts.filter(Boolean).join(" ");
}

async function send(method, path, node, takesBody) {
  const outcome = find(".outcome", node);
  const shown = find(".came", node);
  const text = find(".said", node);
  const end = find(".end", node);
  const ending = new AbortController();
  const began = performance.now();
  const tell = (word, good) => {
    outcome.textContent = `${word}, ${((performance.now() - began) / 1000).toFixed(2)} s`;
    outcome.className = `outcome ${good ? "good" : "bad"}`;
  };
  text.textContent = shown.textContent = "";
  text.hidden = shown.hidden = true;
  end.onclick = () => ending.abort();
  end.hidden = false;
  try {
    const more = takesBody
      ? { headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(bodyOf(node)) }
      : { headers: headers() };
    tell("asked", true);
    const answer = await fetch(targetOf(node, path), { method, signal: ending.signal, ...more });
    shown.hidden = false;
    const streams = (answer.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
    await (streams ? showStream(answer, shown, text) : showWhole(answer, shown));
    tell(`${answer.status} ${answer.statusText}`, answer.ok);
  } catch (error) {
    tell(ending.signal.aborted ? "ended" : said(error), false);
  } finally {
    end.hidden = true;
  }
}

function show(api, method, path, operation) {
  const node = find("#endpoint").content.cloneNode(true).firstElementChild;
  const takesBody = Boolean(operation.requestBody);
  find(".method", node).textContent = method;
  find(".path", node).textContent = path;
  find(".summary", node).textContent = operation.summary;
  find(".text", node).textContent = operation.description ?? "";
  for (const one of operation.parameters ?? []) {
    const label = find(".names", node).appendChild(document.createElement("label"));
    label.textContent = `${one.name}: ${one.description} `;
    label.appendChild(document.createElement("input")).name = one.name;
  }
  if (takesBody) {
    const example = operation.requestBody.content["application/json"].example ?? {};
    find("textarea", node).value = JSON.stringify(example, null, 2);
  } else {
    find(".body", node).remove();
  }
  find(".streams", node).hidden = !operation.responses["200"]?.content?.["text/event-stream"];
  find(".send", node).onclick = () => send(method, path, node, takesBody);
  find(".curl", node).onclick = async () => {
    try {
      await navigator.clipboard.writeText(curlOf(method, targetOf(node, path), takesBody && bodyOf(node)));
      find(".outcome", node).textContent = "copied";
    } catch (error) {
      find(".outcome", node).textContent = said(error);
    }
  };
  showFields(api, operation, find(".fields", node));
  showStatuses(api, operation, find(".statuses", node));
  return node;
}

async function listModels() {
  const answer = await fetch("/v1/models", { headers: headers() });
  if (!answer.ok) return;
  const models = find("#model");
  models.replaceChildren(new Option("the only one", ""));
  for (const one of (await answer.json()).data) models.append(new Option(one.id, one.id));
}

async function begin() {
  const api = await (await fetch("/openapi.json")).json();
  find("#about").textContent = api.info.description;
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(show(api, method.toUpperCase(), path, operation));
    }
  }
  for (const [tag, nodes] of groups) {
    const heading = document.createElement("h2");
    heading.textContent = tag;
    find("#endpoints").append(heading, ...nodes);
  }
  find("#key").onchange = listModels;
  await listModels();
}

begin().catch((error) => {
  find("#notice").textContent = said(error);
});
