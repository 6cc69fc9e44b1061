"""Posterior collapse: the measures against closed forms; recreated, told apart, mended."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import norm

from omics_vae import collapse
from omics_vae.collapse import (
    active_units,
    aggregated_kl,
    diagnose,
    mutual_information,
    pearson_dispersion,
    skipped_information,
)
from omics_vae.data import CountData
from omics_vae.inference import Embedding, embed
from omics_vae.priors import Mixture
from omics_vae.pruning import signal_axes
from omics_vae.training import TrainingPlan, train
from simulated_counts import CPU, simulate, small_model

PLAN = TrainingPlan(
    max_steps=400,
    batch_size=64,
    learning_rate=5e-3,
    weight_decay=10.0,
    beta=1.0,
    kl_warmup="linear",
    kl_warmup_steps=50,
    kl_cycles=1,
    free_bits=0.0,
    validation_interval=50,
    patience=100,
    min_improvement=0.0,
    checkpoint_seconds=1e9,
    seed=0,
)


def posteriors(mean, variance) -> Embedding:
    """Those of cells with an observed library size."""
    mean = np.asarray(mean, dtype=np.float32)
    variance = np.broadcast_to(np.asarray(variance, dtype=np.float32), mean.shape)
    return Embedding(mean, variance, np.zeros(len(mean)), np.zeros(len(mean)))


def standard_normal(n_latent: int) -> Mixture:
    zero = torch.zeros(1, n_latent)
    return Mixture(zero[:, 0], zero, zero)


@pytest.mark.parametrize(
    ("spread", "variance"), [([1.0], [0.5]), ([0.6, 2.0], [0.3, 1.0]), ([0.9, 0.0], [0.2, 0.7])]
)
def test_mutual_information_of_gaussians_is_the_closed_form(spread, variance):
    """Means N(0, s^2), variance v: I = 1/2 sum log(1 + s^2 / v)."""
    rng = np.random.default_rng(7)
    mean = rng.standard_normal((1000, len(spread))) * spread + 3.0
    found = mutual_information(posteriors(mean, variance), draws=4)
    closed = 0.5 * np.log1p(np.square(spread) / variance).sum()
    assert found == pytest.approx(closed, abs=0.04)


def test_posteriors_that_are_all_alike_say_nothing_whatever_they_are():
    """Also where the KL from the prior is large: the mismatch is not information."""
    at = posteriors(np.full((300, 2), [1.5, -3.0]), [0.01, 4.0])
    assert mutual_information(at) == pytest.approx(0.0, abs=1e-9)
    assert (aggregated_kl(at, standard_normal(2)) > 1.0).all()
    assert active_units(at.mean) == 0


@pytest.mark.parametrize("n_cells", [1, 50, 2500])
def test_mutual_information_is_at_most_the_log_of_the_cells(n_cells):
    """And that where no two posteriors touch; of many cells, 2,000 stand for all."""
    apart = posteriors(np.arange(n_cells)[:, None] * 1.0, 1e-3)
    assert mutual_information(apart, 3) == pytest.approx(np.log(min(n_cells, 2000)))
    near = posteriors(np.random.default_rng(7).standard_normal((n_cells, 8)), 0.01)
    assert mutual_information(near, 3) <= np.log(min(n_cells, 2000)) + 1e-9


def test_active_units_are_those_whose_means_vary():
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((4000, 4)) * [1.0, 0.11, 0.09, 0.0] + [0.0, 5.0, 0.0, -2.0]
    assert active_units(mean.astype(np.float32)) == 2


@pytest.mark.parametrize(
    ("centre", "variance"), [(0.0, 0.3), (0.8, 0.5), (0.0, 1.0), (-0.5, 2.0), (0.0, 0.02)]
)
def test_aggregated_kl_of_a_gaussian_is_the_closed_form(centre, variance):
    """Means N(centre, s^2) and one posterior variance v average to N(centre, s^2 + v)."""
    spread = 0.6
    grid = centre + spread * norm.ppf((np.arange(1000) + 0.5) / 1000)
    at = posteriors(np.column_stack([grid, np.zeros(1000)]), variance)
    found = aggregated_kl(at, standard_normal(2))
    total = spread**2 + variance
    assert found[0] == pytest.approx(0.5 * (centre**2 + total - 1 - np.log(total)), abs=0.04)
    alone = 0.5 * (variance - 1 - np.log(variance))
    assert found[1] == pytest.approx(alone, abs=0.04)


def test_many_cells_are_sampled_without_changing_the_answer():
    rng = np.random.default_rng(0)
    at = posteriors(rng.normal(0.5, 0.7, (4000, 1)), 0.5)
    found = aggregated_kl(at, standard_normal(1))
    assert found[0] == pytest.approx(0.5 * (0.25 + 0.99 - 1 - np.log(0.99)), abs=0.05)


def test_an_average_posterior_that_is_the_prior_has_no_mismatch():
    """N(0, 1) of means N(0, 0.8) and variance 0.2; and a mixture prior, component by component."""
    rng = np.random.default_rng(7)
    spread = rng.standard_normal((1000, 2)) * np.sqrt(0.8)
    assert aggregated_kl(posteriors(spread, 0.2), standard_normal(2)).max() < 0.03
    component = rng.random(1000) < 0.25
    two = Mixture(
        torch.log(torch.tensor([0.25, 0.75])),
        torch.tensor([[3.0, 0.0], [-1.0, 2.0]]),
        torch.zeros(2, 2),
    )
    at = posteriors(spread + np.where(component[:, None], [3.0, 0.0], [-1.0, 2.0]), 0.2)
    assert aggregated_kl(at, two).max() < 0.03
    assert aggregated_kl(at, standard_normal(2)).min() > 0.5


@pytest.fixture(scope="module")
def cells():
    """Counts with two latent dimensions: of training, and held out."""
    torch.set_num_threads(1)
    simulated = simulate(500, 30, n_latent=2, seed=5, loading=0.8)
    return simulated.data(slice(0, 300)), simulated.data(slice(300, 500))


def trained(cells, tmp_path, beta=1.0, **architecture):
    """A model trained on them, its diagnosis and the mutual information on held-out cells."""
    fitted, held_out = cells
    model = small_model(fitted, dropout=0.0, **architecture)
    train(model, fitted, held_out, replace(PLAN, beta=beta), CPU, tmp_path / "c")
    found = diagnose(model, held_out, CPU, beta, signal_axes(fitted))
    return model, found, mutual_information(embed(model, held_out, CPU), 5)


def test_too_large_a_beta_is_found_and_mended(cells, tmp_path):
    model, found, information = trained(cells, tmp_path, beta=30.0)
    assert information < 0.01
    assert active_units(embed(model, cells[1], CPU).mean) == 0
    assert found.cause == "objective"
    assert "beta is 30" in found.shown_by
    assert "lower train.beta to 1" in found.mend
    model, found, information = trained(cells, tmp_path, beta=1.0)
    assert found is None, "a model as by default is healthy"
    assert information > 2.5
    assert active_units(embed(model, cells[1], CPU).mean) >= 2


def test_a_plain_skip_connection_is_found_and_mended(cells, tmp_path):
    model, found, information = trained(cells, tmp_path, skip="plain")
    assert information < 0.05
    assert found.cause == "decoder"
    assert "skip connection" in found.shown_by
    assert "train.skip to film or none" in found.mend
    assert skipped_information(model, cells[1], CPU) > 10
    for skip in ("film", "none"):
        model, found, information = trained(cells, tmp_path, skip=skip)
        assert found is None
        assert information > 2
    assert skipped_information(model, cells[1], CPU) == 0


def test_a_noisy_decoder_is_found_and_mended(cells, tmp_path):
    noisy = {"likelihood": "gaussian", "gaussian_variance": 100.0}
    _, found, information = trained(cells, tmp_path, **noisy)
    assert information < 0.01
    assert found.cause == "decoder"
    assert "times the scatter" in found.shown_by
    assert "lower train.gaussian_variance" in found.mend
    spread = np.log1p(cells[1].counts.toarray()).var(0).mean()
    said = float(found.shown_by.split("expects ")[1].split(" times")[0])
    assert said == pytest.approx(100 / spread, rel=0.2)
    _, found, information = trained(cells, tmp_path, likelihood="gaussian")
    assert found is None
    assert information > 2.5


def like_cells(n_cells: int, theta: float | None) -> CountData:
    """Cells that differ in depth alone; Poisson, or NB with this theta."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(30)) * 0.7
    size = 2000 * np.exp(rng.normal(0, 0.4, n_cells))
    mu = np.outer(size, shares)
    x = rng.poisson(mu if theta is None else rng.gamma(theta, mu / theta))
    return CountData(sp.csr_matrix(x.astype(float)), np.log(size))


