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
    spearmanr,
    truncnorm,
)

from omics_vae import anomaly
from omics_vae.anomaly import (
    DepthStandard,
    calibration_p,
    cauchy_combination,
    combine_kinds,
    combine_tails,
    conditional_p,
    conformal_p,
    contaminated,
    depth_slope,
    kind_scores,
    kind_weights,
    pooled_rates,
    ranked_p,
    residual_channels,
    robust_sds,
    tail_p,
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


# ---- p-values that hold for the calibration set at hand


def by_hand(j: int, n: int, delta: float) -> float:
    """b_j of the generalized Simes inequality, from its definition, in many digits."""
    k, i = -(-n // 2), n + 1 - j
    if j == n + 1:
        return 1.0
    with mpmath.workdps(60):
        above = mpmath.fprod(i - step for step in range(k))
        below = mpmath.fprod(n - step for step in range(k))
        return float(
            1 - mpmath.mpf(delta) ** (mpmath.mpf(1) / k) * (above / below) ** (1 / mpmath.mpf(k))
        )


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 61])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
def test_a_conditional_p_is_the_formula(n, delta):
    marginal = np.arange(1, n + 2) / (n + 1)
    expected = [by_hand(j, n, delta) for j in range(1, n + 2)]
    np.testing.assert_allclose(conditional_p(marginal, n, delta), expected, rtol=1e-10)


@pytest.mark.parametrize("n", [20, 99, 1000, 20_000])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.3])
def test_a_conditional_p_is_monotone_and_never_below_the_marginal_one(n, delta):
    marginal = np.arange(1, n + 2) / (n + 1)
    p = conditional_p(marginal, n, delta)
    assert (np.diff(p) >= 0).all()
    assert (p >= marginal - 1e-12).all() and p[-1] == 1.0
    assert (conditional_p(marginal, n, delta / 2) >= p).all(), "more confidence costs power"
    # At the bottom the price is a factor: 1 - delta^(1/k) against 1 / (n + 1).
    assert p[0] * (n + 1) == pytest.approx(2 * np.log(1 / delta), rel=0.2)


@pytest.mark.parametrize("delta", [0.1, 0.4])
def test_calibration_sets_whose_p_values_are_too_small_are_as_rare_as_promised(rng, delta):
    """Given the set, P(p' <= b_j) is the mass above its j-th largest score: at most b_j."""
    n, draws = 60, 20_000
    mass_above = np.sort(rng.uniform(size=(draws, n)), axis=1)
    limits = conditional_p(np.arange(1, n + 1) / (n + 1), n, delta)
    bad = (mass_above > limits).any(axis=1).mean()
    assert bad <= delta + 3 * np.sqrt(delta * (1 - delta) / draws)
    assert bad > 0.8 * delta, "and no more is paid than that"
    marginal = (mass_above > np.arange(1, n + 1) / (n + 1)).any(axis=1).mean()
    assert marginal > 0.8, "most sets are bad at some level without it"


def test_fresh_cells_keep_the_promise_too(rng):
    """The same by scores: at each level the false positive rate given the set, from many cells."""
    n, delta, bad = 50, 0.2, 0
    fresh = rng.standard_normal(20_000)
    levels = conditional_p(np.arange(1, n + 1) / (n + 1), n, delta)
    for _ in range(300):
        p = conditional_p(conformal_p(fresh, rng.standard_normal(n)), n, delta)
        rates = np.searchsorted(np.sort(p), levels, side="right") / len(p)
        bad += bool((rates > levels + 4 * np.sqrt(levels / len(fresh))).any())
    assert bad / 300 <= delta + 3 * np.sqrt(delta * (1 - delta) / 300)


# ---- ranking cells among themselves


def test_a_tail_p_is_monotone_and_a_rank_where_cells_are_usual(rng):
    score = rng.gamma(2.0, size=500)
    p, order = tail_p(score), np.argsort(score)
    assert (np.diff(p[order]) <= 0).all()
    assert (p > 0).all() and p.max() == 1.0
    usual = score <= np.quantile(score, 0.9)
    rank = (score[:, None] <= score[None]).mean(1)
    np.testing.assert_allclose(p[usual], rank[usual])
    assert (p[~usual] <= 0.1).all()


def test_a_tail_p_does_not_change_with_the_unit_of_the_score(rng):
    score = rng.normal(size=300)
    np.testing.assert_allclose(tail_p(7.0 * score - 3.0), tail_p(score), rtol=1e-9)


