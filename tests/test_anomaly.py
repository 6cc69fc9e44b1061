"""Evidence to p-values: what is exact, what is valid, and what is found."""

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import (
    binomtest,
    chisquare,
    false_discovery_control,
    kstest,
    nbinom,
    spearmanr,
    truncnorm,
)

from omics_vae import anomaly
from omics_vae.anomaly import (
    DepthStandard,
    calibration_p,
    cauchy_combination,
    combine_channels,
    conformal_p,
    depth_line,
    pearson_residuals,
    pooled_rates,
    residual_channels,
    shared_axes,
    shared_program_channel,
    unseen_genes_channel,
)
from omics_vae.likelihoods import Gaussian, NegativeBinomial, Poisson, ZeroInflatedNB


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def nb(mu, theta) -> NegativeBinomial:
    return NegativeBinomial(torch.log(torch.tensor(mu)), torch.log(torch.tensor(theta)))


def test_surprise_is_minus_log_of_the_two_sided_p(rng):
    theta = np.array([0.05, 0.5, 1.0, 20.0, 2e4])
    mu = 10.0 ** rng.uniform(-6, 4, (300, 5))
    x = rng.poisson(mu * rng.choice([0.0, 1.0, 3.0], (300, 5))).astype(float)
    x[0], mu[0] = 0.0, 1e4  # beyond float64: 1e4 expected, none seen
    expected = nb(mu, theta)
    found = expected.surprise(x)
    assert (x == 0).sum() > 300
    np.testing.assert_allclose(found, -np.log(expected.two_sided_p(x)), rtol=1e-8, atol=1e-8)
    assert found.max() == pytest.approx(300 * np.log(10))
    assert (found >= 0).all()


def likelihoods(rng) -> dict:
    """Of 40 cells and 30 genes, by name."""
    log_mu = torch.log(torch.tensor(rng.uniform(0.1, 20, (40, 30))))
    log_theta = torch.log(torch.tensor(rng.uniform(0.5, 5, 30)))
    logit = torch.tensor(rng.normal(-2, 1, (40, 30)))
    return {
        "nb": NegativeBinomial(log_mu, log_theta),
        "nb of each cell": NegativeBinomial(log_mu, log_theta + 0.1 * logit),
        "zinb": ZeroInflatedNB(log_mu, log_theta, logit),
        "poisson": Poisson(log_mu),
        "gaussian": Gaussian(log_mu, torch.exp(log_theta)),
    }


@pytest.mark.parametrize("name", ["nb", "nb of each cell", "zinb", "poisson", "gaussian"])
def test_residual_channels_are_what_they_say(rng, name):
    expected = likelihoods(rng)[name]
    torch.manual_seed(0)
    x = expected.sample().numpy()
    x[7, 3] += 400
    found = residual_channels(x, expected, program_genes=10)
    surprise = np.sort(-np.log(expected.two_sided_p(x)), axis=1)
    np.testing.assert_allclose(found["program"], np.log1p(surprise[:, -10:].mean(1)))
    np.testing.assert_allclose(found["single_gene"], np.log1p(surprise[:, -1]))
    np.testing.assert_allclose(found["profile"], np.log1p(expected.deviance(x).sum(1)))
    assert {channel: values.argmax() for channel, values in found.items()} == dict.fromkeys(
        found, 7
    )
    assert all(values.shape == (40,) and np.isfinite(values).all() for values in found.values())
    # A panel with fewer genes than the program asks for averages those it has.
    few = residual_channels(x, expected, program_genes=1000)
    np.testing.assert_allclose(few["program"], np.log1p(surprise.mean(1)))


def test_pooled_rates_are_counts_per_library_size(rng):
    counts = sp.csr_matrix(rng.poisson(3.0, (50, 4)) * np.array([1, 1, 1, 0]))
    size = rng.uniform(100, 200, 50)
    expected = (counts.toarray().sum(0) + 0.5) / size.sum()
    np.testing.assert_allclose(pooled_rates(counts, size), expected)
    assert pooled_rates(counts, size)[3] > 0, "a gene never seen is rare, not impossible"


