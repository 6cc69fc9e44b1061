"""The benchmark's judge: splits that hide a type, measures by hand, baselines that do not peek."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "anomaly" / "holdout.py"
SPEC = importlib.util.spec_from_file_location("holdout", PATH)
holdout = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(holdout)

LABELS = np.repeat(["B", "T", "NK", "Unassigned"], [40, 100, 20, 10])


def test_hidden_type_is_in_the_query_only_and_failed_cells_nowhere():
    role = holdout.assign_roles(LABELS, "B", seed=1)
    assert set(role[LABELS == "B"]) == {"query"}
    assert set(role[LABELS == "Unassigned"]) == {""}
    assert (role == "reference").sum() == 60
    assert (role == "query").sum() == 60 + 40


def test_without_a_hidden_type_every_type_may_be_reference():
    role = holdout.assign_roles(LABELS, holdout.NONE, seed=1)
    assert (role == "reference").sum() == (role == "query").sum() == 80
    assert set(LABELS[role == "reference"]) == {"B", "T", "NK"}


def test_the_seed_draws_the_reference():
    first, again, other = (holdout.assign_roles(LABELS, "B", seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_conformal_p_by_hand():
    """A tie counts against the cell, and no p-value is below 1 / (n + 1)."""
    p = holdout.conformal_p(np.array([9.0, 3.0, 0.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(p, [1 / 5, 3 / 5, 1])


def test_flag_controls_the_fdr_of_exchangeable_cells():
    """20 % anomalies far away: nearly all found, and the mean FDP stays under 10 %."""
    rng = np.random.default_rng(0)
    fdp, recall = [], []
    for _ in range(200):
        scores = np.r_[rng.normal(0, 1, 400), rng.normal(6, 1, 100)]
        flagged = holdout.flag(scores, rng.normal(0, 1, 300), 0.1)
        fdp.append(flagged[:400].sum() / max(1, flagged.sum()))
        recall.append(flagged[400:].mean())
    assert np.mean(recall) > 0.95
    assert 0.05 < np.mean(fdp) < 0.1


def test_power_by_hand():
    is_hidden = np.array([True, True, False, False, False, False])
    flagged = np.array([True, False, True, True, False, False])
    found = holdout.power(is_hidden, np.array([5, 2, 4, 1, 0, -1]), flagged)
    assert found["auroc"] == pytest.approx(7 / 8)
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["recall"], found["fdp"], found["n_flagged"]) == (1 / 2, 2 / 3, 3)


def test_flagging_nothing_is_no_false_discovery():
    none = np.zeros(4, dtype=bool)
    assert holdout.power(np.array([True, False, False, False]), np.arange(4), none)["fdp"] == 0


def scored(query: np.ndarray, calibration: np.ndarray, query_size: np.ndarray) -> pd.DataFrame:
    """cells.parquet as the benchmark reads it."""
    p = np.r_[holdout.conformal_p(query, calibration), np.full(len(calibration), np.nan)]
    return pd.DataFrame(
        {
            "split": np.repeat(["query", "calibration"], [len(query), len(calibration)]),
            "score": np.r_[query, calibration],
            "p_value": p,
            "is_anomaly": False,
            "library_size": np.r_[query_size, np.ones(len(calibration))],
        }
    )


def test_exchangeable_cells_are_found_valid():
    """``ks_p`` is itself uniform: it rejects at 5 % in about 5 % of the draws, and not more."""
    rng = np.random.default_rng(1)
    drawn = [
        holdout.validity(scored(rng.normal(size=600), rng.normal(size=200), rng.random(600)))
        for _ in range(300)
    ]
    assert np.mean([row["fpr"] for row in drawn]) == pytest.approx(10 / 201, abs=0.004)
    assert 0.015 < np.mean([row["ks_p"] <= 0.05 for row in drawn]) < 0.09


def test_a_score_that_follows_depth_is_seen():
    """All cells above the 5 % point sit in the deepest fifth, so its rate is five times 5 %."""
    rng = np.random.default_rng(2)
    query = rng.normal(size=5000)
    found = holdout.validity(scored(query, rng.normal(size=5000), np.exp(query)))
    assert found["spearman_depth"] == pytest.approx(1)
    assert found["fpr_depth_1"] == found["fpr_depth_4"] == 0
    assert found["fpr_depth_5"] == pytest.approx(5 * found["fpr"])


def test_total_count_sees_both_tails():
    score = holdout.total_count_score(np.array([1.0, 5.0, 6.0, 7.0, 11.0]), np.arange(5) < 4)
    np.testing.assert_allclose(score, [4.5, 0.5, 0.5, 1.5, 5.5])


def low_rank_cells(n: int) -> np.ndarray:
    """Cells on a plane of as many dimensions as the baselines have components (cells, genes)."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(n, holdout.PCA_COMPONENTS)) @ rng.normal(
        size=(holdout.PCA_COMPONENTS, 60)
    )


def test_pca_error_is_the_distance_from_the_plane():
    X = low_rank_cells(200)
    normal = np.linalg.svd(X[:150])[2][-1]  # a unit vector at right angles to the plane
    X[199] += 3 * normal
    score = holdout.pca_error_score(X, np.arange(200) < 150)
    np.testing.assert_allclose(score[:199], 0, atol=1e-8)
    # Centring moves the plane, not its directions.
    assert score[199] == pytest.approx(9)


def test_pca_mixture_ranks_a_cell_between_two_clusters_highest():
    """Far from every cluster and yet at the centre of the data: one Gaussian would not see it.

    Cells are many, so that for the validation cells one Gaussian is the worst choice.
    """
    rng = np.random.default_rng(4)
    X = rng.normal(0, 0.3, (2001, 20))
    X[:1000, 0] += 10
    X[1000:2000, 0] -= 10
    position = np.arange(2001)
    validation = (position < 2000) & (position % 5 == 0)
    train = (position < 2000) & ~validation
    assert np.argmax(holdout.pca_mixture_score(X, train, validation)) == 2000


@pytest.mark.parametrize("baseline", ["pca_error", "pca_mixture"])
def test_baselines_do_not_learn_from_cells_they_judge(baseline):
    rng = np.random.default_rng(5)
    X = rng.normal(size=(240, 40))
    changed = X.copy()
    changed[200:] += 50
    fit, validation = np.arange(240) < 160, (np.arange(240) >= 160) & (np.arange(240) < 200)
    scores = [
        holdout.pca_error_score(x, fit | validation)
        if baseline == "pca_error"
        else holdout.pca_mixture_score(x, fit, validation)
        for x in (X, changed)
    ]
    np.testing.assert_allclose(scores[0][:200], scores[1][:200])


def test_rule_seconds_adds_the_jobs_of_a_rule(tmp_path):
    benchmarks = tmp_path / "results" / "holdout" / "benchmarks"
    (benchmarks / "import_counts").mkdir(parents=True)
    for sample, seconds in (("a", 1.5), ("b", 2.0)):
        path = benchmarks / "import_counts" / f"{sample}.jsonl"
        path.write_text(json.dumps({"s": seconds}) + "\n")
    (benchmarks / "plot_qc.jsonl").write_text(json.dumps({"s": 4.0}) + "\n")
    assert holdout.rule_seconds(tmp_path).to_dict() == {"import_counts": 3.5, "plot_qc": 4.0}
