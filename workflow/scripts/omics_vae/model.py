"""The generative model of normal cells, on one page.

Counts x of cell i and gene g, latent z of the cell, covariates c (batch, ...), library size s_i:

.. math::
    z_i &\\sim p(z) \\text{: N(0, I), a Gaussian mixture or a VampPrior (priors.py)} \\\\
    \\rho_i &= \\operatorname{softmax}(f(z_i, c_i)) \\text{ over these genes and the rest} \\\\
    x_{ig} &\\sim \\mathrm{NB}(\\mu_{ig} = s_i\\, a\\, \\rho_{ig},\\ \\theta_g),\\qquad
        \\operatorname{Var} = \\mu + \\mu^2/\\theta

or a ZINB, whose share of lost counts is a function of z, or a Poisson (likelihoods.py). theta is a
parameter of the gene, of gene and batch, or of the gene times a function of z.

**Scale.** The library size counts all genes, the model decodes some of them; the one extra logit,
"the rest", takes the share of the others, so that the decoded shares need not sum to one. The
softmax leaves no freedom to trade scale between s and rho. A *free* decoder, mu = s exp(f(z, c)),
does: s times k and f minus log k is the same likelihood, so its f is a rate per unit of s only
while s is observed. a is a constant, 1 when s is a cell's total count; for library sizes below a
cell's total (size factors) it is the headroom that lets mu reach the counts. s is observed, or
latent: log s ~ N(m_b, v_b) with mean and variance of the training cells of batch b.

**Gaussian.** It models y = log(1 + counts at a common depth), what the encoder sees, with mean
f(z, c) and a variance a gene; the library size is then in y and not in the mean.

The approximate posterior is q(z|x) = N(m(x), diag v(x)). The encoder sees depth-normalised log
counts, so that z need not carry the depth. Training maximises

.. math:: \\mathrm{ELBO}_\\beta = E_q[\\log p(x|z)] - \\beta\\, \\mathrm{KL}(q(z|x) \\| p(z))

A skip connection hands the decoder the encoder's hidden units too. It is here because published
models have it: p(x|z) is then no density of x, z may fall idle (collapse.py finds out), and FiLM,
hidden units times a linear function of z, is what keeps z in use.

Sources: Kingma & Welling 2014, arXiv:1312.6114; Lopez et al. 2018, doi:10.1038/s41592-018-0229-2;
Perez et al. 2018 (FiLM), arXiv:1709.07871.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from omics_vae.data import Batch
from omics_vae.likelihoods import Gaussian, Likelihood, NegativeBinomial, Poisson, ZeroInflatedNB
from omics_vae.priors import GaussianMixture, Mixture, StandardNormal, VampPrior, gaussian_kl

# exp of these bounds: a posterior variance from 5e-5 to 150, a theta from 5e-5 to 2e4.
LOG_VARIANCE_RANGE = (-10.0, 5.0)
LOG_THETA_RANGE = (-10.0, 10.0)
# Few cells say little about the dispersion of a rare gene; left alone, theta follows the training
# cells' residuals, which an overfitted mean makes too small.
LOG_THETA_SD = 0.5
# Of a learned Gaussian variance (likelihoods.Gaussian says why), in squared log counts: a tenth of
# the step from 0 counts to 1, squared.
VARIANCE_FLOOR = 0.005


@dataclass(frozen=True)
class Architecture:
    """The shape of a model; with its weights, all that is needed to load it again."""

    n_genes: int
    n_latent: int
    n_hidden: int
    dropout: float
    n_layers: int = 1  # 0: linear
    normalization: str = "layer"  # layer, batch, none
    likelihood: str = "nb"  # nb, zinb, poisson, gaussian
    dispersion: str = "gene"  # gene, gene_batch, gene_cell
    gaussian_variance: float | None = None  # of every gene; None: learned
    decoder: str = "softmax"  # softmax, free
    library_size: str = "observed"  # observed, latent
    skip: str = "none"  # none, plain, film
    prior: str = "normal"  # normal, mixture, vamp
    prior_components: int = 1
    n_covariates: int = 0
    encode_covariates: bool = False
    n_batches: int = 1


class Posterior(NamedTuple):
    """q(z|x), and what else the decoder is given of each cell."""

    mean: torch.Tensor  # (cells, latent)
    log_variance: torch.Tensor  # (cells, latent)
    log_size: torch.Tensor  # (cells,) log library size, or its posterior mean where it is latent
    log_size_variance: torch.Tensor | None  # (cells,) log of its variance; None where observed
    hidden: torch.Tensor  # (cells, hidden) of the encoder, for a skip connection


class ElboParts(NamedTuple):
    """The parts of the ELBO of each cell, in nats; at beta = 1 it is reconstruction - kl."""

    reconstruction: torch.Tensor  # (cells,)
    kl: torch.Tensor  # (cells,) of z, and of the library size where it is latent
    kl_dimensions: torch.Tensor  # (cells, latent)


def hidden_layers(n_in: int, a: Architecture) -> tuple[nn.Sequential, int]:
    """Linear, norm, ReLU, dropout, ``n_layers`` times; and the number of units that come out."""
    norm = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, "none": lambda n: nn.Identity()}
    layers = []
    for n in [n_in, *[a.n_hidden] * a.n_layers][: a.n_layers]:
        layers += [nn.Linear(n, a.n_hidden), norm[a.normalization](a.n_hidden)]
        layers += [nn.ReLU(), nn.Dropout(a.dropout)]
    return nn.Sequential(*layers), a.n_hidden if a.n_layers else n_in


class VAE(nn.Module):
    """Encoder, reparameterization, decoder and ELBO of the model above."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = a = architecture
        n_seen = a.n_genes + (a.n_covariates if a.encode_covariates else 0)
        self.encoder, width = hidden_layers(n_seen, a)
        self.posterior_mean = nn.Linear(width, a.n_latent)
        self.posterior_log_variance = nn.Linear(width, a.n_latent)
        self.decoder, decoded = hidden_layers(a.n_latent + a.n_covariates, a)
        is_shares = a.likelihood != "gaussian" and a.decoder == "softmax"
        self.profile = nn.Linear(decoded, a.n_genes + is_shares)  # the last one is "the rest"
        self.prior = {
            "normal": lambda: StandardNormal(a.n_latent),
            "mixture": lambda: GaussianMixture(a.prior_components, a.n_latent),
            "vamp": lambda: VampPrior(a.prior_components, a.n_genes),
        }[a.prior]()
        if a.likelihood in ("nb", "zinb"):
            n_rows = a.n_batches if a.dispersion == "gene_batch" else 1
            self.log_theta = nn.Parameter(torch.zeros(n_rows, a.n_genes))
            if a.dispersion == "gene_cell":
                self.log_theta_of_cell = nn.Linear(decoded, a.n_genes)
        if a.likelihood == "zinb":
            self.zero_logit = nn.Linear(decoded, a.n_genes)
        if a.likelihood == "gaussian" and a.gaussian_variance is None:
            self.log_gene_variance = nn.Parameter(torch.zeros(a.n_genes))
        if a.library_size == "latent":
            self.size_posterior = nn.Linear(width, 2)  # shift of the log mean; log variance
            self.register_buffer("size_prior", torch.zeros(a.n_batches, 2))  # mean, log variance
        if a.skip != "none":
            self.skip = nn.Linear(width, decoded)
        if a.skip == "film":
            self.film = nn.Linear(a.n_latent, decoded)
            # With a learned constant, the skip would need no z; a cut model has that of its centre.
            self.film.bias.requires_grad_(False).zero_()
        # Fixed by the training cells, saved with the weights: the depth at which the encoder reads,
        # and log a of the formula above.
        self.register_buffer("log_common_depth", torch.zeros(()))
        self.register_buffer("log_headroom", torch.zeros(()))

    def readers_of_z(self) -> list[str]:
        """The linear layers whose first inputs are z."""
        if self.architecture.n_layers:
            return ["decoder.0", "film"] if self.architecture.skip == "film" else ["decoder.0"]
        heads = ("profile", "log_theta_of_cell", "zero_logit")
        return [name for name in heads if hasattr(self, name)]

    def view(self, batch: Batch) -> torch.Tensor:
        """What the encoder sees: log(1 + counts at a common depth) (cells, genes)."""
        return torch.log1p(batch.x * torch.exp(self.log_common_depth - batch.log_offset)[:, None])

    def target(self, batch: Batch) -> torch.Tensor:
        """What the likelihood is of: the counts, or for a Gaussian the view (cells, genes)."""
        return self.view(batch) if self.architecture.likelihood == "gaussian" else batch.x

    def as_counts(self, mean: torch.Tensor, size: np.ndarray) -> np.ndarray:
        """Expected counts (cells, genes) from the mean of a likelihood; ``size`` (cells,).

        Of a Gaussian, the count whose log is expected, which lies below the expected count.
        """
        mean = mean.detach().double().cpu().numpy()
        if self.architecture.likelihood != "gaussian":
            return mean
        return np.expm1(mean) * (size / np.exp(float(self.log_common_depth)))[:, None]

    def encode(self, batch: Batch) -> Posterior:
        """q(z|x) of cells."""
        seen = [self.view(batch)]
        if self.architecture.encode_covariates:
            seen.append(batch.covariates)
        hidden = self.encoder(torch.cat(seen, -1))
        log_size, log_size_variance = batch.log_offset, None
        if self.architecture.library_size == "latent":
            shift, log_size_variance = self.size_posterior(hidden).unbind(-1)
            log_size = log_size + shift
            log_size_variance = log_size_variance.clamp(*LOG_VARIANCE_RANGE)
        return Posterior(*self._heads(hidden), log_size, log_size_variance, hidden)

    def _heads(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_variance = self.posterior_log_variance(hidden).clamp(*LOG_VARIANCE_RANGE)
        return self.posterior_mean(hidden), log_variance

    def prior_of_z(self) -> Mixture:
        """p(z). Pseudo-cells have covariates of 0: no category, numbers at their mean."""
        a = self.architecture

        def encode(pseudo_cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            blank = pseudo_cells.new_zeros(len(pseudo_cells), a.n_covariates * a.encode_covariates)
            # They are no cells: not in the statistics of batch norm, nor with units dropped.
            was_training = self.encoder.training
            self.encoder.eval()
            hidden = self.encoder(torch.cat([pseudo_cells, blank], -1))
            self.encoder.train(was_training)
            return self._heads(hidden)

        return self.prior(encode)

    def units(self, z: torch.Tensor, cells: Posterior, batch: Batch) -> torch.Tensor:
        """The decoder's last hidden units (cells, hidden), of which the heads are linear."""
        hidden = self.decoder(torch.cat([z, batch.covariates], -1))
        if self.architecture.skip == "plain":
            hidden = hidden + self.skip(cells.hidden)
        elif self.architecture.skip == "film":
            hidden = hidden + self.film(z) * self.skip(cells.hidden)
        return hidden

    def decode(self, z: torch.Tensor, cells: Posterior, batch: Batch) -> Likelihood:
        """p(x|z) of latent points (cells, latent), with the covariates of ``batch``."""
        a = self.architecture
        hidden = self.units(z, cells, batch)
        profile = self.profile(hidden)  # (cells, genes), one more with shares
        if a.likelihood == "gaussian":
            return Gaussian(profile, self.gene_variance())
        if a.decoder == "softmax":
            profile = torch.log_softmax(profile, dim=-1)[..., :-1]
        log_mu = profile + (cells.log_size + self.log_headroom)[:, None]  # (cells, genes)
        if a.likelihood == "poisson":
            return Poisson(log_mu)
        log_theta = self.log_theta[0]  # (genes,)
        if a.dispersion == "gene_batch":
            log_theta = self.log_theta[batch.batch]
        elif a.dispersion == "gene_cell":
            log_theta = log_theta + self.log_theta_of_cell(hidden)
        log_theta = log_theta.clamp(*LOG_THETA_RANGE)
        if a.likelihood == "nb":
            return NegativeBinomial(log_mu, log_theta)
        return ZeroInflatedNB(log_mu, log_theta, self.zero_logit(hidden))

    def gene_variance(self) -> torch.Tensor:
        """Variance of the Gaussian of each gene (genes,)."""
        if self.architecture.gaussian_variance is not None:
            return self.profile.bias.new_full(
                (self.architecture.n_genes,), self.architecture.gaussian_variance
            )
        return VARIANCE_FLOOR + torch.exp(self.log_gene_variance)

    def log_theta_prior(self) -> torch.Tensor:
        """Log-density of the prior log theta ~ N(0, 0.5^2), over all genes (scalar)."""
        if self.architecture.likelihood not in ("nb", "zinb"):
            return torch.zeros(())
        return -0.5 * (self.log_theta / LOG_THETA_SD).square().sum()

    def draw(self, q: Posterior) -> tuple[torch.Tensor, Posterior]:
        """A reparameterized sample z = m + sqrt(v) e, e ~ N(0, I), and of the log library size."""
        z = q.mean + torch.exp(0.5 * q.log_variance) * torch.randn_like(q.mean)
        if q.log_size_variance is None:
            return z, q
        noise = torch.exp(0.5 * q.log_size_variance) * torch.randn_like(q.log_size)
        return z, q._replace(log_size=q.log_size + noise)

    def size_kl(self, q: Posterior, batch: Batch) -> torch.Tensor:
        """KL of the posterior of log s from its batch's prior (cells,); 0 where s is observed."""
        if q.log_size_variance is None:
            return torch.zeros_like(q.log_size)
        return gaussian_kl(q.log_size, q.log_size_variance, *self.size_prior[batch.batch].T)

    def elbo(self, batch: Batch, q: Posterior) -> ElboParts:
        """The parts of the ELBO under a posterior, the reconstruction with one sample of it."""
        z, drawn = self.draw(q)
        reconstruction = self.decode(z, drawn, batch).log_prob(self.target(batch)).sum(-1)
        kl, kl_dimensions = self.prior_of_z().kl(q.mean, q.log_variance, z)
        return ElboParts(reconstruction, kl + self.size_kl(q, batch), kl_dimensions)

    def forward(self, batch: Batch) -> ElboParts:
        """The parts of the ELBO of cells under their amortized posterior."""
        return self.elbo(batch, self.encode(batch))


def save_model(model: VAE, weights: Path, description: Path, genes: list[str], **more) -> None:
    """Write the weights (safetensors) and, as JSON, the architecture, its genes and ``more``."""
    if len(genes) != model.architecture.n_genes:
        raise ValueError(f"{len(genes)} gene names for a model of {model.architecture.n_genes}")
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, weights)
    content = {"architecture": asdict(model.architecture), "genes": list(genes)} | more
    Path(description).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load_model(weights: Path, description: Path) -> tuple[VAE, dict]:
    """Read what :func:`save_model` wrote; the model in evaluation mode, and its description."""
    content = json.loads(Path(description).read_text("utf-8"))
    model = VAE(Architecture(**content["architecture"]))
    model.load_state_dict(load_file(weights))
    return model.eval(), content