def test_genes_that_the_reference_lacks_are_found_at_any_depth(rng):
    size = 1000 * np.exp(rng.normal(0, 0.5, 600))
    rates = np.r_[np.full(50, 0.001), np.full(50, 1e-9)]
    counts = sp.csr_matrix(rng.poisson(size[:, None] * rates))
    reference, fresh = counts[:300], counts[300:].tolil()
    fresh[0, 60:64] = 1
    pooled = pooled_rates(reference, size[:300])
    found = unseen_genes_channel(fresh.tocsr(), size[300:], pooled, float(np.median(size)))
    assert found.argmax() == 0
    rare = pooled[pooled * np.median(size) < anomaly.RARE_EXPECTED]
    assert len(rare) == 50
    expected = size[300] * rare.sum()
    observed = fresh[0, 50:].sum()
    assert found[0] == pytest.approx((observed - expected) / np.sqrt(expected + 1))


def test_without_rare_genes_there_is_no_such_channel(rng):
    counts = sp.csr_matrix(rng.poisson(2.0, (300, 8)))
    size = np.full(300, 16.0)
    assert unseen_genes_channel(counts, size, pooled_rates(counts, size), 16.0) is None


def depth_bound_score(rng, n):
    """A score whose mean bends and whose spread grows with log depth."""
    d = truncnorm.rvs(-2.4, 2.4, size=n, random_state=rng)
    noise = (1.0 + 0.3 * d) * rng.standard_normal(n)
    return 5.0 + 2.0 * d - 0.4 * d**2 + noise, 8.0 + 0.5 * d


def test_a_standardised_score_does_not_know_the_depth_of_fresh_cells(rng):
    standard = DepthStandard.fit(*depth_bound_score(rng, 3000))
    score, log_depth = depth_bound_score(rng, 6000)
    assert abs(spearmanr(score, log_depth).statistic) > 0.7
    z = standard.apply(score, log_depth)
    assert abs(spearmanr(z, log_depth).statistic) < 0.08
    for fifth in np.array_split(np.argsort(log_depth), 5):
        assert z[fifth].mean() == pytest.approx(0.0, abs=0.12)
        assert z[fifth].std() == pytest.approx(1.0, abs=0.12)
    assert abs(spearmanr(np.abs(z), log_depth).statistic) < 0.05


def test_beyond_the_depths_seen_the_standard_stays_constant(rng):
    standard = DepthStandard.fit(*depth_bound_score(rng, 500))
    edge = standard.centre + anomaly.DEPTH_RANGE * standard.scale
    at_edge = standard.apply(np.array([1.0]), np.array([edge]))
    np.testing.assert_allclose(standard.apply(np.array([1.0]), np.array([edge + 5])), at_edge)


def test_a_spread_that_shrinks_to_nothing_has_a_floor(rng):
    log_depth = np.linspace(-2, 2, 2000)
    score = rng.standard_normal(2000) * np.maximum(1 - log_depth, 0.0)
    standard = DepthStandard.fit(score, log_depth)
    z = standard.apply(score, log_depth)
    assert np.isfinite(z).all()
    assert np.abs(z).max() < 10


@pytest.mark.parametrize("depth_varies", [True, False])
def test_a_constant_score_survives(rng, depth_varies):
    log_depth = rng.normal(8, 0.5, 100) if depth_varies else np.full(100, 8.0)
    standard = DepthStandard.fit(np.full(100, 3.0), log_depth)
    z = standard.apply(np.full(50, 3.0), log_depth[:50])
    assert np.abs(z).max() < 0.5
    assert standard.apply(np.array([4.0]), np.array([8.0]))[0] > 1e3


def test_conformal_p_is_a_rank():
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    found = conformal_p(np.array([0.0, 2.0, 2.5, 3.0, 9.0]), calibration)
    np.testing.assert_allclose(found, [1.0, 0.8, 0.4, 0.4, 0.2])
    np.testing.assert_allclose(calibration_p(calibration), [0.8, 0.6, 0.6, 0.2])


