"""The generative model: scale, covariates, priors, skips, gradients, the ELBO, its file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logsumexp
from scipy.stats import nbinom, norm, poisson
from torch.distributions import Normal, kl_divergence

from omics_vae.data import Batch, CountData
from omics_vae.inference import cell_elbo
from omics_vae.likelihoods import Likelihood
from omics_vae.model import (
    LOG_VARIANCE_RANGE,
    VAE,
    VARIANCE_FLOOR,
    Posterior,
    load_model,
    save_model,
)
from simulated_counts import CPU, gene_names, simulate, small_model

LIKELIHOODS = ("nb", "zinb", "poisson", "gaussian")


@pytest.fixture(scope="module")
def data():
    return simulate(80, 15, seed=4).data()


def with_design(data: CountData, seed: int = 0) -> CountData:
    """The same cells in two batches, one-hot in the covariates, and with a continuous one."""
    rng = np.random.default_rng(seed)
    batch = rng.integers(0, 2, len(data))
    covariates = np.column_stack([np.eye(2)[batch], rng.normal(size=len(data))])
    return replace(data, covariates=covariates.astype(np.float32), batch=batch)


DESIGN = {"n_covariates": 3, "n_batches": 2}


@pytest.fixture(scope="module")
def designed(data):
    return with_design(data)


def all_of(data: CountData, dtype: torch.dtype = torch.float32) -> Batch:
    """All cells, their numbers in the precision of a model."""
    batch = data.chunk(slice(None), CPU)
    return Batch(*(t.to(dtype) for t in batch[:3]), batch.batch)


def restless(model: VAE, seed: int = 5, size: float = 0.5) -> VAE:
    """With weights and biases large enough that everything depends on everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.startswith("prior."):
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def same(a: Likelihood, b: Likelihood, **tolerance) -> None:
    assert type(a) is type(b)
    for one, other in zip(a.numpy(), b.numpy(), strict=True):
        np.testing.assert_allclose(one, other, **({"rtol": 1e-5, "atol": 1e-5} | tolerance))


def differ(a: Likelihood, b: Likelihood) -> bool:
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    return any(not np.allclose(one, other, atol=1e-2) for one, other in pairs)


# Scale


@torch.no_grad()
def test_shares_of_the_genes_and_the_rest_sum_to_one(data):
    model, batch = restless(small_model(data).eval()), all_of(data)
    z, q = 3 * torch.randn(80, 3), model.encode(batch)
    scale = (batch.log_offset + model.log_headroom).exp()
    shares = model.decode(z, q, batch).mean / scale[:, None]
    rest = torch.softmax(model.profile(model.decoder(z)), dim=1)[:, -1]
    torch.testing.assert_close(shares.sum(1) + rest, torch.ones(80))
    assert (shares.sum(1) <= 1).all()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@torch.no_grad()
def test_only_a_free_decoder_can_trade_scale_between_size_and_profile(data, likelihood):
    """s times k and eta minus log k: the same likelihood, whatever k."""
    batch, log_k = all_of(data), np.log(7.0)
    scaled = batch._replace(log_offset=batch.log_offset + log_k)
    z = torch.randn(80, 3)
    for decoder in ("free", "softmax"):
        model = restless(small_model(data, likelihood=likelihood, decoder=decoder).eval(), size=0.2)
        q = model.encode(batch)
        scaled_q = q._replace(log_size=scaled.log_offset)
        before = model.decode(z, q, batch)
        log_p = before.log_prob(batch.x)
        larger = model.decode(z, scaled_q, scaled)
        torch.testing.assert_close(larger.log_mu, before.log_mu + log_k, rtol=1e-5, atol=1e-5)
        model.profile.bias -= log_k
        after = model.decode(z, scaled_q, scaled)
        if decoder == "free":
            same(after, before)
            torch.testing.assert_close(after.log_prob(batch.x), log_p, rtol=1e-4, atol=1e-4)
        else:  # what was taken from all logits is nothing
            same(after, larger)
            assert not torch.allclose(after.log_prob(batch.x), log_p, atol=0.1)


