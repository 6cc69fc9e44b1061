"""Injected anomalies are of the kind and the strength that the table says."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from held_cells import Cells
from injection import (
    GROUP,
    KINDS,
    LEAST_EXPECTED,
    as_split,
    expected_counts,
    inject_ambient,
    inject_doublets,
    inject_gene,
    inject_program,
    injected,
    possible_kinds,
)
from omics_vae.data import CountData
from omics_vae.inference import decoded
from simulated_counts import CPU, Simulated, cells_of, simulate, simulate_types, small_model

N_MODEL = 40


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def made(n_cells=200, depth=2000.0, **architecture):
    """A model and normal cells of two samples; genes 40 to 59 are not in the model."""
    simulated = simulate(n_cells, 60, n_latent=2, seed=3, depth=depth)
    of_model = CountData(simulated.counts[:, :N_MODEL], np.log(simulated.library_size))
    model = small_model(of_model, **architecture)
    sample = np.where(np.arange(n_cells) % 2, "S1", "S2")
    return model, cells_of(simulated, np.full(n_cells, "query"), model, sample=sample)


@pytest.fixture(scope="module")
def run():
    return made()


def dense(counts) -> np.ndarray:
    return counts.toarray().astype(np.int64)


def changes(run, make, rng) -> tuple[np.ndarray, np.ndarray]:
    """Counts before and after."""
    model, cells = run
    return dense(cells.counts), dense(make(cells, model, CPU, rng))


# ---- one gene


@pytest.mark.parametrize("z", [2, 3, 4, 6])
def test_one_gene_of_each_cell_is_set_to_the_z_that_was_asked_for(run, rng, z):
    before, after = changes(run, inject_gene(z), rng)
    mean, sd = expected_counts(*run, CPU)
    cells, genes = np.nonzero(before != after)
    reached = (after[cells, genes] - mean[cells, genes]) / sd[cells, genes]
    # A count is whole, so it goes beyond z by less than one count.
    assert (reached >= z - 1e-9).all()
    assert (reached < z + 1 / sd[cells, genes]).all()
    assert (genes < N_MODEL).all()
    assert (mean[cells, genes] >= LEAST_EXPECTED).all()
    changed = (before != after).sum(1)
    # A few happened to have that count already.
    assert changed.max() == 1 and changed.mean() > 0.9


def test_genes_differ_between_cells_and_all_usual_ones_are_drawn(run, rng):
    before, after = changes(run, inject_gene(6), rng)
    drawn = np.flatnonzero((before != after).any(0))
    mean, _ = expected_counts(*run, CPU)
    usual = (mean >= LEAST_EXPECTED).any(0)
    assert len(drawn) > 0.8 * usual.sum()
    assert usual[drawn].all()


def test_expectations_are_those_of_the_model_in_counts(run):
    model, cells = run
    mean, sd = expected_counts(model, cells, CPU)
    ((_, _, nb),) = decoded(model, cells.data, cells.posterior, CPU)
    theta = np.exp(nb.log_theta.numpy())
    np.testing.assert_allclose(mean, nb.mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(sd, np.sqrt(mean + mean**2 / theta), rtol=1e-5)


def test_a_gaussian_model_expects_counts_too():
    """Its mean is of log counts at a common depth; the injected count must be one of the cell."""
    model, cells = made(likelihood="gaussian")
    mean, _ = expected_counts(model, cells, CPU)
    observed = cells.counts.toarray()[:, :N_MODEL]
    ratio = mean.sum(1) / observed.sum(1)
    assert np.median(ratio) == pytest.approx(0.8, abs=0.25)
    assert spearmanr(mean.sum(1), cells.size).statistic > 0.9


def test_cells_too_shallow_for_any_usual_gene_get_their_likeliest(rng):
    model, cells = made(depth=0.5, n_cells=100)
    some = cells.counts.of_genes(np.arange(N_MODEL)).sum(1) > 0
    cells = cells.take(some)
    mean, _ = expected_counts(model, cells, CPU)
    shallow = ~(mean >= LEAST_EXPECTED).any(1)
    after = dense(inject_gene(6)(cells, model, CPU, rng))
    before = dense(cells.counts)
    assert shallow.sum() > 3
    for cell in np.flatnonzero(shallow):
        changed = np.flatnonzero(after[cell] != before[cell])
        assert set(changed) <= {mean[cell].argmax()}


# ---- a program


@pytest.mark.parametrize("n_genes", [5, 20])
def test_a_program_is_the_same_genes_in_all_cells_and_four_fold(run, rng, n_genes):
    before, after = changes(run, inject_program(n_genes), rng)
    program = np.flatnonzero((before != after).any(0))
    assert len(program) == n_genes and (program < N_MODEL).all()
    mean, _ = expected_counts(*run, CPU)
    assert (mean.mean(0)[program] >= LEAST_EXPECTED).all()
    assert (after >= before).all()
    more = (after - before)[:, program].sum()
    expected = 3.0 * mean[:, program].sum()
    assert more == pytest.approx(expected, abs=5 * np.sqrt(expected))
    fold = after[:, program].sum() / before[:, program].sum()
    assert fold == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("make", [inject_gene(6), inject_program(5)])
def test_genes_of_the_model_stand_anywhere_among_all_genes(run, rng, make):
    """Here they are the last 40 of 60, in reverse."""
    model, cells = run
    order = np.r_[np.arange(40, 60), np.arange(40)[::-1]]
    at = np.arange(20, 60)[::-1]
    moved = replace(cells, counts=cells.counts.of_genes(order), in_model=at)
    before, after = dense(cells.counts), dense(make(cells, model, CPU, np.random.default_rng(2)))
    again = dense(make(moved, model, CPU, np.random.default_rng(2)))
    assert (before != after).any()
    np.testing.assert_array_equal(again, after[:, order])


def test_a_program_is_drawn_among_genes_that_the_cells_express(rng):
    model, cells = made(depth=8.0)
    mean, _ = expected_counts(model, cells, CPU)
    usual = mean.mean(0) >= LEAST_EXPECTED
    assert 12 < usual.sum() < 35
    found = set()
    for seed in range(12):
        after = dense(inject_program(5)(cells, model, CPU, np.random.default_rng(seed)))
        found |= set(np.flatnonzero((after != dense(cells.counts)).any(0)))
    assert usual[list(found)].all()


def test_another_draw_is_another_program(run):
    programs = set()
    for seed in range(5):
        before, after = changes(run, inject_program(5), np.random.default_rng(seed))
        programs.add(tuple(np.flatnonzero((before != after).any(0))))
    assert len(programs) == 5


def test_a_program_larger_than_the_model_is_all_of_its_genes(run, rng):
    before, after = changes(run, inject_program(100), rng)
    assert ((before != after).any(0) == (np.arange(60) < N_MODEL)).all()


# ---- doublets and ambient counts: the depth stays


def test_doublets_have_the_depth_of_the_cell_and_counts_of_both(rng):
    """Two samples that express different genes: partners come from the cell's own sample."""
    kind = np.arange(300) % 2
    simulated = simulate_types(kind, seed=1, fold=1.0, depth=3000.0)
    counts = simulated.counts.tolil()
    counts[np.ix_(kind == 0, np.arange(30))] = 0
    counts[np.ix_(kind == 1, np.arange(30, 60))] = 0
    simulated = Simulated(counts.tocsr(), simulated.library_size, simulated.z, simulated.mu, 4.0)
    data = CountData(simulated.counts[:, :N_MODEL], np.log(simulated.library_size))
    model, sample = small_model(data), np.where(kind, "S1", "S2")
    cells = cells_of(simulated, np.full(300, "query"), model, sample=sample)
    after = inject_doublets(cells, model, CPU, rng)
    before = dense(cells.counts)
    total = before.sum(1)
    depth = dense(after).sum(1)
    # Thinned binomially: the depth of the one in the mean, and a little scatter.
    assert depth.sum() == pytest.approx(total.sum(), rel=0.01)
    assert np.abs(depth - total).max() < 6 * np.sqrt(total.max())
    assert dense(after)[kind == 0][:, :30].sum() == 0, "no partner of another sample"
    assert dense(after)[kind == 1][:, 30:].sum() == 0
    assert (dense(after) != before).any(1).all()


