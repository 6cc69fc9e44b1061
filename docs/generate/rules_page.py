"""docs/pipeline.svg, the pipeline in one picture, and docs/rules.md, rule by rule.

Both are read off the workflow: what follows what from ``snakemake --rulegraph``, what a stage reads
and writes from the words at the top of its rule file, what a rule does from those of its script.
``make docs`` writes them.
"""

import ast
import html
import re
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networkx as nx
import yaml

ROOT = Path(__file__).resolve().parents[2]
PICTURE, PAGE = ROOT / "docs" / "pipeline.svg", ROOT / "docs" / "rules.md"
RULE = re.compile(r"^ *(?:use rule (?P<base>\w+) as |rule )(?P<name>\w+)(?: with)?:", re.MULTILINE)
# Every rule is in the graph of one of these.
CONFIGS = {
    "default": {},
    "everything": {
        "train": {"likelihood": "auto"},
        "rate_distortion": {"betas": [0.5]},
        "stability": {"n_seeds": 2},
    },
    "bulk": yaml.safe_load((ROOT / "workflow/example/bulk.yaml").read_text(encoding="utf-8")),
}
# The picture's measures, in pixels; GitHub shows a page 1012 wide.
CARD, GAP, LINE, PADDING, TOP, HEAD = 154, 16, 16, 9, 2, 30
LETTERS = 25  # of a purpose, a line
FIGURES = "figures"
FOOTNOTE = "Slanted: only where the config asks for it. Arrows follow the data."
STYLE = """
text { font: 11px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.card { fill: #fbfcfd; stroke: #aab2bb }
.name { font-size: 13px; font-weight: 600; fill: #000 }
.purpose { font-size: 10.5px; fill: #59636e }
.optional { font-style: italic; fill: #59636e }
.note { fill: #7d8590; font-size: 11px }
.arrow { fill: none; stroke: #7d8590; stroke-width: 2; stroke-linecap: round }
"""
INTRODUCTION = """\
Arrows follow the data; one that follows from others is left out. Dotted: rules that exist only
where the config asks for them (*slanted* below), and the ways back to the training, of models that
leave a group out or wait for the choice of the likelihood. `record_run` is last and reads all.
"""
COLOURS = ["#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#F0E442"]


@dataclass(frozen=True)
class Stage:
    """A rule file: its name, its opening words, its rules with the script of each."""

    name: str
    words: str
    rules: dict[str, str]

    @property
    def purpose(self) -> str:
        """The first line of the opening words."""
        return self.words.partition("\n")[0]


def read_stages() -> list[Stage]:
    """The rule files in the order of the Snakefile."""
    snakefile = (ROOT / "Snakefile").read_text(encoding="utf-8")
    stages = []
    for path in re.findall(r'^include: "(workflow/rules/\w+\.smk)"', snakefile, re.MULTILINE):
        text = (ROOT / path).read_text(encoding="utf-8")
        rules = {found["name"]: found["base"] or found["name"] for found in RULE.finditer(text)}
        if rules:
            stages.append(Stage(Path(path).stem, text.split('"""')[1].strip(), rules))
    return stages


