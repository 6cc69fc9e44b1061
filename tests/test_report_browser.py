"""The report in a browser, from disk and without a network: what a reader can do with it."""

import csv
import re
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from browser import FLAGGED, column, show_map
from fake_reasons import write_check
from fake_run import CONFIG, HOSTILE, write_fake_run
from report_tables import ROWS_A_PAGE
from written_report import write_files

pytest_plugins = ["browser"]

HOSTILE_CELL = '=<img src=x onerror="alert(1)">{{7*7}}'
HOSTILE_GROUP = "\"'><img src=x onerror=alert(2)>\u2028"
WARNINGS = (f"gene {HOSTILE} is odd; rename it", "few cells; bring more", "third", "fourth")
WIDTHS = (390, 1280, 1920)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose cells, genes and groups bear hostile names, with some pages of flagged cells."""
    folder = tmp_path_factory.mktemp("run")
    write_fake_run(
        folder / "run",
        share_odd=0.3,
        warnings=WARNINGS,
        gene=HOSTILE,
        group=HOSTILE_GROUP,
        cell=HOSTILE_CELL,
    )
    write_check(folder / "run")
    write_files(folder / "run", folder / "out", CONFIG)
    return folder


@pytest.fixture(scope="module")
def report(run) -> Path:
    return run / "out" / "report.html"


def flagged_cells(run: Path) -> pd.DataFrame:
    cells = pd.read_parquet(run / "run/anomaly/cells.parquet")
    return cells[cells["is_anomaly"]]


def middle_of_map(page: Page) -> tuple[float, float]:
    page.locator("[data-part=plot]").scroll_into_view_if_needed()
    box = page.locator("[data-part=plot]").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


# ---- opens, and runs nothing else


@pytest.mark.parametrize("width", WIDTHS)
def test_opens_from_disk_without_an_error_and_draws_its_map(open_page, width):
    page = open_page(width)
    show_map(page)
    assert page.locator("[data-part=plot] canvas").count() >= 1
    # Nothing but the scrolling parts is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_markup_in_names_is_text_wherever_a_script_puts_it(page, run):
    show_map(page)
    name = flagged_cells(run)["cell_id"].iloc[0]
    page.get_by_label("Find a cell or a gene").fill(name)
    page.get_by_label("Find a cell or a gene").press("Enter")
    expect(page.locator("[data-part=facts]")).to_contain_text(name)
    expect(page.locator("[data-part=facts]")).to_contain_text(HOSTILE_GROUP.strip("\u2028"))
    page.get_by_label("Colour by").select_option("nearest_reference")
    expect(page.locator("[data-part=legend]")).to_contain_text(HOSTILE_GROUP.strip("\u2028"))
    page.locator(f"{FLAGGED} .sort").first.click()
    assert page.locator("[onerror]").count() == 0
    assert page.locator("script").count() == 3 + 1 + 2 + 1


def test_a_script_that_is_not_of_the_page_does_not_run(open_page):
    page = open_page(expected="Content Security Policy")
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            const button = document.createElement("button");
            document.body.append(button);
            button.outerHTML = "<button id='planted' onclick='window.ran = true'>";
            document.getElementById("planted").click();
        }"""
    )
    assert page.evaluate("window.ran") is None


