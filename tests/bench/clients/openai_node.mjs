// The openai package for Node: chats, streams, tools, structures. Prints a JSON line for each call, as the Python scripts do.
import OpenAI from "openai";
import { LengthFinishReasonError } from "openai/error";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { VERSION } from "openai/version";
import { z } from "zod";

const model = process.env.SHARDNET_CLIENTS_MODEL;
const only = (process.argv[2] ?? "").split("|");
const client = new OpenAI({ baseURL: process.env.SHARDNET_CLIENTS_BASE, apiKey: "none", maxRetries: 0, timeout: 600_000 });
const hello = [{ role: "user", content: "Say hello in one short sentence." }];
const most = { max_tokens: 300, temperature: 0.7 };

const weather = { type: "object", properties: { city: { type: "string", maxLength: 40 }, unit: { type: "string", enum: ["celsius", "fahrenheit"] } }, required: ["city", "unit"], additionalProperties: false };
const product = { type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } }, required: ["a", "b"], additionalProperties: false };
const tools = (strict) => [
  { type: "function", function: { name: "weather", description: "The weather of a city now", parameters: weather, ...(strict ? { strict: true } : {}) } },
  { type: "function", function: { name: "multiply", description: "Multiply two whole numbers", parameters: product, ...(strict ? { strict: true } : {}) } },
];
const cities = ["Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito", "Dakar", "Delhi", "Seoul", "São Paulo"];
const toolPrompts = [
  ...cities.map((city) => `What is the weather in ${city} in celsius? Use the tools.`),
  ...cities.map((_, at) => `How much is ${11 + at} times ${23 + 7 * at}? Use the tools.`),
];

function expect(holds, what) {
  if (!holds) throw new Error(JSON.stringify(what)?.slice(0, 600) ?? "not as promised");
}

async function tally(cases, ask) {
  const wrong = [];
  const left = [...cases];
  const worker = async () => {
    while (left.length) {
      try {
        const fault = await ask(left.shift());
        if (fault) wrong.push(fault);
      } catch (error) {
        wrong.push(String(error).slice(0, 300));
      }
    }
  };
  await Promise.all([worker(), worker(), worker(), worker()]);
  const text = `${cases.length - wrong.length} of ${cases.length}`;
  expect(!wrong.length, [text, ...wrong]);
  return text;
}

