"""The pages in docs/ say what is so: made pages are fresh, messages exist, links lead somewhere."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

import config_page
import rules_page
from conftest import ROOT
from test_repository import SCHEMA, schema_leaves

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEND = "run make docs"


# ---- made pages


def test_the_page_of_settings_is_fresh():
    assert config_page.PAGE.read_text(encoding="utf-8") == config_page.page(), MEND


def test_every_setting_is_explained_with_its_default():
    for key, rule in schema_leaves(SCHEMA).items():
        section, _, name = key.rpartition(".")
        _, _, text = config_page.page().partition(f"\n## {section or config_page.TOP}\n")
        row = re.search(rf"^\| `{name}` \| `(.*?)` \| (.+?) \| (.+) \|$", text, re.MULTILINE)
        assert row, key
        assert row[1] == config_page.value(rule["default"]).strip("`")
        assert len(row[3]) > 5


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"enum": ["a", "b"]}, "`a`, `b`"),
        ({"type": "integer", "minimum": 1, "maximum": 9}, "whole number 1 to 9"),
        ({"type": ["number", "null"], "exclusiveMinimum": 0}, "number above 0; `null`"),
        (
            {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "number at least 0 and below 1",
        ),
        ({"anyOf": [{"const": "auto"}, {"type": "number"}]}, "`auto`, number"),
        ({"type": "array", "items": {"type": "string"}}, "list of names"),
        ({"type": "string", "pattern": "^x$"}, config_page.OF_NAMES),
    ],
)
def test_what_a_setting_may_be_is_said_in_words(rule, words):
    assert config_page.allowed(rule) == words


def test_comments_go_on_below_and_headings_stand_above():
    comments, above = config_page.read_comments(
        "# about\n\na:                   # of a\n  # The lot.\n  b: 1               # one\n"
        "                     # two\n  c: 2               # three\nd: 3\n"
    )
    assert comments == {"a": "of a", "a.b": "one two", "a.c": "three", "d": ""}
    assert above == {"a.b": "The lot."}


@pytest.fixture(scope="module")
def rules() -> set[str]:
    return {rule for stage in rules_page.read_stages() for rule in stage.rules}


def test_the_page_of_rules_and_the_picture_are_fresh():
    assert rules_page.PAGE.read_text(encoding="utf-8") == rules_page.page(), MEND
    assert rules_page.PICTURE.read_text(encoding="utf-8") == rules_page.picture(), MEND


def test_every_rule_is_in_the_picture_in_the_graph_and_in_a_table(rules):
    drawn = re.findall(r'class="(?:rule|optional)">(\w+)<', rules_page.picture())
    assert sorted(drawn) == sorted(rules)
    graph = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", rules_page.mermaid()))
    assert graph - {"library_size"} == rules
    assert set(re.findall(r"^\| \*?`(\w+)`", rules_page.page(), re.MULTILINE)) == rules


def test_arrows_are_of_the_real_graph_and_leave_nothing_out(rules):
    """What follows from them is what Snakemake says; figures are one."""
    nx = rules_page.nx
    real = nx.transitive_closure(rules_page.rule_graph("default"))
    arrows = re.findall(r"(\w+) --> (\w+)", rules_page.mermaid())
    drawn = nx.transitive_closure(nx.DiGraph(arrows))
    for a, b in arrows:
        if rules_page.FIGURES not in (a, b):
            assert real.has_edge(a, b), (a, b)
    ways_back = {("choose_held_group", "train_vae"), ("choose_held_group", "prune_latent")}
    for a, b in set(rules_page.rule_graph("default").edges) - ways_back:
        ends = [rules_page.FIGURES if x.startswith("plot_") else x for x in (a, b)]
        assert drawn.has_edge(*ends), (a, b)


# ---- messages


def texts_in(folder: Path) -> set[str]:
    """Every text in the code, its fields as …."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


@cache
def texts_of_anomics() -> str:
    rules = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "workflow" / "rules").glob("*.smk")
    )
    return "\n".join([*texts_in(ROOT / "workflow" / "scripts"), rules])


@cache
def texts_of_snakemake() -> str:
    folder = Path(importlib.util.find_spec("snakemake").origin).parent
    return "\n".join(texts_in(folder))


def messages() -> list[tuple[str, str]]:
    """The section and the text of each message that stands first in a row."""
    sections = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("\n## ")
    return [
        (section.partition("\n")[0], message)
        for section in sections[1:]
        for message in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    ]


@pytest.mark.parametrize(("section", "message"), messages())
def test_each_message_is_one_that_the_program_prints(section, message):
    texts = texts_of_snakemake() if section == "Snakemake" else texts_of_anomics()
    pattern = ".*".join(map(re.escape, message.split("…")))
    assert re.search(pattern, texts)


def test_the_messages_are_found():
    assert len(messages()) > 60


# ---- links


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {config_page.anchor(re.sub(r"[\\`*]", "", heading)) for heading in headings}


def links() -> list[tuple[Path, str]]:
    pattern = r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"'
    return [
        (page, link)
        for page in PAGES
        for found in re.findall(pattern, page.read_text(encoding="utf-8"))
        if not (link := "".join(found)).startswith(("http://", "https://"))
    ]


@pytest.mark.parametrize(
    ("page", "link"), links(), ids=lambda x: x.name if isinstance(x, Path) else x
)
def test_each_link_leads_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    assert not anchor or anchor in anchors(target)


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "README.md" or f"({page.name})" in index
