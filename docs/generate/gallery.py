"""docs/gallery.md: each figure of the embedded example, small, with its caption and its alt text.

``make gallery`` runs the example where that is needed and writes the page and its pictures.
"""

import html
import re
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "gallery"
FIGURE = re.compile(r'figure_files\(\s*"(\w+)",\s*"([^"]+)",\s*"([^"]+)",?\s*\)')
SHRUNK = 2  # from 300 to 150 dpi
COLOURS = 256  # of a picture; a palette takes a third of the bytes
INTRODUCTION = """\
The figures of the embedded example (`make run`): 700 blood cells, in which B cells and CD34+
progenitors occur in the query only. Every run writes them as PDF, SVG and PNG at 300 dpi, each with
its source data (TSV) and a description for those who cannot see it. How to read what they show:
[results](results.md).
"""


def read_figures() -> dict[str, tuple[str, str]]:
    """Category and title of each figure, in the order of the rules."""
    rules = (ROOT / "workflow" / "rules" / "report.smk").read_text(encoding="utf-8")
    return {name: (category, title) for name, category, title in FIGURE.findall(rules)}


def caption(name: str) -> str:
    """The words under a figure, as Snakemake's report has them."""
    path = ROOT / "workflow" / "report" / f"{name}.rst"
    return html.escape(" ".join(path.read_text(encoding="utf-8").split()), quote=False)


def shrink(path: Path) -> Image.Image:
    """A figure at 150 dpi on white, in few colours."""
    with Image.open(path) as opened:
        figure = opened.convert("RGBA")
    figure = Image.alpha_composite(Image.new("RGBA", figure.size, "white"), figure).convert("RGB")
    return figure.reduce(SHRUNK).quantize(COLOURS, dither=Image.Dither.NONE)


def page(figures: Path) -> str:
    """docs/gallery.md from the figures of a run."""
    lines = ["<!-- Made by `make gallery` from the results of the embedded example. -->", ""]
    lines += ["# Gallery", "", INTRODUCTION]
    absent, last = [], None
    for name, (category, title) in read_figures().items():
        if not (figures / f"{name}.png").exists():
            absent.append(f"- **{title}** (`{name}`). {caption(name)}")
            continue
        if category != last:
            lines += [f"## {category}", ""]
        last = category
        alt = " ".join((figures / f"{name}.txt").read_text(encoding="utf-8").split())
        lines += [f"### {title}", ""]
        picture = f'src="gallery/{name}.png" alt="{html.escape(alt)}"'
        reading = f"[How to read it](results.md#{category.lower().replace(' ', '-')})."
        lines += [f'<img {picture} width="100%">', "", f"{caption(name)} {reading}", ""]
    if absent:
        lines += ["## With other settings", "", *absent, ""]
    return "\n".join(lines)


def write(figures: Path) -> None:
    """The page and its pictures."""
    PICTURES.mkdir(exist_ok=True)
    shown = {f"{name}.png" for name in read_figures()} & {p.name for p in figures.glob("*.png")}
    for old in PICTURES.glob("*.png"):
        if old.name not in shown:
            old.unlink()
    for name in shown:
        shrink(figures / name).save(PICTURES / name, optimize=True)
    PAGE.write_text(page(figures), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1], "figures"))
