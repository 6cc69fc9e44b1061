"""Two fits compared: what no change of basis touches, and what is said where they disagree."""

import json

import numpy as np
import pandas as pd
import pytest

from measure_stability import (
    canonical_correlations,
    compare,
    shared_neighbours,
    stability_warnings,
)
from run_script import run_script

RNG = np.random.default_rng(0)
Z = RNG.standard_normal((400, 4))
ROTATION = np.linalg.qr(RNG.standard_normal((4, 4)))[0]


# ---- subspaces


@pytest.mark.parametrize(
    "change",
    [
        ROTATION,
        RNG.standard_normal((4, 4)) + 3 * np.eye(4),
        np.diag([1e-3, 1.0, -7.0, 1e3]),
        np.eye(4)[[2, 0, 3, 1]],
    ],
    ids=["rotation", "any invertible map", "scales and a sign", "another order"],
)
def test_a_linear_image_is_the_same_space(change):
    found = canonical_correlations(Z, Z @ change + np.array([5.0, -1.0, 100.0, 0.0]))
    np.testing.assert_allclose(found, np.ones(4), atol=1e-9)


def test_unrelated_spaces_are_nearly_orthogonal():
    n = 20_000
    one, other = np.random.default_rng(1).standard_normal((2, n, 3))
    found = canonical_correlations(one, other)
    # The largest of three chance correlations of n cells.
    assert found.max() < 5 / np.sqrt(n)
    assert (np.diff(found) <= 0).all()


def test_a_known_angle():
    """Of two planes that share one line and stand at 60 degrees, the cosines are 1 and 1/2."""
    basis = np.linalg.qr(Z - Z.mean(0))[0]
    other = np.column_stack(
        [basis[:, 0], np.cos(np.pi / 3) * basis[:, 1] + np.sin(np.pi / 3) * basis[:, 2]]
    )
    found = canonical_correlations(basis[:, :2], other @ np.array([[2.0, 1.0], [0.0, 3.0]]))
    np.testing.assert_allclose(found, [1.0, 0.5], atol=1e-9)


def test_spaces_of_unequal_size_have_as_many_as_the_smaller():
    found = canonical_correlations(Z, Z[:, [3, 1]])
    np.testing.assert_allclose(found, [1.0, 1.0], atol=1e-9)
    assert len(canonical_correlations(Z[:, :1], Z)) == 1


def test_correlation_with_a_single_axis_is_pearsons():
    noisy = Z[:, :1] + RNG.standard_normal((400, 1))
    expected = abs(np.corrcoef(Z[:, 0], noisy[:, 0])[0, 1])
    assert canonical_correlations(Z[:, :1], noisy)[0] == pytest.approx(expected)


# ---- neighbourhoods


def test_an_embedding_shares_all_neighbours_with_itself():
    assert shared_neighbours(Z, Z) == 1.0


@pytest.mark.parametrize("name", ["rotated", "mirrored", "moved", "scaled", "padded"])
def test_an_isometry_changes_no_neighbour(name):
    images = {
        "rotated": Z @ ROTATION,
        "mirrored": Z * [1, -1, 1, 1],
        "moved": Z + np.array([10.0, 0.0, -3.0, 2.0]),
        "scaled": 0.01 * Z,
        "padded": np.column_stack([Z, np.zeros(len(Z))]),
    }
    other = RNG.standard_normal((400, 3))
    assert shared_neighbours(Z, images[name]) == 1.0
    assert shared_neighbours(images[name], other) == shared_neighbours(Z, other)


@pytest.mark.parametrize(("n", "k"), [(60, 15), (400, 15), (400, 60)])
def test_unrelated_embeddings_share_as_many_as_chance_would(n, k):
    one, other = np.random.default_rng(2).standard_normal((2, n, 3))
    chance = k / (n - 1)
    # Each cell's share is k hypergeometric draws; cells are nearly independent.
    error = np.sqrt(chance * (1 - chance) / k / n)
    assert shared_neighbours(one, other, k) == pytest.approx(chance, abs=5 * error)