@pytest.mark.parametrize(
    ("draw", "low", "high"),
    [
        (lambda rng, n: rng.exponential(size=n), 0.8, 1.25),
        # Lighter tails: p-values are too large, so fewer cells than said fall below a level.
        (lambda rng, n: rng.normal(size=n), 0.0, 0.6),
        (lambda rng, n: rng.uniform(size=n), 0.0, 0.05),
        # A heavier one: too small, which the docstring says.
        (lambda rng, n: rng.standard_t(2, size=n), 2.0, np.inf),
    ],
    ids=["exponential", "normal", "uniform", "heavy"],
)
def test_a_tail_p_is_right_of_exponential_tails_and_careful_of_lighter_ones(rng, draw, low, high):
    p = np.concatenate([tail_p(draw(rng, 5000)) for _ in range(20)])
    for level in (0.01, 0.002):
        assert low <= (p <= level).mean() / level <= high


def test_a_few_odd_cells_do_not_hide_each_other_in_the_tail(rng):
    """Their own scores are not in the scale: a p-value far under the smallest rank."""
    score = np.r_[rng.exponential(size=950), rng.normal(40, 1, 50)]
    p = tail_p(score)
    assert (p[950:] < 1e-8).all()
    assert (false_discovery_control(p) <= 0.1)[:950].sum() <= 3


def test_equal_scores_have_equal_tail_p_values():
    np.testing.assert_array_equal(tail_p(np.full(30, 2.0)), np.ones(30))
    assert len(set(tail_p(np.repeat([1.0, 2.0, 3.0], 20)))) == 3


# ---- the combination


def exact_cauchy(p, weights):
    with mpmath.workdps(400):
        values = [
            mpmath.mpf(float(weight)) * mpmath.cot(mpmath.pi * mpmath.mpf(float(value)))
            for value, weight in zip(p, weights, strict=True)
        ]
        return float(mpmath.acot(mpmath.fsum(values)) / mpmath.pi) % 1.0


def evenly(p):
    """All p-values with the same weight."""
    return cauchy_combination(p, np.full(len(p), 1 / len(p)))


@pytest.mark.parametrize("p", [1e-300, 1e-20, 1e-15, 1e-8, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-12])
def test_one_p_value_combines_to_itself(p):
    assert evenly(np.array([[p]]))[0] == pytest.approx(p, rel=1e-12)
    assert evenly(np.full((6, 1), p))[0] == pytest.approx(p, rel=1e-12)
    uneven = cauchy_combination(np.full((3, 1), p), np.array([0.5, 0.2, 0.3]))
    assert uneven[0] == pytest.approx(p, rel=1e-12)


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
    found = evenly(np.array(p)[:, None])[0]
    assert found == pytest.approx(exact_cauchy(p, np.full(len(p), 1 / len(p))), rel=1e-9)
    weights = np.arange(1, len(p) + 1) / sum(range(1, len(p) + 1))
    found = cauchy_combination(np.array(p)[:, None], weights)[0]
    assert found == pytest.approx(exact_cauchy(p, weights), rel=1e-9)


def test_a_p_of_one_is_no_evidence():
    assert evenly(np.array([[1.0]]))[0] == 1.0
    assert evenly(np.array([[1.0], [0.3]]))[0] == 1.0
    assert np.isfinite(evenly(np.array([[1.0, 1e-5], [0.3, 1.0]]))).all()


@pytest.mark.parametrize("weights", [[0.2] * 5, [0.5, 0.125, 0.125, 0.125, 0.125]])
def test_combination_of_independent_p_values_is_uniform(rng, weights):
    combined = cauchy_combination(rng.uniform(size=(5, 20_000)), np.array(weights))
    assert kstest(combined, "uniform").pvalue > 1e-3


def test_combination_is_monotone_in_every_p():
    p = np.r_[10.0 ** np.arange(-15, -1), np.linspace(0.1, 0.9, 9), 0.999, 1 - 1e-9, 1.0]
    combined = evenly(np.stack([p, np.full(len(p), 0.2)]))
    assert (np.diff(combined) > 0).all()


def test_a_small_p_counts_by_its_weight():
    """Small and alone, p counts as p / weight: cot(pi p) is nearly 1 / (pi p)."""
    p, weights = np.array([[1e-9, 0.5], [0.5, 1e-9]]), np.array([0.8, 0.2])
    np.testing.assert_allclose(cauchy_combination(p, weights), 1e-9 / weights, rtol=1e-6)


