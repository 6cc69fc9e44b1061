"""A report in headless Chromium, from disk and without a network.

A test module has a fixture ``report`` (its path), imports from here and says ``pytest_plugins =
["browser"]``. The import comes before the plugin, hence PYTEST_DONT_REWRITE.
"""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
FLAGGED = "[data-table=anomalies]"


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed (one of {', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        # As root there is no sandbox, in a container little shared memory.
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()


@pytest.fixture
def open_page(browser, report):
    """Open the report; after the test, nothing may have been asked for, complained of or run."""
    seen, contexts = [], []

    def opened(
        width: int = 1280, path: Path = report, before: str = "", expected: str = "", **options
    ) -> Page:
        def is_bad(line) -> bool:
            return line.type != "info" and not (expected and expected in line.text)

        context = browser.new_context(
            viewport={"width": width, "height": 800}, offline=True, **options
        )
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url))
        page.on("console", lambda line: seen.append(line.text) if is_bad(line) else None)
        if before:
            page.add_init_script(before)
        page.goto(path.as_uri())
        # Figures and downloads are of the page itself.
        seen[:] = [what for what in seen if what != path.as_uri()]
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [what for what in seen if not what.startswith(("data:", "blob:"))] == []


@pytest.fixture
def page(open_page) -> Page:
    return open_page()


def column(page: Page, heading: str, table: str = FLAGGED) -> list[str]:
    """The texts of a column of a table, as far as they are shown."""
    headings = page.locator(f"{table} thead th").all_text_contents()
    number = next(i for i, name in enumerate(headings, start=1) if name.startswith(heading))
    return page.locator(f"{table} tbody td:nth-child({number})").all_text_contents()


def show_map(page: Page) -> None:
    page.locator("#map").scroll_into_view_if_needed()
    expect(page.locator("#map")).to_have_attribute("data-ready", "yes")
