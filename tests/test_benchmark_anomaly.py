"""The anomaly benchmark: sets that hide what they say, peers that do not peek, measures by hand."""

import os
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks" / "anomaly"))
import cases
import compare
import judge
import peers

LABELS = np.repeat(["B", "T", "NK", "Unassigned"], [40, 100, 20, 10])
NORMAL, HIDDEN = np.isin(LABELS, ["T", "NK"]), LABELS == "B"


def roles(share: float | None, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return cases.assign_roles(NORMAL, HIDDEN, share, np.random.default_rng(seed))


# ---- sets


def test_hidden_cells_are_in_the_query_only_and_left_out_cells_nowhere():
    role, truth = roles(share=0.25)
    assert (role[NORMAL] == "reference").sum() == (role[NORMAL] == "query").sum() == 60
    assert set(role[HIDDEN]) == {"query", ""}
    assert set(role[LABELS == "Unassigned"]) == {""}
    assert truth.sum() == 20 == 0.25 * (role == "query").sum()
    assert not truth[~HIDDEN].any()


def test_without_a_share_all_hidden_cells_join():
    assert roles(share=None)[1].sum() == HIDDEN.sum()


def test_the_split_draws_the_reference():
    np.testing.assert_array_equal(roles(0.1)[0], roles(0.1)[0])
    assert (roles(0.1)[0] != roles(0.1, seed=2)[0]).any()


def test_thinning_takes_two_thirds_of_the_hidden_cells_counts_and_no_others():
    X = sp.csr_matrix(np.full((40, 500), 6))
    which = np.arange(40) < 20
    thinned = cases.thin(X, which, np.random.default_rng(0)).toarray()
    assert thinned[:20].mean() == pytest.approx(2, abs=0.05)
    assert (thinned[20:] == 6).all()


@pytest.mark.parametrize("case", cases.SIMULATED, ids=lambda case: case.name)
def test_simulated_anomalies_are_a_tenth_of_the_query_and_no_deeper(case, tmp_path):
    adata = case.cells(tmp_path, split=1)
    hidden, query = adata.obs["truth"], adata.obs["role"] == "query"
    assert not hidden[~query].any()
    assert hidden[query].mean() == pytest.approx(0.1, abs=0.002)
    total = adata.X.sum(1).A1[query]
    assert abs(judge.power(hidden[query], total, hidden[query])["auroc"] - 0.5) < 0.08


def fold_of_genes(case: str) -> np.ndarray:
    """Rates of the hidden cells over the normal ones', of well expressed genes, sorted."""
    adata = cases.CASES[case].cells(None, split=1)
    truth = adata.obs["truth"].to_numpy()
    hidden, normal = adata.X[truth].mean(0).A1, adata.X[~truth].mean(0).A1
    return np.sort((hidden / normal)[normal > 1])


def test_simulated_programs_have_the_genes_they_say():
    program, gene = fold_of_genes("simulated_program"), fold_of_genes("simulated_gene")
    assert np.median(program[-15:]) > 0.8 * cases.PROGRAM_FOLD > 2 * program[-25]
    assert gene[-1] > 0.8 * cases.GENE_FOLD > 5 * gene[-2]


def test_a_groups_name_stands_for_its_sets_and_normal_sets_hide_nothing():
    assert cases.chosen(["public"]) == cases.PUBLIC
    assert [case.name for case in cases.chosen(["kang_DC", "pbmc_B"])] == ["pbmc_B", "kang_DC"]
    assert all(case.hidden is None for case in cases.chosen(["normal"]))


# ---- the judge


def test_conformal_p_by_hand():
    """A tie counts against the cell, and no p-value is below 1 / (n + 1)."""
    p = judge.conformal_p(np.array([9.0, 3.0, 0.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(p, [1 / 5, 3 / 5, 1])


def test_flag_controls_the_fdr_of_exchangeable_cells():
    """20 % anomalies far away: nearly all found, and the mean FDP stays under 10 %."""
    rng = np.random.default_rng(0)
    fdp, recall = [], []
    for _ in range(200):
        scores = np.r_[rng.normal(0, 1, 400), rng.normal(6, 1, 100)]
        flagged = judge.flag(judge.conformal_p(scores, rng.normal(0, 1, 300)))
        fdp.append(flagged[:400].sum() / max(1, flagged.sum()))
        recall.append(flagged[400:].mean())
    assert np.mean(recall) > 0.95
    assert 0.05 < np.mean(fdp) < 0.1


def test_power_by_hand():
    is_hidden = np.array([True, True, False, False, False, False])
    flagged = np.array([True, False, True, True, False, False])
    found = judge.power(is_hidden, np.array([5, 2, 4, 1, 0, -1]), flagged)
    assert found["auroc"] == pytest.approx(7 / 8)
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["recall"], found["fdp"], found["n_flagged"]) == (1 / 2, 2 / 3, 3)


def test_flagging_nothing_is_no_false_discovery():
    none = np.zeros(4, dtype=bool)
    assert judge.power(np.array([True, False, False, False]), np.arange(4), none)["fdp"] == 0


def validity(query: np.ndarray, calibration: np.ndarray, depth: np.ndarray) -> dict:
    p = judge.conformal_p(query, calibration)
    return judge.validity(p, query, judge.flag(p), depth, len(calibration))


def test_exchangeable_cells_are_found_valid():
    """``ks_p`` is itself uniform: it rejects at 5 % in about 5 % of the draws, and not more."""
    rng = np.random.default_rng(1)
    drawn = [
        validity(rng.normal(size=600), rng.normal(size=200), rng.random(600)) for _ in range(300)
    ]
    assert np.mean([row["fpr"] for row in drawn]) == pytest.approx(10 / 201, abs=0.004)
    assert 0.015 < np.mean([row["ks_p"] <= 0.05 for row in drawn]) < 0.09
    assert np.mean([row["fdp"] for row in drawn]) < 0.1 + 3 * np.sqrt(0.09 / 300)


def test_a_score_that_follows_depth_is_seen():
    """All cells above the 5 % point sit in the deepest fifth, so its rate is five times 5 %."""
    rng = np.random.default_rng(2)
    query = rng.normal(size=5000)
    found = validity(query, rng.normal(size=5000), np.exp(query))
    assert found["spearman_depth"] == pytest.approx(1)
    assert found["fpr_depth_1"] == found["fpr_depth_4"] == 0
    assert found["fpr_depth_5"] == pytest.approx(5 * found["fpr"])


def scores_of(of_set: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """A table of AUROCs by set, method and split; the other measures follow."""
    rows = [
        {"set": name, "split": split, "method": method, "auroc": a, "auprc": a / 2, "recall": 0.0}
        for name, methods in of_set.items()
        for method, values in methods.items()
        for split, a in enumerate(values, start=1)
    ]
    return judge.ranked(pd.DataFrame(rows).assign(fdp=0.0))


TABLE = scores_of(
    {
        "one": {"anomics": [0.8, 0.9], "x": [0.9, 0.7], "y": [0.5, 0.5], "oracle": [1, 1]},
        "two": {"anomics": [0.6, 0.6], "x": [0.5, 0.5], "y": [0.9, 0.9], "oracle": [1, 1]},
    }
)


def test_the_best_peer_is_chosen_a_set_and_is_never_the_oracle():
    found = judge.by_set(TABLE).set_index("set")
    assert found["auroc_peer"].to_dict() == {"one": "x", "two": "y"}
    assert found["auroc_ahead"].to_dict() == pytest.approx({"one": 0.05, "two": -0.3})
    assert found.loc["one", "auroc_sd"] == pytest.approx(np.sqrt(0.005))
    assert set(found["recall_peer"]) == {"none"}


def test_methods_are_ranked_within_a_set_and_split():
    found = judge.by_method(TABLE).set_index("method")
    assert found.loc["anomics", "rank_auroc"] == pytest.approx((2 + 1 + 2 + 2) / 4)
    assert np.isnan(found.loc["oracle", "rank_auroc"])
    assert found.loc["best peer of each set", "auroc"] == pytest.approx((0.8 + 0.9) / 2)
    # Over the splits, of the mean over the sets: 0.7 and 0.75.
    assert found.loc["anomics", "auroc_sd"] == pytest.approx(0.05 / np.sqrt(2))


def test_thinning_loss_compares_the_same_splits():
    full = scores_of({"one": {"x": [0.9, 0.8]}, "two": {"x": [0.7, 0.7]}})
    thinned = scores_of({"one_thinned": {"x": [0.8]}, "two_thinned": {"x": [0.4, 0.4]}})
    row = judge.thinning_loss(full, thinned, cases.THINNED_NAME).iloc[0]
    assert row["worst"] == pytest.approx(0.3)
    assert row["worst_set"] == "two"
    assert row["mean"] == pytest.approx((0.1 + 0.3) / 2)


def test_error_rates_give_the_fdp_its_standard_error():
    rows = [validity(np.arange(100.0), np.arange(99.0), np.arange(100.0)) for _ in range(4)]
    table = pd.DataFrame(rows).assign(set="s", method="m", fdp=[1.0, 0.0, 0.0, 0.0])
    row = judge.error_rates(table).iloc[0]
    assert (row["fdp"], row["splits"]) == (0.25, 4)
    assert row["fdp_se"] == pytest.approx(0.5 / 2)


# ---- the peers


def some_cells(n: int = 240, genes: int = 60, seed: int = 5) -> peers.Cells:
    """Cells of two kinds; the last third is the query."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(1, 1, (2, genes))[np.arange(n) % 2]
    names = np.array(["train", "validation", "calibration", "query"])
    split = np.repeat(names, [n // 3, n // 6, n // 6, n // 3])
    counts = rng.poisson(20 * rate / rate.sum(1, keepdims=True) * rng.gamma(9, 1, (n, 1)))
    total = counts.sum(1).astype(float)
    hidden = (split == "query") & (np.arange(n) % 6 == 0)
    return peers.Cells(np.arange(n).astype(str), sp.csr_matrix(counts), total, split, hidden)


@pytest.mark.parametrize("family", ["depth", "pca", "deviance"])
def test_peers_do_not_learn_from_cells_they_judge(family):
    cells = some_cells()
    changed = cells.counts.toarray()
    changed[cells.split == "query"] += 30
    other = peers.Cells(
        cells.ids, sp.csr_matrix(changed), changed.sum(1).astype(float), cells.split, ~cells.fit
    )
    before, after = (peers.family_scores(family, c) for c in (cells, other))
    kept = cells.split != "query"
    for name in before:
        assert np.isfinite(before[name]).all()
        np.testing.assert_allclose(before[name][kept], after[name][kept], err_msg=name)


def test_the_oracle_scores_the_query_alone():
    cells = some_cells()
    score = peers.oracle(cells)[peers.ORACLE]
    assert np.isfinite(score[cells.split == "query"]).all()
    assert np.isnan(score[cells.split != "query"]).all()


def test_total_count_sees_both_tails():
    cells = some_cells()
    score = peers.depth_peers(cells)["total count"]
    median = np.median(np.log(cells.total[cells.fit]))
    np.testing.assert_allclose(score, np.abs(np.log(cells.total) - median))


def test_a_fitted_cell_is_not_its_own_neighbour():
    """Cells at the whole numbers: all but the ends have the same mean distance to neighbours."""
    Z = np.arange(101.0)[:, None]
    fit = np.arange(101) != 50
    near = peers.neighbour_score(Z, fit)
    k = peers.NEIGHBOURS
    assert near[20] == pytest.approx(sum(-(-i // 2) for i in range(1, k + 1)) / k)
    assert near[50] == near[20]


def test_mixture_ranks_a_cell_between_two_clusters_highest():
    """Far from every cluster and yet at the centre of the data: one Gaussian would not see it."""
    rng = np.random.default_rng(4)
    Z = rng.normal(0, 0.3, (2001, 5))
    Z[:1000, 0] += 10
    Z[1000:2000, 0] -= 10
    position = np.arange(2001)
    validation = (position < 2000) & (position % 5 == 0)
    train = (position < 2000) & ~validation
    assert np.argmax(peers.mixture_score(Z, train, validation)) == 2000


def test_poisson_deviance_by_hand(monkeypatch):
    """One cluster: 2 sum x log(x / mu) - (x - mu), with half a count a gene added to the rates."""
    monkeypatch.setattr(peers, "CLUSTERS", 1)
    monkeypatch.setattr(peers, "COMPONENTS", 2)
    cells = some_cells()
    score = peers.deviance_peers(cells)["Poisson deviance"]
    X = cells.counts.toarray().astype(float)
    rate = (X[cells.fit].sum(0) + 0.5) / cells.total[cells.fit].sum()
    mu = cells.total[:, None] * rate
    terms = np.where(X > 0, X * np.log(np.maximum(X, 1) / mu), 0) - (X - mu)
    np.testing.assert_allclose(score, 2 * terms.sum(1))


def test_adjusted_scores_are_free_of_depth_in_place_and_width():
    rng = np.random.default_rng(6)
    d = rng.normal(7, 0.4, 4000)
    score = d**2 + rng.normal(size=4000) * (1 + 2 * (d - 6))
    free = peers.adjusted(score, d, np.arange(4000) < 2000)[2000:]
    shallow, deep = free[d[2000:] < 6.8], free[d[2000:] > 7.2]
    assert abs(shallow.mean() - deep.mean()) < 0.1
    assert shallow.std() == pytest.approx(deep.std(), rel=0.12)


def test_peers_scores_are_kept_until_the_cells_are_newer(tmp_path, monkeypatch):
    calls = []

    def family(cells):
        calls.append(1)
        return {"total count": cells.total}

    monkeypatch.setattr(compare, "FAMILIES", {"depth": (family, ())})
    monkeypatch.setitem(peers.FAMILIES, "depth", (family, ()))
    cells, counts = some_cells(), tmp_path / "counts.h5ad"
    counts.touch()
    for _ in range(2):
        scores = compare.peer_scores(cells, counts, tmp_path / "peers")
        np.testing.assert_array_equal(scores["total count"], cells.total)
    assert len(calls) == 1
    os.utime(counts, (2e9, 2e9))
    compare.peer_scores(cells, counts, tmp_path / "peers")
    assert len(calls) == 2


def test_all_tables_and_the_figure_come_of_judged_rows(tmp_path):
    """With the peers' own calibration; ours are read from the pipeline's table."""
    cells = some_cells()
    query = cells.split == "query"
    ours = pd.DataFrame({"cell_id": cells.ids[query][::-1], "score": np.arange(80.0)[::-1]})
    ours = ours.assign(p_value=0.5, is_anomaly=ours["score"] > 70)
    ours.to_parquet(tmp_path / "cells.parquet")
    scores = peers.family_scores("depth", cells) | peers.oracle(cells)
    found = compare.verdicts(cells, scores, tmp_path / "cells.parquet")
    np.testing.assert_array_equal(found["anomics"][0], np.arange(80.0))
    rows = compare.judge_case(cases.CASES["pbmc_B"], 1, cells, found)
    nothing = peers.Cells(
        cells.ids, cells.counts, cells.total, cells.split, np.zeros(len(cells.ids), bool)
    )
    normal = compare.judge_case(cases.CASES["normal_pbmc"], 1, nothing, found)
    compare.write(tmp_path, pd.DataFrame(rows), pd.DataFrame(normal), ["Skipped: x."])
    table = pd.read_csv(tmp_path / "table.tsv", sep="\t").set_index("method")
    assert table.loc["anomics", "n_flagged"] == 9
    assert np.isnan(table.loc["oracle", "recall"])
    text = (tmp_path / "table.md").read_text()
    assert "Skipped: x." in text and "## public sets" in text and "## error rates" in text
    assert (tmp_path / "plot.svg").exists() and (tmp_path / "plot.png").exists()
