"""The model's genes are chosen from all cells alike, on any data, the same each time."""

from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.stats import spearmanr

import select_features as select_module
import stored_counts
from job import InputError
from join_samples import JoinedCounts
from omics_vae.counts import Counts
from run_script import run_script
from select_features import (
    MIN_BATCH_CELLS,
    find_listed,
    keep_seen,
    rank_over_batches,
    read_gene_list,
    select_features,
    select_variable,
    voting_groups,
    write_all,
)
from stored_counts import ROW, CountFile

SETTINGS = {"n_features": 50, "min_cells": 5, "gene_list": None, "batch_aware": True}
SPLIT = {"validation": 0.1, "calibration": 0.33, "by": "auto", "min_donors": 6}


def simulate(n_cells=400, n_genes=300, seed=0) -> np.ndarray:
    """Two cell types that differ in genes 0..19; the others vary as counts do."""
    rng = np.random.default_rng(seed)
    rates = np.tile(np.exp(rng.normal(-1, 1.2, n_genes)), (n_cells, 1))
    rates[::2, :20] *= 8
    return rng.poisson(rates)


def make_sample(X, name="s1", roles=None, **obs) -> CountFile:
    n_cells, n_genes = X.shape
    roles = roles or (["reference"] * (n_cells - 60) + ["query"] * 60)
    table = pd.DataFrame({"sample": [name] * n_cells, "role": roles} | obs)
    table.index = [f"{name}_{i}" for i in range(n_cells)]
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    return CountFile(Counts.of(X.astype(np.int32)), table, var)


def joined(sample: CountFile) -> tuple[JoinedCounts, pd.DataFrame, pd.DataFrame]:
    """One sample as several joined ones are."""
    return JoinedCounts([sample.counts]), sample.obs, sample.var


def output_in(folder) -> SimpleNamespace:
    files = {name: str(folder / f"{name}.h5ad") for name in ("counts", "model_counts")}
    return SimpleNamespace(**files)


def test_genes_of_the_cell_types_are_selected():
    _, _, var, summary = select_features(
        [make_sample(simulate())], None, SETTINGS, SPLIT, 0, "cells", 0
    )
    selected = set(var.index[var["selected"]])
    assert len(selected & {f"GENE{i}" for i in range(20)}) >= 18
    assert summary["n_selected"] == 50
    assert set(var["selected_by"]) == {"variable", ""}


def test_a_gene_that_only_query_cells_express_can_be_selected():
    X = simulate()
    X[:, 299] = 0
    X[-12:, 299] = 6
    _, obs, var, _ = select_features([make_sample(X)], None, SETTINGS, SPLIT, 0, "cells", 0)
    assert (obs["role"].iloc[-12:] == "query").all()
    assert var.loc["GENE299", "selected"]


def test_the_choice_of_genes_never_looks_at_roles():
    X = simulate()
    roles = ["reference"] * 340 + ["query"] * 60
    _, _, first, _ = select_features(
        [make_sample(X, roles=roles)], None, SETTINGS, SPLIT, 0, "cells", 0
    )
    _, _, second, _ = select_features(
        [make_sample(X, roles=roles[::-1])], None, SETTINGS, SPLIT, 0, "cells", 9
    )
    pd.testing.assert_frame_equal(first, second)


def test_more_features_than_genes_selects_all():
    _, _, var, summary = select_features(
        [make_sample(simulate())], None, SETTINGS | {"n_features": 300}, SPLIT, 0, "cells", 0
    )
    assert var["selected"].all()
    assert summary["method"] == "all genes"


def batches(sizes) -> np.ndarray:
    return np.repeat(np.array([f"b{i}" for i in range(len(sizes))], dtype=object), sizes)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100, 100], {"batch b0": 100, "batch b1": 100}),
        ([100, 30, 30], {"batch b0": 100, "small batches": 60}),
        ([100, 3], {"batch b0": 100, "": 3}),
        ([10, 10], {"all": 20}),
    ],
)
def test_small_batches_vote_together_or_not_at_all(sizes, expected):
    assert pd.Series(voting_groups(batches(sizes))).value_counts().to_dict() == expected
    assert MIN_BATCH_CELLS == 50