def test_company_has_half_of_the_weight_and_the_other_kinds_share_the_rest():
    assert kind_weights(["residuals", "group", "place"]).tolist() == [0.25, 0.5, 0.25]
    assert kind_weights(["group", "residuals"]).tolist() == [0.5, 0.5]
    assert kind_weights(["group"]).tolist() == [1.0]
    assert kind_weights(["a", "b", "c", "d"]).tolist() == [0.25] * 4
    for kinds in (["group", *"abcd"], list("abc"), ["a", "group"]):
        assert kind_weights(kinds).sum() == pytest.approx(1.0)


# ---- kinds of evidence


def dependent_channels(rng, n):
    """Four scores of each cell that share most of their noise."""
    shared = rng.standard_normal(n)
    scores = {f"c{k}": shared + 0.5 * rng.standard_normal(n) for k in range(3)}
    return scores | {"skewed": np.exp(shared) + rng.exponential(size=n)}


def combined(channels, is_calibration, log_depth=None):
    """Score and p-value, each channel a kind of its own."""
    depth = np.zeros(len(is_calibration)) if log_depth is None else log_depth
    score = combine_kinds(channels, is_calibration, depth)
    return score, ranked_p(score, is_calibration)


def test_channels_of_a_kind_are_averaged(rng):
    a, b, c = rng.standard_normal((3, 150))
    found = kind_scores({"a": a, "b": b, "c": c}, {"a": "one", "b": "one", "c": "other"})
    assert list(found) == ["one", "other"]
    np.testing.assert_allclose(found["one"], (a + b) / 2)
    np.testing.assert_allclose(found["other"], c)


def test_only_the_rank_of_a_kind_counts(rng):
    """Whatever scale a kind of evidence has, it has one vote."""
    is_calibration = np.arange(150) < 100
    scores = dict(zip("abc", rng.standard_normal((3, 150)), strict=True))
    stretched = scores | {"a": np.exp(3 * scores["a"])}
    np.testing.assert_array_equal(
        combined(scores, is_calibration)[0], combined(stretched, is_calibration)[0]
    )


def test_query_p_values_are_uniform_although_channels_are_dependent(rng):
    n, p = 60, []
    for _ in range(3000):
        is_calibration = np.arange(n) > 0
        p.append(combined(dependent_channels(rng, n), is_calibration)[1][0])
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
    query = ~is_calibration
    naive = combined(channels, is_calibration)[0]
    for free, normal in (
        (combined(channels, is_calibration, depth)[0], is_calibration),
        (combine_tails(channels, depth), np.full(6000, True)),
    ):
        assert abs(spearmanr(free[normal], depth[normal]).statistic) < 1e-3
        assert abs(np.median(free[normal])) < 1e-9
        before = abs(spearmanr(naive[query], depth[query]).statistic)
        after = abs(spearmanr(free[query], depth[query]).statistic)
        assert before > 0.1
        assert after < 0.05


def test_a_shifted_group_is_found_among_blind_channels(rng):
    is_calibration = np.arange(400) < 300
    channels = dependent_channels(rng, 400)
    channels["blind"] = rng.standard_normal(len(is_calibration))
    odd = np.arange(400) >= 380
    channels["c1"][odd] += 8.0
    score, p = combined(channels, is_calibration)
    assert (false_discovery_control(p[~is_calibration]) <= 0.1)[80:].mean() > 0.8
    assert score[odd].min() > np.median(score[is_calibration])


def test_ranked_among_themselves_the_odd_come_first_too(rng):
    channels = dependent_channels(rng, 400)
    odd = np.arange(400) >= 385
    channels["c1"][odd] += 12.0
    channels["c2"][odd] += 12.0
    score = combine_tails(channels, rng.normal(8, 0.5, 400))
    assert set(np.argsort(-score)[:15]) == set(np.flatnonzero(odd))
    assert (tail_p(score)[odd] < 1 / 400).all(), "smaller than any rank"


