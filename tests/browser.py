"""A real browser for the pages: Debian's chromium, driven by Playwright; skips without one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

READY = "html[data-ready]"
TIMEOUT_MS = 60_000


@contextmanager
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(browser: Any, file: Path, width: int = 1280, **looks: Any) -> Iterator[Any]:
    """The page with all its charts drawn; afterwards: no error, no message, no request."""
    said: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 844}, **looks)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: said.append(request.url))
    page.goto(file.resolve().as_uri())
    page.wait_for_selector(READY, state="attached")
    yield page
    context.close()
    own = (file.resolve().as_uri(), "data:", "blob:")
    assert [one for one in said if not one.startswith(own)] == []


def scrolls_sideways(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def marks(page: Any, section: str, number: int = 0) -> int:
    """Runs that a chart shows: lines of their own, or points of a common trace."""
    return page.evaluate(
        """([section, number]) => {
            const plot = document.querySelectorAll(`#${section} .plot`)[number];
            const drawn = new Set();
            plot.data.forEach((trace, place) => {
                const meta = trace.meta || {};
                const group = plot.querySelectorAll(".scatterlayer .trace");
                if (meta.run !== undefined && trace.visible !== "legendonly") drawn.add(meta.run);
                if (meta.runs) group.forEach((one) => one.querySelectorAll(".points path")
                    .forEach((_, i) => drawn.add(meta.runs[i])));
            });
            const lines = plot.querySelectorAll(".scatterlayer .trace").length;
            const shown = plot.data.filter((t) => t.visible !== "legendonly").length;
            return lines === shown ? drawn.size : -1;
        }""",
        [section, number],
    )
