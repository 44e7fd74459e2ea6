"""A real browser: Debian's Chromium, driven by Playwright. With SMALLCALL_TEST_REQUIRE_BROWSER it must be there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def chromium() -> Path:
    """The browser's program; CI fails without it."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is not there: apt-get install chromium"
        if os.environ.get("SMALLCALL_TEST_REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    return CHROMIUM


@pytest.fixture
async def browser(chromium: Path) -> AsyncIterator[Browser]:
    """Chromium, started for one test."""
    async with async_playwright() as driver:
        started = await driver.chromium.launch(executable_path=str(chromium), args=FLAGS)
        yield started
        await started.close()


@pytest.fixture
async def tab(browser: Browser) -> AsyncIterator[Page]:
    """One page; a script's error, a dialog or a request for anything but a file fails the test."""
    page = await browser.new_page(viewport={"width": 1200, "height": 900})
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith("file:") else troubles.append(f"request: {r.url}"))

    async def refuse(dialog: object) -> None:
        troubles.append(f"dialog: {dialog}")
        await dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", refuse)
    yield page
    await page.close()
    assert troubles == []