@torch.no_grad()
def test_no_logit_takes_the_softmax_beyond_the_size_and_the_free_decoder_goes(data):
    batch, z = all_of(data), torch.zeros(80, 3)
    for decoder in ("softmax", "free"):
        model = small_model(data, decoder=decoder).eval()
        model.profile.bias += torch.cat([torch.full((15,), 20.0), torch.zeros(1)])[
            : len(model.profile.bias)
        ]
        total = model.decode(z, model.encode(batch), batch).mean.sum(1)
        limit = (batch.log_offset + model.log_headroom).exp()
        assert (total > 100 * limit).all() if decoder == "free" else (total <= limit * 1.001).all()


@torch.no_grad()
def test_the_unit_of_the_library_size_is_of_no_consequence_to_the_encoder(data):
    model, batch = restless(small_model(data).eval()), all_of(data)
    q = model.encode(batch)
    model.log_common_depth += np.log(50.0)
    scaled = model.encode(batch._replace(log_offset=batch.log_offset + np.log(50.0)))
    torch.testing.assert_close(scaled.mean, q.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scaled.log_variance, q.log_variance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["nb", "gaussian"])
@torch.no_grad()
def test_the_encoder_sees_the_profile_and_not_the_depth(data, likelihood):
    model, batch = restless(small_model(data, likelihood=likelihood).eval()), all_of(data)
    q = model.encode(batch)
    deep = batch._replace(x=4 * batch.x, log_offset=batch.log_offset + np.log(4.0))
    deeper = model.encode(deep)
    torch.testing.assert_close(deeper.mean, q.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deeper.log_variance, q.log_variance, rtol=1e-4, atol=1e-4)
    other = model.encode(batch._replace(log_offset=batch.log_offset + 1.0))
    assert not torch.allclose(other.mean, q.mean, atol=1e-2)


# Gaussian


@torch.no_grad()
def test_a_gaussian_is_of_the_log_counts_at_a_common_depth(data):
    model, batch = restless(small_model(data, likelihood="gaussian").eval()), all_of(data)
    depth = np.exp(np.median(data.log_offset))
    y = np.log1p(data.counts.toarray() * (depth / np.exp(data.log_offset))[:, None])
    np.testing.assert_allclose(model.target(batch), y, rtol=1e-5)
    np.testing.assert_allclose(model.view(batch), y, rtol=1e-5)
    z, q = torch.randn(80, 3), model.encode(batch)
    found = model.decode(z, q, batch)
    np.testing.assert_allclose(
        found.log_prob(model.target(batch)),
        norm.logpdf(y, found.mean.numpy(), found.variance.sqrt().numpy()),
        rtol=1e-4,
        atol=1e-4,
    )
    # The depth is in y already.
    same(model.decode(z, q._replace(log_size=q.log_size + 3.0), batch), found, rtol=0, atol=0)


@torch.no_grad()
def test_counts_are_modelled_as_they_are(data):
    for likelihood in ("nb", "zinb", "poisson"):
        batch = all_of(data)
        assert small_model(data, likelihood=likelihood).target(batch) is batch.x


@torch.no_grad()
def test_the_variance_of_a_gaussian_is_fixed_or_above_its_floor(data):
    learned = small_model(data, likelihood="gaussian")
    learned.log_gene_variance.copy_(torch.linspace(-100.0, 2.0, 15))
    expected = VARIANCE_FLOOR + np.exp(np.linspace(-100, 2, 15))
    np.testing.assert_allclose(learned.gene_variance(), expected, rtol=1e-5)
    fixed = small_model(data, likelihood="gaussian", gaussian_variance=0.25)
    assert not hasattr(fixed, "log_gene_variance")
    torch.testing.assert_close(fixed.gene_variance(), torch.full((15,), 0.25))


