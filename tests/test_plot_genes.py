"""Figure genes: its numbers are the tables', it names what leads, and holds for any number."""

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

import plot_genes
from fake_run import write_fake_run
from figure_style import MAX_VECTOR_MARKS, save_figure
from gene_panels import PLANES, TOP_COLUMNS, Density
from plot_genes import at_least, draw, gene_table, label_points, make_room
from test_figures import outputs, read_genes

LN10 = np.log(10.0)


def tables(
    n_hits: int = 30, n_cells: int = 50, n_genes: int = 40, is_bulk: bool = False, seed: int = 0
) -> list:
    """The tables of a run in which all cells are flagged; the first hits are the surest."""
    rng = np.random.default_rng(seed)
    cells = np.array([f"cell{i}" for i in range(n_cells)])
    genes = np.array([f"G{g}" for g in range(n_genes)])
    expected = np.exp(rng.normal(1, 1.5, (n_cells, n_genes)))
    observed = rng.poisson(expected).astype(float)
    log10_p = np.log10(rng.uniform(0.01, 1, (n_cells, n_genes)))
    chosen = rng.permutation(n_cells * n_genes)[:n_hits]
    at = np.unravel_index(np.sort(chosen), observed.shape)
    side = rng.random(n_hits) < 0.7
    observed[at] = np.where(side, np.ceil(20 * expected[at] + 10), 0)
    log10_p[at] = -6.0 - np.arange(n_hits)[::-1]
    change = np.log2((observed + 1) / (expected + 1))
    hits = pd.DataFrame({"cell_id": cells[at[0]], "gene": genes[at[1]]}, dtype=object)
    hits["observed"], hits["expected"] = observed[at], expected[at]
    hits["log2_fold_change"], hits["log10_p"] = change[at], log10_p[at]
    hits["direction"] = np.where(side, "up", "down")
    density = Density()
    given = {"expected": expected, "observed": observed, "log2_fold_change": change}
    density.add(given | {"log_p": log10_p * LN10}, np.arange(n_cells))
    top = pd.DataFrame(columns=TOP_COLUMNS)
    if n_hits:
        gene = hits["gene"].iloc[0]
        column = int(gene[1:])
        top = pd.DataFrame({"gene": gene, "cell_id": cells})
        top["observed"], top["expected"] = observed[:, column], expected[:, column]
        top["low"], top["high"] = 0.0, 3 * expected[:, column] + 3
        top["is_hit"] = top["cell_id"].isin(hits.loc[hits["gene"] == gene, "cell_id"])
    number = hits["cell_id"].value_counts().reindex(cells, fill_value=0).to_numpy()
    outliers = pd.DataFrame({"cell_id": cells, "sample": "S", "is_anomaly": True})
    outliers["n_outlier_genes"] = number
    if is_bulk:
        outliers["is_aberrant"] = number > 10
    summary = {"observations": "samples" if is_bulk else "cells", "alpha": 0.05}
    summary |= {"n_reported": n_cells, "aberrant_above": 10}
    return [hits, density.table(), top, outliers, summary]


def panels(figure: Figure) -> dict:
    return dict(zip("abcd", figure.axes, strict=False))


def points(ax) -> dict[str, np.ndarray]:
    """The marks of a panel, by the words of the legend before its number."""
    return {c.get_label().split(" (")[0]: np.asarray(c.get_offsets()) for c in ax.collections
            if len(c.get_offsets()) and not c.get_label().startswith("_")}  # fmt: skip


def test_a_gene_counts_the_cells_it_is_a_hit_in_by_direction():
    hits = pd.DataFrame(
        [("A", "c1", "up", 3.0, -9), ("A", "c2", "up", 5.0, -7), ("A", "c3", "down", -2.0, -8)],
        columns=["gene", "cell_id", "direction", "log2_fold_change", "log10_p"],
    )
    table = gene_table(hits).set_index("direction")
    assert table["n_cells"].to_dict() == {"up": 2, "down": 1}
    assert table["log2_fold_change"].to_dict() == {"up": 4.0, "down": -2.0}


def test_the_share_of_cells_with_at_least_so_many_outlier_genes():
    table = at_least(pd.Series([0, 0, 1, 3]))
    assert table.to_dict("list") == {"n_outlier_genes": [0, 1, 3], "share": [1.0, 0.5, 0.25]}


def test_the_volcano_of_samples_has_every_hit_and_counts_every_test():
    given = tables(is_bulk=True)
    hits = given[0]
    figure, table, _ = draw(*given)
    marks = points(panels(figure)["a"])
    for side in ("up", "down"):
        of = hits[hits["direction"] == side]
        expected = np.column_stack([of["log2_fold_change"], -of["log10_p"]])
        np.testing.assert_allclose(marks[side], expected)
    assert table.loc[table["panel"] == "a", "gene"].tolist() == hits["gene"].tolist()
    drawn = panels(figure)["a"].collections[0].get_array()
    assert drawn.sum() == 50 * 40
    assert panels(figure)["b"].get_title(loc="left").endswith("  2,000 tests")