def test_a_doublet_lies_between_two_cells(rng):
    kind = np.arange(300) % 2
    simulated = simulate_types(kind, seed=1, fold=20.0, depth=3000.0)
    model = small_model(CountData(simulated.counts[:, :N_MODEL], np.log(simulated.library_size)))
    cells = cells_of(simulated, np.full(300, "query"), model)
    after = dense(inject_doublets(cells, model, CPU, rng))
    own = [dense(cells.counts)[kind == k][:, 8 * k : 8 * k + 8].sum() for k in (0, 1)]
    mixed = (after[:, :8].sum(1) > 0.3 * own[0] / 150) & (
        after[:, 8:16].sum(1) > 0.3 * own[1] / 150
    )
    assert mixed.mean() == pytest.approx(0.5, abs=0.12), (
        "half of the partners are of the other type"
    )


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_ambient_counts_replace_a_share_of_the_cell_and_its_total_stays(run, rng, share):
    before, after = changes(run, inject_ambient(share), rng)
    np.testing.assert_array_equal(after.sum(1), before.sum(1))
    soup = before.sum(0) / before.sum()
    expected = (1 - share) * before + share * before.sum(1, keepdims=True) * soup
    assert np.corrcoef(after.ravel(), expected.ravel())[0, 1] > 0.97
    # Genes that a cell lacks come in by the soup alone.
    absent = before == 0
    lost = np.broadcast_to(share * before.sum(1, keepdims=True) * soup, before.shape)
    assert after[absent].sum() == pytest.approx(lost[absent].sum(), rel=0.05)
    own = (before - after).clip(0).sum() / before.sum()
    assert 0.2 * share < own < share


