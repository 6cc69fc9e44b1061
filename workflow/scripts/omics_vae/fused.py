"""Likelihood and training step of the usual models on the CPU, written out in fused loops.

The equations stand in model.py and likelihoods.py; this is the same arithmetic without an autograd
graph, without dense batches and without log Gamma of zeros. Products of matrices are torch's, all
between them is kernels.py, on one thread: handing parts of such short loops to other threads costs
more than it gains. The likelihood is that of any NB or ZINB with the softmax decoder and a theta a
gene or a gene and batch (:func:`has_likelihood`); the step asks besides for a standard normal
prior, an observed library size, no skip and no batch norm (:func:`has_step`). Other models do by
autograd.

With ``bfloat16`` the products of the output layer, two thirds of the arithmetic of a step, round
their factors to 8 bits; biases, weights, Adam and all else stay float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from omics_vae import kernels
from omics_vae.data import Batch, CountData
from omics_vae.model import LOG_THETA_RANGE, LOG_THETA_SD, LOG_VARIANCE_RANGE, VAE, Posterior


def has_likelihood(model: VAE) -> bool:
    """Whether the likelihood of the model, where it is now, is one of these."""
    a, weight = model.architecture, model.profile.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and a.likelihood in ("nb", "zinb")
        and a.decoder == "softmax"
        and a.dispersion in ("gene", "gene_batch")
    )


def has_step(model: VAE) -> bool:
    """Whether the model can be trained by :class:`FusedStep`."""
    a = model.architecture
    return (
        has_likelihood(model)
        and a.library_size == "observed"
        and a.normalization in ("layer", "none")
        and a.n_layers > 0
        and a.prior == "normal"
        and a.skip == "none"
    )


def has_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 faster than those of float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


class Buffers:
    """Large arrays that are written at every step, so that their memory is asked for once."""

    def __init__(self):
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(
        self, name: str, rows: int, columns: int, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """The array of that name (rows, columns), with whatever was last in it."""
        kept = self._kept.get(name)
        if kept is None or len(kept) < rows:
            kept = self._kept[name] = torch.empty(rows, columns, dtype=dtype)
        return kept[:rows]


def log_likelihood(model: VAE, batch: Batch) -> Callable[[torch.Tensor, Posterior], torch.Tensor]:
    """log p(x|z) of each cell of ``batch`` as a function of z (cells, latent) and the posterior.

    As ``model.decode(z, q, batch).log_prob(x).sum(-1)``, a float64 (cells,).
    """
    rows, buffers = kernels.sparse_rows(batch.x.numpy()), Buffers()

    def of(z: torch.Tensor, q: Posterior) -> torch.Tensor:
        log_scale = (q.log_size + model.log_headroom).numpy()
        hidden = model.units(z, q, batch)
        found = _Likelihood(model, hidden, log_scale, batch.batch.numpy(), rows, buffers)
        return torch.from_numpy(found.log_p)

    return of


class _Likelihood:
    """log p(x|hidden units) of cells, and the gradients of ``share`` times their sum."""

    def __init__(
        self,
        model: VAE,
        hidden: torch.Tensor,  # (cells, hidden) of the decoder
        log_scale: np.ndarray,  # (cells,) log library size plus headroom
        batch: np.ndarray,  # (cells,) batch codes
        rows: tuple,  # CSR: indptr, indices, counts
        buffers: Buffers,
        share: float = 1.0,
        is_bfloat16: bool = False,
    ):
        self.heads, kernel = [model.profile], kernels.nb_rows
        if model.architecture.likelihood == "zinb":
            self.heads, kernel = [model.profile, model.zero_logit], kernels.zinb_rows
        self.buffers, self.is_bfloat16 = buffers, is_bfloat16
        self.hidden, n = self._factor("units", hidden), len(hidden)
        self.weights, logits, self.d_logits, self.d_bias = [], [], [], []
        for k, head in enumerate(self.heads):
            self.weights.append(self._factor(f"weight {k}", head.weight))
            logits.append(self._product(f"logits {k}", self.hidden, self.weights[k].T))
            self.d_logits.append(buffers(f"d_logits {k}", *logits[k].shape, logits[k].dtype))
        self.log_p = np.empty(n)  # (cells,)
        log_theta = model.log_theta.clamp(*LOG_THETA_RANGE)
        is_inside = log_theta == model.log_theta
        if model.architecture.dispersion == "gene":
            batch = np.zeros_like(batch)
        theta, bias = log_theta.exp().numpy(), [head.bias.numpy() for head in self.heads]
        values, d_values = ([_bits(t) for t in ts] for ts in (logits, self.d_logits))

        sums = [torch.zeros_like(p) for p in (*(head.bias for head in self.heads), log_theta)]
        kernel(
            *values,
            *bias,
            log_scale,
            theta,
            batch,
            rows,
            share,
            self.log_p,
            *d_values,
            *(t.numpy() for t in sums),
        )
        *self.d_bias, d_log_theta = sums
        self.d_log_theta = d_log_theta * is_inside

    def back(self) -> torch.Tensor:
        """The gradient at the hidden units; sets those of the heads."""
        d_hidden = torch.zeros(self.hidden.shape)
        for k, (head, weight, d) in enumerate(
            zip(self.heads, self.weights, self.d_logits, strict=True)
        ):
            head.bias.grad = self.d_bias[k]
            product = self._product(f"d_weight {k}", d.T, self.hidden)
            if self.is_bfloat16:
                product = self.buffers(f"d_weight {k}", *weight.shape).copy_(product)
            head.weight.grad = product
            d_hidden += d @ weight
        return d_hidden

    def _factor(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A factor of a product, rounded where that was asked for."""
        if not self.is_bfloat16:
            return x
        return self.buffers(f"{name} rounded", *x.shape, torch.bfloat16).copy_(x)

    def _product(self, name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a b in a buffer, of the precision of its factors."""
        name += " rounded" * self.is_bfloat16
        return torch.mm(a, b, out=self.buffers(name, len(a), b.shape[1], a.dtype))


def _bits(x: torch.Tensor) -> np.ndarray:
    """A tensor's memory; that of bfloat16, which numpy has not, as uint16."""
    return (x if x.dtype == torch.float32 else x.view(torch.uint16)).numpy()


class StepLoss(NamedTuple):
    """Means over the cells of a batch, in nats."""

    loss: float  # beta (KL + what free bits add) - reconstruction - log prior of theta / all cells
    reconstruction: float
    kl: float


class Noise(NamedTuple):
    """All that is random in a step."""

    z: np.ndarray  # (cells, latent) standard normal
    kept: list[np.ndarray]  # of each hidden layer (cells, hidden) uint8: 0 where dropped


class Layer:
    """Linear, layer norm, ReLU, dropout: a hidden layer with what its way back needs."""

    def __init__(self, linear: torch.nn.Linear, norm: torch.nn.Module, unit_scale: np.float32):
        self.linear, self.unit_scale = linear, unit_scale
        has_norm = isinstance(norm, torch.nn.LayerNorm)
        self.norm = [norm.weight, norm.bias] if has_norm else []
        self.gain, self.shift = (
            [p.data.numpy() for p in self.norm] if has_norm else [np.empty(0, np.float32)] * 2
        )
        self.epsilon = np.float32(norm.eps if has_norm else 0.0)

    def units(self, x: torch.Tensor, kept: np.ndarray) -> torch.Tensor:
        """Hidden units (cells, hidden) of the linear part ``x``."""
        self.out = torch.empty_like(x)
        self.normal, self.inverse_sd = np.empty(x.shape, np.float32), np.empty(len(x), np.float32)
        way_back = self.normal, self.inverse_sd, self.out.numpy()
        given = x.numpy(), self.gain, self.shift, kept, self.unit_scale, self.epsilon
        kernels.hidden_units(*given, *way_back)
        return self.out

    def back(self, d_out: torch.Tensor) -> torch.Tensor:
        """The gradient at the linear part; that of norm and bias is set."""
        d_x, d_norm = torch.empty_like(d_out), [torch.zeros_like(p) for p in self.norm]
        d_gain, d_shift = [d.numpy() for d in d_norm] or [self.gain, self.shift]
        given = self.out.numpy(), d_out.numpy(), self.gain, self.unit_scale
        way_back = self.normal, self.inverse_sd
        kernels.hidden_units_gradient(*given, *way_back, d_gain, d_shift, d_x.numpy())
        for parameter, gradient in zip(self.norm, d_norm, strict=True):
            parameter.grad = gradient
        self.linear.bias.grad = d_x.sum(0)
        return d_x


class FusedStep:
    """Gradients of the loss of a batch of cells, left in ``.grad`` of the model's parameters."""

    def __init__(self, model: VAE, n_cells: int, is_bfloat16: bool):
        """``n_cells``: training cells in all, against which the prior of theta counts once."""
        self.model, self.n_cells, self.is_bfloat16 = model, n_cells, is_bfloat16
        self.buffers = Buffers()
        a = model.architecture
        # Dropout by 16 random bits a unit: the share kept is a multiple of 2^-16.
        self.threshold = round((1.0 - a.dropout) * 2**16)
        self.unit_scale = np.float32(2**16 / self.threshold)
        self.encoder, self.decoder = (
            [Layer(part[i], part[i + 1], self.unit_scale) for i in range(0, 4 * a.n_layers, 4)]
            for part in (model.encoder, model.decoder)
        )
        # A gene's weights side by side, for a product with sparse rows.
        first = model.encoder[0].weight
        first.data = first.data.T.contiguous().T
        self.first = first.data.T.numpy()  # (genes, and covariates if it sees them; hidden)
        self.heads = _SideBySide([model.posterior_mean, model.posterior_log_variance])
        self.scratch = (np.empty(0, np.int64), np.empty(0, np.int32))

    def noise(self, n: int, seed: int, step: int) -> Noise:
        """The noise of ``n`` cells, a function of seed and step."""
        a = self.model.architecture
        rng = np.random.default_rng([seed, step])
        z = rng.standard_normal((n, a.n_latent), dtype=np.float32)
        shape, kept = (n, a.n_hidden), []
        for _ in range(2 * a.n_layers):
            bits = np.frombuffer(rng.bytes(2 * n * a.n_hidden), dtype="<u2").reshape(shape)
            kept.append((bits < self.threshold).view(np.uint8))
        return Noise(z, kept)

    @torch.no_grad()
    def __call__(
        self,
        data: CountData,
        cells: np.ndarray,
        noise: Noise,
        beta: float,
        free_bits: float = 0.0,
    ) -> StepLoss:
        """Sets the gradients of the loss of some cells (positions) of ``data``, in memory."""
        model, n = self.model, len(cells)
        a, n_genes = model.architecture, model.architecture.n_genes
        indptr, indices, counts, seen = self._rows(data, cells)
        covariates = torch.from_numpy(data.covariates[cells])

        # Encoder.
        x, bias = torch.empty(n, a.n_hidden), self.encoder[0].linear.bias.numpy()
        kernels.sparse_product(indptr, indices, seen, self.first, bias, x.numpy())
        if a.encode_covariates:
            x.addmm_(covariates, torch.from_numpy(self.first[n_genes:]))
        hidden = self.encoder[0].units(x, noise.kept[0])
        hidden = self._through(self.encoder[1:], hidden, noise.kept[1 : a.n_layers])

        # Posterior, sample, KL; then decoder and likelihood.
        q = self.heads.forward(hidden).numpy()
        given = torch.empty(n, a.n_latent + a.n_covariates)
        given[:, a.n_latent :] = covariates
        kl = np.zeros(a.n_latent)
        kernels.sample_posterior(q, noise.z, *LOG_VARIANCE_RANGE, given.numpy(), kl)
        decoded = self._through(self.decoder, given, noise.kept[a.n_layers :])
        found = _Likelihood(
            model,
            decoded,
            (data.log_offset[cells] + float(self.model.log_headroom)).astype(np.float32),
            data.batch[cells],
            (indptr, indices, counts),
            self.buffers,
            -1.0 / n,
            self.is_bfloat16,
        )

        # And back.
        model.log_theta.grad = model.log_theta / LOG_THETA_SD**2 / self.n_cells
        model.log_theta.grad += found.d_log_theta
        d_z = self._back(self.decoder, found.back(), given).numpy()
        # A dimension below free_bits is not pushed.
        push = np.where(kl >= free_bits, beta / n, 0.0).astype(np.float32)
        d_q = torch.empty(n, 2 * a.n_latent)
        kernels.sample_posterior_gradient(q, noise.z, *LOG_VARIANCE_RANGE, d_z, push, d_q.numpy())
        d_hidden = self._back(self.encoder[1:], self.heads.back(hidden, d_q), self.encoder[0].out)
        d_x = self.encoder[0].back(d_hidden)
        d_first = self.buffers("d_first", *self.first.shape).zero_()
        kernels.sparse_product_gradient(indptr, indices, seen, d_x.numpy(), d_first.numpy())
        if a.encode_covariates:
            torch.mm(covariates.T, d_x, out=d_first[n_genes:])
        self.encoder[0].linear.weight.grad = d_first.T
        penalty = np.maximum(kl, free_bits).sum()
        prior = float(model.log_theta_prior()) / self.n_cells
        reconstruction = float(found.log_p.mean())
        return StepLoss(beta * penalty - reconstruction - prior, reconstruction, float(kl.sum()))

    def _rows(self, data: CountData, cells: np.ndarray) -> tuple[np.ndarray, ...]:
        """CSR rows of the cells: indptr, indices, counts, and the encoder's view of them."""
        matrix, rows = data.counts.matrix, data.counts.rows
        to_common_depth = np.exp(float(self.model.log_common_depth) - data.log_offset[cells])
        cells = cells if rows is None else rows[cells]
        n = int((matrix.indptr[cells + 1] - matrix.indptr[cells]).sum())
        if n > len(self.scratch[1]) or len(cells) >= len(self.scratch[0]):
            size = int(1.2 * n) + 1
            self.scratch = (
                np.empty(len(cells) + 1, np.int64),
                np.empty(size, np.int32),
                *(np.empty(size, np.float32) for _ in range(3)),
                np.empty((2, size), np.int32),
            )
        arrays = matrix.indptr, matrix.indices, matrix.data
        kernels.gather_rows(*arrays, cells, to_common_depth, self.scratch)
        return self.scratch[:4]

    def _through(self, layers: list[Layer], x: torch.Tensor, kept: list) -> torch.Tensor:
        for layer, keep in zip(layers, kept, strict=True):
            x = layer.units(torch.addmm(layer.linear.bias, x, layer.linear.weight.T), keep)
        return x

    def _back(self, layers: list[Layer], d: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """From the gradient at the last layer's units to that at ``first``, what the first got."""
        inputs = [first, *(layer.out for layer in layers)]
        for layer, x in zip(reversed(layers), reversed(inputs[: len(layers)]), strict=True):
            d_x = layer.back(d)
            layer.linear.weight.grad = d_x.T @ x
            d = d_x @ layer.linear.weight
        return d


class _SideBySide:
    """Linear layers of one input, computed as one: their weights become views of one matrix."""

    def __init__(self, layers: list[torch.nn.Linear]):
        self.layers = layers
        self.weight = torch.cat([layer.weight.data for layer in layers])
        self.bias = torch.cat([layer.bias.data for layer in layers])
        for layer, *views in self._split(self.weight, self.bias):
            layer.weight.data, layer.bias.data = views

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight.T)

    def back(self, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        """The gradient at the input; sets those of the layers."""
        for layer, *views in self._split(d.T @ x, d.sum(0)):
            layer.weight.grad, layer.bias.grad = views
        return d @ self.weight

    def _split(self, weight: torch.Tensor, bias: torch.Tensor):
        sizes = [len(layer.bias) for layer in self.layers]
        return zip(self.layers, weight.split(sizes), bias.split(sizes), strict=True)
