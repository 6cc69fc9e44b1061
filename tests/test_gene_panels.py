"""Tables for the figure of the genes: intervals, where tests lie, leading genes."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import gene_panels
from gene_panels import PLANES, Density, quantile, top_genes
from gene_tests import SHIFTS
from omics_vae.likelihoods import Gaussian, NegativeBinomial, Poisson, ZeroInflatedNB

MEAN = np.array([[1e-3, 0.5, 4.0], [30.0, 1e3, 1e5]])


def log(values) -> torch.Tensor:
    return torch.from_numpy(np.log(np.asarray(values, float)))


@pytest.mark.parametrize("level", [0.025, 0.5, 0.975])
@pytest.mark.parametrize("theta", [0.1, 2.0, 50.0])
def test_the_quantiles_are_those_of_the_distribution(level, theta):
    counted = NegativeBinomial(log(MEAN), log([theta] * 3))
    expected = stats.nbinom.ppf(level, theta, theta / (theta + MEAN))
    np.testing.assert_array_equal(quantile(counted, level), expected)
    np.testing.assert_array_equal(
        quantile(Poisson(log(MEAN)), level), stats.poisson.ppf(level, MEAN)
    )
    log_counts = Gaussian(torch.from_numpy(MEAN), torch.full((3,), theta, dtype=torch.float64))
    expected = stats.norm.ppf(level, MEAN, np.sqrt(theta))
    np.testing.assert_allclose(quantile(log_counts, level), expected, rtol=1e-9, atol=1e-9)


def test_lost_counts_pull_a_quantile_to_0():
    half_lost = ZeroInflatedNB(log(MEAN), log([50.0] * 3), torch.zeros(3).double())
    assert (quantile(half_lost, 0.49) == 0).all()
    upper = stats.nbinom.ppf(0.95, 50.0, 50.0 / (50.0 + MEAN))  # 0.975 = 0.5 + 0.5 * 0.95
    np.testing.assert_array_equal(quantile(half_lost, 0.975), upper)


def test_an_uncertain_theta_widens_the_interval():
    counted = NegativeBinomial(log([[100.0]]), log([5.0]))
    sure = np.where(np.arange(len(SHIFTS)) == np.abs(SHIFTS).argmin(), 1.0, 0.0)[:, None]
    unsure = stats.norm.pdf(SHIFTS)[:, None] / stats.norm.pdf(SHIFTS).sum()
    for level, sign in ((0.025, -1), (0.975, 1)):
        known = quantile(counted, level)
        np.testing.assert_array_equal(quantile(counted, level, sure), known)
        assert sign * (quantile(counted, level, unsure) - known) > 0


def block(n_cells: int = 40, n_genes: int = 30, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    expected = np.exp(rng.normal(1.0, 2.0, (n_cells, n_genes)))
    observed = rng.poisson(expected).astype(float)
    return {
        "expected": expected,
        "observed": observed,
        "log2_fold_change": np.log2((observed + 1) / (expected + 1)),
        "log_p": np.log(rng.random((n_cells, n_genes))),
    }


def test_every_test_of_the_chosen_rows_lies_in_one_place_of_each_plane():
    density, given = Density(), block()
    density.add(given, np.arange(25))
    table = density.table()
    assert table.groupby("plane")["n_tests"].sum().to_dict() == dict.fromkeys(PLANES, 25 * 30)
    counts = table[table["plane"] == "counts"].set_index(["x", "y"])["n_tests"]
    x, y = (np.log10(given[name][:25] + 1) for name in ("expected", "observed"))
    inside = [
        ((x >= a) & (x < a + 0.05) & (y >= b) & (y < b + 0.05)).sum() for a, b in counts.index
    ]
    # Up to tests on an edge, which rounding may move.
    assert np.abs(np.array(inside) - counts).sum() <= 4


def test_the_volcano_leaves_out_what_is_sharper_than_any_axis_shows():
    density, given = Density(), block()
    given["log_p"][:, 0] = -200 * np.log(10.0)
    density.add(given, np.arange(40))
    n = density.table().groupby("plane")["n_tests"].sum()
    assert n.to_dict() == {"counts": 40 * 30, "volcano": 40 * 29}


def test_blocks_and_their_order_change_nothing():
    given, parts = block(), Density()
    whole = Density()
    whole.add(given, np.arange(40))
    for rows in (np.arange(30, 40), np.arange(0, 30), np.arange(0)):
        parts.add(given, rows)
    pd.testing.assert_frame_equal(parts.table(), whole.table())


def test_without_tests_there_is_an_empty_table():
    assert list(Density().table()) == gene_panels.DENSITY_COLUMNS


def test_genes_lead_that_most_cells_have_and_in_samples_the_surest():
    hits = pd.DataFrame(
        [("A", -5.0), ("B", -6.0), ("B", -4.0), ("C", -90.0), ("D", -6.0), ("D", -8.0), ("E", -4)],
        columns=["gene", "log10_p"],
    )
    assert top_genes(hits, is_bulk=False) == ["D", "B", "C", "A"]
    assert top_genes(hits, is_bulk=True) == ["C", "D", "B", "A"]
    assert top_genes(hits.head(0), is_bulk=True) == []
