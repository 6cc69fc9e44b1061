"""Doublets: how they are made, that they are told from single cells and from novel types."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from doublet_model import Calibration, Likeness, as_unseen, fit_doublets, guarded, prior_weights
from doublets import compare, doublet_share, partners, simulate_doublets, thin, total
from held_cells import read_cells
from model_jobs import by_models, embed, train
from omics_vae.model import load_model
from run_script import run_script
from score_doublets import choose_reference, doublet_warnings, parents, reliability
from simulated_counts import CPU, Simulated, write_run

RATE = 0.06
GROUPS = ["red", "green", "blue"]
N_GENES, N_SELECTED = 80, 60
SIZES = {"train": 300, "validation": 90, "calibration": 150, "query": 240}
N_TRUE, N_NOVEL = 40, 40  # of the query cells, the first and the next


def draw(rng, profiles: np.ndarray, size: np.ndarray) -> np.ndarray:
    mu = size[:, None] * profiles
    return rng.poisson(rng.gamma(6.0, mu / 6.0)).astype(np.int32)


def write_cells(folder) -> tuple[dict, pd.DataFrame]:
    """Three groups with genes of their own; in the query doublets of two of them and a fourth."""
    rng = np.random.default_rng(3)
    base = np.exp(rng.normal(0, 0.5, N_GENES))
    profiles = np.tile(base, (4, 1))
    for k in range(4):
        profiles[k, 12 * k : 12 * (k + 1)] *= 6.0
    profiles /= profiles.sum(1, keepdims=True)
    split = np.repeat(list(SIZES), list(SIZES.values()))
    group = rng.integers(0, 3, len(split))
    size = 400 * np.exp(rng.normal(0, 0.35, len(split)))
    kind = np.repeat("single", len(split)).astype(object)
    at = np.flatnonzero(split == "query")
    kind[at[:N_TRUE]], kind[at[N_TRUE : N_TRUE + N_NOVEL]] = "doublet", "novel"
    group[kind == "novel"] = 3
    counts = draw(rng, profiles[group], size)
    other = draw(rng, profiles[(group + 1) % 3], size)
    mixed = rng.binomial(counts + other, 0.5)  # at the depth of a single cell
    counts[kind == "doublet"] = mixed[kind == "doublet"]
    simulated = Simulated(sp.csr_matrix(counts), counts.sum(1).astype(float), group, counts, 6.0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = write_run(folder, simulated, split, np.arange(N_GENES) < N_SELECTED)
    pair = [tuple(sorted((GROUPS[g % 3], GROUPS[(g + 1) % 3]))) for g in group]
    obs = {"split": split, "kind": kind, "group": group, "pair": pair}
    adata = ad.read_h5ad(paths["counts"])
    adata.obs["cell_type"] = np.array([*GROUPS, "new"], dtype=object)[group]
    adata.write_h5ad(paths["counts"])
    return paths, pd.DataFrame(obs, index=adata.obs_names)


def score(folder, paths: dict, model: dict, latent, **settings) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    given, folds = by_models([(model, latent, None)])
    output = {"cells": "cells.parquet", "summary": "summary.json"}
    settings = {"rate": RATE} | settings
    params = {"settings": settings, "folds": folds, "seed": 1}
    return run_script("score_doublets", folder, paths | given, output, params)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("inputs")
    paths, truth = write_cells(folder / "preprocess")
    model = train(folder / "train", paths, max_steps=300)
    return paths, truth, model, embed(folder / "embed", paths, model)


@pytest.fixture(scope="module")
def scored(fitted, tmp_path_factory):
    paths, truth, model, latent = fitted
    result = score(tmp_path_factory.mktemp("doublets"), paths, model, latent)
    table = pd.read_parquet(result["cells"]).set_index("cell_id")
    return table.join(truth[["kind", "group", "pair"]]), result


@pytest.fixture(scope="module")
def in_memory(fitted):
    """The model, all cells, and the doublet model of the reference."""
    paths, _, files, latent = fitted
    model, description = load_model(str(files["weights"]), str(files["description"]))
    cells = read_cells(paths["counts"], paths["library_size"], str(latent), description, np.inf)
    found, held_out = fit_doublets(choose_reference(cells, 1)[0], RATE, 1, model, CPU)
    return model, cells, found, held_out


# ---- how doublets are made


def test_a_partner_is_another_cell_of_the_same_group_each_as_likely():
    group = np.array([0, 1, 0, 2, 1, 0, 0])
    first = np.repeat(np.arange(7), 3000)
    second = partners(group, first, np.random.default_rng(0))
    assert (group[first] == group[second]).all()
    alone = first == 3
    assert (second[alone] == 3).all() and (second[~alone] != first[~alone]).all()
    times = np.bincount(second[first == 0], minlength=7)[[2, 5, 6]]
    assert times.sum() == 3000 and np.abs(times - 1000).max() < 120


def test_thinning_keeps_a_share_of_the_counts_and_makes_none():
    counts = sp.csr_matrix(np.random.default_rng(1).poisson(20, (200, 50)).astype(np.int32))
    share = np.linspace(0, 1, 200)
    kept = thin(counts, share, np.random.default_rng(2))
    assert (counts - kept).min() >= 0 and kept[0].nnz == 0
    assert (counts[-1] != kept[-1]).nnz == 0
    np.testing.assert_allclose(total(kept), share * total(counts), atol=5 * np.sqrt(250))


def test_a_full_doublet_is_the_sum_of_its_parents_and_a_matched_one_as_deep_as_a_cell(in_memory):
    model, cells, _, _ = in_memory
    cells = cells.of("calibration")
    full = simulate_doublets(cells, 600, np.random.default_rng(0), model, CPU, matched=0.0)
    assert (full.first != full.second).all()
    sums = cells.counts[full.first] + cells.counts[full.second]
    assert (sums != full.cells.counts[:]).nnz == 0
    matched = simulate_doublets(cells, 600, np.random.default_rng(0), model, CPU, matched=1.0)
    depth, single = total(matched.cells.counts), total(cells.counts)
    assert np.median(depth) == pytest.approx(np.median(single), rel=0.08)
    assert np.median(total(full.cells.counts)) > 1.8 * np.median(single)
    # Library size and posterior are those of the new counts.
    np.testing.assert_allclose(matched.cells.size, depth, rtol=1e-6)
    assert roc_auc_score(np.arange(750) >= 150, np.r_[single, depth]) == pytest.approx(0.5, abs=0.1)
    half = simulate_doublets(cells, 600, np.random.default_rng(0), model, CPU)
    assert 0.4 < half.matched.mean() < 0.6


def test_the_parents_are_of_one_sample_and_of_one_fold(in_memory):
    model, cells, _, _ = in_memory
    cells = cells.of("calibration")
    sample = np.array([*["a", "b"] * 74, "c", "d"])  # c and d are alone, so they go together
    cells = replace(cells, obs=cells.obs.assign(sample=sample))
    fold = np.repeat([0, 1], 75)
    made = simulate_doublets(cells, 2000, np.random.default_rng(0), model, CPU)
    first, second = sample[made.first], sample[made.second]
    lone = np.isin(first, ["c", "d"])
    assert (first[~lone] == second[~lone]).all()
    assert lone.any() and (first[lone] != second[lone]).all() and set(second[lone]) == {"c", "d"}
    made = simulate_doublets(cells, 500, np.random.default_rng(0), model, CPU, within=fold)
    assert (fold[made.first] == fold[made.second]).all()


# ---- what tells them


def test_share_of_doublets_among_the_nearest_by_brute_force():
    rng = np.random.default_rng(0)
    singlets, doublets = (np.sort(rng.random((50, 8)), axis=1) for _ in range(2))
    expected = []
    for s, d in zip(singlets, doublets, strict=True):
        both = sorted([(x, 0) for x in s] + [(x, 1) for x in d])[:8]
        expected.append(np.mean([kind for _, kind in both]))
    np.testing.assert_allclose(doublet_share(singlets, doublets), expected)


def test_the_profiles_of_the_neighbours_are_compared_over_all_genes(in_memory):
    """The likelihood ratio and the unexplained counts, written again for one cell at a time."""
    _, cells, found, _ = in_memory
    singlets, doublets = found.singlets, found.doublets.cells
    some = cells.of("calibration").take(np.arange(5))
    compared = compare(some, singlets, doublets)
    overall = singlets.counts.sum(0) + 0.5
    scale = singlets.latent.std(0)
    for i in range(5):
        x, profile = some.counts.toarray()[i], {}
        for kind, those in (("singlet", singlets), ("doublet", doublets)):
            distance = np.square((those.latent - some.latent[i]) / scale).sum(1)
            near = np.argsort(distance, kind="stable")[:20]
            shares = those.counts[near].toarray() / total(those.counts[near])[:, None]
            profile[kind] = 0.9 * shares.mean(0) + 0.1 * overall / overall.sum()
            if kind == "doublet":
                assert set(compared.near_doublets[i]) == set(near)
        ratio = (x * np.log(profile["doublet"] / profile["singlet"])).sum()
        expected = [ratio, ratio / x.sum(), ratio / np.sqrt(x.sum())]
        np.testing.assert_allclose(compared.features[i, -3:], expected, rtol=1e-6)
        # Total variation distance: half the sum of absolute differences of two distributions.
        distance = 0.5 * np.abs(x / x.sum() - profile["doublet"]).sum()
        assert compared.unexplained[i] == pytest.approx(distance)


def test_a_cell_unlike_doublets_is_believed_to_be_one_the_less():
    assert guarded(np.array([0.0]), 0.06, np.array([0.5])) == pytest.approx([np.log(0.06 / 0.94)])
    lowered = guarded(np.array([0.0, 0.0]), 0.5, np.array([0.05, 0.01]))
    np.testing.assert_allclose(1 / (1 + np.exp(-lowered)), [0.25, 0.05])


def test_likeness_is_a_p_value_at_every_depth():
    rng = np.random.default_rng(0)
    depth = rng.normal(7, 0.6, 4000)
    unexplained = 0.3 * np.exp(-0.5 * (depth - 7) + 0.05 * rng.standard_normal(4000))
    likeness = Likeness.fit(unexplained[:2000], depth[:2000])
    p = likeness.p_value(unexplained[2000:], depth[2000:])
    for part in (depth[2000:] < 6.6, depth[2000:] > 7.4):
        assert (p[part] <= 0.1).mean() == pytest.approx(0.1, abs=0.05)


# ---- calibration


def test_weights_give_doublets_their_rate():
    is_doublet = np.arange(90) < 60
    weights = prior_weights(is_doublet, 0.06)
    assert weights.sum() == pytest.approx(90)
    assert weights[is_doublet].sum() / 90 == pytest.approx(0.06)


def test_calibration_finds_the_true_odds():
    """Scores N(0, 1) of single cells and N(2, 1) of doublets: log-odds = logit(rate) - 2 + 2 s."""
    rng = np.random.default_rng(0)
    is_doublet = np.arange(40_000) >= 20_000
    scores = rng.standard_normal(40_000) + 2.0 * is_doublet
    found = Calibration.fit(scores, is_doublet, 0.1)
    assert found.slope == pytest.approx(2.0, abs=0.1)
    assert found.intercept == pytest.approx(np.log(0.1 / 0.9) - 2.0, abs=0.15)
    misled = Calibration.fit(-scores, is_doublet, 0.1).apply(scores)
    np.testing.assert_allclose(misled, 0.1)


def test_seen_cells_get_the_mean_and_spread_of_the_unseen():
    rng = np.random.default_rng(0)
    scores, is_unseen = rng.normal(-3, 1, 300), np.arange(300) < 60
    scores[is_unseen] = rng.normal(-2, 2, 60)
    moved = as_unseen(scores, is_unseen)
    np.testing.assert_array_equal(moved[is_unseen], scores[is_unseen])
    assert moved[~is_unseen].mean() == pytest.approx(scores[is_unseen].mean())
    assert moved[~is_unseen].std() == pytest.approx(scores[is_unseen].std())
    assert (np.argsort(moved[~is_unseen]) == np.argsort(scores[~is_unseen])).all()


def test_reliability_by_hand():
    held_out = pd.DataFrame(
        {
            "is_doublet": [False, False, True, True],
            "probability": [0.01, 0.6, 0.6, 0.9],
            "weight": [0.6, 0.1, 0.2, 0.1],
        }
    )
    low, high = reliability(held_out)
    assert (low["n"], high["n"], high["from"], high["to"]) == (1, 3, 0.5, 1.0)
    assert (low["predicted"], low["realised"]) == pytest.approx((0.01, 0.0))
    assert (high["predicted"], high["realised"]) == pytest.approx((0.27 / 0.4, 0.75))


def test_the_mean_probability_is_the_share_of_doublets(in_memory):
    """Of calibration cells, which nothing was learned from, and doublets made of them."""
    model, cells, found, held_out = in_memory
    single = cells.of("calibration")
    made = simulate_doublets(single, 600, np.random.default_rng(5), model, CPU).cells
    p_single, p_double = (
        found.score(part)[0]["doublet_probability"].to_numpy() for part in (single, made)
    )
    mean = (1 - RATE) * p_single.mean() + RATE * p_double.mean()
    assert mean == pytest.approx(RATE, rel=0.3)
    assert p_double.mean() > 4 * p_single.mean()
    assert (held_out["probability"] * held_out["weight"]).sum() == pytest.approx(RATE, rel=0.2)
    assert held_out["weight"].sum() == pytest.approx(1.0)


# ---- the rule


def test_every_calibration_and_query_cell_is_scored_and_nothing_else(scored, fitted):
    table, _ = scored
    names = fitted[1].index[fitted[1]["split"].isin(["calibration", "query"])]
    assert table.index.tolist() == names.tolist()
    assert list(table)[:7] == [
        *("sample", "split", "doublet_score", "doublet_probability", "doublet_fit_p"),
        *("parent_1", "parent_2"),
    ]
    assert table["doublet_probability"].between(0, 1).all()
    assert table["doublet_fit_p"].between(0, 1).all() and (table["doublet_fit_p"] > 0).all()
    # One is a rising function of the other.
    ranks = table[["doublet_score", "doublet_probability"]].rank()
    assert (ranks["doublet_score"] == ranks["doublet_probability"]).all()


def test_doublets_at_the_depth_of_single_cells_are_found(scored):
    table, result = scored
    single, double = (table[table["kind"] == kind] for kind in ("single", "doublet"))
    both = pd.concat([single, double])
    assert roc_auc_score(both["kind"] == "doublet", both["doublet_probability"]) > 0.95
    assert (double["doublet_probability"] > 0.5).mean() > 0.5
    assert (single["doublet_probability"] > 0.5).mean() < 0.03
    summary = json.loads(result["summary"].read_text())
    assert (
        summary["n_likely"]
        == ((table["split"] == "query") & (table["doublet_probability"] > 0.5)).sum()
    )
    assert summary["auroc_matched"] > 0.9 and summary["n_unseen"] == SIZES["validation"]
    # A pair of three groups about as large is of one group in a third of the cases.
    assert summary["homotypic_share"] == pytest.approx(1 / 3, abs=0.06)


def test_the_rate_shifts_the_odds_and_hardly_the_order(scored, fitted, tmp_path):
    paths, _, model, latent = fitted
    rare = pd.read_parquet(score(tmp_path, paths, model, latent, rate=0.005)["cells"])
    rare = rare.set_index("cell_id")["doublet_probability"]
    usual = scored[0]["doublet_probability"]
    kind = scored[0]["kind"]
    known = kind != "novel"
    assert spearmanr(rare[known], usual[known]).statistic > 0.99
    assert rare[kind == "single"].mean() < 0.2 * usual[kind == "single"].mean()


def test_a_novel_type_is_no_doublet(scored):
    table, _ = scored
    novel = table[table["kind"] == "novel"]
    assert (novel["doublet_probability"] > 0.5).mean() < 0.05
    assert (novel["doublet_fit_p"] < 0.1).mean() > 0.8


def test_depth_alone_decides_nothing(in_memory, scored):
    """Single cells of twice the depth are as little called doublets as they were."""
    model, cells, found, _ = in_memory
    single = cells.of("calibration")
    deep = single.with_counts(2 * single.counts[:], model, CPU)
    probability = found.score(deep)[0]["doublet_probability"]
    assert (probability > 0.5).mean() < 0.05
    table = scored[0]
    single = table[table["kind"] == "single"]
    depth = pd.Series(total(cells.counts), index=cells.obs.index)[single.index]
    assert abs(spearmanr(depth, single["doublet_probability"]).statistic) < 0.25


def test_the_parents_are_named(scored):
    table, _ = scored
    double = table[table["kind"] == "doublet"]
    named = [pair == (a, b) for pair, a, b in double[["pair", "parent_1", "parent_2"]].to_numpy()]
    assert np.mean(named) > 0.7
    assert set(table["parent_1"]) | set(table["parent_2"]) <= set(GROUPS)


def test_the_commonest_pair_wins_in_whatever_order_its_parents_are():
    groups = np.array(["T", "B", "NK"], dtype=object)

    class Made:
        first, second = np.array([0, 1, 2, 0]), np.array([1, 0, 2, 2])

    found = parents(groups, Made, np.array([[0, 1, 2], [2, 3, 2], [2, 3, 0]]))
    assert found.to_numpy().tolist() == [["B", "T"], ["NK", "NK"], ["B", "T"]]


def test_the_same_bytes_again(scored, fitted, tmp_path):
    paths, _, model, latent = fitted
    again = score(tmp_path, paths, model, latent)
    for name, path in scored[1].items():
        assert again[name].read_bytes() == path.read_bytes()


def test_where_the_counts_lie_changes_no_byte(scored, fitted, tmp_path, counts_stay):
    paths, _, model, latent = fitted
    again = score(tmp_path, paths, model, latent)
    for name, path in scored[1].items():
        assert again[name].read_bytes() == path.read_bytes()


def shuffled(paths: dict, latent, folder, order: np.ndarray) -> tuple[dict, str]:
    folder.mkdir(parents=True)
    moved = {"counts": str(folder / "counts.h5ad"), "library_size": str(folder / "sizes.parquet")}
    ad.read_h5ad(paths["counts"])[order].copy().write_h5ad(moved["counts"])
    pd.read_parquet(paths["library_size"]).iloc[order].to_parquet(moved["library_size"])
    pd.read_parquet(latent).iloc[order].to_parquet(folder / "latent.parquet")
    return moved, str(folder / "latent.parquet")


def test_the_order_of_the_cells_does_not_matter(scored, fitted, tmp_path):
    paths, truth, model, latent = fitted
    order = np.random.default_rng(0).permutation(len(truth))
    moved, place = shuffled(paths, latent, tmp_path / "moved", order)
    found = pd.read_parquet(score(tmp_path / "out", moved, model, place)["cells"])
    found = found.set_index("cell_id").loc[scored[0].index]
    np.testing.assert_allclose(
        found["doublet_probability"], scored[0]["doublet_probability"], atol=1e-3
    )
    assert (
        found[["parent_1", "parent_2"]] == scored[0][["parent_1", "parent_2"]]
    ).mean().min() > 0.99


def test_neither_label_nor_role_of_a_scored_cell_matters(scored, fitted, tmp_path):
    """Calibration and query cells change places, and are called something else."""
    paths, _, model, latent = fitted
    adata = ad.read_h5ad(paths["counts"])
    other = {"calibration": "query", "query": "calibration"}
    is_scored = adata.obs["split"].isin(list(other)).to_numpy()
    adata.obs["split"] = adata.obs["split"].astype(str).replace(other)
    types = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    adata.obs["cell_type"] = np.where(is_scored, "something else", types)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    changed = paths | {"counts": str(tmp_path / "counts.h5ad")}
    found = pd.read_parquet(score(tmp_path / "out", changed, model, latent)["cells"])
    columns = ["doublet_probability", "doublet_fit_p", "parent_1", "parent_2"]
    pd.testing.assert_frame_equal(found.set_index("cell_id")[columns], scored[0][columns])


def test_refined_posteriors_do_not_tell_single_cells_from_doublets(scored, fitted, tmp_path):
    """A latent file that is not the encoder's: doublets have no other place than the encoder's."""
    paths, _, model, latent = fitted
    table = pd.read_parquet(latent)
    means = [name for name in table if name.startswith("mean_")]
    table[means] = 3.0 + 2.0 * table[means]
    table.to_parquet(tmp_path / "latent.parquet")
    found = pd.read_parquet(score(tmp_path, paths, model, tmp_path / "latent.parquet")["cells"])
    np.testing.assert_array_equal(found["doublet_probability"], scored[0]["doublet_probability"])


def test_without_labels_groups_are_clusters(fitted, tmp_path):
    paths, _, model, latent = fitted
    adata = ad.read_h5ad(paths["counts"])
    del adata.obs["cell_type"]
    adata.write_h5ad(tmp_path / "counts.h5ad")
    given = paths | {"counts": str(tmp_path / "counts.h5ad")}
    result = score(tmp_path / "out", given, model, latent)
    groups = json.loads(result["summary"].read_text())["groups"]
    assert groups[0]["group"] == "R1" and len(groups) >= 3
    assert sum(group["n_cells"] for group in groups) == 390


def test_warnings():
    fine = {"rate": 0.06, "n_unseen": 200, "auroc_matched": 0.8, "expected_share": 0.1}
    assert doublet_warnings(fine) == []
    assert "only 30 validation cells" in doublet_warnings(fine | {"n_unseen": 30})[0]
    assert "(AUROC 0.60)" in doublet_warnings(fine | {"auroc_matched": 0.6})[0]
    assert "none of two groups" in doublet_warnings(fine | {"auroc_matched": None})[0]
    assert "20 % doublets" in doublet_warnings(fine | {"expected_share": 0.2})[0]


# ---- the benchmark's judge

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "doublets" / "compare.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("compare_doublets", PATH)
    # A dataclass looks its module up by name.
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules[spec.name]


def test_the_benchmark_hides_the_novel_type_and_the_doublets_from_the_reference(
    benchmark, shared_data
):
    cells = benchmark.prepare(benchmark.CASES["pbmc3k_B"], shared_data, 1)
    reference = cells.obs[cells.obs["role"] == "reference"]
    assert set(reference["kind"]) == {"singlet"} and "B" not in set(reference["label"])
    query = cells.obs[cells.obs["role"] == "query"]
    kinds = query["kind"].value_counts()
    assert kinds["novel"] == 344 and kinds["doublet"] == 100
    assert abs(kinds["singlet"] - len(reference)) <= 1
    total = np.asarray(cells.X.sum(1)).ravel()
    made, single = (
        np.median(total[(cells.obs["kind"] == kind).to_numpy()]) for kind in ("doublet", "singlet")
    )
    assert made == pytest.approx(single, rel=0.1)
    # Two of 9 types, drawn in proportion to their cells, are mostly not the same.
    assert 0.65 < query.loc[query["kind"] == "doublet", "heterotypic"].mean() < 0.95


def test_the_benchmark_judges_by_hand(benchmark):
    obs = pd.DataFrame(
        {
            "kind": ["doublet", "doublet", "singlet", "singlet", "novel"],
            "heterotypic": [True, False, True, True, True],
        }
    )
    row = benchmark.judge(obs, np.array([0.9, 0.2, 0.5, 0.1, 1.0]), np.array([1, 0, 1, 0, 1]) > 0)
    assert row["auroc"] == 0.75 and row["auroc_heterotypic"] == 1.0
    assert row["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert (row["called_doublet"], row["called_singlet"], row["called_novel"]) == (0.5, 0.5, 1.0)
    assert (row["n_doublets"], row["n_singlets"]) == (2, 2)
