"""Which dimensions are kept, on what evidence, and that cutting the others changes nothing."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from omics_vae.inference import embed, held_out_elbo
from omics_vae.pruning import Evidence, aggregated_kl, cut_model, gather_evidence
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
        kl_warmup_steps=150,
        validation_interval=25,
        patience=8,
        min_improvement=0.05,
        checkpoint_seconds=1e9,
        seed=1,
    )
    train(model, fitted, held_out, plan, CPU, tmp_path_factory.mktemp("pruning") / "c")
    return model, held_out, gather_evidence(model, held_out, CPU)


def evidence(kl, ablation):
    kl, ablation = np.array(kl), np.array(ablation)
    return Evidence(kl, kl, kl, ablation, np.zeros(len(kl)))


def test_as_many_dimensions_stay_as_made_the_counts(trained):
    _, _, found = trained
    kept = found.keep(0.05, 0.05)
    assert abs(kept.sum() - TRUE_DIMENSIONS) <= 1
    assert (found.mean_variance[kept] > 0.01).all()


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
    model.decoder_input.weight[:, [dead, noisy]] = 0.0
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


def test_ablation_is_the_elbo_lost_when_the_model_is_cut_there(trained):
    """Also where the posterior means lie around 1.5 and not around 0."""
    model, held_out, found = trained
    gone = int(np.argmax(found.ablation))
    model = copy_of(model)
    with torch.no_grad():
        model.posterior_mean.bias[gone] += 1.5
        model.decoder_input.bias -= 1.5 * model.decoder_input.weight[:, gone]
    found = gather_evidence(model, held_out, CPU)
    assert found.centre[gone] > 1.0
    cut = cut_model(model, np.arange(8) != gone, found.centre)
    lost = held_out_elbo(model, held_out, CPU, 16).elbo - held_out_elbo(cut, held_out, CPU, 16).elbo
    assert found.ablation[gone] == pytest.approx(lost, rel=0.05)


def test_both_thresholds_must_be_passed():
    found = evidence([1.0, 1.0, 0.01, 0.05], [1.0, -0.2, 1.0, 1.0])
    assert found.keep(0.05, 0.05).tolist() == [True, False, False, False]


@pytest.mark.parametrize("kl", [[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]])
def test_one_dimension_always_stays(kl):
    assert evidence(kl, [-3.0, -1.0, -2.0]).keep(0.05, 0.05).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("centre", "variance"), [(0.0, 0.3), (0.8, 0.5), (0.0, 1.0), (-0.5, 2.0), (0.0, 0.02)]
)
def test_aggregated_kl_of_a_gaussian_is_the_closed_form(centre, variance):
    """Means N(centre, s^2) and one posterior variance v average to N(centre, s^2 + v)."""
    spread = 0.6
    grid = centre + spread * norm.ppf((np.arange(1000) + 0.5) / 1000)
    mean = np.column_stack([grid, np.zeros(1000)]).astype(np.float32)
    found = aggregated_kl(mean, np.full((1000, 2), variance, dtype=np.float32))
    total = spread**2 + variance
    assert found[0] == pytest.approx(0.5 * (centre**2 + total - 1 - np.log(total)), abs=0.04)
    alone = 0.5 * (variance - 1 - np.log(variance))
    assert found[1] == pytest.approx(alone, abs=0.04)


def test_many_cells_are_sampled_without_changing_the_answer():
    rng = np.random.default_rng(0)
    mean = rng.normal(0.5, 0.7, (4000, 1))
    found = aggregated_kl(mean, np.full((4000, 1), 0.5))
    assert found[0] == pytest.approx(0.5 * (0.25 + 0.99 - 1 - np.log(0.99)), abs=0.05)


@torch.no_grad()
def test_a_cut_model_decodes_as_the_whole_one_with_the_rest_at_its_centre(trained):
    model, held_out, _ = trained
    centre = np.linspace(-1.5, 1.5, 8)
    kept = np.array([False, True, True, False, False, True, False, True])
    for which in (kept, np.flatnonzero(kept)):
        cut = cut_model(model, which, centre)
        z = torch.randn(20, 8)
        z[:, ~kept] = torch.tensor(centre[~kept], dtype=torch.float32)
        offset = torch.linspace(5, 8, 20)
        torch.testing.assert_close(
            cut.decode(z[:, kept], offset), model.decode(z, offset), rtol=1e-5, atol=1e-4
        )
        for part, whole in zip(embed(cut, held_out, CPU), embed(model, held_out, CPU), strict=True):
            np.testing.assert_allclose(part, whole[:, kept], rtol=1e-4, atol=1e-5)
        assert cut.architecture.n_latent == 4
        assert not cut.training


def test_cutting_leaves_the_whole_model_as_it_was(trained):
    model, _, _ = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = cut_model(model, np.arange(4), np.ones(8))
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.add_(1.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