def test_neighbours_are_counted_by_hand():
    # The nearest of each: 1, 0, 1, 2; elsewhere 1, 0, 3, 2.
    line, other = np.array([0.0, 1.0, 2.2, 3.5]), np.array([0.0, 1.0, 10.0, 11.0])
    assert shared_neighbours(line[:, None], other[:, None], k=1) == 0.75
    # The two nearest: 12, 02, 13, 21; elsewhere 12, 02, 31, 21.
    assert shared_neighbours(line[:, None], other[:, None], k=2) == 1.0


def test_of_few_cells_all_others_are_neighbours():
    assert shared_neighbours(Z[:6], RNG.standard_normal((6, 2))) == 1.0


def test_cells_at_one_place_count_once():
    """A cell may not be found among its own neighbours, nor one of its doubles be lost for it."""
    doubled = np.repeat(Z[:50], 2, axis=0)
    share = shared_neighbours(doubled, doubled)
    assert share == pytest.approx(1.0, abs=0.02)
    assert share <= 1.0


# ---- two fits


def fit(latent, score, flagged) -> dict:
    return {"latent": latent, "score": np.array(score), "flagged": np.array(flagged)}


def test_two_fits_that_say_the_same():
    flags = np.arange(50) < 7
    score = RNG.standard_normal(50)
    found = compare(fit(Z, score, flags), fit(Z @ ROTATION, np.exp(score), flags))
    assert found == pytest.approx(
        {
            **{"n_latent": 4, "n_latent_other": 4, "score_spearman": 1.0},
            **{"canonical_correlation_mean": 1.0, "canonical_correlation_smallest": 1.0},
            **{"shared_neighbours": 1.0, "flagged_both": 7, "flagged_either": 7},
        }
    )


def test_two_fits_that_do_not():
    one = fit(Z, [1.0, 2.0, 3.0], [True, True, False])
    other = fit(Z[:, :2] @ [[0.0, 1.0], [1.0, 0.0]], [3.0, 2.0, 1.0], [False, True, True])
    found = compare(one, other)
    assert (found["n_latent"], found["n_latent_other"]) == (4, 2)
    assert found["score_spearman"] == pytest.approx(-1.0)
    assert (found["flagged_both"], found["flagged_either"]) == (1, 3)
    mixed = (
        compare(one, fit(np.column_stack([Z[:, 0], RNG.standard_normal(400)]), *"ab"[:0], **{}))
        if False
        else None
    )
    assert mixed is None


def test_a_direction_that_one_fit_does_not_use_agrees_with_nothing():
    idle = np.column_stack([Z[:, 0], np.zeros(400)])
    np.testing.assert_allclose(canonical_correlations(Z, idle), [1.0, 0.0], atol=1e-9)


def test_a_fit_that_has_collapsed_agrees_with_nothing():
    """All cells at one place."""
    scores = [1.0, 2.0], [False, True]
    found = compare(fit(Z, *scores), fit(0 * Z[:, :1], *scores))
    assert found["canonical_correlation_mean"] == 0.0
    assert found["canonical_correlation_smallest"] == 0.0


# ---- warnings


