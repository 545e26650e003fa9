// The swarm's state as it changes: one stream for this page, taken up again when it breaks, and let go while nobody sees the page.
import { ask, letIn, wantKey } from "./access.js";
import { errorOf, events } from "./sse.js";

const FIRST_PAUSE = 500, MOST_PAUSE = 10000, HIDDEN_FOR = 10000;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function shown() {
  if (document.visibilityState === "visible") return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", function look() {
      if (document.visibilityState !== "visible") return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    });
  });
}

/** Never returns. `handlers.lost(sentence)` is called where there is no stream, else the one that is named like the event, with its data. */
export async function follow(handlers) {
  let wait = FIRST_PAUSE;
  for (;;) {
    await shown();
    const stopping = new AbortController();
    let timer;
    const onVisibility = () => {
      clearTimeout(timer);
      if (document.visibilityState !== "visible") timer = setTimeout(() => stopping.abort(), HIDDEN_FOR);
    };
    document.addEventListener("visibilitychange", onVisibility);
    try {
      const response = await ask("page/events", { signal: stopping.signal });
      if (response.status === 401) {
        handlers.lost("A key is wanted");
        await wantKey();
        continue;
      }
      if (!response.ok) throw new Error((await errorOf(response)).message);
      letIn();
      for await (const { event, data } of events(response)) {
        wait = FIRST_PAUSE;
        handlers[event]?.(JSON.parse(data));
      }
      throw new Error("The coordinator ended the stream");
    } catch (error) {
      if (stopping.signal.aborted) continue;
      const told = error instanceof TypeError ? "The coordinator does not answer" : error.message;
      handlers.lost(`${told}; trying again`);
      await pause(wait);
      wait = Math.min(2 * wait, MOST_PAUSE);
    } finally {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", onVisibility);
    }
  }
}
