"""Every figure, for runs of any kind, keeps the rules of journals; test_figures.draw_all has them.

Each rule returns its faults, so that a test names them all at once.
"""

import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from colorspacious import cspace_convert
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

import figure_style
from fake_reasons import write_check
from fake_run import write_fake_run, write_optional_stages
from figure_style import save_figure, style
from test_figures import draw_all, outputs

MM = 25.4
PAGE_HEIGHT = 247.0  # mm
# What a run may be like: arguments of write_fake_run.
RUNS = {
    "cells": {"n_cells": 200},
    "bulk": {"n_cells": 60, "is_bulk": True, "cell": "PATIENT"},
    "ranking": {"n_cells": 100, "is_ranking": True},
    "three cells": {"n_samples": 1, "n_cells": 3, "share_odd": 0.0},
    "all odd": {"n_samples": 2, "n_cells": 8, "share_odd": 1.0},
    "forty": {"n_samples": 40, "n_cells": 800, "share_odd": 0.1},
}
# Axes whose numbers have no unit, or name what they count.
UNITLESS = (
    *("p-value", "Expected p-value", "Observed p-value", "−log10 p", "Anomaly score", "β"),
    *("log2 fold change", "Median log2 fold change", "Spearman's r"),
    *("Expected counts", "Observed counts", "Outlier genes", "Samples, by rank"),
    *("Counts per cell", "Counts per sample", "Genes per cell", "Genes per sample"),
    *("Optimiser step", "Latent dimension, by KL", "Flagged cells", "Flagged samples"),
    *("Power: share found", "Realised FDP"),
)


