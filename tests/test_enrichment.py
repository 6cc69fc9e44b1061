"""Company: held-out cells that crowd where the training cells are few, and nothing else."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import ks_2samp, spearmanr
from sklearn.metrics import roc_auc_score

import enrichment as module
from design import Design
from enrichment import enrichment, log_profiles
from held_cells import Cells
from omics_vae.data import CountData
from simulated_counts import Simulated, cells_of, simulate_types, small_model

N_TRAIN, N_HELD = 400, 300


def two_sides(kind: np.ndarray, seed: int = 0, **obs) -> tuple[Cells, Cells]:
    """Training cells and held-out cells of the types ``kind``."""
    return sides_of(simulate_types(kind, seed=seed), **obs)


def sides_of(simulated: Simulated, design: Design | None = None, **obs) -> tuple[Cells, Cells]:
    n = len(simulated.library_size)
    split = np.where(np.arange(n) < N_TRAIN, "train", "query")
    of_model = CountData(simulated.counts[:, :40], np.log(simulated.library_size))
    n_covariates = design.n_covariates if design else 0
    covariates = np.zeros((n, n_covariates), dtype=np.float32)
    if design:
        of_model = CountData(of_model.counts, of_model.log_offset, covariates)
    model = small_model(of_model, n_covariates=n_covariates)
    cells = cells_of(simulated, split, model, *([design] if design else []), **obs)
    return cells.of("train"), cells.of("query")


def kinds(rng, n_new: int = 0) -> np.ndarray:
    kind = rng.integers(0, 3, N_TRAIN + N_HELD)
    kind[len(kind) - n_new :] = 3
    return kind


def test_a_type_that_the_training_cells_lack_stands_out():
    kind = kinds(np.random.default_rng(0), n_new=40)
    train, held_out = two_sides(kind)
    score = enrichment(train, held_out, seed=1)
    assert score.shape == (N_HELD,)
    assert roc_auc_score(kind[N_TRAIN:] == 3, score) > 0.97
    assert np.median(score[-40:]) > 0.5 > np.quantile(score[:-40], 0.9)


def test_a_type_that_is_there_on_both_sides_does_not():
    """Not even a rare one; what counts is the share of it, not how odd its cells are."""
    rng = np.random.default_rng(1)
    kind = rng.choice(4, N_TRAIN + N_HELD, p=[0.4, 0.3, 0.2, 0.1])
    train, held_out = two_sides(kind)
    score = enrichment(train, held_out, seed=1)
    rare = kind[N_TRAIN:] == 3
    assert 0.2 < roc_auc_score(rare, score) < 0.8
    assert score.std() < 0.5


def test_a_type_that_is_more_frequent_in_the_query_stands_out_by_how_much():
    found = []
    for share in (0.1, 0.3, 0.6):
        rng = np.random.default_rng(2)
        kind = rng.choice(3, N_TRAIN + N_HELD, p=[0.5, 0.4, 0.1])
        kind[N_TRAIN:] = rng.choice(3, N_HELD, p=[0.55 * (1 - share), 0.45 * (1 - share), share])
        train, held_out = two_sides(kind)
        score = enrichment(train, held_out, seed=1)
        found.append(np.mean(score[kind[N_TRAIN:] == 2]))
    assert found[0] + 0.2 < found[1] < found[2] - 0.2


def test_calibration_and_query_cells_of_one_kind_score_alike():
    """They are of the same side, so their scores are exchangeable, other cells or not."""
    p = []
    for seed in range(20):
        kind = kinds(np.random.default_rng(seed), n_new=30)
        train, held_out = two_sides(kind, seed=seed)
        score = enrichment(train, held_out, seed=seed)
        p.append(ks_2samp(score[:150], score[150:-30]).pvalue)
    assert min(p) > 0.05 / 20


def test_the_order_of_the_held_out_cells_is_nothing_to_their_scores(monkeypatch):
    kind = kinds(np.random.default_rng(3), n_new=40)
    train, held_out = two_sides(kind)
    order = np.random.default_rng(0).permutation(N_HELD)
    found = enrichment(train, held_out, seed=1)[order]
    # Which cells are landmarks hangs on their places, hence a little of the score.
    assert spearmanr(enrichment(train, held_out.take(order), seed=1), found).statistic > 0.99
    monkeypatch.setattr(module, "LANDMARKS", N_TRAIN + N_HELD)
    found = enrichment(train, held_out, seed=1)[order]
    np.testing.assert_allclose(
        enrichment(train, held_out.take(order), seed=1), found, rtol=1e-6, atol=1e-8
    )


def test_scores_do_not_depend_on_how_cells_are_passed_through(request):
    train, held_out = two_sides(kinds(np.random.default_rng(5), n_new=30))
    at_once = enrichment(train, held_out, seed=1)
    request.getfixturevalue("small_blocks")
    np.testing.assert_allclose(enrichment(train, held_out, seed=1), at_once, rtol=1e-6, atol=1e-9)


def test_the_same_seed_gives_the_same_scores():
    train, held_out = two_sides(kinds(np.random.default_rng(4), n_new=40))
    first = enrichment(train, held_out, seed=1)
    np.testing.assert_array_equal(enrichment(train, held_out, seed=1), first)
    assert spearmanr(enrichment(train, held_out, seed=2), first).statistic > 0.9


def shifted_batches(rng) -> tuple[Simulated, np.ndarray]:
    """Batch b shows 20 genes three times as much; it is rare in training and common after it."""
    batch = np.where(rng.random(N_TRAIN + N_HELD) < 0.25, "b", "a")
    batch[N_TRAIN:] = np.where(rng.random(N_HELD) < 0.8, "b", "a")
    made = simulate_types(np.zeros(N_TRAIN + N_HELD, dtype=int), seed=5)
    mu = np.where((batch == "b")[:, None] & (np.arange(60) < 20), 3.0, 1.0) * made.mu
    mu *= made.library_size[:, None] / mu.sum(1, keepdims=True)
    counts = sp.csr_matrix(rng.poisson(rng.gamma(4.0, mu / 4.0)).astype(np.int32))
    return Simulated(counts, made.library_size, made.z, mu, 4.0), batch


def test_a_batch_that_the_model_knows_is_no_group():
    simulated, batch = shifted_batches(np.random.default_rng(5))
    is_b = batch[N_TRAIN:] == "b"
    unknown = enrichment(*sides_of(simulated, batch=batch), seed=1)
    design = Design({"batch": ["a", "b"]}, {}, [])
    known = enrichment(*sides_of(simulated, design, batch=batch), seed=1)
    assert roc_auc_score(is_b, unknown) > 0.95
    assert roc_auc_score(is_b, known) == pytest.approx(0.5, abs=0.12)


def test_a_new_type_is_found_across_known_batches():
    rng = np.random.default_rng(6)
    simulated, batch = shifted_batches(rng)
    kind = np.zeros(N_TRAIN + N_HELD, dtype=int)
    kind[-40:] = 1
    mu = np.where((kind == 1)[:, None] & (np.arange(60) >= 45), 4.0, 1.0) * simulated.mu
    counts = sp.csr_matrix(rng.poisson(rng.gamma(4.0, mu / 4.0)).astype(np.int32))
    changed = Simulated(counts, mu.sum(1), simulated.z, mu, 4.0)
    design = Design({"batch": ["a", "b"]}, {}, [])
    score = enrichment(*sides_of(changed, design, batch=batch), seed=1)
    assert roc_auc_score(kind[N_TRAIN:] == 1, score) > 0.95


def test_what_a_batch_is_like_is_learned_from_training_cells_only():
    """A new type that comes in one known batch alone is not taken for the batch."""
    rng = np.random.default_rng(9)
    batch = np.where(rng.random(N_TRAIN + N_HELD) < 0.3, "b", "a")
    kind = np.zeros(N_TRAIN + N_HELD, dtype=int)
    kind[N_TRAIN:] = np.where(batch[N_TRAIN:] == "b", 1, 0)
    design = Design({"batch": ["a", "b"]}, {}, [])
    score = enrichment(*sides_of(simulate_types(kind, seed=9), design, batch=batch), seed=1)
    assert roc_auc_score(kind[N_TRAIN:] == 1, score) > 0.95


def test_a_group_that_no_plane_parts_from_the_others_is_found_too():
    """Of two programs normal cells show both or none; the new ones show one of the two."""
    n, found = N_TRAIN + N_HELD, []
    is_new = np.arange(n) >= n - 60
    for seed in (10, 11, 12):
        rng = np.random.default_rng(seed)
        first = rng.integers(0, 2, n)
        second = np.where(is_new, 1 - first, first)
        made = simulate_types(np.zeros(n, dtype=int), seed=seed, depth=4000.0)
        mu = made.mu.copy()
        mu[first == 1, 10:20] *= 6.0
        mu[second == 1, 30:40] *= 6.0
        counts = sp.csr_matrix(rng.poisson(rng.gamma(4.0, mu / 4.0)).astype(np.int32))
        score = enrichment(*sides_of(Simulated(counts, mu.sum(1), made.z, mu, 4.0)), seed=1)
        found.append(roc_auc_score(is_new[N_TRAIN:], score))
    # 0.6 without radial functions.
    assert np.mean(found) > 0.75


def test_both_sides_weigh_the_same_however_many_cells_they_have():
    train, held_out = two_sides(kinds(np.random.default_rng(11)), seed=11)
    score = enrichment(train, held_out.take(np.arange(60)), seed=1)
    assert abs(np.median(score)) < 0.4, "log(60 / 400) is -1.9"


def test_more_cells_than_the_classifier_takes_are_all_scored(monkeypatch):
    kind = kinds(np.random.default_rng(7), n_new=40)
    train, held_out = two_sides(kind)
    whole = enrichment(train, held_out, seed=1)
    monkeypatch.setattr(module, "CELLS", 150)
    part = enrichment(train, held_out, seed=1)
    assert part.shape == whole.shape and np.isfinite(part).all()
    assert roc_auc_score(kind[N_TRAIN:] == 3, part) > 0.9


def test_profiles_are_log_counts_at_a_common_library_size():
    counts = sp.csr_matrix(np.array([[4, 0, 6], [0, 1, 1], [30, 10, 0]]))
    size = np.array([10.0, 2.0, 40.0])
    found = log_profiles(counts, size, 10.0)
    assert sp.issparse(found)
    expected = np.log1p(counts.toarray() / size[:, None] * 10.0)
    np.testing.assert_allclose(found.toarray(), expected)


def test_depth_alone_is_no_group():
    """Held-out cells twice as deep as the training cells are at the same place."""
    made = simulate_types(kinds(np.random.default_rng(8)), seed=8, depth=2000.0)
    rng = np.random.default_rng(0)
    share = np.where(np.arange(N_TRAIN + N_HELD) < N_TRAIN, 0.5, 1.0)
    thinned = rng.binomial(made.counts.toarray(), share[:, None])
    counts = sp.csr_matrix(thinned.astype(np.int32))
    train, held_out = sides_of(
        Simulated(counts, made.library_size * share, made.z, made.mu, made.theta)
    )
    score = enrichment(train, held_out, seed=1)
    assert abs(spearmanr(score, held_out.size).statistic) < 0.3
