"""The fused loops against the model's own equations: likelihood, gradients, what they refuse."""

from copy import deepcopy

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import special
from torch import nn

from omics_vae import fused, inference, kernels
from omics_vae.data import Batch, CountData
from omics_vae.model import VAE
from simulated_counts import CPU, simulate, small_model

N_CELLS, N_GENES = 48, 37


def cells(seed: int = 0, **more) -> CountData:
    """Counts with every edge: a cell of one count, a gene of zeros, huge counts, deep cells."""
    rng = np.random.default_rng(seed)
    x = simulate(N_CELLS, N_GENES, seed=seed, depth=60.0).counts.toarray()
    x[0] = 0
    x[0, 3] = 1
    x[:, 7] = 0
    x[1, 5], x[2, 9], x[3, 11:15] = 1_000_000, 300, (8, 9, 17, 2500)
    return CountData(sp.csr_matrix(x), np.log(x.sum(1) + rng.uniform(0, 50, N_CELLS)), **more)


def with_design(seed: int = 0) -> CountData:
    rng = np.random.default_rng(seed)
    covariates = rng.standard_normal((N_CELLS, 3)).astype(np.float32)
    return cells(seed, covariates=covariates, batch=rng.integers(0, 3, N_CELLS))


def restless(data: CountData, **architecture) -> VAE:
    """A model with all parameters away from their start, theta and q partly beyond their clamps."""
    design = {"n_covariates": data.covariates.shape[1], "n_batches": int(data.batch.max()) + 1}
    model = small_model(data, n_latent=3, n_hidden=10, dropout=0.25, **design, **architecture)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.log_theta.copy_(2.0 * torch.randn(model.log_theta.shape, generator=generator))
        model.log_theta[0, :4] = torch.tensor([-11.0, 11.0, 9.5, -9.5])
        model.posterior_log_variance.bias[0] = 5.2  # about half of the cells at the clamp
    return model


class Kept(nn.Module):
    """Dropout with a mask that is given."""

    def __init__(self, kept: np.ndarray, scale: float):
        super().__init__()
        self.mask = torch.from_numpy(kept).double() * float(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


def reference(model: VAE, data: CountData, rows, noise, scale, beta, free_bits=0.0):
    """Loss, reconstruction, KL and gradients by autograd in float64, from the model's equations."""
    model = deepcopy(model).double().train()
    masks = iter(noise.kept)
    for part in (model.encoder, model.decoder):
        for i, layer in enumerate(part):
            if isinstance(layer, nn.Dropout):
                part[i] = Kept(next(masks), scale)
    chunk = data.chunk(rows, CPU)
    batch = Batch(chunk.x.double(), torch.from_numpy(data.log_offset[rows]), *chunk[2:])
    batch = batch._replace(covariates=batch.covariates.double())
    q = model.encode(batch)
    z = q.mean + torch.exp(0.5 * q.log_variance) * torch.from_numpy(noise.z).double()
    reconstruction = model.decode(z, q, batch).log_prob(batch.x).sum(-1).mean()
    kl = model.prior_of_z().kl(q.mean, q.log_variance, z)[1].mean(0)
    loss = beta * kl.clamp_min(free_bits).sum() - reconstruction
    loss = loss - model.log_theta_prior() / len(data)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return tuple(value.item() for value in (loss, reconstruction, kl.sum())), gradients


def differences(found: dict, expected: dict) -> dict[str, float]:
    """Largest error of each gradient against its largest element."""
    assert found.keys() == expected.keys()
    return {
        name: float((found[name].double() - g).abs().max() / g.abs().max().clamp_min(1e-30))
        for name, g in expected.items()
    }


ARCHITECTURES = [
    {"likelihood": likelihood, **more}
    for likelihood in ("nb", "zinb")
    for more in (
        {},
        {"normalization": "none"},
        {"n_layers": 2},
        {"dispersion": "gene_batch"},
        {"encode_covariates": True, "n_layers": 3, "dispersion": "gene_batch"},
    )
]


def step_of(model: VAE, data: CountData, seed: int, beta: float, free_bits: float = 0.0):
    """Loss and gradients of the fused step, and those of the reference."""
    step = fused.FusedStep(model, len(data), is_bfloat16=False)
    rows = np.random.default_rng(seed).permutation(N_CELLS)[:40]
    rows = np.unique(np.r_[rows, 0:4])
    noise = step.noise(len(rows), seed, 0)
    found = step(data, rows, noise, beta, free_bits)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    expected = reference(model, data, rows, noise, step.unit_scale, beta, free_bits)
    return found, gradients, expected


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_step_has_the_gradients_of_the_model_in_float64(architecture, seed):
    data = with_design(seed)
    model = restless(data, **architecture)
    found, gradients, (loss, expected) = step_of(model, data, seed, beta=0.7)
    # A count of 1e6 has terms of 1e7 that cancel.
    np.testing.assert_allclose(found, loss, rtol=1e-4)
    errors = differences(gradients, expected)
    assert max(errors.values()) < 1e-5, errors


def test_the_step_of_taken_cells_is_the_step_of_those_cells():
    """Positions count in the data that is given, whose rows lie anywhere in a larger matrix."""
    data = with_design(4)
    model = restless(data, dispersion="gene_batch", encode_covariates=True)
    step = fused.FusedStep(model, len(data), is_bfloat16=False)
    place, rows = np.array([30, 4, 4, 17, 9, 40]), np.array([5, 0, 2, 3])
    noise = step.noise(4, 1, 0)
    found = []
    for given, at in ((data, place[rows]), (data.take(place), rows)):
        loss = step(given, at, noise, 1.0)
        found.append((loss, [p.grad.clone() for p in model.parameters()]))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("free_bits", [0.02, 0.6, 100.0])
def test_free_bits_are_those_of_the_reference(free_bits):
    data = cells(1)
    found, gradients, (loss, expected) = step_of(restless(data), data, 1, 2.0, free_bits)
    np.testing.assert_allclose(found, loss, rtol=1e-4)
    assert max(differences(gradients, expected).values()) < 1e-5


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_where_all_is_clamped_nothing_moves(likelihood):
    data = cells()
    model = restless(data, likelihood=likelihood)
    with torch.no_grad():
        model.log_theta.fill_(10.5)
        model.posterior_log_variance.bias.fill_(50.0)
    _, gradients, _ = step_of(model, data, 0, 1.0)
    assert (gradients["posterior_log_variance.weight"] == 0).all()
    prior = model.log_theta.detach() / 0.25 / len(data)
    torch.testing.assert_close(gradients["log_theta"], prior)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_bfloat16_rounds_the_output_layer_and_nothing_else(likelihood):
    data = cells(2)
    model = restless(data, likelihood=likelihood)
    step = fused.FusedStep(model, len(data), is_bfloat16=True)
    rows = np.arange(4, 44)
    noise = step.noise(40, 0, 0)
    found = step(data, rows, noise, 1.0)
    loss, expected = reference(model, data, rows, noise, step.unit_scale, 1.0)
    _, reconstruction, kl = loss
    assert found.kl == pytest.approx(kl, rel=1e-6)
    assert found.reconstruction == pytest.approx(reconstruction, rel=5e-3)
    assert found.reconstruction != pytest.approx(reconstruction, rel=1e-6)
    for name, parameter in model.named_parameters():
        g = expected[name]
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - g).norm() < 0.03 * g.norm(), name


