"""The likelihood under which held-out cells are most probable, and when the data cannot tell."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from choose_likelihood import compare, verdict_on_zeros
from model_inputs import read_model
from model_jobs import TRAINED, of_model, read_inputs, train, with_obs
from omics_vae.inference import importance_weighted_evidence
from run_script import run_script
from simulated_counts import CPU, Simulated, simulate, write_run

RNG = np.random.default_rng(0)
# Cells differ far more from each other than likelihoods do on one cell.
CELL = RNG.normal(-600.0, 150.0, 500)


def log_p(**gains: float) -> dict[str, np.ndarray]:
    """Evidence of 500 cells with these mean gains over the first, each ± 0.1 a cell."""
    noise = {name: np.random.default_rng(i).standard_normal(500) for i, name in enumerate(gains)}
    return {
        name: CELL + gain + 0.1 * (noise[name] - noise[name].mean()) for name, gain in gains.items()
    }


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({"nb": 0.0, "zinb": 0.0, "poisson": 0.0}, "poisson"),
        ({"nb": 0.0, "zinb": 0.011, "poisson": -5.0}, "nb"),
        ({"nb": 0.0, "zinb": 0.02, "poisson": -5.0}, "zinb"),
        ({"nb": 5.0, "zinb": -0.1, "poisson": 0.0}, "nb"),
        ({"nb": -0.1, "zinb": 0.02, "poisson": 0.0}, "zinb"),
        ({"nb": 0.0, "zinb": 3.0}, "zinb"),
        ({"zinb": 0.0}, "zinb"),
    ],
    ids=["a tie", "no clear gain", "a clear gain", "nb", "zinb over poisson", "two", "one"],
)
def test_the_simpler_one_is_taken_unless_a_richer_one_clearly_gains(gains, chosen):
    # 0.1 a cell and 500 cells: a standard error of sqrt(2) 0.1 / sqrt(500) = 0.0063.
    assert compare(log_p(**gains))[1] == chosen


def test_the_order_of_the_candidates_does_not_matter():
    values = log_p(nb=0.0, zinb=0.01, poisson=-1.0)
    for names in (["zinb", "poisson", "nb"], ["poisson", "zinb", "nb"]):
        assert compare({name: values[name] for name in names})[1] == "nb"


def test_the_table_has_paired_differences_from_the_chosen_one():
    values = log_p(nb=0.0, zinb=0.004, poisson=-40.0)
    table, chosen = compare(values)
    assert chosen == "nb"
    assert table["likelihood"].tolist() == ["zinb", "nb", "poisson"]  # the most probable first
    assert table["chosen"].tolist() == [False, True, False]
    for row in table.itertuples():
        ours = values[row.likelihood]
        assert row.log_p == pytest.approx(ours.mean())
        assert row.log_p_se == pytest.approx(ours.std(ddof=1) / np.sqrt(500))
        lost = ours - values["nb"]
        assert row.difference == pytest.approx(lost.mean())
        assert row.difference_se == pytest.approx(lost.std(ddof=1) / np.sqrt(500))
    # The pairing is the point: the means alone could not tell these apart.
    assert table["difference_se"].max() < 0.01 < 5 < table["log_p_se"].min()


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (0.05, "The data support zero inflation (+0.05 ± "),
        (0.01, "Zero inflation is not supported by the data (+0.01 ± "),
        (-0.7, "Zero inflation is not supported by the data (-0.7 ± "),
    ],
)
def test_the_verdict_on_zeros_goes_both_ways(gain, expected):
    said = verdict_on_zeros(log_p(nb=0.0, zinb=gain))
    assert said.startswith(expected)
    assert said.count(".") >= 1 and said.endswith(").")
    assert "nats a cell against the negative binomial" in said


def test_zeros_are_not_supported_where_a_poisson_explains_them_better():
    """A gain over a negative binomial that fits badly itself is no support."""
    values = log_p(nb=0.0, zinb=0.5, poisson=3.0)
    assert compare(values)[1] == "poisson"
    assert verdict_on_zeros(values).startswith("Zero inflation is not supported by the data (")


# ---- from counts to the choice

CANDIDATES = ("nb", "zinb", "poisson")
SPLIT = np.repeat(["train", "validation", "calibration", "query"], [400, 150, 30, 20])
SETTINGS = {
    "max_steps": 300,
    "n_latent": 3,
    "batch_size": 128,
    "learning_rate": 0.01,
    "learning_rate_drops": 0,
    "weight_decay": 5.0,
    "checkpoint_seconds": 1e9,
}


def overdispersed() -> Simulated:
    return simulate(len(SPLIT), 30, n_latent=2, seed=3, theta=2.0)


def zero_inflated() -> Simulated:
    """40 % of the counts of the ten strongest genes are lost."""
    made = overdispersed()
    counts = made.counts.toarray()
    strongest = np.argsort(-counts.mean(0))[:10]
    lost = np.random.default_rng(1).random((len(SPLIT), 10)) < 0.4
    counts[:, strongest] = np.where(lost, 0, counts[:, strongest])
    return replace(made, counts=sp.csr_matrix(counts))


def without_overdispersion() -> Simulated:
    made = overdispersed()
    counts = np.random.default_rng(2).poisson(made.mu).astype(np.int32)
    return replace(made, counts=sp.csr_matrix(counts))


def choose(folder, simulated: Simulated) -> tuple[dict, dict, dict]:
    """Paths, the three fits, and what the rule wrote."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    paths = write_run(folder, simulated, SPLIT, np.arange(30) < 30)
    fits = {name: train(folder / name, paths, likelihood=name, **SETTINGS) for name in CANDIDATES}
    return paths, fits, run_rule(folder, paths, fits)