@cache
def rule_graph(name: str) -> nx.DiGraph:
    """Which rules read what a rule writes, with the settings of a name of CONFIGS."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(CONFIGS[name] or {"run": "example"}), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        command += ["--directory", folder, "--configfile", str(config), "--rulegraph", "dot"]
        dot = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', dot))
    graph = nx.DiGraph()
    graph.add_nodes_from(names.values())
    graph.add_edges_from((names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", dot))
    graph.remove_node("all")
    return graph


def optional_rules() -> set[str]:
    """Those that a run of the embedded example, as the config stands, has not."""
    everyone = {rule for stage in read_stages() for rule in stage.rules}
    return everyone - set(rule_graph("default"))


def reduced(graph: nx.DiGraph) -> tuple[nx.DiGraph, list[tuple[str, str]]]:
    """The graph without the arrows that follow from the others, figures as one; and the ways back.

    A model is trained without a group that an earlier one chose, and candidates for the likelihood
    before the others, so some ways lead back to the training.
    """
    order = {rule: i for i, rule in enumerate(r for stage in read_stages() for r in stage.rules)}
    circles = [c for c in nx.strongly_connected_components(graph) if len(c) > 1]
    back = [
        (a, b) for a, b in graph.edges if order[a] > order[b] and any({a, b} <= c for c in circles)
    ]
    ahead = nx.DiGraph(edge for edge in graph.edges if edge not in back)
    figures = {rule: FIGURES if rule.startswith("plot_") else rule for rule in ahead}
    # Of the ways back from a rule the first is enough.
    first = {a: min((d for c, d in back if c == a), key=order.get) for a, _ in back}
    return nx.transitive_reduction(nx.relabel_nodes(ahead, figures)), list(first.items())


def mermaid() -> str:
    """The graph of all rules, dotted where they exist with some settings only."""
    stages, optional = read_stages(), optional_rules()
    usual, back = reduced(rule_graph("default"))
    whole, more_back = reduced(nx.compose_all([rule_graph(name) for name in CONFIGS]))
    dotted = {edge for edge in whole.edges if optional & set(edge)}
    dotted |= {*back, *more_back}
    lines = ["flowchart TB"]
    for stage in stages:
        lines.append(f"    subgraph {stage.name}")
        plots = [rule for rule in stage.rules if rule.startswith("plot_")]
        lines += [f"        {rule}" for rule in stage.rules if rule not in plots]
        if plots:
            rows = [", ".join(plots[i : i + 3]) for i in range(0, len(plots), 3)]
            lines.append(f'        {FIGURES}["{",<br>".join(rows)}"]')
        lines.append("    end")
    lines += [f"    {a} --> {b}" for a, b in sorted(usual.edges)]
    lines += [f"    {a} -.-> {b}" for a, b in sorted(dotted - set(usual.edges))]
    return "\n".join(lines) + "\n"


def does(script: str) -> str:
    """What a rule does, in the first words of its script."""
    text = (ROOT / "workflow" / "scripts" / f"{script}.py").read_text(encoding="utf-8")
    words = ast.get_docstring(ast.parse(text)).split("\n\n")[0]
    return html.escape(words.replace("\n", " ").replace("``", "`"), quote=False)


def page() -> str:
    """docs/rules.md."""
    optional = optional_rules()
    lines = ["<!-- Made by `make docs` from the rules and scripts of the workflow. -->", ""]
    lines += ["# Rules", "", INTRODUCTION, "```mermaid", mermaid().rstrip(), "```"]
    for stage in read_stages():
        files = stage.words.partition("\n")[2].strip()
        lines += [
            "",
            f"## {stage.name}",
            "",
            stage.purpose,
            "",
            "| rule | what it does |",
            "|---|---|",
        ]
        lines += [
            f"| {f'*`{rule}`*' if rule in optional else f'`{rule}`'} | {does(script)} |"
            for rule, script in stage.rules.items()
        ]
        lines += ["", "```text", files, "```"]
    return "\n".join(lines) + "\n"


def text_at(x: float, y: float, text: str, kind: str) -> str:
    """A line of text of the picture."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{html.escape(text)}</text>'


def card(x: float, height: float, colour: str, stage: Stage) -> list[str]:
    """A stage of the picture: its name, its purpose, its rules."""
    optional, left = optional_rules(), x + PADDING
    parts = [
        f'<rect x="{x}" y="{TOP}" width="{CARD}" height="{height}" rx="6" class="card"/>',
        f'<path d="M{x} {TOP + HEAD}v-24a6 6 0 0 1 6-6h{CARD - 12}a6 6 0 0 1 6 6v24z" '
        f'fill="{colour}"/>',
        text_at(left, TOP + 20, stage.name.replace("_", " "), "name"),
    ]
    y = TOP + HEAD + LINE
    for line in textwrap.wrap(stage.purpose, LETTERS):
        parts.append(text_at(left, y, line, "purpose"))
        y += LINE - 2
    y = TOP + HEAD + LINE * (purpose_lines() + 1)
    for rule in stage.rules:
        parts.append(text_at(left, y, rule, "optional" if rule in optional else "rule"))
        y += LINE
    return parts


def purpose_lines() -> int:
    """Lines of the longest purpose."""
    return max(len(textwrap.wrap(stage.purpose, LETTERS)) for stage in read_stages())


def picture() -> str:
    """docs/pipeline.svg: the stages side by side, each with its rules."""
    stages = read_stages()
    rows = purpose_lines() + max(len(stage.rules) for stage in stages)
    height = HEAD + LINE * (rows + 1)
    width = len(stages) * (CARD + GAP) - GAP + 2
    words = "; ".join(f"{stage.name}: {stage.purpose}" for stage in stages)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + height + 24}" '
        f'width="{width}" role="img" aria-labelledby="title desc">',
        '<title id="title">The pipeline, stage by stage</title>',
        f'<desc id="desc">{html.escape(words)}</desc>',
        f"<style>{STYLE}</style>",
    ]
    for i, (stage, colour) in enumerate(zip(stages, COLOURS, strict=True)):
        x = 1 + i * (CARD + GAP)
        parts += card(x, height, colour, stage)
        if i:
            parts.append(
                f'<path d="M{x - GAP + 3} {TOP + HEAD // 2}h9m-4-4l5 4l-5 4" class="arrow"/>'
            )
    parts.append(text_at(2, TOP + height + 17, FOOTNOTE, "note"))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
