"""The page to try the HTTP API, in a real browser: it is made of the document, asks what is asked for, and shows what comes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")

from playwright.async_api import expect

from tests.support.chromium import CHROMIUM, WHY_NOT, chromium, window
from tests.support.page_world import page_world

pytestmark = [pytest.mark.integration, pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)]

REFUSED = "the server responded with a status of"
"""Chromium's own note of an answer that is an error, which is one here."""


async def test_every_endpoint_can_be_tried_whole_streamed_and_refused(home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, world.node("a", 0, 1, 2):
        await world.ready()
        world.says("Light is scattered.")
        async with chromium() as browser, window(browser) as (page, seen):
            await page.goto(f"{world.url}/docs")
            await expect(page.locator("#model option")).to_have_count(2)
            paths = await page.locator(".path").all_text_contents()
            assert {"/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/healthz"} <= set(paths)

            chat = page.locator(".endpoint").filter(has=page.get_by_text("/v1/chat/completions", exact=True))
            await chat.locator("> summary").click()
            await chat.get_by_role("button", name="Send").click()
            await expect(chat.locator(".outcome")).to_have_text(re.compile("^200 "))
            await expect(chat.locator(".came")).to_contain_text("Light is scattered.")
            await chat.get_by_label("stream").check()
            await chat.get_by_role("button", name="Send").click()
            await expect(chat.locator(".said")).to_have_text("Light is scattered.")
            await expect(chat.locator(".came")).to_contain_text("data: [DONE]")
            await chat.get_by_text("Fields of the body").click()
            await expect(chat.get_by_text("messages[].content[].text")).to_be_visible()

            await chat.get_by_label("Body").fill('{"messages": ')
            await chat.get_by_role("button", name="Send").click()
            await expect(chat.locator(".outcome")).to_contain_text("the body is not JSON")
            await chat.get_by_label("Body").fill('{"messages": 3}')
            await chat.get_by_role("button", name="Send").click()
            await expect(chat.locator(".outcome")).to_have_text(re.compile("^400 "))
            await expect(chat.locator(".came")).to_contain_text("messages: must be a list")
        seen.check(world.url, allowed=(REFUSED,))