# ---- put into normal cells


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind} {kind.strength}")
def test_the_chosen_cells_change_and_the_rest_follows(run, kind):
    model, cells = run
    chosen = np.array([3, 50, 51, 120, 199])
    before = cells.take(chosen)
    found = injected(kind, cells, chosen, model, CPU, np.random.default_rng(1))
    pd.testing.assert_frame_equal(found.obs, before.obs)
    assert found.counts[:].dtype == cells.counts[:].dtype
    assert (dense(found.counts) != dense(before.counts)).any(1).sum() >= 4
    total = [dense(of.counts).sum(1) for of in (before, found)]
    np.testing.assert_allclose(found.size, before.size * total[1] / total[0], rtol=1e-12)
    # The encoder is asked of what they became.
    assert (np.abs(found.latent - before.latent).max(1) > 1e-4).sum() >= 3
    again = injected(kind, cells, chosen, model, CPU, np.random.default_rng(1))
    assert (again.counts[:] != found.counts[:]).nnz == 0


def test_kinds_have_names_of_their_own_and_one_is_made_of_whole_cells():
    names = [(kind.kind, kind.strength) for kind in [*KINDS, GROUP]]
    assert len(set(names)) == len(names)
    assert [kind for kind in [*KINDS, GROUP] if kind.make is None] == [GROUP]
    assert {kind.kind for kind in KINDS} == {"single gene", "program", "doublet", "ambient"}


def test_the_strength_of_a_kind_rises_and_its_name_says_it():
    for name in ("single gene", "program", "ambient"):
        values = [kind.value for kind in KINDS if kind.kind == name]
        assert len(values) >= 3 and values == sorted(set(values))
    named = {kind.strength: kind.value for kind in KINDS}
    assert (named["z = 12"], named["20 genes, 4-fold"], named["half of the counts"]) == (
        12,
        20,
        0.5,
    )


def test_samples_are_no_doublets_and_a_program_is_at_most_half_of_the_genes():
    assert possible_kinds("cells", 600) == KINDS
    bulk = possible_kinds("samples", 100)
    assert {kind.kind for kind in bulk} == {"single gene", "program"}
    assert [kind.value for kind in bulk if kind.kind == "program"] == [5, 20]


def test_stronger_injections_are_less_probable(run, rng):
    """-log p of the injected counts under the model rises from z = 2 to z = 6."""
    model, cells = run
    found = []
    for z in (2, 3, 4, 6):
        chosen = np.arange(len(cells))
        odd = injected(replace(KINDS[0], make=inject_gene(z)), cells, chosen, model, CPU, rng)
        ((_, x, nb),) = decoded(model, odd.data, cells.posterior, CPU)
        found.append(nb.surprise(x).max(1).mean())
    assert (np.diff(found) > 0).all()


def test_a_split_can_be_given_to_cells_without_touching_them(run):
    _, cells = run
    found = as_split(cells, "calibration")
    assert set(found.split) == {"calibration"} and set(cells.split) == {"query"}
    assert isinstance(found, Cells) and found.counts is cells.counts