# Dispersion and lost counts


@torch.no_grad()
def test_theta_is_of_the_gene_of_its_batch_or_a_function_of_the_cell(designed):
    batch, z = all_of(designed), torch.randn(80, 3)
    models = {
        dispersion: restless(small_model(designed, dispersion=dispersion, **DESIGN).eval())
        for dispersion in ("gene", "gene_batch", "gene_cell")
    }
    found = {
        name: model.decode(z, model.encode(batch), batch).log_theta
        for name, model in models.items()
    }
    torch.testing.assert_close(found["gene"], models["gene"].log_theta[0])
    of_batch = torch.stack([models["gene_batch"].log_theta[b] for b in batch.batch])
    torch.testing.assert_close(found["gene_batch"], of_batch)
    assert not torch.allclose(*models["gene_batch"].log_theta, atol=0.1)
    of_cells = found["gene_cell"]
    assert of_cells.shape == (80, 15)
    assert (of_cells.std(0) > 0.1).all()
    # Without its function of z it is the gene's.
    model = models["gene_cell"]
    model.log_theta_of_cell.weight.zero_()
    model.log_theta_of_cell.bias.zero_()
    cut = model.decode(z, model.encode(batch), batch).log_theta
    torch.testing.assert_close(cut, model.log_theta.expand(80, 15))


@torch.no_grad()
def test_theta_stays_within_its_bounds(data):
    model, batch = small_model(data), all_of(data)
    model.log_theta[0, :3] = torch.tensor([-50.0, 0.5, 50.0])
    found = model.decode(torch.zeros(80, 3), model.encode(batch), batch).log_theta
    torch.testing.assert_close(found[:3], torch.tensor([-10.0, 0.5, 10.0]))


@torch.no_grad()
def test_the_share_of_lost_counts_is_a_function_of_z(data):
    model, batch = restless(small_model(data, likelihood="zinb").eval()), all_of(data)
    q = model.encode(batch)
    found = [model.decode(torch.full((80, 3), v), q, batch).zero_logit for v in (-1.0, 2.0)]
    assert (found[0] - found[1]).abs().mean() > 0.1


def test_the_prior_of_theta_is_a_gaussian_on_its_logarithm(designed):
    model = small_model(designed, dispersion="gene_batch", **DESIGN)
    with torch.no_grad():
        model.log_theta.copy_(torch.linspace(-1, 1, 30).reshape(2, 15))
    normal = Normal(0.0, 0.5)
    at_mode = normal.log_prob(torch.zeros(30)).sum()
    expected = normal.log_prob(model.log_theta).sum() - at_mode
    torch.testing.assert_close(model.log_theta_prior(), expected)
    for likelihood in ("poisson", "gaussian"):
        assert float(small_model(designed, likelihood=likelihood, **DESIGN).log_theta_prior()) == 0


# Library size


@torch.no_grad()
def test_an_observed_size_costs_nothing_and_is_not_drawn(data):
    model, batch = small_model(data).eval(), all_of(data)
    q = model.encode(batch)
    torch.testing.assert_close(q.log_size, batch.log_offset)
    _, drawn = model.draw(q)
    torch.testing.assert_close(drawn.log_size, batch.log_offset, rtol=0, atol=0)
    assert (model.size_kl(q, batch) == 0).all()


@torch.no_grad()
def test_a_latent_size_has_a_kl_in_closed_form_from_its_batchs_prior(designed):
    model = restless(small_model(designed, library_size="latent", **DESIGN).eval(), size=0.1)
    model.size_prior.copy_(torch.tensor([[6.0, -1.0], [8.0, 0.5]]))
    batch = all_of(designed)
    q = model.encode(batch)
    assert q.log_size.std() > 0.1
    posterior = Normal(q.log_size, torch.exp(0.5 * q.log_size_variance))
    mean, log_variance = model.size_prior[batch.batch].T
    expected = kl_divergence(posterior, Normal(mean, torch.exp(0.5 * log_variance)))
    torch.testing.assert_close(model.size_kl(q, batch), expected)
    parts = model(batch)
    torch.testing.assert_close(parts.kl, parts.kl_dimensions.sum(1) + expected)