def pairs_of(*both_and_either: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame(both_and_either, columns=["flagged_both", "flagged_either"])


@pytest.mark.parametrize(
    ("pairs", "percent"),
    [
        ([(9, 10), (8, 10), (10, 10)], None),
        ([(5, 10), (5, 10), (5, 10)], None),
        ([(0, 0), (0, 0), (0, 0)], None),
        ([(4, 10), (4, 10), (5, 10)], "43"),
        ([(0, 3), (0, 2), (0, 1)], "0"),
    ],
)
def test_seeds_that_flag_other_cells_are_warned_of(pairs, percent):
    found = stability_warnings(pairs_of(*pairs))
    assert len(found) == (percent is not None)
    for warning in found:
        assert f"on average {percent} % of the cells" in warning
        assert "; trust those that all flag (stability/cells.tsv)" in warning


# ---- the rule


def write_fit(folder, seed: int, n_odd: int, n_cells: int) -> tuple[str, str]:
    """latent.parquet and cells.parquet of a seed; the last 40 cells are the query."""
    rng = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(n_cells)]
    latent = np.random.default_rng(0).standard_normal((n_cells, 3)) @ rng.standard_normal((3, 3))
    table = pd.DataFrame(latent, columns=[f"mean_{j}" for j in range(3)])
    table.insert(0, "cell_id", names)
    table["variance_0"], table["log_size"] = rng.random(n_cells), 8.0
    table.to_parquet(folder / f"latent{seed}.parquet")
    cells = pd.DataFrame({"cell_id": names[-100:], "sample": "S"})
    cells["split"] = ["calibration"] * 60 + ["query"] * 40
    cells["score"] = np.arange(100.0)
    cells["is_anomaly"] = np.arange(100) >= 100 - n_odd
    cells.to_parquet(folder / f"cells{seed}.parquet")
    return str(folder / f"latent{seed}.parquet"), str(folder / f"cells{seed}.parquet")


OUTPUT = {"pairs": "pairs.tsv", "cells": "stable.tsv", "summary": "summary.json"}


def run(folder, *n_odd: int, n_cells: int = 300) -> dict:
    fits = [write_fit(folder, seed + 5, n, n_cells) for seed, n in enumerate(n_odd)]
    latents, cells = zip(*fits, strict=True)
    params = {"seeds": [seed + 5 for seed in range(len(n_odd))], "seed": 5}
    given = {"latents": list(latents), "cells": list(cells)}
    return run_script("measure_stability", folder, given, OUTPUT, params)


def test_the_rule_compares_every_pair_and_counts_the_flags_of_each_cell(tmp_path):
    written = run(tmp_path, 6, 8, 4)
    pairs = pd.read_csv(written["pairs"], sep="\t")
    assert pairs[["seed", "other_seed"]].to_numpy().tolist() == [[5, 6], [5, 7], [6, 7]]
    np.testing.assert_allclose(pairs["canonical_correlation_smallest"], 1.0, atol=1e-9)
    assert pairs["shared_neighbours"].between(0.05, 0.99).all()
    np.testing.assert_allclose(pairs["score_spearman"], 1.0)
    assert pairs["flagged_both"].tolist() == [6, 4, 4]
    assert pairs["flagged_either"].tolist() == [8, 6, 8]
    cells = pd.read_csv(written["cells"], sep="\t")
    assert list(cells) == ["cell_id", "sample", "n_flagged", "n_seeds", "rank_mean", "rank_sd"]
    assert cells["cell_id"].tolist() == [f"c{i}" for i in range(260, 300)]
    assert cells["n_flagged"].tolist() == [0] * 32 + [1] * 2 + [2] * 2 + [3] * 4
    assert (cells["n_seeds"] == 3).all()
    np.testing.assert_allclose(cells["rank_mean"], np.arange(1, 41) / 40)
    np.testing.assert_allclose(cells["rank_sd"], 0.0, atol=1e-12)
    summary = json.loads(written["summary"].read_text())
    assert summary == {
        **{"seeds": [5, 6, 7], "n_cells": 300, "n_flagged_by_all": 4, "n_flagged_by_any": 8},
        "warnings": [],
    }


def test_seeds_that_disagree_are_warned_of(tmp_path):
    summary = json.loads(run(tmp_path, 2, 30)["summary"].read_text())
    assert len(summary["warnings"]) == 1


def test_of_more_than_5000_cells_as_many_are_compared(tmp_path):
    pairs = pd.read_csv(run(tmp_path, 6, 8, n_cells=6000)["pairs"], sep="\t")
    chosen = np.sort(np.random.default_rng(5).choice(6000, 5000, replace=False))
    one, other = (
        pd.read_parquet(tmp_path / f"latent{seed}.parquet").filter(like="mean_").to_numpy()[chosen]
        for seed in (5, 6)
    )
    assert pairs["shared_neighbours"].item() == pytest.approx(shared_neighbours(one, other))
