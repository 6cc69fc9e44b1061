"""The README and the pages tell the truth about the commands, the table and the example."""

import re

import anndata
import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))]
COMMANDS = sorted({name for page in PAGES for name in re.findall(r"(?m)^make (\w[\w-]*)", page)})
EXAMPLE = ROOT / "results" / "example" / "annotated.h5ad"


@pytest.mark.parametrize("target", COMMANDS)
def test_each_make_command_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_two_commands_stand_on_top():
    assert {"run", "test"} <= set(COMMANDS)
    assert README.index("## Two commands") < README.index("## Your own data")


def test_columns_of_the_sample_table_are_all_explained():
    from configuration import KNOWN

    page = (ROOT / "docs" / "input.md").read_text(encoding="utf-8")
    table = page.split("| column | |")[1].split("\n\n")[0]
    assert [name for name in KNOWN if f"`{name}`" not in table] == []


@pytest.mark.skipif(not EXAMPLE.exists(), reason="no results/example: make run")
def test_the_example_finds_what_the_readme_says():
    """Give or take a few cells, which differ between processors."""
    words = re.sub(r"\s+", " ", README)
    told = re.search(r"(\d+) of the (\d+) are flagged .*? (\d+) of the (\d+) other", words)
    cells = anndata.read_h5ad(EXAMPLE, backed="r").obs
    query = cells[cells["split"] == "query"]
    odd = query["cell_type"].isin(["CD19+ B", "CD34+"])
    found = [(query["is_anomaly"] & kind).sum() for kind in (odd, ~odd)]
    assert [int(told[2]), int(told[4])] == [odd.sum(), (~odd).sum()]
    assert [int(told[1]), int(told[3])] == pytest.approx(found, abs=6)