def test_conformal_p_of_an_exchangeable_cell_is_uniform(rng):
    draws = rng.gamma(0.5, size=(20_000, 20))
    p = np.array([conformal_p(row[:1], row[1:])[0] for row in draws])
    ranks = np.bincount(np.round(p * 20).astype(int), minlength=21)[1:]
    assert chisquare(ranks).pvalue > 1e-3
    # Smoothed by a uniform within the rank, continuous: Kolmogorov-Smirnov.
    assert kstest(p - rng.uniform(0, 0.05, len(p)), "uniform").pvalue > 1e-3


def test_ties_make_conformal_p_larger_and_never_smaller(rng):
    draws = rng.integers(0, 4, size=(20_000, 20))
    p = np.array([conformal_p(row[:1], row[1:])[0] for row in draws])
    for t in (0.05, 0.1, 0.5):
        assert (p <= t).mean() <= t + 3 * np.sqrt(t * (1 - t) / len(p))


def test_calibration_cells_fill_the_scale_of_the_query(rng):
    p = np.sort(calibration_p(rng.standard_normal(99)))
    np.testing.assert_allclose(p, np.arange(1, 100) / 100)


def exact_cauchy(p):
    with mpmath.workdps(400):
        values = [mpmath.cot(mpmath.pi * mpmath.mpf(float(v))) for v in p]
        return float(mpmath.acot(mpmath.fsum(values) / len(values)) / mpmath.pi) % 1.0


@pytest.mark.parametrize("p", [1e-300, 1e-20, 1e-15, 1e-8, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-12])
def test_one_p_value_combines_to_itself(p):
    assert cauchy_combination(np.array([[p]]))[0] == pytest.approx(p, rel=1e-12)
    assert cauchy_combination(np.full((6, 1), p))[0] == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(
    "p",
    [
        [1e-15, 0.5, 0.9],
        [1e-15, 1 - 1e-3],
        [1e-3, 1 - 1e-3, 0.2],
        [0.2, 1 - 1e-12],
        [1e-250, 1 - 1e-16, 0.4],
        [0.03, 0.6, 0.2, 0.9],
    ],
)
def test_combination_equals_the_formula_in_four_hundred_digits(p):
    found = cauchy_combination(np.array(p)[:, None])[0]
    assert found == pytest.approx(exact_cauchy(p), rel=1e-9)


def test_a_p_of_one_is_no_evidence():
    assert cauchy_combination(np.array([[1.0]]))[0] == 1.0
    assert cauchy_combination(np.array([[1.0], [0.3]]))[0] == 1.0
    assert np.isfinite(cauchy_combination(np.array([[1.0, 1e-5], [0.3, 1.0]]))).all()


def test_combination_of_independent_p_values_is_uniform(rng):
    combined = cauchy_combination(rng.uniform(size=(5, 20_000)))
    assert kstest(combined, "uniform").pvalue > 1e-3


def test_combination_is_monotone_in_every_p():
    p = np.r_[10.0 ** np.arange(-15, -1), np.linspace(0.1, 0.9, 9), 0.999, 1 - 1e-9, 1.0]
    combined = cauchy_combination(np.stack([p, np.full(len(p), 0.2)]))
    assert (np.diff(combined) > 0).all()


def dependent_channels(rng, n):
    """Four scores of each cell that share most of their noise."""
    shared = rng.standard_normal(n)
    scores = {f"c{k}": shared + 0.5 * rng.standard_normal(n) for k in range(3)}
    return scores | {"skewed": np.exp(shared) + rng.exponential(size=n)}


def combined(channels, is_calibration):
    """Each channel a kind of its own."""
    kinds = {name: name for name in channels}
    return combine_channels(channels, kinds, is_calibration, np.zeros(len(is_calibration)))


