"""docs/config.md: every setting, its default, what it may be and why, and what a change reruns.

The words are the comments of config.yaml, types and ranges those of its schema, what reruns is the
table that tests/test_reruns.py holds against dry runs. ``make docs`` writes the page.
"""

import html
import re
from collections import Counter
from pathlib import Path

import yaml

from test_repository import SCHEMA, schema_leaves
from test_reruns import ALL, AS_BULK, BROUGHT, READ_BY, SETTINGS, with_all_after

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "config.md"
LINE = re.compile(r"(?P<dent> *)(?P<key>\w+):[^#]*(?:# (?P<comment>.*))?")
# A comment that starts further to the right goes on with the one above it.
CONTINUED_FROM = 8
KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true`, `false`",
    "null": "`null`",
}
LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
OF_NAMES = "letters, digits, `_` `.` `-`"
TOP = "The run"
INTRODUCTION = """\
[`config.yaml`](../config.yaml) holds every setting and, as it stands, runs the embedded example.
Yours needs only the keys that differ: `make run CONFIG=my.yaml`, or `snakemake --cores 2
--configfile my.yaml`. An unknown key, a wrong type and a value out of range are errors before
anything runs. YAML reads `1e-3` as text; write `0.001` or `1.0e-3`.

`make why CONFIG=my.yaml` names beforehand the jobs that a change brings. Below stands what it
reruns in a finished run with a query; another sample table reruns the samples that differ.
"""


def read_comments(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The comment of each key, and the comment on lines of their own above it.

    Keys are dotted, as ``train.n_latent``.
    """
    comments: dict[str, str] = {}
    above: dict[str, str] = {}
    path: list[str] = []
    waiting: list[str] = []
    # The first lines, up to an empty one, are about the file.
    for line in filter(str.strip, text.partition("\n\n")[2].splitlines()):
        words = line.partition("# ")[2]
        if line.lstrip().startswith("#"):
            if line.index("#") > CONTINUED_FROM:
                comments[".".join(path)] += f" {words}"
            else:
                waiting.append(words)
            continue
        found = LINE.fullmatch(line)
        path = [*path[: len(found["dent"]) // 2], found["key"]]
        comments[".".join(path)] = (found["comment"] or "").strip()
        if waiting:
            above[".".join(path)], waiting = " ".join(waiting), []
    return comments, above


def value(setting) -> str:
    """A setting as YAML has it."""
    # YAML ends a lone scalar with a line of dots.
    return f"`{yaml.safe_dump(setting, default_flow_style=True).splitlines()[0]}`"


def allowed(rule: dict) -> str:
    """What a setting may be, in words."""
    if "anyOf" in rule:
        return ", ".join(allowed(one) for one in rule["anyOf"])
    if "const" in rule:
        return value(rule["const"])
    if "enum" in rule:
        return ", ".join(map(value, rule["enum"]))
    if rule["type"] == "array":
        of = allowed(rule["items"])
        return f"list of {of.replace('text', 'names').replace('number', 'numbers')}"
    kinds = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    words = " or ".join(KINDS[kind] for kind in kinds if kind != "null")
    words = OF_NAMES if "pattern" in rule else words
    if {"minimum", "maximum"} <= set(rule):
        limits = [f"{rule['minimum']} to {rule['maximum']}"]
    else:
        limits = [text.format(rule[name]) for name, text in LIMITS.items() if name in rule]
    words = f"{words} {' and '.join(limits)}".rstrip()
    return f"{words}; {KINDS['null']}" if "null" in kinds else words


def reruns() -> dict[str, str]:
    """For each setting the rules that a change of it runs again, those after them left out."""
    found = {key: rules for (key, _), rules in SETTINGS.items()} | {AS_BULK[0]: "select_features"}
    words = {
        key: f"from {' and '.join(f'`{rule}`' for rule in first_of(rules.split()))} on"
        for key, rules in found.items()
    }
    words |= {key: "all, into a folder of its own" for key in found if found[key] == ALL}
    words |= {key: "the report alone" for key in found if found[key] == "write_report"}
    words |= {key: "only what a value brings or takes away" for key, _ in BROUGHT}
    return words


def first_of(rules: list[str]) -> list[str]:
    """Those of the rules that come after no other of them."""
    return [
        rule for rule in rules if not any(rule in with_all_after(READ_BY[other]) for other in rules)
    ]


def reruns_of(section: list[str], words: dict[str, str]) -> str:
    """What a change in a section reruns: the usual first, then each setting that differs."""
    usual = Counter(words[key] for key in section if key in words).most_common(1)[0][0]
    others: dict[str, list[str]] = {}
    for key in section:
        # What cannot be changed alone goes with the others.
        if words.get(key, usual) != usual:
            others.setdefault(words[key], []).append(f"`{key.rpartition('.')[2]}`")
    parts = [usual, *(f"of {', '.join(names)}: {text}" for text, names in others.items())]
    return f"A change reruns: {'; '.join(parts)}."


def sentence(words: str) -> str:
    """The words with a capital and a full stop."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}." if words else ""


def table(keys: list[str], leaves: dict[str, dict], comments: dict[str, str]) -> list[str]:
    """The rows of some settings."""
    rows = [
        f"| `{key.rpartition('.')[2]}` | {value(leaves[key]['default'])} | {allowed(leaves[key])} "
        f"| {html.escape(comments[key], quote=False)} |"
        for key in keys
    ]
    return ["| setting | default | may be | what it is, and why |", "|---|---|---|---|", *rows]


def page() -> str:
    """docs/config.md."""
    comments, above = read_comments((ROOT / "config.yaml").read_text(encoding="utf-8"))
    leaves = schema_leaves(SCHEMA)
    sections: dict[str, list[str]] = {}
    for key in leaves:
        sections.setdefault(key.rpartition(".")[0] or TOP, []).append(key)
    words = reruns()
    lines = [
        "<!-- Made by `make docs` from config.yaml, its schema and tests/test_reruns.py. -->",
        *("", "# Settings", "", INTRODUCTION),
        "Sections: " + " · ".join(f"[{s}](#{anchor(s)})" for s in sections),
    ]
    for section, keys in sections.items():
        lines += ["", f"## {section}", ""]
        about = [sentence(comments.get(section, "")), sentence(above.get(section, ""))]
        about = " ".join(filter(None, about))
        lines += [*([about, ""] if about else []), reruns_of(keys, words), ""]
        for i, group in enumerate(groups(keys, above)):
            if group[0] in above:
                lines += [*([""] if i else []), f"**{above[group[0]].rstrip('.')}**", ""]
            lines += table(group, leaves, comments)
    return "\n".join(lines) + "\n"


def groups(keys: list[str], above: dict[str, str]) -> list[list[str]]:
    """The settings of a section, parted where a comment stands above one."""
    parted: list[list[str]] = []
    for key in keys:
        if key in above or not parted:
            parted.append([])
        parted[-1].append(key)
    return parted


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
