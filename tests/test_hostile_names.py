"""A whole run on hostile names: its pages run nothing, its tables are safe in a spreadsheet."""

import csv
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import anndata
import pandas as pd
import pytest
from playwright.sync_api import expect
from rocrate.rocrate import ROCrate

from browser import FLAGGED, column, show_map
from hostile_run import GENE_LIST, GENES, LANE, NAMES, OWN, PATHS, ROWS, TYPES, files_in
from job import read_tsv
from write_report import read_texts
from written_report import as_shown

pytest_plugins = ["browser", "hostile_run"]

SIGNS = set("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # half and full width
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# Elements and attributes that a name would bring.
FOREIGN = "[onerror], [onload], [onfocus], img[src=x]"


@pytest.fixture(scope="module")
def report(hostile) -> Path:
    return hostile.results / "report.html"


@pytest.fixture(scope="module")
def flagged(hostile) -> pd.DataFrame:
    cells = pd.read_parquet(hostile.results / "anomaly" / "cells.parquet")
    return cells[cells["is_anomaly"]]


def is_formula(text: str) -> bool:
    """Whether a spreadsheet runs it: it begins with a sign, and is no number."""
    try:
        is_number = math.isfinite(float(text.replace("_", "no digit")))
    except ValueError:
        is_number = False
    return text[:1] in SIGNS and not is_number


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", strict=True))


def faults_of(rows: list[list[str]]) -> list[str]:
    """What is wrong with a table for a spreadsheet."""
    faults = [f"{len(row)} fields: {row}" for row in rows if len(row) != len(rows[0])]
    fields = [field for row in rows for field in row]
    return faults + [text for text in fields if is_formula(text) or CONTROL.search(text)]


# ---- the report


def test_the_report_opens_and_its_map_takes_the_colours_of_every_gene(page):
    show_map(page)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    for gene in page.locator("[data-part=colour] optgroup[label=Genes] option").all():
        page.get_by_label("Colour by").select_option(gene.get_attribute("value"))
        expect(page.locator("[data-part=legend] p")).to_contain_text(gene.text_content().strip())
    assert page.locator(FOREIGN).count() == 0


def test_names_of_all_kinds_are_text_in_the_page(page, flagged):
    text = page.locator("main").text_content()
    for name in (*NAMES[-10:], *TYPES, LANE, GENE_LIST):
        assert name in text, name
    assert len(column(page, "Cell")) == len(flagged)
    assert set(column(page, "Cell")) == set(flagged["cell_id"])


def test_a_table_is_searched_sorted_and_filtered_by_such_names(page, flagged):
    genes = page.locator("[data-table=genes]")
    for name in NAMES[-10:]:
        genes.get_by_label("Search").fill(name)
        rows = genes.locator("tbody tr").all_text_contents()
        assert rows and all(name.lower() in row.lower() for row in rows), name
    page.locator(f"{FLAGGED} thead th", has_text="Cell").get_by_role("button").click()
    expect(page.locator(f"{FLAGGED} .said")).to_have_text(f"{len(flagged)} rows")
    menu = page.locator(FLAGGED).get_by_label("Nearest reference", exact=True)
    for kind in menu.locator("option").all_text_contents()[1:]:
        menu.select_option(label=kind)
        assert set(column(page, "Nearest reference")) == {kind}


def test_a_cell_of_such_a_name_is_found_on_the_map(page, flagged):
    show_map(page)
    for name in flagged["cell_id"]:
        page.get_by_label("Find a cell or a gene").fill(name)
        page.get_by_label("Find a cell or a gene").press("Enter")
        expect(page.locator("[data-part=facts] b")).to_have_text(name, use_inner_text=False)
    assert page.locator(FOREIGN).count() == 0


@pytest.mark.parametrize("name", ["anomalies", "genes", "outliers"])
def test_what_the_page_downloads_is_as_safe_as_the_files(page, hostile, name):
    with page.expect_download() as download:
        page.locator(f"[data-table={name}]").get_by_role("button", name="Download").click()
    path = Path(download.value.path())
    assert faults_of(rows_of(path)) == []
    source = hostile.results / {"anomalies": "anomaly/cells.tsv"}.get(name, f"genes/{name}.tsv")
    table, whole = read_texts(path), read_texts(source)
    for names in {"cell_id", "gene"} & set(table):
        assert set(table[names]) <= set(whole[names])
    assert any(is_formula(text) for text in table["cell_id"])


# ---- files


def test_no_field_of_a_table_is_a_formula(hostile):
    tables = sorted(hostile.results.rglob("*.tsv"))
    assert {path.name: faults for path in tables if (faults := faults_of(rows_of(path)))} == {}
    fields = [field for path in tables for row in rows_of(path) for field in row]
    for name in ("=cmd|' /C calc'!A0", "+cmd()", "-2+3", "@SUM(1)", "'=1+1"):
        assert f"'{name}" in fields


def test_names_come_back_from_the_tables_as_they_were(hostile):
    genes = pd.read_parquet(hostile.results / "genes" / "genes.parquet")
    table = read_texts(hostile.results / "genes" / "genes.tsv")
    assert table["gene"].tolist() == genes["gene"].tolist()
    assert table["cell_id"].tolist() == genes["cell_id"].tolist()
    assert set(genes["gene"]) >= set(NAMES[-10:])
    groups = read_texts(hostile.results / "patterns" / "groups.tsv")
    assert set(groups["group"]) == set(TYPES)
    drawn = read_tsv(hostile.results / "figures" / "latent.tsv")["cell_type"]
    assert set(drawn.str.rstrip()) == set(TYPES)


def test_the_annotated_matrix_has_the_names(hostile):
    cells = anndata.read_h5ad(hostile.results / "annotated.h5ad")
    assert list(cells.var_names) == list(GENES)
    assert {LANE, OWN, ROWS[0][-1]} <= set(cells.obs)
    assert set(cells.obs["condition"]) == {row[4] for row in ROWS[1:]}
    assert set(cells.obs["cell_type"].str.rstrip()) == set(TYPES)


def test_the_methods_show_names_as_text(hostile):
    text = (hostile.results / "methods.md").read_text(encoding="utf-8")
    shown = as_shown(text)
    assert LANE in shown and ROWS[1][3] in shown


def test_figures_are_images_without_a_script(hostile, open_page):
    paths = sorted((hostile.results / "figures").glob("*.svg"))
    for path in paths:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
        assert not tags & {"script", "foreignObject", "a", "iframe", "set", "animate"}
    # A name is text somewhere, and so the figures were tried.
    assert "&lt;img src=x" in "".join(path.read_text(encoding="utf-8") for path in paths)
    for path in paths:
        page = open_page(path=path)
        assert page.evaluate("document.documentElement.tagName") == "svg"
        assert page.evaluate("document.querySelectorAll('parsererror').length") == 0


def test_a_text_file_opened_in_a_browser_is_text(hostile, open_page):
    for path in sorted((hostile.results / "figures").glob("*.txt")):
        page = open_page(path=path)
        assert page.evaluate("document.contentType") == "text/plain"


def test_records_are_json_with_the_names_intact(hostile):
    record = json.loads((hostile.results / "run.json").read_text(encoding="utf-8"))
    assert set(record["inputs"]) == {*PATHS.values(), GENE_LIST}
    columns = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
    assert list(record["samples"].values()) == columns
    assert record["config"]["train"]["covariates"] == [LANE]
    crate = ROCrate(hostile.results)
    known = {str(entity.get("name")) for entity in crate.get_entities()}
    assert {*PATHS.values(), GENE_LIST} <= known
    for path in (hostile.results / "benchmarks").rglob("*.jsonl"):
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_nothing_in_a_name_was_run_or_written_elsewhere(hostile):
    assert files_in(hostile.folder) == hostile.before
    assert not list(hostile.folder.rglob("touched"))
    assert not CONTROL.search(hostile.output.replace("\n", ""))


# ---- Snakemake's own report


@pytest.fixture(scope="module")
def snakemake_report(hostile) -> Path:
    code, output = hostile.run("--report", "results/report.html")
    assert code == 0, output
    return hostile.folder / "results" / "report.html"


def test_the_report_of_snakemake_runs_nothing_of_a_name(open_page, snakemake_report):
    # Of its own making; it loads nothing.
    page = open_page(path=snakemake_report, expected="cdn.tailwindcss.com")
    expect(page.locator("#app")).to_contain_text("Workflow")
    assert page.locator(FOREIGN).count() == 0
