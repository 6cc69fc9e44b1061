"""The README tells the truth about the rules, the commands and the files."""

import re

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RULES = sorted(
    name
    for path in (ROOT / "workflow" / "rules").glob("*.smk")
    for name in re.findall(
        r"^ *(?:use rule \w+ as |rule )(\w+)(?: with)?:",
        path.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
)


def diagram() -> str:
    return re.search(r"```mermaid\n(.*?)```", README, re.DOTALL).group(1)


def test_picture_shows_every_rule_and_no_other():
    drawn = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", diagram()))
    assert drawn == set(RULES)


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_each_make_command_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_each_link_leads_somewhere(path):
    assert (ROOT / path).exists()


def test_columns_of_the_sample_table_are_all_explained():
    from configuration import KNOWN

    table = README.split("| column | |")[1].split("**2.")[0]
    assert [name for name in KNOWN if f"`{name}`" not in table] == []
