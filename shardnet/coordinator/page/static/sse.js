// Server-sent events out of a response. (EventSource can send no key, and no question.)

/** Yields `{event, data}` until the stream ends. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "", name = "message", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const lines = held.split("\n");
      held = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (data.length) yield { event: name, data: data.join("\n") };
          name = "message";
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line.startsWith("event:")) name = line.slice(6).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The sentence that an error of the API brings, whatever it looks like. */
export async function errorOf(response) {
  let message = `The coordinator answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: somebody in between answered */ }
  const wait = Number(response.headers.get("Retry-After")) || null;
  return { message, status: response.status, wait };
}