# ---- the likelihood alone


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("more", [{}, {"skip": "film"}, {"library_size": "latent"}], ids=str)
def test_the_likelihood_of_cells_is_the_models(likelihood, more):
    data = with_design(3)
    model = restless(data, likelihood=likelihood, dispersion="gene_batch", **more).eval()
    assert fused.has_likelihood(model)
    batch = data.chunk(slice(None), CPU)
    with torch.no_grad():
        if model.architecture.skip == "film":
            model.film.weight.mul_(0.1)  # shares of e^-87 are the least there is here
        z, q = model.draw(model.encode(batch))
        found = inference.log_likelihood(model, batch)(z, q)
        double = deepcopy(model).double()
        exact = Batch(*(t.double() for t in batch[:3]), batch.batch)
        q = q._replace(log_size=q.log_size.double(), hidden=q.hidden.double())
        expected = double.decode(z.double(), q, exact).log_prob(exact.x).sum(-1)
    assert found.dtype == torch.float64
    # A count of 1e6 has terms of 1e7 that cancel.
    error = (found - expected).abs()
    assert error[1] < 2.0 and error[[0, *range(2, N_CELLS)]].max() < 0.02


@pytest.mark.parametrize(
    "architecture",
    [
        {"likelihood": "poisson"},
        {"likelihood": "gaussian"},
        {"decoder": "free"},
        {"dispersion": "gene_cell"},
    ],
    ids=str,
)
def test_other_likelihoods_are_left_to_the_model(architecture):
    model = small_model(cells(), **architecture).eval()
    assert not fused.has_likelihood(model) and not fused.has_step(model)
    batch = cells().chunk(slice(None), CPU)
    with torch.no_grad():
        z, q = model.draw(model.encode(batch))
        found = inference.log_likelihood(model, batch)(z, q)
        expected = model.decode(z, q, batch).log_prob(model.target(batch)).sum(-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "architecture",
    [
        {"library_size": "latent"},
        {"normalization": "batch"},
        {"n_layers": 0},
        {"prior": "mixture", "prior_components": 2},
        {"prior": "vamp", "prior_components": 2},
        {"skip": "plain"},
    ],
    ids=str,
)
def test_other_models_train_by_autograd(architecture):
    model = small_model(cells(), **architecture)
    assert fused.has_likelihood(model) and not fused.has_step(model)
    assert not fused.has_likelihood(model.double())