@torch.no_grad()
def test_a_latent_size_is_drawn_from_its_posterior_and_decoded(data):
    model, batch = small_model(data, library_size="latent").eval(), all_of(data)
    model.size_posterior.bias.copy_(torch.tensor([0.3, -1.0]))
    q = model.encode(batch)
    torch.testing.assert_close(q.log_size, batch.log_offset + 0.3)
    torch.manual_seed(0)
    drawn = torch.stack([model.draw(q)[1].log_size for _ in range(4000)]) - q.log_size
    sd = np.exp(-0.5)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=5 * sd / np.sqrt(drawn.numel()))
    assert float(drawn.std()) == pytest.approx(sd, rel=0.01)
    z, (_, one) = torch.randn(80, 3), model.draw(q)
    expected = model.decode(z, q, batch).log_mu + (one.log_size - q.log_size)[:, None]
    torch.testing.assert_close(model.decode(z, one, batch).log_mu, expected)


# Covariates


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("n_layers", [0, 1])
@torch.no_grad()
def test_covariates_change_the_decoding_and_if_asked_the_encoding(
    designed, likelihood, encoded, n_layers
):
    switches = {"likelihood": likelihood, "encode_covariates": encoded, "n_layers": n_layers}
    model = restless(small_model(designed, **switches, **DESIGN).eval())
    batch, z = all_of(designed), torch.randn(80, 3)
    for column in range(3):
        covariates = batch.covariates.clone()
        covariates[:, column] += 1.0
        other = batch._replace(covariates=covariates)
        q, other_q = model.encode(batch), model.encode(other)
        assert differ(model.decode(z, q, batch), model.decode(z, q, other))
        assert torch.equal(q.mean, other_q.mean) is not encoded
        assert torch.equal(q.log_variance, other_q.log_variance) is not encoded


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@torch.no_grad()
def test_decoding_at_another_covariate_value_is_decoding_a_cell_that_has_it(designed, likelihood):
    """Cell i with the covariates and batch of cell j, and a cell j with the z and size of i."""
    switches = {"likelihood": likelihood, "dispersion": "gene_batch"}
    model = restless(small_model(designed, **switches, **DESIGN).eval())
    batch, z = all_of(designed), torch.randn(80, 3)
    q, other = model.encode(batch), torch.roll(torch.arange(80), 7)
    assert (batch.batch[other] != batch.batch).any()
    moved = batch._replace(covariates=batch.covariates[other], batch=batch.batch[other])
    found = model.decode(z, q, moved)
    there = Batch(*(t[other] for t in batch))
    like = model.encode(there)._replace(log_size=q.log_size)
    same(found, model.decode(z, like, there), rtol=1e-6, atol=1e-6)
    assert differ(found, model.decode(z, q, batch))


# Skip connections


@pytest.mark.parametrize("n_layers", [0, 1, 2])
@torch.no_grad()
def test_film_at_z_0_lets_nothing_of_the_cell_through(data, n_layers):
    batch = all_of(data)
    decoded = {}
    for skip in ("none", "plain", "film"):
        model = restless(small_model(data, skip=skip, n_layers=n_layers).eval())
        q = model.encode(batch)
        swapped = q._replace(hidden=q.hidden.roll(1, 0))
        for where in (0.0, 1.0):
            z = torch.full((80, 3), where)
            pair = model.decode(z, q, batch), model.decode(z, swapped, batch)
            decoded[skip, where] = differ(*pair)
    assert decoded == {
        ("none", 0.0): False,
        ("none", 1.0): False,
        ("plain", 0.0): True,
        ("plain", 1.0): True,
        ("film", 0.0): False,
        ("film", 1.0): True,
    }


