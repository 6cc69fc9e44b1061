"""Which group of reference cells is held out of the second training."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from choose_held_group import LARGEST_SHARE, LEAST_CELLS, choose_group
from job import read_json
from model_jobs import read_inputs, with_obs, write_fit
from reference_groups import ReferenceGroups
from run_script import run_script
from simulated_counts import NO_DESIGN, small_model, small_run


def groups_of(sizes, n_ungrouped=0) -> ReferenceGroups:
    code = np.r_[np.repeat(np.arange(len(sizes)), sizes), np.full(n_ungrouped, -1)]
    names = [f"g{k}" for k in range(len(sizes))]
    return ReferenceGroups(names, code, "cell_type", np.zeros((len(code), 1)))


@pytest.mark.parametrize(
    ("sizes", "n_ungrouped", "expected"),
    [
        # Of those that may be held out, the median.
        ([30, 90, 50, 500], 0, 2),
        ([90, 30, 500, 50], 0, 3),
        ([60, 30, 500, 40, 50], 0, 4),  # of an even number the larger of the two in the middle
        # 20 cells are enough, 19 are not.
        ([20, 100], 0, 0),
        ([19, 100], 0, None),
        # A quarter of the reference may go, and no more.
        ([25, 75], 0, 0),
        ([26, 74], 0, None),
        ([100, 100, 100, 100], 0, 2),
        ([101, 100, 100, 99], 0, 1),
        # A single group: the model would be trained on what has no name.
        ([30], 200, None),
        ([30, 40], 200, 1),
        ([], 100, None),
    ],
)
def test_the_group_of_median_size_is_held_out(sizes, n_ungrouped, expected):
    assert choose_group(groups_of(sizes, n_ungrouped)) == expected
    assert (LEAST_CELLS, LARGEST_SHARE) == (20, 0.25)


def test_of_groups_of_one_size_always_the_same_is_taken():
    found = {choose_group(groups_of([40, 40, 40, 40, 400])) for _ in range(5)}
    assert found == {2}


# ---- the script


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Inputs of the script; of the 360 reference cells T and B are many, NK 30, and M 60."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    label = np.r_[
        rng.permutation(np.repeat(["T", "B", "NK", "M"], [150, 120, 30, 60])), ["NK"] * 60
    ]
    paths = with_obs(small_run(folder), folder / "in", cell_type=label)
    inputs = read_inputs(paths)
    model = small_model(inputs.split("train"))
    paths |= write_fit(folder, model, inputs, NO_DESIGN)
    return paths, label


def choose(folder, paths) -> tuple[pd.DataFrame, dict]:
    folder.mkdir(exist_ok=True)
    output = {"group": "group.parquet", "summary": "group.json"}
    written = run_script("choose_held_group", folder, paths, output, {"seed": 1})
    return pd.read_parquet(written["group"]), read_json(written["summary"])


def test_reference_cells_of_the_group_are_written(run, tmp_path):
    paths, label = run
    table, summary = choose(tmp_path, paths)
    held = [f"cell{i}" for i in np.flatnonzero(label[:360] == "M")]
    assert list(table.columns) == ["cell_id"]
    assert list(table["cell_id"]) == held, "no query cell, whatever its label"
    assert summary == {
        "group": "M",
        "source": "cell_type",
        "n_cells": 60,
        "n_reference": 360,
        "warnings": [],
    }


def test_labels_of_the_query_do_not_count(run, tmp_path):
    paths, label = run
    other = with_obs(paths, tmp_path / "in", cell_type=np.r_[label[:360], ["M"] * 60])
    assert choose(tmp_path, other)[0].equals(choose(tmp_path, paths)[0])


def test_without_a_group_the_table_is_empty(run, tmp_path):
    paths, _ = run
    label = np.array(["T", "B"] * 210)
    table, summary = choose(tmp_path, with_obs(paths, tmp_path / "in", cell_type=label))
    assert len(table) == 0 and list(table.columns) == ["cell_id"]
    assert (summary["group"], summary["n_cells"]) == (None, 0)
    # An empty table holds nobody out.
    told = read_inputs(paths, held=str(tmp_path / "group.parquet"))
    assert list(told.cells["split"]) == list(ad.read_h5ad(paths["counts"]).obs["split"])