def test_a_tiny_batch_breaks_nothing_and_is_said():
    sample = make_sample(simulate(), batch=["a"] * 200 + ["b"] * 197 + ["tiny"] * 3)
    _, _, var, summary = select_features([sample], None, SETTINGS, SPLIT, 0, "cells", 0)
    assert var["selected"].sum() == 50
    assert any("3 cells of batches" in warning for warning in summary["warnings"])


def test_batch_differences_are_no_variability_when_batch_aware():
    X = simulate()
    rates = np.exp(np.random.default_rng(1).normal(0, 0.5, 40))
    X[:200, 250:290] = np.random.default_rng(2).poisson(5 * rates, (200, 40))
    X[200:, 250:290] = np.random.default_rng(3).poisson(rates, (200, 40))
    counts = joined(make_sample(X))[0]
    batch, of_batch = np.repeat(["a", "b"], 200).astype(object), slice(250, 290)
    assert select_variable(counts, batch, 50, batch_aware=False)[0][of_batch].sum() > 20
    assert select_variable(counts, batch, 50, batch_aware=True)[0][of_batch].sum() < 15


def test_ranks_over_batches_by_hand():
    """Gene 3 leads one batch only; 0 is first and second; 1 second and first; 2 never in."""
    scores = np.array([[9.0, 8, 1, 0], [7, 9, 1, 0], [7, 6, 1, 9]])
    assert rank_over_batches(scores, n_features=2).tolist()[:3] == [3, 1, 0]
    # Both lead wherever they are in: more batches win, not the place in the matrix.
    scores = np.array([[9.0, 0, 1], [0, 1, 9], [0, 1, 9]])
    assert rank_over_batches(scores, n_features=1).tolist()[:2] == [2, 0]


def test_a_fallback_is_said():
    counts = joined(make_sample(np.eye(60) * 5))[0]
    _, method, warnings = select_variable(counts, np.full(60, ""), 10, batch_aware=True)
    assert method == "all: Pearson residuals"
    assert "no mean-variance trend could be fitted" in warnings[0]