def test_film_has_no_constant_to_learn(data):
    model = small_model(data, skip="film")
    assert not model.film.bias.requires_grad
    assert (model.film.bias == 0).all()


@pytest.mark.parametrize(
    "switches",
    [
        {"skip": "none"},
        {"skip": "plain", "n_layers": 2},
        {"skip": "film"},
        {"n_layers": 0, "likelihood": "zinb", "dispersion": "gene_cell"},
        {"likelihood": "zinb", "dispersion": "gene_cell"},
    ],
    ids=str,
)
@torch.no_grad()
def test_z_is_read_by_the_readers_of_z_alone(designed, switches):
    model = restless(small_model(designed, **switches, **DESIGN).eval())
    batch = all_of(designed)
    q = model.encode(batch)
    pair = [model.decode(torch.full((80, 3), v), q, batch) for v in (-1.0, 2.0)]
    assert differ(*pair)
    for name in model.readers_of_z():
        model.get_submodule(name).weight[:, :3] = 0.0
    same(*[model.decode(torch.full((80, 3), v), q, batch) for v in (-1.0, 2.0)])


# Prior and posterior


@torch.no_grad()
def test_the_vamp_prior_is_the_mixture_of_the_encoders_posteriors(designed):
    """At its pseudo-cells, whose covariates are all 0."""
    switches = {"prior": "vamp", "prior_components": 4, "encode_covariates": True}
    model = restless(small_model(designed, **switches, **DESIGN).eval())
    model.prior.weight.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    depth = model.log_common_depth.expand(4)
    counts = torch.expm1(model.prior.pseudo_cells)
    q = model.encode(Batch(counts, depth, torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)))
    z = torch.randn(50, 3)
    log_n = Normal(q.mean, torch.exp(0.5 * q.log_variance)).log_prob(z[:, None]).sum(-1)
    expected = torch.logsumexp(torch.log_softmax(model.prior.weight, 0) + log_n, 1)
    torch.testing.assert_close(model.prior_of_z().log_prob(z), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_posterior_variances_stay_in_their_bounds(data):
    model, batch = small_model(data, library_size="latent").eval(), all_of(data)
    model.posterior_log_variance.bias.copy_(torch.tensor([-1e3, 0.0, 1e3]))
    for size, bound in zip((-1e3, 1e3), LOG_VARIANCE_RANGE, strict=True):
        model.size_posterior.bias[1] = size
        q = model.encode(batch)
        assert (q.log_size_variance == bound).all()
    assert (q.log_variance[:, 0] == LOG_VARIANCE_RANGE[0]).all()
    assert (q.log_variance[:, 2] == LOG_VARIANCE_RANGE[1]).all()
    assert all(torch.isfinite(part).all() for part in model(batch))


@torch.no_grad()
def test_a_draw_has_the_mean_and_variance_of_the_posterior(data):
    model, batch = restless(small_model(data).eval()), all_of(data)
    q = model.encode(batch)
    torch.manual_seed(0)
    z = torch.stack([model.draw(q)[0] for _ in range(4000)])
    sd = torch.exp(0.5 * q.log_variance)
    assert ((z.mean(0) - q.mean).abs() < 5 * sd / np.sqrt(4000)).all()
    torch.testing.assert_close(z.std(0), sd, rtol=0.07, atol=0)


# Gradients

ARCHITECTURES = [
    {},
    {"likelihood": "zinb", "dispersion": "gene_cell", "decoder": "free"},
    {"likelihood": "poisson", "prior": "mixture", "prior_components": 3, "n_layers": 2},
    {"likelihood": "gaussian", "skip": "plain", "normalization": "none"},
    {"library_size": "latent", "dispersion": "gene_batch", "skip": "film"},
    {"prior": "vamp", "prior_components": 2, "encode_covariates": True},
    {"n_layers": 0, "likelihood": "zinb", "normalization": "batch"},
    {"normalization": "batch", "likelihood": "gaussian", "library_size": "latent"},
]


@pytest.mark.parametrize("switches", ARCHITECTURES, ids=str)
def test_reparameterization_gradients_equal_finite_differences(switches):
    """In float64, with the same random numbers on both sides."""
    data = with_design(simulate(6, 4, n_latent=2, seed=1, depth=40.0).data())
    model = small_model(data, n_latent=2, n_hidden=4, dropout=0.0, **switches, **DESIGN)
    restless(model, size=0.2).double().train()
    batch = all_of(data, torch.float64)

    def elbo():
        torch.manual_seed(0)
        parts = model(batch)
        return (parts.reconstruction - parts.kl).sum()

    elbo().backward()
    step = 1e-6
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        values, numeric = parameter.data.view(-1), torch.zeros(parameter.numel()).double()
        with torch.no_grad():
            for i, value in enumerate(values.tolist()):
                values[i] = value + step
                above = elbo()
                values[i] = value - step
                numeric[i] = (above - elbo()) / (2 * step)
                values[i] = value
        numeric = numeric.view_as(parameter)
        torch.testing.assert_close(parameter.grad, numeric, rtol=1e-4, atol=1e-4, msg=name)


def test_gradients_over_many_draws_are_those_of_the_expectation():
    """Linear and Gaussian, E_q[log p(y|z)] has a closed form: the mean over draws is its gradient.

    -1/2 sum_g [ (y - m W - b)^2 + v W^2 ] / variance, and the KL; of one cell.
    """
    data = simulate(20, 4, n_latent=2, seed=1, depth=40.0).data()
    model = small_model(
        data, n_latent=2, n_layers=0, likelihood="gaussian", gaussian_variance=0.5, dropout=0.0
    )
    restless(model, size=0.3).double()
    one = Batch(*(t[:1] for t in all_of(data, torch.float64)))
    n, learned = 40_000, [p for p in model.parameters() if p.requires_grad]
    q, y = model.encode(one), model.target(one)
    missed = (y - q.mean @ model.profile.weight.T - model.profile.bias).square()
    missed = missed + q.log_variance.exp() @ model.profile.weight.T.square()
    kl = kl_divergence(Normal(q.mean, torch.exp(0.5 * q.log_variance)), Normal(0.0, 1.0))
    closed = -0.5 * (missed / 0.5 + np.log(2 * np.pi * 0.5)).sum() - kl.sum()
    expected = torch.autograd.grad(closed, learned)
    many = Batch(*(t.expand(n, *t.shape[1:]) for t in one))
    torch.manual_seed(0)
    parts = model(many)
    elbo = parts.reconstruction - parts.kl
    error = float(elbo.detach().std()) / np.sqrt(n)
    assert float(elbo.mean().detach()) == pytest.approx(float(closed.detach()), abs=5 * error)
    for found, gradient in zip(torch.autograd.grad(elbo.mean(), learned), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=0.03, atol=0.03)


# Every combination of switches

SWITCHES = {
    "likelihood": LIKELIHOODS,
    "dispersion": ("gene", "gene_batch", "gene_cell"),
    "gaussian_variance": (None, 0.5),
    "decoder": ("softmax", "free"),
    "library_size": ("observed", "latent"),
    "skip": ("none", "plain", "film"),
    "prior": ("normal", "mixture", "vamp"),
    "n_layers": (0, 1, 2),
    "normalization": ("layer", "batch", "none"),
    "encode_covariates": (False, True),
}


@given(
    st.fixed_dictionaries({name: st.sampled_from(options) for name, options in SWITCHES.items()})
)
@settings(max_examples=120, derandomize=True, deadline=None, database=None)
def test_every_combination_trains_a_step_and_comes_back_from_its_file(tmp_path_factory, switches):
    """All that can be learned has a gradient; the file gives the same ELBO to the bit."""
    data = with_design(simulate(24, 8, n_latent=2, seed=2, depth=300.0).data())
    model = small_model(data, n_hidden=8, prior_components=3, **switches, **DESIGN)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(learned.values(), lr=1e-3)
    model.train()
    parts = model(all_of(data))
    assert parts.reconstruction.shape == parts.kl.shape == (24,)
    assert parts.kl_dimensions.shape == (24, 3)
    (parts.kl - parts.reconstruction).mean().backward()
    for name, parameter in learned.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias before batch normalisation does nothing.
        assert (parameter.grad != 0).any() or model.architecture.normalization == "batch", name
    before = cell_elbo(model, data, CPU)
    model.train()
    optimizer.step()
    trained = cell_elbo(model, data, CPU)
    assert np.isfinite(trained.of_cells).all()
    assert not np.array_equal(before.of_cells, trained.of_cells)
    folder = tmp_path_factory.mktemp("model")
    weights, description = folder / "model.safetensors", folder / "model.json"
    save_model(model, weights, description, gene_names(8))
    loaded, _ = load_model(weights, description)
    again = cell_elbo(loaded, data, CPU)
    for name in ("reconstruction", "kl", "kl_dimensions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trained, name))


# The ELBO


def of_known_parts(data, likelihood, **switches) -> tuple[VAE, Posterior]:
    """A model whose profile is its biases for every z, and a posterior that is set by hand."""
    model = small_model(data, likelihood=likelihood, **switches).eval()
    with torch.no_grad():
        for name in ("profile", "zero_logit", "log_theta_of_cell"):
            if hasattr(model, name):
                getattr(model, name).weight.zero_()
        if hasattr(model, "log_theta"):
            model.log_theta.copy_(torch.linspace(-1.0, 2.0, 15).expand_as(model.log_theta))
        q = model.encode(all_of(data))
        mean, log_variance = torch.tensor([0.0, 1.5, -2.0]), torch.tensor([0.0, -1.0, 0.7])
    return model, q._replace(
        mean=mean.expand(80, 3).contiguous(), log_variance=log_variance.expand(80, 3).contiguous()
    )


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@torch.no_grad()
def test_the_parts_of_the_elbo_at_known_values(data, likelihood):
    """The reconstruction is scipy's log-probability, the KL the formula's."""
    model, q = of_known_parts(data, likelihood)
    x, offset = data.counts.toarray().astype(float), data.log_offset
    parts = model.elbo(all_of(data), q)
    m, v = np.array([0.0, 1.5, -2.0]), np.exp([0.0, -1.0, 0.7])
    kl = 0.5 * (m**2 + v - np.log(v) - 1)
    np.testing.assert_allclose(parts.kl_dimensions, np.tile(kl, (80, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts.kl, kl.sum(), rtol=1e-5)
    shares = np.exp(offset)[:, None] * (x.sum(0) + 0.5) / np.exp(offset).sum()
    theta = np.exp(np.linspace(-1.0, 2.0, 15))
    nb = nbinom.logpmf(x, theta, theta / (theta + shares))
    if likelihood == "gaussian":
        y = np.log1p(x * np.exp(np.median(offset) - offset)[:, None])
        expected = norm.logpdf(y, y.mean(0), y.std(0))
    elif likelihood == "poisson":
        expected = poisson.logpmf(x, shares)
    elif likelihood == "nb":
        expected = nb
    else:
        pi = expit(-3.0)
        expected = np.log(pi * (x == 0) + (1 - pi) * np.exp(nb))
    np.testing.assert_allclose(parts.reconstruction, expected.sum(1), rtol=1e-4)


@torch.no_grad()
def test_the_elbo_is_below_the_evidence_by_the_kl_to_the_true_posterior():
    """log p(x) = ELBO + KL(q(z|x) || p(z|x)), both integrals over a grid of the one latent."""
    data = simulate(5, 8, n_latent=1, seed=3, depth=30.0).data()
    model = small_model(data, n_latent=1, n_hidden=8).eval()
    model.profile.weight.mul_(20.0)  # z must matter
    model.posterior_mean.bias.fill_(0.7)
    batch = all_of(data)
    z = np.linspace(-9, 9, 4001)
    grid = torch.tensor(z, dtype=torch.float32)[:, None]
    log_cell = np.log(z[1] - z[0])
    elbo = cell_elbo(model, data, CPU, draws=4000).of_cells
    q = model.encode(batch)
    mean, log_variance = (v.double().numpy()[:, 0] for v in (q.mean, q.log_variance))
    for i in range(5):
        repeated = Batch(*(t[i].expand(len(z), *t.shape[1:]) for t in batch))
        log_p = model.decode(grid, model.encode(repeated), repeated).log_prob(repeated.x)
        log_joint = log_p.sum(1).double().numpy() - 0.5 * z**2 - 0.5 * np.log(2 * np.pi)
        evidence = logsumexp(log_joint) + log_cell
        log_q = norm.logpdf(z, mean[i], np.exp(0.5 * log_variance[i]))
        gap = (np.exp(log_q + log_cell) * (log_q - (log_joint - evidence))).sum()
        assert elbo[i] < evidence
        assert evidence - elbo[i] == pytest.approx(gap, abs=0.05 + 0.02 * gap)
        assert gap > 0.03


@torch.no_grad()
def test_a_training_step_draws_from_the_posterior():
    """Its ELBO, averaged over many steps, is the one that cells are read with."""
    data = simulate(5, 8, n_latent=1, seed=3, depth=300.0).data()
    model = small_model(data, n_latent=1, n_hidden=8).eval()
    model.profile.weight.mul_(20.0)
    model.posterior_log_variance.bias.fill_(-3.0)
    torch.manual_seed(0)
    steps = model(Batch(*(t.repeat(2000, *[1] * (t.ndim - 1)) for t in all_of(data))))
    found = steps.reconstruction.reshape(2000, 5).double().numpy()
    read = cell_elbo(model, data, CPU, draws=2000, seed=1)
    error = found.std(0) / np.sqrt(1000.0)
    assert (np.abs(found.mean(0) - read.reconstruction) < 4 * error).all()
    np.testing.assert_allclose(steps.kl[:5], read.kl, rtol=1e-4)  # summed 2000 times in float32


# The file


def test_a_stored_model_reads_every_cell_bit_for_bit(data, tmp_path):
    model = small_model(data, dropout=0.2).eval()
    weights, description = tmp_path / "model.safetensors", tmp_path / "model.json"
    genes = gene_names(15)
    save_model(model, weights, description, genes, design={"covariates": ["Ü"]})
    loaded, content = load_model(weights, description)
    assert content["genes"] == genes
    assert content["design"] == {"covariates": ["Ü"]}
    assert loaded.architecture == model.architecture
    assert not loaded.training
    read = [cell_elbo(m, data, CPU).of_cells for m in (model, loaded)]
    np.testing.assert_array_equal(*read)
    first = weights.read_bytes(), description.read_bytes()
    save_model(loaded, weights, description, content["genes"], design=content["design"])
    assert (weights.read_bytes(), description.read_bytes()) == first


def test_a_wrong_number_of_genes_is_refused(data, tmp_path):
    model = small_model(data).eval()
    weights, description = tmp_path / "model.safetensors", tmp_path / "model.json"
    with pytest.raises(ValueError, match="14 gene names for a model of 15"):
        save_model(model, weights, description, gene_names(14))
    assert not weights.exists()
    save_model(model, weights, description, gene_names(15))
    content = json.loads(description.read_text())
    content["architecture"]["n_genes"] = 14
    description.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_model(weights, description)
    batch = all_of(data)
    with pytest.raises(RuntimeError, match="shapes"):
        model(batch._replace(x=batch.x[:, :14]))