def test_of_cells_the_points_are_genes():
    given = tables()
    figure, table, _ = draw(*given)
    marks, expected = points(panels(figure)["a"]), gene_table(given[0])
    for side in ("up", "down"):
        of = expected[expected["direction"] == side]
        np.testing.assert_allclose(marks[side], of[["log2_fold_change", "n_cells"]])
    a = table[table["panel"] == "a"]
    assert a["n_cells"].sum() == 30


def test_observed_against_expected_marks_the_hits_of_a_gene():
    given = tables()
    figure, _, _ = draw(*given)
    top, marks = given[2], points(figure.axes[3])
    of = top[top["is_hit"]]
    np.testing.assert_allclose(np.sort(marks["outlier"][:, 1]), np.sort(of["observed"]))
    assert len(marks["no outlier"]) == 50 - len(of)
    assert figure.axes[3].get_title(loc="left").endswith(f"\n{len(of)} of 50 cells")


def test_the_aberrant_sample_stands_out_by_name():
    given = tables(n_hits=60, n_cells=12, is_bulk=True, seed=3)
    hits, outliers = given[0], given[3]
    outliers["is_aberrant"] = outliers["cell_id"] == "cell4"
    outliers.loc[outliers["is_aberrant"], "n_outlier_genes"] = 40
    figure, _, alt = draw(*given)
    panel = panels(figure)["c"]
    assert points(panel)["aberrant"][0].tolist() == [12, 40]
    assert "cell4" in [text.get_text() for text in panel.texts]
    assert "Aberrant samples: 1: cell4 (40)" in alt and f"{len(hits)} outlier genes" in alt


def test_names_hide_neither_marks_nor_names():
    given = tables(n_hits=200, is_bulk=True)
    figure, _, _ = draw(*given)
    ax, renderer = panels(figure)["a"], figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in ax.texts]
    assert len(boxes) >= 3
    assert all(not box.count_overlaps([*boxes[:i], *boxes[i + 1 :]]) for i, box in enumerate(boxes))
    marks = np.concatenate([ax.transData.transform(of) for of in points(ax).values()])
    for box in boxes:
        assert not any(box.contains(x, y) for x, y in marks)
    inside = ax.get_window_extent(renderer)
    assert all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in boxes)


def test_where_there_is_no_room_a_name_is_left_out():
    figure = draw(*tables())[0]
    ax = figure.axes[2]
    before = len(ax.texts)
    crowd = pd.DataFrame({"x": 5.0, "y": 50.0, "name": [f"a long name {i}" for i in range(12)]})
    named = label_points(ax, crowd)
    assert len(ax.texts) - before == len(named) < 6


@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
def test_room_is_made_on_any_axis(scale):
    ax = Figure().add_subplot(yscale=scale)
    ax.set_ylim(1, 100)
    before = ax.transData.transform((0, 100))[1] - ax.bbox.y0
    make_room(ax, 0.2)
    assert ax.get_ylim()[0] == pytest.approx(1)
    assert ax.transData.transform((0, 100))[1] - ax.bbox.y0 == pytest.approx(0.8 * before)


@pytest.mark.parametrize("is_bulk", [False, True])
@pytest.mark.parametrize(("n_hits", "n_cells"), [(0, 20), (1, 3), (1, 1), (4000, 300)])
def test_any_number_of_hits_is_drawn(n_hits, n_cells, is_bulk, tmp_path):
    shape = {"n_cells": n_cells, "is_bulk": is_bulk}
    # Nothing is so wide that the layout gives up.
    with warnings.catch_warnings(action="error"):
        save_figure(*draw(*tables(n_hits, **shape)), outputs(tmp_path, "genes"))
    with Image.open(tmp_path / "genes.png") as image:
        assert image.width / 300 * 25.4 == pytest.approx(183, abs=0.2)
        assert image.height / 300 * 25.4 < 247
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_figure(*draw(*tables(n_hits, **shape)), outputs(tmp_path, "genes"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_more_hits_than_an_editor_takes_become_an_image(monkeypatch, tmp_path):
    monkeypatch.setattr("plot_genes.MAX_VECTOR_MARKS", 100)
    save_figure(*draw(*tables(400, is_bulk=True)), outputs(tmp_path, "genes"))
    assert (tmp_path / "genes.svg").read_text(encoding="utf-8").count("<use") < 400
    assert MAX_VECTOR_MARKS == 20_000


def test_the_steps_of_the_density_are_those_it_was_made_with():
    assert plot_genes.STEPS == PLANES


@pytest.mark.parametrize("is_bulk", [False, True])
def test_a_run_that_flags_nobody_says_so(is_bulk, tmp_path):
    run = write_fake_run(tmp_path, n_cells=60, share_odd=0, is_bulk=is_bulk)
    figure, _, alt = draw(*read_genes(run))
    figure.draw_without_rendering()
    assert alt.startswith("0 outlier genes")
    if not is_bulk:
        assert "none flagged" in [text.get_text() for text in panels(figure)["a"].texts]
