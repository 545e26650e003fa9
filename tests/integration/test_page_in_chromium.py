"""The web page in a real browser: what people see, type and hear, over real HTTP, with nodes that say what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
            await expect(failed).to_contain_text("The coordinator asks to wait")
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
                '<pre tabindex="0"><code data-language="py">x = \'&lt;b&gt;\'\n\n# no heading</code></pre><p>end</p>',
            ),
            ("```\nnot ended", '<pre tabindex="0"><code>not ended</code></pre>'),
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_narrow_page_has_all_of_it_in_one_column(
    browser: Browser, home: Path, tmp_path: Path, scheme: str
) -> None:
    async with page_world(tmp_path) as world, world.node("a", 0, 1) as a, world.node("b", 2):
        await world.ready()
        async with opened(browser, world, viewport={"width": 340, "height": 800}, color_scheme=scheme) as (page, _):
            await expect(page.locator(".node")).to_have_count(2)
            widths = await page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1]
            red, *_ = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
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