def name_hard(run: Path) -> None:
    """40 cell types with long names, and two samples a donor."""
    path = run / "preprocess/counts.h5ad"
    counts = anndata.read_h5ad(path)
    kind = np.random.default_rng(0).zipf(1.3, len(counts)) % 40
    counts.obs["cell_type"] = [f"$CD{i}^+$ effector memory T cell, subset {i}" for i in kind]
    number = counts.obs["sample"].astype(str).str.removeprefix("donor").astype(int)
    counts.obs["donor"] = [f"a patient with a very long name {i // 2}" for i in number]
    counts.write_h5ad(path)
    plane = pd.read_parquet(run / "embed/seed1/umap.parquet")
    plane["umap_1"] += 5 * (kind % 7)
    plane["umap_2"] += 5 * (kind // 7)
    plane.to_parquet(run / "embed/seed1/umap.parquet", index=False)


class Drawn:
    """The figures of a run: (figure, table, alt) by name, and the texts that each one draws."""

    def __init__(self, folder: Path, kind: str):
        self.kind = kind
        self.observations = "samples" if RUNS[kind].get("is_bulk") else "cells"
        self.run = write_check(write_optional_stages(write_fake_run(folder, **RUNS[kind])))
        if kind == "forty":
            name_hard(self.run)
        self.figures = draw_all(self.run, self.observations)
        self.texts = {name: drawn_texts(figure) for name, (figure, *_) in self.figures.items()}


def drawn_texts(figure) -> list[Text]:
    """All texts that are drawn; a tick label outside its axis is there, but is not drawn."""
    texts, draw = [], Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            texts.append(self)
        return draw(self, renderer, *args, **kwargs)

    with style(), pytest.MonkeyPatch.context() as patch:
        figure.draw_without_rendering()  # the layout measures texts, and may draw them
        figure.set_layout_engine("none")
        patch.setattr(Text, "draw", record)
        figure.draw_without_rendering()
    return list(dict.fromkeys(texts))


@pytest.fixture(scope="session", params=RUNS)
def drawn(request, tmp_path_factory) -> Drawn:
    return Drawn(tmp_path_factory.mktemp("run"), request.param)


@pytest.fixture(scope="session")
def of_cells(tmp_path_factory) -> Drawn:
    return Drawn(tmp_path_factory.mktemp("run"), "cells")


@pytest.fixture(scope="session")
def saved(of_cells, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    for name, parts in of_cells.figures.items():
        save_figure(*parts, outputs(folder, name))
    return folder


# ---- size, text, axes


def test_is_one_or_two_columns_wide_and_fits_a_page(drawn):
    for name, (figure, *_) in drawn.figures.items():
        width, height = MM * figure.get_size_inches()
        panels = [ax for ax in figure.axes if ax.get_subplotspec() is not None]
        assert width == pytest.approx(89 if len(panels) == 1 else 183, abs=1e-6), name
        assert height <= PAGE_HEIGHT, name


def test_text_is_of_5_to_7_points(drawn):
    faults = [
        (name, text.get_text(), text.get_fontsize())
        for name, texts in drawn.texts.items()
        for text in texts
        if not 5 <= text.get_fontsize() <= 7
    ]
    assert not faults


def test_no_text_is_raised_or_lowered_for_that_would_be_below_5_points(drawn):
    formula = re.compile(r"(?<!\\)\$.*[_^].*(?<!\\)\$")
    faults = [text.get_text() for texts in drawn.texts.values() for text in texts
              if formula.search(text.get_text())]  # fmt: skip
    assert not faults


def test_no_text_lies_on_another_or_leaves_the_figure(drawn):
    faults = []
    for name, texts in drawn.texts.items():
        figure = drawn.figures[name][0]
        renderer = figure.canvas.get_renderer()
        # Of a slanted text the box is larger than the text.
        upright = [text for text in texts if text.get_rotation() % 90 == 0]
        boxes = [text.get_window_extent(renderer).padded(-1) for text in upright]
        for text, box in zip(upright, boxes, strict=True):
            if not (box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 + 1
                    and box.y1 <= figure.bbox.y1 + 1):  # fmt: skip
                faults.append((name, "outside", text.get_text()))
        for (text, box), (other, its) in combinations(zip(upright, boxes, strict=True), 2):
            if box.overlaps(its):
                faults.append((name, text.get_text(), other.get_text()))
    assert not faults


def has_unit(label: str) -> bool:
    return bool(re.search(r"\(.+\)", label)) or label.startswith(UNITLESS)


def test_every_axis_of_numbers_has_a_label_with_its_unit(drawn):
    faults = []
    for name, texts in drawn.texts.items():
        shown = set(map(id, texts))
        for ax in drawn.figures[name][0].axes:
            for axis in (ax.xaxis, ax.yaxis):
                ticks = [tick.get_text() for tick in axis.get_ticklabels() if id(tick) in shown]
                is_numbers = any(re.fullmatch(r"[−-]?[\d.,]+( M)?", tick) for tick in ticks)
                if is_numbers and not has_unit(axis.get_label_text()):
                    faults.append((name, ax.get_title(loc="left"), axis.get_label_text(), ticks))
    assert not faults


def test_every_figure_tells_n(drawn):
    counted = re.compile(r"n = \d|\d+ (of \d+|dims|draws)|\d+ (cells|samples|tests)")
    for name, texts in drawn.texts.items():
        everything = " ".join(text.get_text() for text in texts)
        is_empty = "too few" in everything or "no " in everything
        assert counted.search(everything) or is_empty, name


def test_panels_have_letters(drawn):
    for name, texts in drawn.texts.items():
        letters = [m[1] for text in texts if (m := re.match(r"\$\\mathbf\{(.)\}", text.get_text()))]
        assert sorted(letters) == list("abcdefghij")[: len(letters)], name
        assert len(letters) != 1, name


def test_a_bulk_run_speaks_of_no_cells(drawn):
    if drawn.observations == "cells":
        pytest.skip("a run of cells")
    for name in drawn.figures:
        words = [text.get_text() for text in drawn.texts[name]] + [drawn.figures[name][2]]
        # The fake run's own cell types, of which a real bulk run has none.
        words = re.sub(r"(B|T|NK) cell|[Cc]ell types?", "", "\n".join(words))
        assert "cell" not in words.lower(), name


# ---- what is written


def test_files_have_the_size_of_the_figure(of_cells, saved):
    for name, (figure, *_) in of_cells.figures.items():
        width, height = figure.get_size_inches()
        pdf = (saved / f"{name}.pdf").read_bytes()
        box = [float(x) / 72 for x in re.search(rb"/MediaBox \[([^\]]*)\]", pdf)[1].split()]
        assert box == pytest.approx([0, 0, width, height], abs=0.01), name
        with Image.open(saved / f"{name}.png") as image:
            assert image.info["dpi"][0] == pytest.approx(300, abs=0.1), name
            assert image.size == pytest.approx((300 * width, 300 * height), abs=1.5), name


def test_text_stays_text(of_cells, saved):
    for name in of_cells.figures:
        pdf = (saved / f"{name}.pdf").read_bytes()
        assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf, name
        assert "<text" in (saved / f"{name}.svg").read_text(encoding="utf-8"), name


def test_pdffonts_finds_embedded_truetype_only(of_cells, saved):
    if not shutil.which("pdffonts"):
        pytest.skip("pdffonts is not installed (poppler-utils)")
    for name in of_cells.figures:
        found = subprocess.run(
            ["pdffonts", saved / f"{name}.pdf"], capture_output=True, text=True, check=True
        )
        fonts = found.stdout.splitlines()[2:]
        assert fonts, name
        for font in fonts:
            assert re.search(r" (CID )?TrueType .* yes (yes|no ) yes ", font), (name, font)


def test_same_bytes_when_made_again(of_cells, saved, tmp_path):
    for name, parts in draw_all(of_cells.run).items():
        save_figure(*parts, outputs(tmp_path, name))
    for path in sorted(saved.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert len(list(saved.iterdir())) == 5 * len(of_cells.figures)


def test_source_data_stand_beside_the_figure(of_cells, saved):
    for name, (_, table, _) in of_cells.figures.items():
        read = pd.read_csv(saved / f"{name}.tsv", sep="\t", low_memory=False)
        assert len(read) == len(table) > 0, name
        assert "panel" not in read or read["panel"].notna().all(), name


def test_alt_text_tells_numbers_and_is_in_every_file(of_cells, saved):
    for name, (_, _, alt) in of_cells.figures.items():
        assert "\n" not in alt and alt.endswith(".") and re.search(r"\d", alt), name
        assert (saved / f"{name}.txt").read_text(encoding="utf-8") == f"{alt}\n"
        svg = (saved / f"{name}.svg").read_text(encoding="utf-8")
        assert alt.split(".")[0].split("&")[0] in svg and f"<title>{name}</title>" in svg, name
        assert b"/Subject" in (saved / f"{name}.pdf").read_bytes(), name
        with Image.open(saved / f"{name}.png") as image:
            assert image.text["Description"] == alt, name


def test_every_figure_has_an_alt_text_of_sentences(drawn):
    for name, (_, _, alt) in drawn.figures.items():
        assert alt.endswith(".") and "nan" not in alt.lower() and "  " not in alt, (name, alt)


def test_many_points_become_an_image(of_cells, tmp_path, monkeypatch):
    monkeypatch.setattr(figure_style, "MAX_VECTOR_MARKS", 150)
    monkeypatch.setattr(figure_style, "FEW_MARKS", 20)
    for name, parts in draw_all(of_cells.run).items():
        if name in ("qc", "library_size", "latent", "anomalies"):
            save_figure(*parts, outputs(tmp_path, name))
            svg = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
            assert "<image" in svg, name
            # Beside the cells, ticks and the marks of a legend are uses of a path.
            assert svg.count("<use") < 300, name


def test_few_points_stay_vectors(of_cells, saved):
    svg = (saved / "latent.svg").read_text(encoding="utf-8")
    assert svg.count("<use") > 4 * len(of_cells.figures["latent"][1])
    assert figure_style.MAX_VECTOR_MARKS <= 20_000


# ---- colours

VISIONS = ["normal", "deuteranomaly", "protanomaly", "tritanomaly"]


def seen(colours, vision: str) -> np.ndarray:
    """The colours in CAM02-UCS, as someone sees them who lacks one kind of cone."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    if vision != "normal":
        space = {"name": "sRGB1+CVD", "cvd_type": vision, "severity": 100}
        rgb = np.clip(cspace_convert(rgb, space, "sRGB1"), 0, 1)
    return cspace_convert(rgb, "sRGB1", "CAM02-UCS")


def nearest(colours, vision: str) -> float:
    at = seen(colours, vision)
    return min(np.linalg.norm(a - b) for a, b in combinations(at, 2))


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart_with_any_vision(vision):
    """1 is the least difference that is seen side by side; 10 is one between names of colours."""
    palette = figure_style.CATEGORIES
    assert len(palette) == 20
    assert nearest(palette, vision) > 10
    assert nearest([*palette, figure_style.LIGHT_GREY, "white"], vision) > 9
    assert nearest([*figure_style.SPLITS.values(), figure_style.ANOMALY], vision) > 10
    assert nearest(figure_style.KEPT.values(), vision) > 30
    assert nearest(figure_style.ROLES.values(), vision) > 20


def test_a_print_in_greys_tells_two_classes_apart():
    for colours in (figure_style.KEPT, figure_style.ROLES):
        low, high = sorted(seen(colours.values(), "normal")[:, 0])
        assert high - low > 20


def test_a_sample_has_one_colour_in_the_figures_of_a_run(of_cells):
    def colours(figure) -> dict:
        return {
            text.get_text().split(" (")[0]: handle
            for ax in figure.axes
            if ax.get_legend()
            for text, handle in zip(
                ax.get_legend().get_texts(),
                [h.get_facecolor() for h in ax.get_legend().legend_handles],
                strict=True,
            )
            if text.get_text().startswith("donor")
        }

    latent, patterns = (colours(of_cells.figures[name][0]) for name in ("latent", "patterns"))
    shared = set(latent) & set(patterns)
    assert shared
    for name in shared:
        np.testing.assert_allclose(np.ravel(latent[name]), np.ravel(patterns[name]))
