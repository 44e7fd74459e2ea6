"""A picture of a report for the documents: `python -m tests.browser.picture PAGE PNG`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from playwright.async_api import async_playwright

from tests.browser.conftest import CHROMIUM, FLAGS


async def take(page: str, png: str) -> None:
    """The page's chart and slider, in light colours."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        tab = await browser.new_page(viewport={"width": 1120, "height": 900}, color_scheme="light")
        await tab.goto(page)
        top = await tab.locator("#curve-title").bounding_box()
        assert top is not None
        box = await tab.locator("#operate").bounding_box()
        assert box is not None
        clip = {"x": 40, "y": top["y"] - 8, "width": 1040, "height": box["y"] + box["height"] - top["y"] + 24}
        await tab.screenshot(path=png, clip=clip, full_page=True)  # type: ignore[arg-type]
        await browser.close()


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1]).resolve().as_uri(), sys.argv[2]))