def test_channels_of_a_kind_are_averaged_and_have_one_vote(rng):
    is_calibration = np.arange(150) < 100
    a, b, c = rng.standard_normal((3, 150))
    kinds = {"a": "one", "b": "one", "c": "other"}
    verdict = combine_channels({"a": a, "b": b, "c": c}, kinds, is_calibration, np.zeros(150))
    averaged = combined({"mean": (a + b) / 2, "c": c}, is_calibration)
    np.testing.assert_array_equal(verdict.p_value, averaged.p_value)
    assert set(verdict.p_channel) == {"a", "b", "c"}


def test_pearson_residuals_are_standard_under_the_model_and_bounded(rng):
    mu, theta = np.full((20_000, 3), [0.5, 5.0, 50.0]), np.array([0.5, 2.0, 10.0])
    x = nbinom.rvs(theta, theta / (theta + mu), random_state=rng)
    residuals = pearson_residuals(x, nb(mu, theta))
    np.testing.assert_allclose(residuals.mean(0), 0.0, atol=0.05)
    np.testing.assert_allclose(residuals.std(0), 1.0, atol=0.1)
    one = nb(np.ones((1, 1)), np.ones(1))
    assert pearson_residuals(np.array([[10**6]]), one).item() == 10.0
    assert pearson_residuals(np.array([[-100.0]]), Gaussian(*torch.ones(2, 1, 1))).item() == -10.0


def test_shared_axes_are_the_leading_principal_axes(rng):
    residuals = rng.standard_normal((80, 12)) * np.arange(1, 13)
    axes = shared_axes(80, residuals.T @ residuals, residuals.sum(0))
    expected = np.linalg.svd(residuals - residuals.mean(0))[2][:3]
    overlap = np.abs(axes.T @ expected.T)
    np.testing.assert_allclose(np.sort(overlap.max(0)), 1.0, atol=1e-9)
    two = residuals[:, :2]
    assert shared_axes(80, two.T @ two, two.sum(0)).shape == (2, 2)


def shared_score(residuals, is_calibration):
    axes = shared_axes(len(residuals), residuals.T @ residuals, residuals.sum(0))
    return shared_program_channel(residuals @ axes, is_calibration)


def test_a_program_that_query_cells_share_is_seen_though_no_gene_stands_out(rng):
    is_calibration = np.arange(400) < 200
    residuals = rng.standard_normal((400, 100))
    odd = np.arange(400) >= 340
    residuals[odd, :40] += 0.8
    score = shared_score(residuals, is_calibration)
    largest = np.abs(residuals).max(1)
    assert np.median(score[odd]) > np.quantile(score[is_calibration], 0.95)
    assert np.median(largest[odd]) < np.quantile(largest[is_calibration], 0.8)


def test_axes_found_with_the_query_leave_its_p_values_uniform(rng):
    """They do not tell calibration from query cells; centre and spread cost a little."""
    is_calibration, rates = np.arange(150) < 100, []
    for _ in range(300):
        residuals = rng.standard_normal((150, 20)) + rng.exponential(size=(150, 1))
        score = shared_score(residuals, is_calibration)
        p = conformal_p(score[~is_calibration], score[is_calibration])
        rates.append((p <= 5 / 101 + 1e-9).mean())
    assert np.mean(rates) == pytest.approx(5 / 101, abs=0.012)


def test_query_p_values_are_uniform_although_channels_are_dependent(rng):
    n, p = 60, []
    for _ in range(3000):
        is_calibration = np.arange(n) > 0
        p.append(combined(dependent_channels(rng, n), is_calibration).p_value[0])
    p = np.array(p)
    for t in (3 / 60, 6 / 60, 15 / 60, 30 / 60):
        below = int((p <= t + 1e-9).sum())
        assert binomtest(below, len(p), t, alternative="greater").pvalue > 1e-3, "not valid"
        # At most one rank is given away, as a calibration cell is ranked without the query cell.
        assert binomtest(below, len(p), t - 1.5 / 60, alternative="less").pvalue > 1e-3, "wasteful"


