"""Which dimensions are kept, on what evidence, and that cutting the others changes nothing."""

from dataclasses import fields

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from omics_vae import pruning
from omics_vae.data import CountData
from omics_vae.inference import cell_elbo, embed
from omics_vae.pruning import (
    EVIDENCE_DRAWS,
    Evidence,
    cut_model,
    gather_evidence,
    hard_threshold,
    noise_median,
    signal_axes,
)
from omics_vae.training import TrainingPlan, train
from simulated_counts import CPU, simulate, small_model

TRUE_DIMENSIONS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with 8 dimensions, trained on counts with 3; and cells that it has not seen."""
    torch.set_num_threads(1)
    simulated = simulate(1200, 80, n_latent=TRUE_DIMENSIONS, seed=0, depth=1000.0)
    fitted, held_out = simulated.data(slice(0, 1000)), simulated.data(slice(1000, 1200))
    model = small_model(fitted, n_latent=8, n_hidden=48)
    plan = TrainingPlan(
        max_steps=700,
        batch_size=128,
        learning_rate=3e-3,
        weight_decay=100.0,
        beta=1.0,
        kl_warmup="linear",
        kl_warmup_steps=150,
        kl_cycles=1,
        free_bits=0.0,
        validation_interval=25,
        patience=8,
        min_improvement=0.05,
        checkpoint_seconds=1e9,
        seed=1,
    )
    train(model, fitted, held_out, plan, CPU, tmp_path_factory.mktemp("pruning") / "c")
    return model, held_out, gather_evidence(model, held_out, CPU)


def evidence(kl, ablation, kl_se=0.0, ablation_se=0.0):
    kl, ablation = np.array(kl, dtype=float), np.array(ablation, dtype=float)
    nothing = np.zeros(len(kl))
    return Evidence(kl, nothing + kl_se, kl, kl, ablation, nothing + ablation_se, nothing)


def test_as_many_dimensions_stay_as_made_the_counts(trained):
    _, _, found = trained
    kept = found.keep(0.05, 0.05)
    assert abs(kept.sum() - TRUE_DIMENSIONS) <= 1
    assert (found.mean_variance[kept] > 0.01).all()
    assert found.sure(0.05, 0.05)[kept].all()


def test_kl_is_at_least_the_mismatch_with_the_prior(trained):
    _, _, found = trained
    assert (found.aggregated_kl <= found.kl + 0.05).all()
    assert (found.kl - found.aggregated_kl)[found.keep(0.05, 0.05)].min() > 0.5


def copy_of(model):
    return cut_model(model, np.arange(model.architecture.n_latent), np.zeros(8))


@torch.no_grad()
def test_a_dead_dimension_and_one_that_says_what_nobody_hears(trained):
    model, held_out, before = trained
    live = int(np.argmax(before.ablation))
    dead, noisy = np.flatnonzero(~before.keep(0.05, 0.05))[:2]
    model = copy_of(model)
    model.decoder[0].weight[:, [dead, noisy]] = 0.0
    for head in (model.posterior_mean, model.posterior_log_variance):
        head.weight[[dead, noisy]] = 0.0
        head.bias[[dead, noisy]] = 0.0
    model.posterior_mean.weight[noisy] = 5 * model.posterior_mean.weight[live]
    found = gather_evidence(model, held_out, CPU)
    assert found.kl[dead] == 0
    assert found.mean_variance[dead] == 0
    assert found.ablation[dead] == pytest.approx(0, abs=1e-6)
    assert found.aggregated_kl[dead] == pytest.approx(0, abs=0.02)
    # Its information is paid for and not used: fixing it saves exactly its KL.
    assert found.kl[noisy] > 1.0
    assert found.ablation[noisy] == pytest.approx(-found.kl[noisy], rel=1e-4)
    assert found.ablation[live] > 1.0
    kept = found.keep(0.05, 0.05)
    assert kept[live]
    assert not kept[dead]
    assert not kept[noisy]
    assert found.sure(0.05, 0.05)[[live, dead, noisy]].all()


def test_ablation_is_the_elbo_lost_when_the_model_is_cut_there(trained):
    """Also where the posterior means lie around 1.5 and not around 0."""
    model, held_out, found = trained
    gone = int(np.argmax(found.ablation))
    model = copy_of(model)
    with torch.no_grad():
        model.posterior_mean.bias[gone] += 1.5
        model.decoder[0].bias -= 1.5 * model.decoder[0].weight[:, gone]
    found = gather_evidence(model, held_out, CPU)
    assert found.centre[gone] > 1.0
    cut = cut_model(model, np.arange(8) != gone, found.centre)
    lost = cell_elbo(model, held_out, CPU, 16).mean - cell_elbo(cut, held_out, CPU, 16).mean
    assert found.ablation[gone] == pytest.approx(lost, rel=0.05)


def test_the_errors_are_those_of_paired_cells(trained):
    """The ELBO of cells varies far more than what one dimension is worth to them."""
    model, held_out, found = trained
    whole = cell_elbo(model, held_out, CPU, EVIDENCE_DRAWS)
    j = int(np.argmax(found.ablation))
    centre = float(embed(model, held_out, CPU).mean[:, j].astype(float).mean())
    assert found.centre[j] == pytest.approx(centre)
    without = cell_elbo(model, held_out, CPU, EVIDENCE_DRAWS, fixed={j: centre})
    lost = whole.of_cells - without.of_cells
    assert found.ablation[j] == pytest.approx(lost.mean())
    assert found.ablation_se[j] == pytest.approx(lost.std(ddof=1) / np.sqrt(200))
    assert found.kl[j] == pytest.approx(whole.kl_dimensions[:, j].mean())
    assert found.kl_se[j] == pytest.approx(whole.kl_dimensions[:, j].std(ddof=1) / np.sqrt(200))
    assert found.ablation_se[j] < 0.9 * np.hypot(whole.se, without.se)
    assert (found.ablation_se[~found.keep(0.05, 0.05)] < 0.1 * whole.se).all()


def test_both_thresholds_must_be_passed():
    found = evidence([1.0, 1.0, 0.01, 0.05], [1.0, -0.2, 1.0, 1.0])
    assert found.keep(0.05, 0.05).tolist() == [True, False, False, False]


@pytest.mark.parametrize("kl", [[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]])
def test_one_dimension_always_stays(kl):
    assert evidence(kl, [-3.0, -1.0, -2.0]).keep(0.05, 0.05).tolist() == [False, True, False]


def test_a_verdict_is_sure_two_standard_errors_from_where_it_would_turn():
    """To stay, by both measures; to go, by one of them."""
    ablation = [1.0, 0.2, 0.2, -0.2, -0.1, 0.2]
    kl = [1.0, 1.0, 0.1, 1.0, 1.0, -0.3]
    found = evidence(kl, ablation, kl_se=0.1, ablation_se=0.1)
    sure = [True, False, False, True, False, True]
    assert found.sure(0.05, 0.05).tolist() == sure
    assert found.sure(0.05, 0.05, errors=1.0).tolist() == [True, True, False, True, True, True]
    assert evidence(kl, ablation).sure(0.05, 0.05).all(), "without error all are"


ARCHITECTURES = [
    *({"n_layers": n} for n in (0, 1, 2)),
    *({"skip": skip, "n_layers": n} for skip in ("plain", "film") for n in (1, 2)),
    *({"prior": "mixture", "prior_components": n} for n in (1, 3)),
    *({"prior": "vamp", "prior_components": n} for n in (1, 3)),
    *({"dispersion": "gene_cell", "n_layers": n} for n in (0, 1)),
    *({"likelihood": "zinb", "n_layers": n} for n in (0, 1)),
    {"likelihood": "zinb", "dispersion": "gene_cell", "n_layers": 0},
    {"dispersion": "gene_batch"},
    {"likelihood": "gaussian", "n_layers": 0},
    {"likelihood": "poisson", "decoder": "free"},
    {"library_size": "latent"},
    {"normalization": "batch"},
    {"encode_covariates": True, "prior": "vamp", "prior_components": 2},
]


@pytest.fixture(scope="module")
def few_cells():
    """With two covariates and two batches."""
    simulated, rng = simulate(30, 12, n_latent=2, seed=3), np.random.default_rng(0)
    covariates = rng.standard_normal((30, 2)).astype(np.float32)
    batch = rng.integers(0, 2, 30)
    return CountData(simulated.counts, np.log(simulated.library_size), covariates, batch)


def restless_model(data, **architecture):
    """One of 5 dimensions whose every parameter and statistic is off its start."""
    model = small_model(data, 5, n_covariates=2, n_batches=2, **architecture).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name != "film.bias":
                tensor += 0.2 * torch.rand_like(tensor)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@torch.no_grad()
def test_a_cut_model_decodes_as_the_whole_one_with_the_rest_at_its_centre(few_cells, architecture):
    model, batch = restless_model(few_cells, **architecture), few_cells.chunk(slice(None), CPU)
    centre = np.linspace(-1.5, 1.5, 5)
    kept = np.array([False, True, True, False, True])
    z = torch.randn(30, 5)
    z[:, ~kept] = torch.tensor(centre[~kept], dtype=torch.float32)
    q = model.encode(batch)
    whole = model.decode(z, q, batch)
    assert (whole.mean - model.decode(z + 0.1, q, batch).mean).abs().max() > 1e-3
    for which in (kept, np.flatnonzero(kept)):
        cut = cut_model(model, which, centre)
        assert cut.architecture.n_latent == 3
        assert not cut.training
        q_cut = cut.encode(batch)
        for part in ("mean", "log_variance"):
            torch.testing.assert_close(getattr(q_cut, part), getattr(q, part)[:, kept])
        torch.testing.assert_close(q_cut.log_size, q.log_size)
        found = cut.decode(z[:, kept], q_cut, batch)
        for field in fields(whole):
            one, other = getattr(found, field.name), getattr(whole, field.name)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=field.name)
        marginal = model.prior_of_z().take(np.flatnonzero(kept).tolist())
        torch.testing.assert_close(
            cut.prior_of_z().log_prob(z[:, kept]), marginal.log_prob(z[:, kept])
        )


def test_cutting_leaves_the_whole_model_as_it_was(trained):
    model, _, _ = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = cut_model(model, np.arange(4), np.ones(8))
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.add_(1.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("aspect", [0.02, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_the_hard_threshold_is_that_of_the_paper(aspect):
    """Its cubic fit, accurate to 0.02, on either side; and in proportion to the noise."""
    shape = (1000, round(1000 * aspect))
    cubic = 0.56 * aspect**3 - 0.95 * aspect**2 + 1.82 * aspect + 1.43
    for side in (shape, shape[::-1]):
        found = hard_threshold(np.array([0.5, 1.0, 9.0]), side)
        assert found == pytest.approx(cubic, abs=0.02)
        # Of known noise, over the root of the median.
        known = np.sqrt(
            2 * (aspect + 1) + 8 * aspect / (aspect + 1 + np.sqrt(aspect**2 + 14 * aspect + 1))
        )
        assert found == pytest.approx(known / np.sqrt(noise_median(aspect)))
    assert hard_threshold(np.full(5, 7.0), shape) == pytest.approx(7 * found)


def test_the_hard_threshold_of_a_square_matrix():
    assert hard_threshold(np.ones(3), (50, 50)) == pytest.approx(2.858, abs=5e-4)
    assert 2.858 * np.sqrt(noise_median(1.0)) == pytest.approx(4 / np.sqrt(3), abs=5e-4)


@pytest.mark.parametrize("aspect", [0.01, 0.3, 1.0])
def test_half_of_the_marchenko_pastur_law_lies_below_its_median(aspect):
    low, high = (1 - np.sqrt(aspect)) ** 2, (1 + np.sqrt(aspect)) ** 2
    edges = np.linspace(0, 1, 200_001) ** 2 * (noise_median(aspect) - low) + low
    t = (edges[1:] + edges[:-1]) / 2
    density = np.sqrt((high - t) * (t - low)) / (2 * np.pi * aspect * t)
    assert (density * np.diff(edges)).sum() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("shape", [(400, 400), (600, 150), (800, 40)])
def test_noise_median_is_that_of_singular_values_of_noise(shape):
    values = np.linalg.svd(np.random.default_rng(0).standard_normal(shape), compute_uv=False)
    expected = np.median(values**2) / max(shape)
    assert noise_median(min(shape) / max(shape)) == pytest.approx(expected, rel=0.03)


def counts_of(mu, size) -> CountData:
    x = np.random.default_rng(1).poisson(mu).astype(float)
    return CountData(sp.csr_matrix(x), np.log(size))


def expected_counts(shape, rank, depth=3000.0):
    """Shares that lie in a space of ``rank`` dimensions around one profile; and sizes."""
    rng = np.random.default_rng(0)
    base = rng.dirichlet(np.full(shape[1], 3.0))
    moves = rng.choice([-1.0, 1.0], (rank, shape[1])) * 0.35 / max(rank, 1)
    shares = base * (1 + rng.uniform(-1, 1, (shape[0], rank)) @ moves)
    size = depth * np.exp(rng.normal(0, 0.4, shape[0]))
    return size[:, None] * shares, size


@pytest.mark.parametrize("shape", [(400, 60), (150, 200)])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_as_many_axes_stand_above_poisson_noise_as_made_the_counts(shape, rank):
    assert signal_axes(counts_of(*expected_counts(shape, rank))) == rank


@pytest.mark.parametrize("n_latent", [0, 3, 5])
def test_as_many_axes_stand_above_negative_binomial_noise_as_made_the_counts(n_latent):
    """Biological scatter grows with the mean: under the Poisson each abundant gene is an axis."""
    assert signal_axes(simulate(800, 150, n_latent, seed=1, loading=0.2).data()) == n_latent


def test_the_curvature_of_the_shares_hardly_adds_axes():
    """Shares are exponential in z; Pearson residuals make nine axes of these three."""
    found = signal_axes(simulate(800, 200, 3, seed=1, loading=0.4).data())
    assert 3 <= found <= 4


@pytest.mark.parametrize("theta", [None, 0.3, 30.0])
def test_cells_of_very_different_depth_are_no_axis(theta):
    """Whatever the scatter: assumed too large or too small, it would depend on the depth."""
    rng = np.random.default_rng(0)
    size = 5000 * np.exp(rng.normal(0, 1.0, 300))
    mu = np.outer(size, 0.7 * rng.dirichlet(np.exp(rng.normal(0, 1.0, 600))))
    x = rng.poisson(mu if theta is None else rng.gamma(theta, mu / theta)).astype(float)
    assert signal_axes(CountData(sp.csr_matrix(x), np.log(size))) == 0


def test_axes_do_not_count_depth_nor_genes_never_seen():
    mu, size = expected_counts((300, 50), 2)
    data = counts_of(mu, size)
    never = sp.csr_matrix((300, 40))
    assert signal_axes(CountData(sp.hstack([data.counts[:], never]).tocsr(), data.log_offset)) == 2
    mu, size = expected_counts((300, 50), 0)
    deeper = np.exp(np.random.default_rng(3).normal(0, 1.0, 300))
    assert signal_axes(counts_of(mu * deeper[:, None], size * deeper)) == 0


def test_one_huge_count_is_no_axis():
    counts = counts_of(*expected_counts((300, 50), 0)).counts.toarray()
    _, size = expected_counts((300, 50), 0)
    counts[7, 3] = 1e6
    assert signal_axes(CountData(sp.csr_matrix(counts), np.log(size))) == 0


def test_of_many_cells_some_are_taken(monkeypatch):
    monkeypatch.setattr(pruning, "AXES_CELLS", 400)
    assert signal_axes(counts_of(*expected_counts((900, 60), 3))) == 3
