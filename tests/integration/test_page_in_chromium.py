"""The web page in a real browser: what people see, type and hear, over real HTTP, with nodes that say what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")

from playwright.async_api import Browser, Page, expect

from shardnet.messages import ExecuteTask, LoadProgress
from shardnet.swarm.api_keys import make_key
from shardnet.swarm.enrol import enrol
from shardnet.swarm.home import Home
from shardnet.swarm.tokens import parse_token
from tests.support.chromium import CHROMIUM, WHY_NOT, Seen, chromium, network_of_its_own, window
from tests.support.page_world import PageWorld, page_world

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT),
    pytest.mark.asyncio(loop_scope="module"),
]

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TABLE = (
    '<div class="scroll"><table><thead><tr><th scope="col">a</th><th scope="col">b</th></tr></thead>'
    "<tbody><tr><td>1</td><td><code>2</code></td></tr></tbody></table></div>"
)
PROGRAM = (
    '<div class="program"><pre tabindex="0">%s</pre>'
    '<button type="button" class="quiet copy" aria-label="Copy the code">Copy</button></div>'
)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
REFUSED = "the server responded with a status of"
"""Chromium's own note of an answer that is an error, which is one here."""


@pytest.fixture(scope="module", autouse=True)
def _network() -> Iterator[None]:
    with network_of_its_own():
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(_network: None) -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@asynccontextmanager
async def opened(
    browser: Browser, world: PageWorld, *, allowed: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[tuple[Page, Seen]]:
    """The page in a browser; in the end nothing was asked of anybody else, and nothing complained of."""
    async with window(browser, **options) as (page, seen):
        await page.goto(f"{world.url}/")
        yield page, seen
    seen.check(world.url, allowed=allowed)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def ask(page: Page, text: str) -> None:
    await page.get_by_label("Your message").fill(text)
    await page.get_by_role("button", name="Send").click()


async def test_a_chat_with_reasoning_and_a_tool_call(browser: Browser, home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, world.node("a", 0, 1, 2):
        await world.ready()
        world.says(f"<think>Which city?</think>I **look**, <img src=x> [here](javascript:alert(1)).{CALL}")
        async with opened(browser, world) as (page, _):
            await expect(page.locator("#summary-text")).to_have_text("1 node, tiny ready")
            await page.get_by_text("System prompt, sampling, tools").click()
            await page.get_by_label("Tools").fill(json.dumps([WEATHER]))
            await page.get_by_label("Tokens at most").fill("400")
            await ask(page, "How warm is it in Rome?")
            answer = page.get_by_label("Answer")
            await expect(answer).to_have_attribute("aria-busy", "false")
            thought, call = answer.locator("details").nth(0), answer.locator("details.call")
            for folded, label in ((thought, "Reasoning (11 characters)"), (call, "Calls weather")):
                await expect(folded.locator("summary")).to_have_text(label)
                assert await folded.get_attribute("open") is None
                await folded.locator("summary").click()
            await expect(thought.locator(".reasoning")).to_have_text("Which city?")
            await expect(call.locator("code")).to_have_text('{\n  "city": "Rome"\n}')
            await expect(answer.locator("strong")).to_have_text("look")
            await expect(answer.locator(".text")).to_have_text("I look, <img src=x> [here](javascript:alert(1)).")
            assert await answer.locator("img, .text a").count() == 0

            world.says("It is 7 degrees.")
            await page.get_by_label("What weather gives").fill("7 C")
            await page.get_by_role("button", name="Give it to the model").click()
            await expect(page.get_by_label("Answer").last.locator(".text")).to_have_text("It is 7 degrees.")
            await expect(page.get_by_label("Answer").last.locator(".foot")).to_contain_text("by a")


async def test_a_conversation_outlives_a_reload_in_its_tab_and_can_be_taken_back(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    async with page_world(tmp_path) as world, world.node("a", 0, 1, 2) as a:
        await world.ready()
        world.says(f"<think>Hm.</think>Let me see.{CALL}")
        async with opened(browser, world, permissions=["clipboard-read", "clipboard-write"]) as (page, _):
            answers = page.get_by_label("Answer", exact=True)
            await page.get_by_text("System prompt, sampling, tools").click()
            await page.get_by_label("Tools").fill(json.dumps([WEATHER]))
            await ask(page, "How warm is it?")
            await page.get_by_label("What weather gives").fill("7 C")
            await page.reload()
            await expect(page.locator(".message.user")).to_have_text("How warm is it?")
            await expect(answers.locator("details.call code")).to_have_text('{\n  "city": "Rome"\n}')
            await expect(answers.locator(".foot")).to_contain_text("by a")
            assert json.loads(await page.locator("#tools").input_value()) == [WEATHER]
            world.says("It is `7` degrees.")
            await page.get_by_label("What weather gives").fill("7 C")
            await page.get_by_role("button", name="Give it to the model").click()
            await expect(answers.last.locator(".text")).to_have_text("It is 7 degrees.")
            await answers.last.get_by_role("button", name="Copy").click()
            assert await page.evaluate("navigator.clipboard.readText()") == "It is `7` degrees."

            world.says("It is warm.")
            await answers.last.get_by_role("button", name="Answer again").click()
            await expect(answers.last.locator(".text")).to_have_text("It is warm.")
            await expect(answers).to_have_count(2)
            a.on_task = lambda _task: False
            before = len(a.tasks)
            await ask(page, "And tomorrow?")
            await until(lambda: len(a.tasks) > before)
            await page.reload()
            await expect(page.get_by_role("alert").filter(has_text="before the answer was whole")).to_be_visible()
            a.on_task = lambda _task: True
            await page.get_by_role("button", name="Try again").click()
            await expect(answers.last.locator(".text")).to_have_text("It is warm.")

            other = await page.context.new_page()
            await other.goto(f"{world.url}/")
            await expect(other.locator("#messages .empty")).to_be_visible()  # a tab has its own
            await page.get_by_role("button", name="Edit").first.click()
            await expect(page.get_by_label("Your message")).to_have_value("How warm is it?")
            await expect(page.locator(".message")).to_have_count(0)
            await page.reload()
            await expect(page.locator("#messages .empty")).to_be_visible()


async def test_a_page_finds_a_coordinator_again_that_was_started_anew(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    async with window(browser) as (page, _):
        async with page_world(tmp_path) as world:
            await page.goto(f"{world.url}/")
            await expect(page.locator("#summary")).to_have_attribute("data-state", "gap")
        await expect(page.locator("#summary")).to_have_attribute("data-state", "lost")
        await expect(page.locator("#summary-text")).to_contain_text("trying again")
        listen = {"nodes": "127.0.0.1:0", "api": world.url.removeprefix("http://"), "enrol": "127.0.0.1:0"}
        async with page_world(tmp_path, listen=listen) as again, again.node("a", 0, 1, 2):
            await expect(page.locator("#summary-text")).to_have_text("1 node, tiny ready")


OVERLAPS = """async (count) => {
  const { SwarmPicture } = await import('/page/swarm.js');
  const container = document.getElementById('picture'), id = (index) => String(index).padStart(40, '0');
  const nodes = Array.from({ length: count }, (_, index) => (
    { node_id: id(index), name: index ? `worker-${index}` : 'a-name-that-is-much-longer.than.its.box', state: 'up', shards_held: 1 }));
  const pipelines = [nodes.map((node, index) => ({ node_id: node.node_id, layers: `[${index}, ${index + 1})` }))];
  const links = [];
  for (let a = 0; a < count; a += 1) for (let b = a + 1; b < count; b += 1) {
    links.push({ a: id(a), b: id(b), round_trip_s: 0.0123, bytes_per_s: 123e6, relayed: false, used: b === a + 1 || (a === 0 && b === count - 1) });
  }
  const drawing = new SwarmPicture(container);
  drawing.show({ nodes, gone: [], links, models: [{ pipelines, coverage: [] }], coordinator: { node_id: id(999), version: '1' } });
  drawing.pulse({ at_s: 1, answers: [], nodes: nodes.map((one) => ({ node_id: one.node_id, load: 0.5, memory_free_bytes: 12345678901 })) });
  const over = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const rects = (query) => [...container.querySelectorAll(query)].map((one) => [one.textContent, one.getBoundingClientRect()]);
  const boxes = rects('.node > rect:first-of-type'), words = rects('.node > text'), labels = rects('.label.used');
  const found = [];
  boxes.forEach(([, a], at) => boxes.slice(at + 1).forEach(([, b]) => over(a, b) && found.push('boxes')));
  const within = (a, b) => a.left > b.left && a.right < b.right && a.top > b.top && a.bottom < b.bottom;
  for (const [text, a] of words) if (!boxes.some(([, b]) => within(a, b))) found.push(text);
  const near = labels.filter(([, a]) => boxes.every(([, b]) => !over(a, b)));
  const view = container.firstElementChild.getBoundingClientRect();
  const cut = labels.filter(([, a]) => a.left < view.left || a.right > view.right).length;
  return { found, hidden: labels.length - near.length, cut, text: Math.min(...words.map(([, a]) => a.height)), svg: view.height };
}"""


@pytest.mark.parametrize("width", [1440, 375])
async def test_a_picture_of_few_and_of_thirty_nodes_can_be_read(
    browser: Browser, home: Path, tmp_path: Path, width: int
) -> None:
    async with (
        page_world(tmp_path) as world,
        opened(browser, world, viewport={"width": width, "height": 900}) as (page, _),
    ):
        await expect(page.locator("#summary-text")).to_contain_text("0 nodes")
        for count in (2, 3, 5, 6, 8, 9, 30):
            seen = await page.evaluate(OVERLAPS, count)
            assert seen["found"] == [], (count, seen)
            assert seen["cut"] == 0, (count, seen)
            assert seen["hidden"] <= (1 if count > 8 else 0), (count, seen)  # the way back of a long ring
            assert seen["text"] > 8, (count, seen)


async def test_no_name_and_no_answer_is_too_wide_for_a_narrow_page_or_becomes_markup(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    """Two models in 40 shards, one with a name of 120 characters, one with a name that is markup; tables, code and words without an end."""
    async with (
        page_world(tmp_path) as world,
        opened(browser, world, viewport={"width": 375, "height": 800}) as (page, _),
    ):
        await expect(page.locator("#summary-text")).to_contain_text("0 nodes")
        text = f"{'word' * 400}\n\n| {'a' * 90} | {'b' * 90} |\n|--|--|\n| 1 | <b>2</b> |\n\n```\n{'code ' * 200}\n```\n\n<script>x</script>"
        await page.evaluate(
            """async (text) => {
              const { showModels } = await import('/page/coverage.js'), { AnswerView } = await import('/page/message.js');
              const holders = [{ node: 'n'.repeat(90), node_id: 'x', state: 'ready' }];
              const coverage = Array.from({ length: 40 }, (_, at) => (
                { first: 2 * at, end: 2 * at + 2, state: at === 39 ? 'nobody' : 'ready', copies: 1, holders: at === 39 ? [] : holders }));
              const pipelines = [coverage.slice(1).map((run) => ({ node: 'n'.repeat(90), layers: `[${run.first}, ${run.end})` }))];
              const models = ['m'.repeat(120), '<img src=x onerror=alert(1)>'].map((model, index) => ({
                model, model_id: String(index), ready: true, reason: 'r'.repeat(300), architecture: 'llama', quantisation: 'Q4_0',
                n_layers: 80, total_bytes: 1, unproved_reason: null, notes: [], coverage, pipelines }));
              showModels(document.getElementById('models'), models);
              document.getElementById('summary-text').textContent = 'm'.repeat(200);
              const view = AnswerView.of({ content: text, reasoning_content: 'r'.repeat(500), tool_calls: [
                { id: '1', function: { name: 'f'.repeat(200), arguments: '1'.repeat(400) } }] }, 'f'.repeat(300));
              for (const fold of view.element.querySelectorAll('details')) fold.open = true;
              document.getElementById('messages').append(view.element);
            }""",
            text,
        )
        widths = await page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1]
        assert await page.locator("#models img, .message script, .message b").count() == 0
        await expect(page.locator('.cell[data-state="nobody"] .word').first).to_be_visible()
        inside = await page.evaluate("""[...document.querySelectorAll('#messages .text > *, .cell[data-state="nobody"]')].every((one) => {
          const { left, right } = one.getBoundingClientRect();
          return left >= 0 && right <= innerWidth;
        })""")
        assert inside


async def test_a_node_that_dies_while_one_looks_is_missed_and_comes_back(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    async with page_world(tmp_path) as world, world.node("left", 0, 1), world.node("right", 2) as right:
        await world.ready()
        async with opened(browser, world) as (page, _):
            cells = page.locator(".cell")
            await expect(page.locator("#summary-text")).to_have_text("2 nodes, tiny ready")
            await expect(page.locator(".node")).to_have_count(2)
            await expect(page.locator(".label.used")).to_contain_text(["relayed"])
            await right.leave()
            await expect(page.locator("#summary-text")).to_have_text("1 node, layers 4 to 5 of tiny on no node")
            await expect(cells.last).to_have_attribute("data-state", "nobody")
            await expect(cells.last).to_contain_text("MISSING")
            gone = page.locator('.node[data-state="gone"]')
            await expect(gone).to_contain_text("had layers 4 to 5")
            await expect(gone.locator(".missing")).to_contain_text("MISSING for")
            await expect(page.locator("#live")).to_contain_text("on no node")
            await expect(page.locator("#lines")).to_contain_text("right (")
            await right.join()
            await expect(page.locator("#summary-text")).to_have_text("2 nodes, tiny ready")
            await expect(gone).to_have_count(0)
            await expect(cells.last).to_have_attribute("data-state", "ready")


async def test_an_answer_that_loses_a_node_says_so_and_goes_on(browser: Browser, home: Path, tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    async with page_world(tmp_path) as world, world.node("a", 0, 1), world.node("b", 2) as b:
        await world.ready()
        world.says(text)
        stalled = asyncio.Event()

        def stall(task: ExecuteTask) -> bool:
            if len(b.tasks) > 20:
                stalled.set()
            return not stalled.is_set()

        b.on_task = stall
        async with opened(browser, world) as (page, _):
            await expect(page.locator("#summary-text")).to_have_text("2 nodes, tiny ready")
            await ask(page, "hello")
            await stalled.wait()
            await b.leave()
            answer = page.get_by_label("Answer")
            await expect(answer.locator(".note")).to_contain_text("A node of this answer was lost")
            async with world.node("c", 2):
                await expect(answer.locator(".note")).to_contain_text("rebuilt on a → c")
                await expect(answer).to_have_attribute("aria-busy", "false")
                await expect(answer.locator(".text")).to_have_text(text)
                await expect(answer.locator(".note")).to_have_count(1)
                told = await page.evaluate("""async () => {
                  const { AnswerView } = await import('/page/message.js');
                  const view = new AnswerView(), name = (id) => id, notes = [];
                  for (const [attempts, waits] of [[1, false], [2, false], [2, true], [3, false], [3, false]]) {
                    view.look({ nodes: ['n' + attempts], tokens: 1, attempts, waits }, name);
                    notes.push([...view.notes.children].map((one) => one.dataset.kind + one.textContent.includes('n3')));
                  }
                  return notes;
                }""")
                assert told == [[], ["rebuiltfalse"], ["waitsfalse"], ["rebuilttrue"], ["rebuilttrue"]]


async def test_errors_are_said_and_asking_again_mends_them_and_stop_frees_the_nodes(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    async with page_world(tmp_path) as world:
        world.says("Hello.")
        async with opened(browser, world, allowed=(REFUSED,)) as (page, _):
            await expect(page.locator("#summary-text")).to_contain_text("0 nodes, layers 0 to 5 of tiny on no node")
            await ask(page, "hi")
            failed = page.get_by_role("alert").filter(has_text="layers")
            await expect(failed).to_contain_text("Try again in")
            async with world.node("a", 0, 1, 2) as a:
                await world.ready()
                await failed.get_by_role("button", name="Try again").click()
                await expect(page.get_by_label("Answer").locator(".text")).to_have_text("Hello.")
                assert await page.get_by_label("Answer").count() == 1

                a.on_task = lambda _task: len(a.tasks) < 30
                world.says("one two three " * 20)
                await ask(page, "go on")
                await until(lambda: len(a.tasks) >= 30)
                await page.get_by_role("button", name="Stop").click()
                await expect(page.get_by_label("Answer").last.locator(".foot")).to_contain_text("stopped")
                await until(lambda: not a.live_sequences)


async def test_a_join_token_is_made_by_a_button_and_lets_a_machine_in(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    async with page_world(tmp_path) as world, opened(browser, world) as (page, _):
        await page.get_by_role("button", name="Make a join token").click()
        line = page.locator('#steps [data-step="machine"] code').last
        await expect(line).to_contain_text("shardnet join SHARD1-")
        await expect(page.locator("#token-about")).to_contain_text("only this machine reaches")
        token = parse_token((await line.inner_text()).removeprefix("shardnet join "))
        joined = await enrol(token, Home(tmp_path / "other"), "other", replace=False)
        assert (
            joined.swarm.swarm_id
            == (await page.evaluate("fetch('/status').then(a => a.json())"))["coordinator"]["swarm_id"]
        )
        joined.release()


async def test_everything_goes_by_keyboard_and_shows_where_one_is(browser: Browser, home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, world.node("a", 0, 1, 2) as a:
        await world.ready()
        world.says("Fine.")
        async with opened(browser, world) as (page, _):
            await expect(page.locator("#summary-text")).to_have_text("1 node, tiny ready")
            press = page.keyboard.press

            async def focused() -> str:
                found: str = await page.evaluate("document.activeElement.id || document.activeElement.textContent")
                return found

            async def tab_to(what: str) -> None:
                for _ in range(60):
                    await press("Tab")
                    if await focused() == what:
                        style = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                        assert style == "solid", what
                        return
                raise AssertionError(f"no way to {what} by Tab")

            await press("Tab")
            assert await focused() == "Skip to the chat"
            await press("Enter")
            await tab_to("question") if await focused() != "question" else None
            await page.keyboard.type("How are you?")
            await press("Shift+Enter")
            await page.keyboard.type("Well?")
            await press("Enter")
            await expect(page.locator(".message.user")).to_have_text("How are you?\nWell?")
            await expect(page.get_by_label("Answer").locator(".text")).to_have_text("Fine.")
            a.on_task = lambda task: task.position < 60
            world.says("on and on " * 30)
            await page.keyboard.type("go on")
            await press("Enter")
            await expect(page.locator("#stop")).to_be_visible()
            await press("Escape")
            await expect(page.locator("#send")).to_be_visible()
            await tab_to("make-token")
            await press("Enter")
            await expect(page.locator("#steps code").filter(has_text="SHARD1-")).to_be_visible()
            await expect(page.locator("#make-token")).to_be_focused()
            await tab_to("warnings")
            await press("Space")
            await expect(page.locator("#warnings")).to_be_checked()
            await tab_to("theme")
            for theme in ("dark", "light", None):
                await press("Enter")
                assert await page.evaluate("document.documentElement.dataset.theme ?? null") == theme


async def test_nothing_comes_from_elsewhere_and_nothing_inline_runs(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    async with page_world(tmp_path) as world, world.node("a", 0, 1, 2):
        await world.ready()
        async with opened(browser, world, allowed=("Content Security Policy", "Trusted")) as (page, seen):
            await expect(page.locator("#summary-text")).to_have_text("1 node, tiny ready")
            assert not seen.complaints
            policy = await page.evaluate("fetch('/').then(a => a.headers.get('content-security-policy'))")
            assert "unsafe-inline" not in policy
            hostile = """() => {
              const tried = {};
              const script = document.createElement('script');
              try { script.textContent = 'window.ran = 1'; document.head.append(script); } catch { tried.script = 'refused'; }
              try { document.body.innerHTML = '<b>x</b>'; } catch { tried.markup = 'refused'; }
              const image = document.createElement('img');
              return new Promise((done) => {
                image.onerror = () => done({ ...tried, image: 'refused', ran: window.ran ?? 0 });
                image.onload = () => done({ ...tried, image: 'shown', ran: window.ran ?? 0 });
                image.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=';
              });
            }"""
            assert await page.evaluate(hostile) == {
                "script": "refused",
                "markup": "refused",
                "image": "refused",
                "ran": 0,
            }
            assert seen.complaints
            seen.requests = [one for one in seen.requests if not one.startswith("data:")]


async def test_markdown_becomes_elements_and_nothing_else(browser: Browser, home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, opened(browser, world) as (page, _):

        async def shown(text: str) -> str:
            script = """async (text) => {
              const { Written } = await import('/page/markdown.js');
              const element = document.createElement('div'), written = new Written(element);
              for (let end = 0; end <= text.length; end += 7) written.show(text.slice(0, end));
              written.show(text);
              return element.outerHTML.slice(5, -6);
            }"""
            found: str = await page.evaluate(script, text)
            return found

        link = '<a href="https://x.example/a_b" target="_blank" rel="noopener noreferrer">'
        for text, wanted in (
            (
                "# One\ntwo  \n*three* **four** `f<i>ve`",
                "<h3>One</h3><p>two<br><em>three</em> <strong>four</strong> <code>f&lt;i&gt;ve</code></p>",
            ),
            (
                "- a **b**\n  - c\n- d\n\n1. e\n2. f",
                "<ul><li>a <strong>b</strong><ul><li>c</li></ul></li><li>d</li></ul><ol><li>e</li><li>f</li></ol>",
            ),
            (
                "```py\nx = '<b>'\n\n# no heading\n```\nend",
                PROGRAM % "<code data-language=\"py\">x = '&lt;b&gt;'\n\n# no heading</code>" + "<p>end</p>",
            ),
            ("```\nnot ended", PROGRAM % "<code>not ended</code>"),
            ("> a\n> b\n\n---", "<blockquote><p>a<br>b</p></blockquote><hr>"),
            ("|a|b|\n|--|:-:|\n|1|`2`|", TABLE),
            ("[a](https://x.example/a_b) ![b](https://x.example/a_b)", f"<p>{link}a</a> {link}b</a></p>"),
            ("see https://x.example/a_b.", f"<p>see {link}https://x.example/a_b</a>.</p>"),
            (
                "[a](javascript:alert(1)) <script>1</script>",
                "<p>[a](javascript:alert(1)) &lt;script&gt;1&lt;/script&gt;</p>",
            ),
            ("2 * 3 * 4, snake_case_name, \\*no\\*", "<p>2 * 3 * 4, snake_case_name, *no*</p>"),
            (">" * 500 + "deep", None),
        ):
            found = await shown(text)
            if wanted is not None:
                assert found == wanted, text


async def test_a_key_is_asked_for_once_and_kept_for_the_tab_alone(browser: Browser, home: Path, tmp_path: Path) -> None:
    key = make_key(Home(), "anna")
    async with (
        page_world(tmp_path) as world,
        world.node("a", 0, 1, 2),
        opened(browser, world, allowed=(REFUSED,)) as (page, seen),
    ):
        door = page.get_by_label("Key")
        await expect(door).to_be_focused()
        await door.fill("wrong")
        await page.get_by_role("button", name="Use it").click()
        await expect(page.get_by_role("alert").filter(has_text="does not know this key")).to_be_visible()
        await door.fill(key)
        await page.keyboard.press("Enter")
        await expect(page.locator("#summary-text")).to_have_text("1 node, tiny ready")
        await expect(page.locator("#door")).to_be_hidden()
        world.says("With a key.")
        await ask(page, "hi")
        await expect(page.get_by_label("Answer").locator(".text")).to_have_text("With a key.")
        await page.reload()
        await expect(page.locator("#summary-text")).to_have_text("1 node, tiny ready")
        assert await page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
        assert not [url for url in seen.requests if key in url]


async def test_a_tab_that_nobody_sees_lets_its_stream_go(browser: Browser, home: Path, tmp_path: Path) -> None:
    """Browsers allow six connections to one server: twenty tabs must not hold twenty."""
    async with page_world(tmp_path) as world, opened(browser, world) as (page, seen):
        await expect(page.locator("#summary-text")).to_contain_text("0 nodes")
        broken: list[str] = []
        page.on("requestfailed", lambda one: broken.append(one.url))
        await page.clock.install()
        turn = """(state) => {
          Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });
          document.dispatchEvent(new Event('visibilitychange'));
        }"""
        streams = f"{world.url}/page/events"
        await page.evaluate(turn, "hidden")
        await page.clock.fast_forward(5000)
        assert not broken
        await page.clock.fast_forward(6000)
        await until(lambda: broken == [streams])
        assert seen.requests.count(streams) == 1
        await page.evaluate(turn, "visible")
        await until(lambda: seen.requests.count(streams) == 2)
        await expect(page.locator("#summary")).to_have_attribute("data-state", "gap")


async def test_a_narrow_page_has_all_of_it_in_one_column_by_day_and_by_night(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    async with page_world(tmp_path) as world, world.node("a", 0, 1) as a, world.node("b", 2):
        await world.ready()
        async with opened(browser, world, viewport={"width": 340, "height": 800}) as (page, _):
            await expect(page.locator(".node")).to_have_count(2)
            widths = await page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1]
            for scheme in SCHEMES:
                await page.emulate_media(color_scheme=scheme)
                red, *_ = await page.evaluate(
                    "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
                )
                assert (red < 60) == (scheme == "dark")
            paint = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            assert paint > 0

            a.holds_loads = True
            a.loads.clear()
            await a.leave()
            a._held = {key: one.model_copy(update={"loaded": False}) for key, one in a._held.items()}
            await a.join()
            await until(lambda: bool(a.loads))
            progress = LoadProgress(
                command_id=a.loads[0].command_id,
                stage="fetch",
                done_bytes=250_000_000,
                total_bytes=1_000_000_000,
                bytes_per_s=50e6,
                peers=3,
            )
            a.connection.send(progress)
            load = page.locator("#downloads .load").filter(has_text=f"Shard {a.loads[0].shard_id} of tiny on a")
            await expect(load).to_contain_text("25 % of 1 GB · 50 MB/s · 15 s left · 3 peers")
            await expect(page.locator('.cell[data-state="coming"]').first).to_be_visible()