def test_what_is_no_number_stays_none():
    """The compiler was told that there is none, so it is looked for beside the loops."""
    data = cells()
    model = restless(data)
    with torch.no_grad():
        model.profile.bias[3] = float("nan")
    step = fused.FusedStep(model, len(data), is_bfloat16=False)
    assert np.isnan(step(data, np.arange(9), step.noise(9, 0, 0), 1.0).loss)


# ---- noise


def test_noise_is_a_function_of_seed_and_step():
    data = cells()
    step = fused.FusedStep(restless(data), len(data), is_bfloat16=False)
    one, same, other, later = (step.noise(2000, *at) for at in ((1, 5), (1, 5), (2, 5), (1, 6)))
    np.testing.assert_array_equal(one.z, same.z)
    np.testing.assert_array_equal(one.kept, same.kept)
    for different in (other, later):
        assert abs(np.corrcoef(one.z.ravel(), different.z.ravel())[0, 1]) < 0.05
        assert abs(np.corrcoef(one.kept[0].ravel(), different.kept[0].ravel())[0, 1]) < 0.05
    assert abs(one.z.mean()) < 0.05 and abs(one.z.std() - 1) < 0.05
    share = np.mean(one.kept)
    assert abs(share - 0.75) < 0.01
    assert float(step.unit_scale) == pytest.approx(1 / 0.75)


# ---- the loops


def test_logarithms_and_exponentials_are_right_to_the_last_digits():
    rng = np.random.default_rng(0)
    u = np.r_[0.0, np.exp(rng.uniform(-40, 25, 5000))].astype(np.float32)
    out, work, power = np.empty_like(u), np.empty_like(u), np.empty(len(u), np.int32)
    kernels._log1p(u, out, work, work.view(np.int32), power)
    np.testing.assert_allclose(out, np.log1p(u.astype(float)), rtol=3e-7)
    a = rng.uniform(-80, 0, 5000).astype(np.float32)
    kernels._exp(a, np.float32(0), out[1:], out[1:].view(np.int32), power[1:])
    np.testing.assert_allclose(out[1:], np.exp(a.astype(float)), rtol=3e-7)


def test_rows_are_read_and_written_as_torch_rounds_them():
    rng = np.random.default_rng(0)
    a = (rng.standard_normal(1000) * 10.0 ** rng.uniform(-6, 6, 1000)).astype(np.float32)
    bias = rng.standard_normal(1000).astype(np.float32)
    rounded = torch.from_numpy(a).bfloat16()
    bits, out = rounded.view(torch.uint16).numpy(), np.empty_like(a)
    kernels._load(bits, bias, out, out.view(np.int32))
    np.testing.assert_array_equal(out, rounded.float().numpy() + bias)
    kernels._load(a, bias, out, out.view(np.int32))
    np.testing.assert_array_equal(out, a + bias)
    row = np.empty(1000, np.uint16)
    kernels._store(a, a.view(np.int32), row)
    np.testing.assert_array_equal(row, bits)
    kernels._store(a, a.view(np.int32), out)
    np.testing.assert_array_equal(out, a)


@pytest.mark.parametrize("values", [[-3.0, -1.0, -2.0], [5.0, -9.0, 7.0], [0.0, -0.5], [-1e30]])
def test_the_largest_of_some_floats(values):
    a = np.array(values, dtype=np.float32)
    assert np.array([kernels._largest(a.view(np.int32))]).astype(np.int32).view(np.float32) == max(
        a
    )
    assert kernels._is_finite(a)
    for wrong in (np.nan, -np.nan, np.inf, -np.inf):
        assert not kernels._is_finite(np.append(a, np.float32(wrong)))


def test_digamma_is_scipys():
    x = np.r_[np.exp(np.linspace(-9, 15, 400)), 6.0]
    np.testing.assert_allclose(
        [kernels._digamma(v) for v in x], special.digamma(x), rtol=1e-8, atol=1e-10
    )


def test_rows_and_products_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x = sp.random(30, 50, 0.2, format="csr", random_state=0, dtype=np.float32)
    x.data = np.ceil(9 * x.data)
    x[4] = 0
    x.eliminate_zeros()
    found = sp.csr_matrix(kernels.sparse_rows(x.toarray())[::-1], shape=x.shape)
    assert (found != x).nnz == 0
    weight = rng.standard_normal((50, 13)).astype(np.float32)
    out, bias = np.empty((30, 13), np.float32), np.arange(13, dtype=np.float32)
    kernels.sparse_product(x.indptr, x.indices, x.data, weight, bias, out)
    np.testing.assert_allclose(out, bias + x @ weight, rtol=1e-5, atol=1e-5)
    d_weight = np.zeros_like(weight)
    kernels.sparse_product_gradient(x.indptr, x.indices, x.data, out, d_weight)
    np.testing.assert_allclose(d_weight, x.T @ out, rtol=1e-5, atol=1e-5)
