"""Figure patterns: which genes it shows, what its source data say, and runs with little to show."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fake_run import write_fake_run
from figure_style import save_figure
from plot_patterns import (
    CELL_HEIGHT,
    LEAST_BAND,
    MOST_GENES,
    MOST_HEIGHT,
    bands,
    chosen_genes,
    draw,
    residual_table,
)
from run_script import run_script


def tables(sizes=(8, 4), alone=3, samples=("S1", "S2")):
    """The tables of a run with patterns of so many cells and ``alone`` cells in none."""
    names = [f"P{k}" for k in range(1, len(sizes) + 1)]
    patterns = pd.DataFrame({"pattern": names, "n_cells": sizes, "nearest_reference": "CD4 T"})
    patterns["label"] = [f"{name}up0+" for name in names]
    markers = pd.DataFrame(
        [
            (name, f"{name}{side}{g}", side)
            for name in names
            for side, n in (("up", 12), ("down", 5))
            for g in range(n)
        ],
        columns=["pattern", "gene", "direction"],
    )
    of = [*np.repeat(names, sizes), *[""] * alone]
    cells = pd.DataFrame({"pattern": of, "sample": np.resize(samples, len(of))}, dtype=object)
    cells["technical_cause"] = "none found"
    cells.loc[cells["pattern"] == "", "technical_cause"] = "doublet of B and T; mitochondrial"
    cells["cell_id"] = [f"cell{i}" for i in range(len(cells))]
    pairs = cells.loc[cells["pattern"] != "", ["pattern", "cell_id"]].merge(
        markers.rename(columns={"pattern": "own"}), how="cross"
    )
    side = np.where(pairs["direction"] == "up", 5.0, -5.0)
    pairs["residual"] = np.where(pairs["own"] == pairs["pattern"], side, 0.0)
    residuals = pairs[["pattern", "cell_id", "gene", "residual"]]
    named = cells.assign(pattern=cells["pattern"].replace("", "no pattern"))
    counted = named.groupby(["pattern", "sample"]).size().rename("n_cells").reset_index()
    splits = cells.groupby("sample").size().rename("n_cells").reset_index()
    return patterns, markers, residuals, counted, cells, splits


def test_each_pattern_brings_its_first_markers_up_and_down():
    _, markers, *_ = tables()
    genes = chosen_genes(markers, ["P1", "P2"])
    assert genes[:10] == [f"P1up{g}" for g in range(10)]
    assert genes[10:15] == [f"P1down{g}" for g in range(5)]
    assert genes[15] == "P2up0"
    shared = markers.assign(gene=markers["gene"].str[2:])
    assert chosen_genes(shared, ["P1", "P2"]) == [gene[2:] for gene in genes[:15]]


def test_many_patterns_still_fit():
    _, markers, *_ = tables(sizes=(3,) * 20)
    genes = chosen_genes(markers, [f"P{k}" for k in range(1, 21)])
    assert len(genes) <= MOST_GENES
    assert {gene.split("up")[0] for gene in genes if "up" in gene} == {
        f"P{k}" for k in range(1, 21)
    }


def test_source_data_hold_what_is_drawn():
    _, data, _ = draw(*tables())
    a = data[data["panel"] == "a"].set_index(["pattern", "gene"])["residual"].sort_index()
    assert a["P1", "P1up0"].tolist() == [5.0] * 8
    assert a["P2", "P1up0"].tolist() == [0.0] * 4
    b = data[data["panel"] == "b"]
    assert b.groupby("pattern")["n_cells"].sum().to_dict() == {"P1": 8, "P2": 4, "no pattern": 3}
    c = data[data["panel"] == "c"].set_index(["pattern", "cause"])["share"]
    assert c["no pattern", "doublet"] == 1.0
    assert c["no pattern", "mitochondrial"] == 1.0
    assert c["P1", "none found"] == 1.0
    assert c["P1", "doublet"] == 0.0


def test_the_heatmap_has_cells_as_rows_pattern_by_pattern_the_strongest_on_top():
    residuals = tables(sizes=(2, 3))[2]
    residuals.loc[residuals["cell_id"] == "cell1", "residual"] *= 2
    table = residual_table(residuals, ["P2", "P1"], ["P1up0", "not there"])
    pattern, cell = (table.index.get_level_values(name) for name in ("pattern", "cell_id"))
    assert pattern.tolist() == ["P2"] * 3 + ["P1"] * 2
    assert cell.tolist()[3:] == ["cell1", "cell0"]
    assert table.loc["P1", "P1up0"].tolist() == [10.0, 5.0]
    assert table["not there"].isna().all()


def test_a_pattern_that_is_not_shown_has_no_rows():
    table = residual_table(tables()[2], ["P1"], ["P1up0"])
    assert set(table.index.get_level_values("pattern")) == {"P1"} and len(table) == 8


def test_a_small_pattern_has_room_for_its_name_and_all_fit_a_page():
    large, small = bands(pd.Series([100, 3]))
    assert large == 100 * CELL_HEIGHT and small == LEAST_BAND
    assert bands(pd.Series([150, 150])).sum() == pytest.approx(MOST_HEIGHT)


def test_the_colours_drawn_are_the_residuals():
    figure, data, _ = draw(*tables())
    (mesh,) = figure.axes[0].collections
    drawn = np.asarray(mesh.get_array(), dtype=float)
    a = data[data["panel"] == "a"].pivot(index=["pattern", "cell_id"], columns="gene")["residual"]
    shown = a.loc[["P1", "P2"], [text.get_text() for text in figure.axes[0].get_xticklabels()]]
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(shown.to_numpy(), axis=0))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["P1  8 cells, near CD4 T", "P2  4 cells, near CD4 T"]


@pytest.mark.parametrize(
    "shape",
    [
        {"sizes": (), "alone": 0},
        {"sizes": (), "alone": 2},
        {"sizes": (5,), "alone": 0},
        {"sizes": (3,) * 30, "samples": [f"a long sample name {i}" for i in range(40)]},
    ],
)
def test_every_run_has_a_figure_of_two_columns(shape, tmp_path):
    kinds = {"pdf": "pdf", "svg": "svg", "png": "png", "table": "tsv", "alt": "txt"}
    paths = {kind: tmp_path / f"patterns.{end}" for kind, end in kinds.items()}
    save_figure(*draw(*tables(**shape)), SimpleNamespace(**paths))
    box = re.search(rb"/MediaBox \[([^\]]*)\]", paths["pdf"].read_bytes())[1].split()
    assert float(box[2]) * 25.4 / 72 == pytest.approx(183, abs=0.1)
    with Image.open(paths["png"]) as image:
        assert image.height / 300 * 25.4 < 247
    first = {kind: path.read_bytes() for kind, path in paths.items()}
    save_figure(*draw(*tables(**shape)), SimpleNamespace(**paths))
    assert {kind: path.read_bytes() for kind, path in paths.items()} == first


@pytest.mark.parametrize("samples", [["NA", "7", "nan"], ["1", "02"]])
def test_samples_groups_and_genes_may_be_called_na_or_7(samples, tmp_path):
    run = write_fake_run(tmp_path / "run", n_cells=200, share_odd=0.3, gene="NA", group="null")
    of_run = run / "preprocess/splits.tsv"
    for path in (*(run / "patterns" / name for name in ("sizes.tsv", "cells.parquet")), of_run):
        if path.suffix == ".tsv":
            table = pd.read_csv(path, sep="\t", keep_default_na=False)
            table["sample"] = np.resize(samples, len(table))
            table.to_csv(path, sep="\t", index=False)
        else:
            table = pd.read_parquet(path)
            table.assign(sample=np.resize(samples, len(table))).to_parquet(path)
    inputs = {name: str(run / f"patterns/{name}.tsv") for name in ("patterns", "markers", "sizes")}
    inputs |= {name: str(run / f"patterns/{name}.parquet") for name in ("residuals", "cells")}
    inputs["splits"] = str(of_run)
    output = {"pdf": "p.pdf", "svg": "p.svg", "png": "p.png", "table": "p.tsv", "alt": "p.txt"}
    written = run_script("plot_patterns", tmp_path, inputs, output, {"observations": "cells"})
    data = pd.read_csv(written["table"], sep="\t", dtype=str, keep_default_na=False)
    sizes = pd.read_csv(run / "patterns/sizes.tsv", sep="\t", dtype=str, keep_default_na=False)
    assert data.loc[data["panel"] == "b", "sample"].tolist() == sizes["sample"].tolist()
    drawn = data[(data["panel"] == "a") & (data["gene"] == "NA")]
    assert set(drawn["residual"]) == {"7.44"} and set(drawn["pattern"]) == {"P1", "P2"}
    svg = written["svg"].read_text(encoding="utf-8")
    assert re.search(r">NA</text>|>NA</tspan>", svg) and "near null" in svg
