"""The KL divergence of a diagonal Gaussian from the standard normal."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from omics_vae.priors import kl_standard_normal


def test_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(50, 4, generator=generator, dtype=torch.float64) * 3
    log_variance = torch.randn(50, 4, generator=generator, dtype=torch.float64) * 2
    q = Normal(mean, torch.exp(0.5 * log_variance))
    expected = kl_divergence(q, Normal(0.0, 1.0))
    torch.testing.assert_close(kl_standard_normal(mean, log_variance), expected)


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 0.2), (1.3, 1.0), (-2.0, 0.05), (0.5, 3.0)])
def test_equals_monte_carlo(mean, variance):
    z = mean + np.sqrt(variance) * np.random.default_rng(0).standard_normal(200_000)
    log_ratio = -0.5 * ((z - mean) ** 2 / variance + np.log(variance)) + 0.5 * z**2
    found = kl_standard_normal(torch.tensor(mean), torch.tensor(variance).log())
    error = log_ratio.std() / np.sqrt(len(z))
    assert float(found) == pytest.approx(log_ratio.mean(), abs=4 * error + 1e-6)


def test_zero_at_the_prior_and_positive_elsewhere():
    assert float(kl_standard_normal(torch.zeros(()), torch.zeros(()))) == 0.0
    mean, log_variance = torch.meshgrid(
        torch.linspace(-3, 3, 41), torch.linspace(-10, 5, 61), indexing="ij"
    )
    assert (kl_standard_normal(mean, log_variance) >= 0).all()


@pytest.mark.parametrize("log_variance", [1e-3, -1e-3, 3e-3])
def test_float32_keeps_its_digits_next_to_the_prior(log_variance):
    found = kl_standard_normal(torch.zeros(()), torch.tensor(log_variance))
    expected = 0.5 * (np.expm1(log_variance) - log_variance)
    # exp(v) - 1 in float32 would leave an error of 6e-8 in 2.5e-7.
    assert float(found) == pytest.approx(expected, rel=1e-3)