def test_a_tail_that_is_longer_at_one_depth_does_not_make_it_odd(rng):
    """Mean 0 and spread 1 at every depth, but skewed in shallow cells: most of those look usual."""
    depth, is_calibration = rng.normal(8, 0.6, 6000), np.arange(6000) < 3000
    skewed = (rng.chisquare(1, (4, 6000)) - 1) / np.sqrt(2)
    scores = np.where(depth < 8, skewed, rng.standard_normal((4, 6000)))
    channels = dict(zip("abcd", scores, strict=True))
    verdict = combine_channels(channels, {name: name for name in channels}, is_calibration, depth)
    query = ~is_calibration
    naive = combined(channels, is_calibration).score[query]
    line = depth_line(verdict.score[is_calibration], depth[is_calibration])
    assert abs(line(9.0) - line(7.0)) < 1e-9
    before = abs(spearmanr(naive, depth[query]).statistic)
    after = abs(spearmanr(verdict.score[query], depth[query]).statistic)
    assert before > 0.1
    assert after < 0.6 * before


def test_a_shifted_group_is_found_by_the_channel_that_sees_it(rng):
    n_calibration, n_query = 300, 100
    is_calibration = np.arange(n_calibration + n_query) < n_calibration
    channels = dependent_channels(rng, n_calibration + n_query)
    channels["blind"] = rng.standard_normal(len(is_calibration))
    odd = np.arange(len(is_calibration)) >= n_calibration + 80
    channels["c1"][odd] += 8.0
    verdict = combined(channels, is_calibration)
    flagged = false_discovery_control(verdict.p_value[~is_calibration]) <= 0.1
    assert flagged[80:].mean() > 0.8
    leading = min(verdict.p_channel, key=lambda name: np.median(verdict.p_channel[name][odd]))
    assert leading == "c1"
    assert verdict.score[odd].min() > np.median(verdict.score[is_calibration])


def test_being_the_least_odd_in_one_channel_is_not_odd_and_does_not_silence_the_others(rng):
    """p = 1 in a channel: once taken for the strongest evidence there is."""
    is_calibration = np.arange(202) < 200
    channels = {name: rng.standard_normal(202) for name in "abcdef"}
    for name in "abcdef":
        channels[name][200:] = np.median(channels[name])
    channels["a"][200:] = -50.0
    for name in "bcd":
        channels[name][201] = 50.0
    verdict = combined(channels, is_calibration)
    assert verdict.p_channel["a"][200] == 1.0
    assert verdict.p_value[200] > 0.5
    assert verdict.p_value[201] < 0.05


def test_benjamini_hochberg_on_them_keeps_its_rate(rng):
    alpha, fdp, power = 0.2, [], []
    is_calibration = np.arange(250) < 150
    odd = np.arange(250) >= 220
    for _ in range(300):
        channels = dependent_channels(rng, 250)
        channels["c0"][odd] += 5.0
        verdict = combined(channels, is_calibration)
        flagged = false_discovery_control(verdict.p_value[150:]) <= alpha
        fdp.append((flagged & ~odd[150:]).sum() / max(1, flagged.sum()))
        power.append(flagged[odd[150:]].mean())
    error = np.std(fdp) / np.sqrt(len(fdp))
    # BH controls alpha times the share of nulls, 70 %.
    assert np.mean(fdp) <= 0.7 * alpha + 3 * error
    assert np.mean(fdp) > 0.3 * 0.7 * alpha, "and is not silent"
    assert np.mean(power) > 0.4


def test_calibration_cells_p_values_are_their_ranks(rng):
    is_calibration = np.arange(120) < 100
    verdict = combined(dependent_channels(rng, 120), is_calibration)
    p = verdict.p_value[:100]
    np.testing.assert_allclose(p, calibration_p(verdict.score[:100]))
    assert (p <= 0.05).mean() <= 0.05 + 1e-9
    assert p.max() < 1.0
