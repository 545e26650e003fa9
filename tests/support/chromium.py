"""A real Chromium, driven by Playwright, that notes all it asks for and all that it complains of."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, Page, async_playwright, expect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
expect.set_options(timeout=15_000)  # of a machine that others use too
WHY_NOT = "there is no Chromium here: apt-get install chromium"


@dataclass
class Seen:
    """What the browser did beside showing the page.

    Attributes:
        requests: addresses that it asked for.
        complaints: of the console: errors, warnings, breaches of the policy, exceptions.
    """

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def note(self, page: Page) -> None:
        page.on("request", lambda one: self.requests.append(one.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda one: self.complaints.append(one.text) if one.type in ("error", "warning") else None,
        )

    def check(self, url: str, *, allowed: tuple[str, ...] = ()) -> None:
        """Fail if anything was asked of anybody else, or if the browser complained of something that is not `allowed`."""
        assert self.requests
        assert [one for one in self.requests if not one.startswith(f"{url}/")] == []
        assert [one for one in self.complaints if not any(word in one for word in allowed)] == []


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The browser. It takes a second or two to come up, so a file's tests may share one."""
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def window(browser: Browser, **options: Any) -> AsyncIterator[tuple[Page, Seen]]:
    """A window that shares nothing with others. `options` are those of Playwright's contexts."""
    seen = Seen()
    context = await browser.new_context(**options)
    try:
        context.set_default_timeout(15_000)
        context.on("page", seen.note)
        yield await context.new_page(), seen
    finally:
        await context.close()