def test_the_first_screen_of_a_laptop_holds_finding_sureness_and_worry(page, run):
    n = len(flagged_cells(run))
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"{n} of ")
    cards = page.locator(".first > div")
    assert cards.locator("h2").all_text_contents() == [
        "What was found",
        "How sure it is",
        "What to worry about",
    ]
    for card in cards.all():
        box = card.bounding_box()
        assert box["y"] + box["height"] <= 800
    expect(cards.nth(1)).to_contain_text("46 % were found")
    expect(cards.nth(2)).to_contain_text("What to do: rename it")
    expect(cards.nth(2)).to_contain_text("1 more")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_serious_fault_for_those_who_use_other_means_than_eye_and_mouse(
    open_page, width, scheme
):
    page = open_page(width, color_scheme=scheme)
    show_map(page)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    found = Axe().run(page).response["violations"]
    serious = [
        (fault["id"], [node["html"][:200] for node in fault["nodes"][:3]])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_headings_are_in_order_and_the_first_tab_leads_to_the_content(page):
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(({ tagName }) => Number(tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("To the content")
    assert page.locator(":focus").bounding_box()["x"] >= 0


def test_the_button_turns_dark_and_light(open_page):
    page = open_page(color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.get_by_role("button", name="Show the page in light colours").click()
    light = page.evaluate(colour)
    assert sum(map(int, re.findall(r"\d+", light))) > sum(map(int, re.findall(r"\d+", dark)))
    page.get_by_role("button", name="Show the page in dark colours").click()
    assert page.evaluate(colour) == dark


def test_on_paper_the_figure_stands_for_the_map_and_what_is_folded_is_open(page):
    show_map(page)
    assert page.locator("details:not([open])").count() > 3
    page.emulate_media(media="print")
    expect(page.locator("#map")).to_be_hidden()
    expect(page.locator("#latent figure")).to_be_visible()
    expect(page.locator("nav.contents")).to_be_hidden()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 3


def test_without_scripts_the_first_rows_and_all_figures_are_there(open_page, run):
    page = open_page(java_script_enabled=False)
    assert len(column(page, "Cell")) == ROWS_A_PAGE < len(flagged_cells(run))
    expect(page.locator("#map")).to_be_hidden()
    expect(page.locator("#latent figure")).to_be_visible()
    for hidden in ("#theme", f"{FLAGGED} .controls"):
        expect(page.locator(hidden)).to_be_hidden()


def test_a_browser_that_cannot_unpack_shows_what_stands_in_the_page(open_page):
    page = open_page(before="delete window.DecompressionStream")
    assert len(column(page, "Cell")) == ROWS_A_PAGE
    expect(page.locator("#map")).to_be_hidden()
    expect(page.locator("#theme")).to_be_visible()


# ---- tables


def test_the_script_prints_the_first_rows_as_they_stand_in_the_page(open_page):
    for table in ("anomalies", "genes", "outliers"):
        rows = f"[data-table={table}] tbody td"
        static = open_page(java_script_enabled=False).locator(rows).all_text_contents()
        live = open_page()
        expect(live.locator(f"[data-table={table}] .said")).to_contain_text("row")
        assert live.locator(rows).all_text_contents() == static


def test_a_heading_sorts_up_and_down_by_mouse_and_by_key(page, run):
    heading = page.locator(f"{FLAGGED} thead th", has_text="Score")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    scores = sorted(flagged_cells(run)["score"])
    assert column(page, "Score")[:3] == [f"{score:.3g}" for score in scores[:3]]
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-sort", "descending")
    assert column(page, "Score")[:3] == [f"{score:.3g}" for score in scores[:-4:-1]]
    assert page.locator(f"{FLAGGED} [aria-sort]").count() == 1


def test_search_and_menus_leave_the_rows_that_fit_and_say_how_many(page, run):
    cells = flagged_cells(run)
    said = page.locator(f"{FLAGGED} .said")
    expect(said).to_have_text(f"{len(cells)} rows")
    expect(said).to_have_attribute("role", "status")
    page.locator(FLAGGED).get_by_label("Pattern", exact=True).select_option(label="P2")
    n_second = len(cells) - 1 - -(-3 * (len(cells) - 1) // 4)
    expect(said).to_have_text(f"{n_second} of {len(cells)} rows")
    assert set(column(page, "Pattern")) == {"P2"}
    page.locator(FLAGGED).get_by_label("Pattern", exact=True).select_option("")
    name = cells["cell_id"].iloc[-1]
    page.locator(FLAGGED).get_by_label("Search").fill(name[-9:].lower())
    expect(said).to_have_text(f"1 of {len(cells)} rows")
    assert column(page, "Cell") == [name]
    page.locator(FLAGGED).get_by_label("Search").fill("no such cell")
    expect(said).to_have_text(f"0 of {len(cells)} rows")


def test_pages_turn(page, run):
    n = len(flagged_cells(run))
    first = column(page, "Cell")
    pager = page.locator(f"{FLAGGED} .pager")
    expect(pager.get_by_role("button", name="Previous")).to_be_disabled()
    pager.get_by_role("button", name="Next").click()
    expect(pager).to_contain_text(f"Page 2 of {-(-n // ROWS_A_PAGE)}")
    second = column(page, "Cell")
    assert len(first) == ROWS_A_PAGE and not set(first) & set(second)


def test_the_download_has_the_rows_that_fit_in_full_and_no_formula(page, run):
    cells = flagged_cells(run)
    sample = cells["sample"].iloc[0]
    page.locator(FLAGGED).get_by_label("Sample", exact=True).select_option(label=sample)
    page.locator(FLAGGED).get_by_label("Search").fill("cell: not there")
    page.locator(FLAGGED).get_by_label("Search").fill("")
    with page.expect_download() as download:
        page.locator(FLAGGED).get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "anomalies.tsv"
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    wanted = cells[cells["sample"] == sample].set_index("cell_id")
    table = pd.DataFrame(rows, columns=header)
    assert len(wanted) > ROWS_A_PAGE and len(table) == len(wanted)
    # A spreadsheet would run a cell that begins with one of these.
    assert not any(re.match(r"[=+\-@\t\r]", name) for name in table["cell_id"])
    names = table["cell_id"].str.removeprefix("'")
    scores = pd.to_numeric(table["score"]).to_numpy()
    assert abs(wanted["score"].loc[names].to_numpy() / scores - 1).max() < 1e-5


# ---- the map


def test_pointing_at_a_cell_tells_its_facts(page, run):
    show_map(page)
    cell = flagged_cells(run).sort_values("score").iloc[-1]
    page.get_by_label("Find a cell or a gene").fill(cell["cell_id"])
    page.get_by_label("Find a cell or a gene").press("Enter")
    expect(page.locator("[data-part=said]")).to_contain_text("is ringed, in the middle of the map")
    x, y = middle_of_map(page)
    page.mouse.move(x - 60, y - 60)
    page.mouse.move(x, y)
    tooltip = page.locator("#map .tooltip")
    expect(tooltip).to_contain_text(cell["cell_id"])
    expect(tooltip).to_contain_text(f"{cell['score']:.3g}")
    expect(tooltip).to_contain_text("flagged")


def test_a_gene_colours_the_map_and_what_is_not_there_is_said(page):
    show_map(page)
    find = page.get_by_label("Find a cell or a gene")
    before = page.locator("[data-part=plot]").screenshot()
    find.fill("gene7")
    find.press("Enter")
    expect(page.locator("[data-part=said]")).to_have_text("The map is coloured by GENE7.")
    expect(page.locator("[data-part=legend]")).to_contain_text("GENE7")
    expect(page.get_by_label("Colour by")).to_have_value("gene GENE7")
    page.wait_for_timeout(300)
    assert page.locator("[data-part=plot]").screenshot() != before
    find.fill("NO SUCH")
    find.press("Enter")
    expect(page.locator("[data-part=said]")).to_contain_text("No cell and no gene of this page")


@pytest.mark.parametrize("choice", ["score", "p_value", "library_size", "doublet_probability"])
def test_a_number_has_a_bar_with_its_ends(page, choice):
    show_map(page)
    page.get_by_label("Colour by").select_option(choice)
    ends = page.locator("[data-part=legend] .ends span")
    assert all(re.fullmatch(r"-?[\d.,e-]+", text) for text in ends.all_text_contents())
    assert ends.count() == 2


def test_a_category_can_be_switched_off_by_key(page, run):
    show_map(page)
    switch = page.locator("[data-part=legend] button", has_text="reference")
    counts = pd.read_parquet(run / "run/anomaly/cells.parquet")
    flagged = page.locator("[data-part=legend] button", has_text=re.compile("^flagged"))
    expect(flagged).to_contain_text(f"n = {counts['is_anomaly'].sum()}")
    before = page.locator("[data-part=plot]").screenshot()
    switch.focus()
    page.keyboard.press("Space")
    expect(switch).to_have_attribute("aria-pressed", "false")
    expect(switch).to_be_focused()
    page.wait_for_timeout(300)
    after = page.locator("[data-part=plot]").screenshot()
    assert after != before
    page.keyboard.press("Space")
    expect(switch).to_have_attribute("aria-pressed", "true")


def test_a_row_of_the_table_is_shown_on_the_map(page):
    button = page.locator(f"{FLAGGED} tbody button").nth(3)
    name = button.text_content()
    button.click()
    expect(page.locator("[data-part=facts]")).to_contain_text(name)
    expect(page.locator("[data-part=plot]")).to_be_in_viewport()


def test_what_is_selected_on_the_map_is_what_the_table_shows(page, run):
    show_map(page)
    page.get_by_label("select in a box").check()
    page.locator("[data-part=plot]").scroll_into_view_if_needed()
    box = page.locator("[data-part=plot]").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 5, steps=5)
    page.mouse.up()
    said = page.locator(f"{FLAGGED} .said")
    expect(said).to_contain_text(f" of {len(flagged_cells(run))} rows")
    page.get_by_role("button", name="Drop the selection made on the map").click()
    expect(said).to_have_text(f"{len(flagged_cells(run))} rows")


# ---- other runs


def test_a_run_on_samples_says_samples(open_page, tmp_path):
    run = write_fake_run(tmp_path / "run", n_cells=80, is_bulk=True)
    page = open_page(path=write_files(run, tmp_path / "out", CONFIG)["report"])
    show_map(page)
    page.get_by_label("Find a sample or a gene").fill("CELL000003-1")
    page.get_by_label("Find a sample or a gene").press("Enter")
    expect(page.locator("[data-part=facts] dt").first).to_have_text("sample")
    assert page.locator("h2", has_text="cells").count() == 0


def test_a_run_without_a_finding_has_a_map_and_no_empty_table(open_page, tmp_path):
    run = write_fake_run(tmp_path / "run", n_cells=60, share_odd=0)
    page = open_page(path=write_files(run, tmp_path / "out", CONFIG)["report"])
    show_map(page)
    assert page.locator("[data-table]").count() == 0
    expect(page.locator("#anomalies")).to_contain_text("No cell is flagged")