def test_being_the_least_odd_in_one_channel_is_not_odd_and_does_not_silence_the_others(rng):
    """p = 1 in a channel: once taken for the strongest evidence there is."""
    is_calibration = np.arange(202) < 200
    channels = {name: rng.standard_normal(202) for name in "abcdef"}
    for name in "abcdef":
        channels[name][200:] = np.median(channels[name])
    channels["a"][200:] = -50.0
    for name in "bcd":
        channels[name][201] = 50.0
    p_value = combined(channels, is_calibration)[1]
    assert ranked_p(channels["a"], is_calibration)[200] == 1.0
    # Kinds that speak against a cell take little from those that speak for it.
    against = combined(channels | {name: -channels["b"] for name in "aef"}, is_calibration)[1]
    assert against[201] < 0.05
    assert p_value[200] > 0.5
    assert p_value[201] < 0.05


def test_benjamini_hochberg_on_them_keeps_its_rate(rng):
    alpha, fdp, power = 0.2, [], []
    is_calibration = np.arange(250) < 150
    odd = np.arange(250) >= 220
    for _ in range(300):
        channels = dependent_channels(rng, 250)
        channels["c0"][odd] += 5.0
        p_value = combined(channels, is_calibration)[1]
        flagged = false_discovery_control(p_value[150:]) <= alpha
        fdp.append((flagged & ~odd[150:]).sum() / max(1, flagged.sum()))
        power.append(flagged[odd[150:]].mean())
    error = np.std(fdp) / np.sqrt(len(fdp))
    # BH controls alpha times the share of nulls, 70 %.
    assert np.mean(fdp) <= 0.7 * alpha + 3 * error
    assert np.mean(fdp) > 0.3 * 0.7 * alpha, "and is not silent"
    assert np.mean(power) > 0.4


def test_calibration_cells_p_values_are_their_ranks(rng):
    is_calibration = np.arange(120) < 100
    score, p_value = combined(dependent_channels(rng, 120), is_calibration)
    p = p_value[:100]
    np.testing.assert_allclose(p, calibration_p(score[:100]))
    assert (p <= 0.05).mean() <= 0.05 + 1e-9
    assert p.max() < 1.0


# ---- calibration cells that are not normal


def test_robust_sds_are_sds_that_a_few_far_cells_do_not_move(rng):
    score = rng.normal(3.0, 2.0, 4000)
    normal = np.arange(4000) < 3000
    np.testing.assert_allclose(robust_sds(score, normal), (score - 3.0) / 2.0, atol=0.2)
    spoilt = score.copy()
    spoilt[:150] += 1e6
    found = robust_sds(spoilt, normal)
    np.testing.assert_allclose(found[150:], robust_sds(score, normal)[150:], atol=0.3)
    # Half of the cells have no mitochondrial count, say: no MAD.
    half = np.r_[np.zeros(60), np.ones(40)]
    np.testing.assert_allclose(robust_sds(half, np.full(100, True)).max(), 1 / np.sqrt(0.4))
    assert (robust_sds(np.ones(9), np.full(9, True)) == 0).all()


def test_contamination_is_what_lies_beyond_the_limit_of_its_kind():
    for kind, limit in anomaly.CONTAMINATED.items():
        score = limit * np.array([0.5, 0.99, 1.01, -1.01])
        assert contaminated({kind: score, "place": np.zeros(4)}).tolist() == [0, 0, 1, 0]
    far = np.r_[np.zeros(9), 50.0]
    assert not contaminated({"place": far, "unseen": far, "quality": far}).any()


# ---- depth


@pytest.mark.parametrize("slope", [-3.0, 0.0, 0.4])
def test_the_slope_in_depth_is_that_of_most_cells(rng, slope):
    """Skewed scores, of which the spread grows with depth: no rank correlation is left."""
    depth = rng.normal(8, 0.5, 3000)
    score = slope * depth + rng.exponential(1.0, 3000) * np.exp(0.5 * (depth - 8))
    found = depth_slope(score, depth)
    assert abs(spearmanr(score - found * depth, depth).statistic) < 1e-3
    shifted = depth_slope(7.0 - 2.0 * depth + 5.0 * score, depth)
    assert shifted == pytest.approx(5.0 * found - 2.0, abs=0.01)


def test_without_depth_or_score_to_vary_there_is_no_slope(rng):
    assert depth_slope(rng.normal(size=20), np.full(20, 8.0)) == 0.0
    assert depth_slope(np.ones(20), rng.normal(size=20)) == 0.0
    depth = rng.normal(size=20)
    assert depth_slope(3.0 * depth, depth) == pytest.approx(3.0, abs=1e-3)
