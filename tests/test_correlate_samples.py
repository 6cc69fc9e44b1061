"""The rule correlate_samples: a batch is seen before the model and gone after it."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats

from correlate_samples import clustered, correlation, groupings, left, pair_table
from job import read_json
from make_bulk_example import simulate_cohort, size_factors
from model_jobs import SETTINGS, embed, train, with_obs
from run_script import Named, run_script
from simulated_counts import Simulated, write_run

WRITTEN = {"pairs": "pairs.parquet", "samples": "samples.tsv", "summary": "summary.json"}
N, GENES = 60, 300


def test_the_correlation_is_spearman_s_of_centred_genes():
    levels = np.random.default_rng(0).normal(size=(5, 40)) + np.arange(40) ** 2
    expected = stats.spearmanr(levels - levels.mean(0), axis=1).statistic
    np.testing.assert_allclose(correlation(levels), expected)


def test_alike_samples_lie_side_by_side():
    group = np.array([0, 1, 0, 1, 1, 0])
    order = clustered(np.where(group[:, None] == group, 0.8, -0.3) + 0.2 * np.eye(6))
    assert np.abs(np.diff(group[order])).sum() == 1
    assert [len(clustered(np.eye(n))) for n in (1, 2, 3)] == [1, 2, 3]


def test_columns_group_samples_that_have_few_levels_and_say_something_new():
    obs = pd.DataFrame(
        {
            "cell": [f"s{i}" for i in range(6)],
            "sample": ["one"] * 3 + ["two"] * 3,
            "role": ["reference"] * 3 + ["query"] * 3,
            "split": ["train", "validation", "calibration"] + ["query"] * 3,
            "batch": ["A", "B", None] * 2,
            "total_counts": range(6),
            "tissue": "blood",
        }
    )
    found = groupings(obs)
    # The sample is the role by another name.
    assert list(found) == ["role", "batch"]
    assert found["batch"].tolist() == ["A", "B", ""] * 2


def test_pairs_are_listed_once():
    before = np.array([[1, 0.1, 0.2], [0.1, 1, -0.4], [0.2, -0.4, 1]])
    table = pair_table(np.array(["a", "b", "c"]), before, before / 2)
    assert table.to_dict("list") == {
        **{"sample_1": ["a", "a", "b"], "sample_2": ["b", "c", "c"]},
        **{"before": [0.1, 0.2, -0.4], "after": [0.05, 0.1, -0.2]},
    }
    assert left(before) == 0.2 and left(np.eye(1)) == 0


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A cohort with confounders, the first a batch of half of the samples; two folds of it too."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cohort")
    counts = simulate_cohort(N, GENES, seed=4).counts
    size = size_factors(counts) * np.median(counts.sum(1))
    simulated = Simulated(sparse.csr_matrix(counts.astype(np.int32)), size, None, None, 0.0)
    split = np.resize(["train"] * 8 + ["validation", "calibration"], N).astype(object)
    split[50:] = "query"
    paths = write_run(folder, simulated, split, np.full(GENES, True))
    settings = {"decoder": "free", "n_layers": 0, "n_latent": 10, "dropout": 0, "max_steps": 60,
                "weight_decay": 10, "learning_rate": 1e-4, "checkpoint_seconds": 1e9,
                "kl_warmup": "constant"}  # fmt: skip
    model = train(folder / "train", paths, **(SETTINGS | settings))
    latent = embed(folder / "embed", paths, model)
    models = {"weights": [str(model["weights"])], "descriptions": [str(model["description"])]}
    return Named(paths | models | {"latents": [str(latent)]})


@pytest.fixture(scope="module")
def written(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("correlation")
    return run_script("correlate_samples", folder, given, WRITTEN, {"folds": [None]})


def test_what_confounders_make_alike_is_gone_after_the_model(written):
    pairs, summary = pd.read_parquet(written["pairs"]), read_json(written["summary"])
    assert len(pairs) == N * (N - 1) // 2 and not pairs.isna().any(axis=None)
    assert summary["median_before"] == pytest.approx(pairs["before"].abs().median())
    assert summary["median_after"] == pytest.approx(pairs["after"].abs().median())
    assert summary["median_before"] > 0.15
    assert summary["median_after"] < 0.5 * summary["median_before"]
    assert (summary["n_samples"], summary["n_genes"]) == (N, GENES)


def test_every_sample_is_listed_once_like_ones_together(written):
    samples, pairs = pd.read_csv(written["samples"], sep="\t"), pd.read_parquet(written["pairs"])
    names = list(samples["cell_id"])
    assert len(set(names)) == N == len(names)
    r = {frozenset(row[:2]): row[2] for row in pairs.itertuples(index=False)}
    beside = [r[frozenset(pair)] for pair in pairwise(names)]
    assert np.mean(beside) > pairs["before"].mean() + 0.2


def test_the_same_inputs_give_the_same_bytes(given, written, tmp_path):
    again = run_script("correlate_samples", tmp_path, given, WRITTEN, {"folds": [None]})
    for name, path in written.items():
        assert again[name].read_bytes() == path.read_bytes(), name


def test_in_cross_fitting_each_sample_comes_from_the_model_that_has_not_seen_it(
    given, written, tmp_path
):
    folds = with_obs(given, tmp_path, fold=np.arange(N) % 2 + 1, split="train")
    twice = {name: given[name] * 2 for name in ("weights", "descriptions", "latents")}
    found = run_script(
        "correlate_samples", tmp_path, Named(folds | twice), WRITTEN, {"folds": [1, 2]}
    )
    # Here both models are one, so nothing else may change.
    key = ["sample_1", "sample_2"]
    tables = []
    for path in (written["pairs"], found["pairs"]):
        table = pd.read_parquet(path)
        table[key] = np.sort(table[key].to_numpy(dtype=str), axis=1)
        tables.append(table.sort_values(key, ignore_index=True))
    np.testing.assert_allclose(tables[0]["before"], tables[1]["before"], atol=1e-12)