def run_rule(folder, paths, fits) -> dict:
    given = of_model(paths) | {
        "weights": [str(fit["weights"]) for fit in fits.values()],
        "descriptions": [str(fit["description"]) for fit in fits.values()],
    }
    output = {
        "fit": [f"seed1/{name}" for name in TRAINED.values()],
        "comparison": "comparison.tsv",
        "choice": "choice.json",
    }
    params = {"likelihoods": list(fits), "samples": 10, "device": "cpu"}
    return run_script("choose_likelihood", folder, given, output, params)


DATA = {
    "nb": (overdispersed, "nb", "not supported"),
    "zinb": (zero_inflated, "zinb", "The data support zero inflation"),
    "poisson": (without_overdispersion, "poisson", "not supported"),
}


@pytest.fixture(scope="module", params=DATA)
def chosen(request, tmp_path_factory):
    make, *expected = DATA[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return *choose(folder, make()), *expected


def test_counts_are_given_the_likelihood_that_made_them(chosen):
    _, _, written, expected, zeros = chosen
    choice = json.loads(written["choice"].read_text())
    table = pd.read_csv(written["comparison"], sep="\t")
    assert choice["chosen"] == expected, table
    assert zeros in choice["zeros"]
    assert (choice["n_cells"], choice["samples"], choice["warnings"]) == (150, 10, [])
    assert set(table["likelihood"]) == set(CANDIDATES)
    assert table.loc[table["chosen"], "likelihood"].tolist() == [expected]


def test_the_winner_is_copied_byte_by_byte_and_measured_on_validation_cells(chosen):
    paths, fits, written, expected, _ = chosen
    for ours, copied in zip(fits[expected].values(), written["fit"], strict=True):
        assert copied.name == ours.name
        assert copied.read_bytes() == ours.read_bytes()
    inputs = read_inputs(paths)
    fit = fits[expected]
    model, inputs = read_model(fit["weights"], fit["description"], inputs)
    found = importance_weighted_evidence(model, inputs.split("validation"), CPU, 10)
    table = pd.read_csv(written["comparison"], sep="\t").set_index("likelihood")
    assert table.loc[expected, "log_p"] == pytest.approx(found.log_p.mean())


def test_covariates_are_told_to_every_candidate(tmp_path):
    """A model with covariates cannot be read without them."""
    torch.set_num_threads(1)
    paths = write_run(tmp_path, overdispersed(), SPLIT, np.arange(30) < 30)
    paths = with_obs(paths, tmp_path / "told", batch=["a", "b"] * (len(SPLIT) // 2))
    asked = {"covariates": ["batch"], "dispersion": "gene_batch", "max_steps": 30}
    fits = {name: train(tmp_path / name, paths, likelihood=name, **asked) for name in CANDIDATES}
    written = run_rule(tmp_path, paths, fits)
    assert json.loads(written["choice"].read_text())["chosen"] in CANDIDATES
    description = json.loads(written["fit"][1].read_text())
    assert description["design"]["batches"] == ["a", "b"]