function faultOf(choice, mayTalk) {
  const calls = choice.message.tool_calls ?? [];
  if (mayTalk && !calls.length && choice.message.content && !/^\s*(\{|<tool_call>)/.test(choice.message.content)) return "";
  if (!calls.length || choice.finish_reason !== "tool_calls" || new Set(calls.map((call) => call.id)).size !== calls.length) return JSON.stringify(choice);
  for (const call of calls) {
    const given = JSON.parse(call.function.arguments);
    const isWell = call.function.name === "weather" ? typeof given.city === "string" && ["celsius", "fahrenheit"].includes(given.unit) : call.function.name === "multiply" && Number.isInteger(given.a) && Number.isInteger(given.b);
    if (!isWell) return JSON.stringify(call);
  }
  return "";
}

const ask = (prompt, options) => ({ model, messages: [{ role: "user", content: prompt }], tools: tools(options.strict), ...most, ...options.more });
const some = toolPrompts.filter((_, at) => at % 4 === 0);
const whole = (prompts, options) => tally(prompts, async (prompt) => faultOf((await client.chat.completions.create(ask(prompt, options))).choices[0], !options.more.tool_choice));
const streamed = (prompts, options) => tally(prompts, async (prompt) => faultOf((await client.chat.completions.stream(ask(prompt, options)).finalChatCompletion()).choices[0], !options.more.tool_choice));

const tree = z.object({ value: z.number().int().min(0).max(99), get left() { return tree.nullable(); }, get right() { return tree.nullable(); } });
const person = z.object({
  name: z.string().max(30),
  age: z.number().int().min(0).max(150),
  kind: z.enum(["child", "adult", "elder"]),
  code: z.string().regex(/^[A-Z]{2}-[0-9]{3}$/),
  home: z.object({ street: z.string().max(30), number: z.number().int().min(1).max(9999) }),
  work: z.object({ street: z.string().max(30) }).nullable(),
  tags: z.array(z.string().max(20)).max(3),
});
const parsed = [...cities.map((city) => [person, `Ada of ${city} is 36 years old and lives at 7 Long Street.`]), ...cities.map((_, at) => [tree, `A small tree with the value ${at} at its root and two leaves.`])];
const shaped = ([shape, prompt]) => ({ model, messages: [{ role: "user", content: `${prompt} Give it as JSON.` }], response_format: zodResponseFormat(shape, "answer"), max_tokens: 600, temperature: 0.7 });

const calls = {
  "plain chat": async () => {
    const answer = await client.chat.completions.create({ model, messages: hello, max_tokens: 24 });
    expect(answer.choices[0].message.content && answer.usage.total_tokens, answer);
    return answer.choices[0].message.content;
  },
  "chat, streamed with usage; the stream helper": async () => {
    let text = "", usage = null;
    for await (const part of await client.chat.completions.create({ model, messages: hello, max_tokens: 24, stream: true, stream_options: { include_usage: true } })) {
      text += part.choices[0]?.delta.content ?? "";
      usage = part.usage ?? usage;
    }
    const helped = await client.chat.completions.stream({ model, messages: hello, max_tokens: 24 }).finalContent();
    expect(text && usage?.completion_tokens && helped, { text, usage, helped });
    return `${usage.completion_tokens} tokens`;
  },
  "n, logprobs, stop, seed": async () => {
    const answer = await client.chat.completions.create({ model, messages: hello, n: 3, logprobs: true, top_logprobs: 2, max_tokens: 12, seed: 3 });
    expect(answer.choices.length === 3 && answer.choices.every((one) => one.logprobs.content.every((token) => token.top_logprobs.length === 2)), answer);
    const stopped = await client.chat.completions.create({ model, messages: [{ role: "user", content: "Count from 1 to 9." }], stop: ["5"], temperature: 0, max_tokens: 60 });
    expect(!stopped.choices[0].message.content.includes("5"), stopped);
    return stopped.choices[0].message.content;
  },
  "completions of several prompts, echo": async () => {
    const answer = await client.completions.create({ model, prompt: ["One, two,", "Red,"], max_tokens: 4, echo: true, logprobs: null });
    expect(answer.choices.length === 2 && answer.choices[1].text.startsWith("Red,"), answer);
    return answer.choices[0].text;
  },
  "models": async () => {
    const ids = [];
    for await (const one of client.models.list()) ids.push(one.id);
    expect((await client.models.retrieve(ids[0])).id === ids[0], ids);
    return ids.join();
  },
  "a stream that is left": async () => {
    for (let time = 0; time < 6; time += 1) {
      const stream = await client.chat.completions.create({ model, messages: hello, max_tokens: 400, stream: true });
      for await (const _ of stream) break;
    }
    await client.chat.completions.create({ model, messages: hello, max_tokens: 4 });
    return "free again after six";
  },
  "errors come as the client's own kinds": async () => {
    const seen = [];
    for (const change of [{ model: "another" }, { temperature: -1 }, { messages: [] }]) {
      try {
        await client.chat.completions.create({ model, messages: hello, ...change });
        seen.push("answered");
      } catch (error) {
        expect(error instanceof OpenAI.APIError && !error.message.includes("Input should"), String(error));
        seen.push(error.constructor.name);
      }
    }
    expect(seen.join() === "NotFoundError,BadRequestError,BadRequestError", seen);
    return seen.join();
  },
  "tools, auto, whole": () => whole(some, { more: {} }),
  "tools, auto and strict, streamed": () => streamed(toolPrompts, { strict: true, more: {} }),
  "tools, required, one call, whole": () => whole(toolPrompts, { more: { tool_choice: "required", parallel_tool_calls: false } }),
  "tools, required and strict, streamed": () => streamed(some, { strict: true, more: { tool_choice: "required" } }),
  "runTools: call, result, answer": async () => {
    const seen = [];
    const runner = client.chat.completions.runTools({
      model, messages: [{ role: "user", content: toolPrompts[11] }], max_tokens: 200, temperature: 0,
      tools: [{ type: "function", function: { name: "multiply", description: "Multiply two whole numbers", parameters: product, parse: JSON.parse, function: ({ a, b }) => { seen.push([a, b]); return String(a * b); } } }],
    }, { maxChatCompletions: 4 });
    await runner.done().catch((error) => {
      if (!(error instanceof LengthFinishReasonError)) throw error; // a small model that goes on and on
    });
    expect(seen.length && runner.messages.some((one) => one.role === "tool"), { seen });
    return `${JSON.stringify(seen)} ${runner.messages.at(-1).content}`;
  },
  "zodFunction, parsed": async () => {
    const tool = zodFunction({ name: "multiply", description: "Multiply two whole numbers", parameters: z.object({ a: z.number().int(), b: z.number().int() }) });
    const answer = await client.chat.completions.parse({ model, messages: [{ role: "user", content: toolPrompts[11] }], tools: [tool], temperature: 0, max_tokens: 200 });
    const found = answer.choices[0].message.tool_calls?.[0]?.function.parsed_arguments;
    expect(Number.isInteger(found?.a), answer.choices[0]);
    return JSON.stringify(found);
  },
  "parse of zod models": () => tally(parsed, async (one) => {
    const message = (await client.chat.completions.parse(shaped(one))).choices[0].message;
    return one[0].safeParse(message.parsed).success ? "" : JSON.stringify(message);
  }),
  "the stream helper with zod models": () => tally(parsed.filter((_, at) => at % 4 === 0), async (one) => {
    const message = (await client.chat.completions.stream(shaped(one)).finalChatCompletion()).choices[0].message;
    return one[0].safeParse(message.parsed).success ? "" : JSON.stringify(message);
  }),
};

let faults = 0;
for (const [name, call] of Object.entries(calls)) {
  if (!only.some((one) => name.includes(one))) continue;
  const begun = Date.now();
  let line;
  try {
    line = { well: true, seen: String(await call()).slice(0, 900) };
  } catch (error) {
    faults += 1;
    line = { well: false, seen: String(error).slice(0, 900) };
  }
  console.log(JSON.stringify({ client: `openai ${VERSION} (Node)`, call: name, ...line, s: (Date.now() - begun) / 1000 }));
}
process.exitCode = faults ? 1 : 0;