def test_a_gene_list_is_read_as_people_write_it(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_bytes("\ufeffGENE7 # T cells\r\n\r\n# comment\r\nGENE9\r\nGENE7\r\n".encode())
    assert read_gene_list(path) == ["GENE7", "GENE9"]


def test_listed_genes_join_the_variable_ones(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("GENE0\nGENE200\ngene201\nXYZ\n")
    _, _, var, summary = select_features(
        [make_sample(simulate())], str(path), SETTINGS, SPLIT, 0, "cells", 0
    )
    assert var.loc["GENE200", "selected_by"] == "list"
    assert var.loc["GENE0", "selected_by"] == "variable, list"
    assert (var["selected"] == (var["selected_by"] != "")).all()
    assert summary["n_selected"] == 51
    (warning,) = summary["warnings"]
    assert "2 of 4 names are not genes" in warning
    assert "gene201 (near: GENE201), XYZ" in warning


def test_a_gene_list_without_any_gene_is_an_error_and_ids_are_names_too():
    var = pd.DataFrame({"gene_id": ["ENSG1", "ENSG2"]}, index=["CD3D", "CD3E"])
    assert find_listed(var, ["ENSG2", "CD3D"], "genes.txt")[0].tolist() == [True, True]
    with pytest.raises(InputError, match=r"genes.txt: none of its 1 names.*cd3d \(near: CD3D\)"):
        find_listed(var, ["cd3d"], "genes.txt")


def test_rare_genes_and_then_empty_cells_are_dropped(small_blocks):
    X = np.ones((20, 6), dtype=int)
    X[:, 5] = 0
    X[:4, 5] = 2
    X[5:, 4] = 0
    X[19, :5] = 0
    sample = joined(make_sample(X, roles=["query"] * 20))
    counts, obs, var, warnings = keep_seen(*sample, min_cells=5)
    assert counts.shape == (len(obs), len(var)) == (19, 5)
    kept = np.vstack([block.toarray() for _, block in counts.blocks()])
    np.testing.assert_array_equal(kept, X[:19, :5])
    assert var["n_cells"].tolist() == [19, 19, 19, 19, 5]
    assert "1 cells had no count in the 5 shared genes" in warnings[0]
    assert "s1_19" in warnings[0]


FAULTS = {
    "genes that are in too few cells, all of them": (
        30,
        "preprocess.select_features.min_cells: no gene is seen in 30 cells; lower it",
    ),
    "a sample without a count in the shared genes": (
        5,
        "sample s2: no cell has a count in the 5 genes that all samples share and that are in "
        "enough cells; check its genes",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_counts_of_which_nothing_is_left_give_one_line(name):
    """The one cell of a second sample has counts of a gene that no other cell has."""
    X = np.ones((20, 6), dtype=int)
    X[:, 5] = 0
    X[19] = [0, 0, 0, 0, 0, 1]
    samples = ["s1"] * 19 + ["s2"]
    min_cells, expected = FAULTS[name]
    with pytest.raises(InputError) as caught:
        keep_seen(*joined(make_sample(X, roles=["query"] * 20, sample=samples)), min_cells)
    assert str(caught.value) == expected


def test_cells_that_the_model_sees_as_empty_are_said(tmp_path, small_blocks):
    X = simulate()
    X[7] = 0
    X[7, 40:] = 0
    X[7, 130] = 1
    settings = SETTINGS | {"n_features": 20}
    *found, summary = select_features([make_sample(X)], None, settings, SPLIT, 0, "cells", 0)
    (warning,) = write_all(*found, 1, output_in(tmp_path))
    assert warning.startswith("1 cells have no count in the selected")
    assert summary["warnings"] == []
    X[7, :40] = 3
    *found, _ = select_features([make_sample(X)], None, settings, SPLIT, 0, "cells", 0)
    assert write_all(*found, 1, output_in(tmp_path)) == []


def test_the_model_s_genes_are_written_beside_all(tmp_path, small_blocks):
    """The same cells in the same order, of the selected genes alone, and uncompressed."""
    counts, obs, var, _ = select_features(
        [make_sample(simulate())], None, SETTINGS, SPLIT, 0, "cells", 0
    )
    output = output_in(tmp_path)
    write_all(counts, obs, var, 1, output)
    whole, of_model = (anndata.read_h5ad(path) for path in (output.counts, output.model_counts))
    assert whole.shape == counts.shape
    selected = whole.var["selected"].to_numpy()
    assert (whole.X[:, selected] != of_model.X).nnz == 0
    assert of_model.obs.pop(ROW).tolist() == list(range(whole.n_obs))
    pd.testing.assert_frame_equal(of_model.obs, whole.obs)
    pd.testing.assert_frame_equal(of_model.var, whole.var[selected], check_categorical=False)
    with h5py.File(output.model_counts) as file:
        assert {file["X"][name].compression for name in ("data", "indices")} == {None}


def test_many_cells_are_put_in_random_order_for_the_model(tmp_path, small_blocks, monkeypatch):
    counts, obs, var, _ = select_features(
        [make_sample(simulate())], None, SETTINGS, SPLIT, 0, "cells", 0
    )
    monkeypatch.setattr(select_module, "BUFFER_BLOCKS", 1)
    monkeypatch.setattr(select_module, "BLOCK_CELLS", 50)
    monkeypatch.setattr(stored_counts, "BUCKET_ROWS", 37)
    output = output_in(tmp_path)
    write_all(counts, obs, var, 1, output)
    whole, of_model = (anndata.read_h5ad(path) for path in (output.counts, output.model_counts))
    row = of_model.obs[ROW].to_numpy()
    assert (
        sorted(row) == list(range(whole.n_obs))
        and abs(spearmanr(row, np.arange(len(row)))[0]) < 0.2
    )
    assert of_model.obs_names.equals(whole.obs_names[row])
    selected = whole.var["selected"].to_numpy()
    assert (whole.X[row][:, selected] != of_model.X).nnz == 0
    (tmp_path / "other").mkdir()
    other = output_in(tmp_path / "other")
    write_all(counts, obs, var, 2, other)
    assert anndata.read_h5ad(other.model_counts).obs[ROW].tolist() != row.tolist()
    assert Path(other.counts).read_bytes() == Path(output.counts).read_bytes()


def test_the_split_ignores_the_order_of_samples_and_the_genes():
    X = simulate(300)
    first, second = make_sample(X[:150], "a"), make_sample(X[150:], "b")
    split = select_features([first, second], None, SETTINGS, SPLIT, 0, "cells", 4)[1]["split"]
    swapped = select_features([second, first], None, SETTINGS, SPLIT, 0, "cells", 4)[1]["split"]
    fewer = [make_sample(X[:150, :200], "a"), make_sample(X[150:, :200], "b")]
    on_fewer = select_features(fewer, None, SETTINGS, SPLIT, 0, "cells", 4)[1]["split"]
    pd.testing.assert_series_equal(split, swapped[split.index])
    pd.testing.assert_series_equal(split, on_fewer)


def test_without_a_query_each_cell_has_a_fold():
    sample = make_sample(simulate(), roles=["reference"] * 400)
    _, obs, var, summary = select_features([sample], None, SETTINGS, SPLIT, 4, "cells", 1)
    assert list(obs)[:5] == ["cell", "sample", "role", "split", "fold"]
    assert obs["fold"].value_counts().sort_index().tolist() == [100] * 4
    assert summary["splits"] == {"train": 360, "validation": 40}
    assert summary["split_by"] == "cell"
    _, again, same, _ = select_features([sample], None, SETTINGS, SPLIT, 4, "cells", 2)
    assert (again["fold"] != obs["fold"]).any()
    pd.testing.assert_frame_equal(same, var)


def test_a_query_has_no_folds_and_without_one_they_must_be_asked_for():
    obs = select_features([make_sample(simulate())], None, SETTINGS, SPLIT, 0, "cells", 1)[1]
    assert "fold" not in obs
    sample = make_sample(simulate(), roles=["reference"] * 400)
    with pytest.raises(InputError, match="no query cells are left"):
        select_features([sample], None, SETTINGS, SPLIT, 0, "cells", 1)


def test_seurat_v3_as_scanpy_has_it_over_real_batches(shared_data):
    counts = anndata.read_h5ad(shared_data / "mix_cell_lines_5batches.h5ad")
    counts = counts[:, np.asarray((counts.X > 0).sum(axis=0)).ravel() >= 5].copy()
    batches = counts.obs["batch"].astype(str).to_numpy(dtype=object)
    in_blocks = JoinedCounts([Counts.of(counts.X)])
    ours, method, warnings = select_variable(in_blocks, batches, 1000, batch_aware=True)
    peer = sc.pp.highly_variable_genes(
        counts, flavor="seurat_v3", n_top_genes=1000, batch_key="batch", inplace=False
    )["highly_variable"].to_numpy()
    assert method.count("seurat_v3, span 0.3") == 5
    assert warnings == []
    # scanpy breaks ties by an unstable sort.
    assert (ours & peer).sum() >= 995


def test_pbmc3k_twice_gives_the_same_bytes(shared_data, tmp_path):
    counts = anndata.read_h5ad(shared_data / "pbmc3k.h5ad")[:, ::5].copy()
    is_b = (counts.obs["cell_type"] == "B").to_numpy()
    counts.obs["role"] = np.where(is_b | (np.arange(counts.n_obs) % 2 == 0), "query", "reference")
    paths = []
    for name, rows in (("a", slice(0, 1500)), ("b", slice(1400, 2700))):
        part = counts[rows].copy()
        part.obs["sample"] = name
        paths.append(str(tmp_path / f"{name}.h5ad"))
        part.write_h5ad(paths[-1])
    output = {"counts": "counts.h5ad", "model_counts": "model_counts.h5ad"}
    output |= {"splits": "splits.tsv", "summary": "summary.json"}
    params = {"settings": SETTINGS | {"n_features": 500}, "split": SPLIT, "n_folds": 0}
    params |= {"observations": "cells", "seed": 1}
    first, second = (
        run_script("select_features", tmp_path / run, {"counts": paths}, output, params)
        for run in ("first", "second")
    )
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes()
    both = anndata.read_h5ad(first["counts"])
    splits = pd.read_csv(first["splits"], sep="\t")
    assert list(splits) == ["sample", "role", "split", "n_cells"]
    assert splits["n_cells"].sum() == both.n_obs == 2800
    assert both.obs_names.is_unique
    assert both.obs_names.str.startswith(("a:", "b:")).sum() == 200
    assert both.var["selected"].sum() == 500
    assert ((both.obs["split"] == "query") == (both.obs["role"] == "query")).all()