@pytest.mark.parametrize("theta", [None, 4.0])
def test_cells_without_structure_are_found(tmp_path, theta):
    everything = like_cells(500, theta)
    cells = everything.take(np.arange(300)), everything.take(np.arange(300, 500))
    _, found, information = trained(cells, tmp_path)
    assert information < 0.02
    assert found.cause == "data"
    assert "no singular value" in found.shown_by
    assert "check that the reference varies" in found.mend


def test_a_decoder_that_scatters_as_the_cells_do_has_dispersion_one():
    cells = like_cells(400, 4.0)
    model = small_model(cells)
    with torch.no_grad():
        model.profile.weight.zero_()
        at = embed(model, cells, CPU)
        model.log_theta.fill_(np.log(4.0))
        assert pearson_dispersion(model, cells, at, CPU) == pytest.approx(1.0, abs=0.05)
        model.log_theta.fill_(np.log(0.4))
        assert pearson_dispersion(model, cells, at, CPU) < 0.2


def test_of_many_cells_a_thousand_are_diagnosed(cells, monkeypatch):
    seen = []
    monkeypatch.setattr(collapse, "embed", lambda *args: seen.append(args[1]) or embed(*args))
    diagnose(small_model(cells[0]), like_cells(1500, 4.0), CPU, 1.0, 2)
    assert len(seen[0]) == 1000
