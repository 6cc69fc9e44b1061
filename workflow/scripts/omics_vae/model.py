"""The generative model of normal cells, on one page.

Counts x of cell i and gene g, latent z of the cell, library size s_i (observed):

.. math::
    z_i &\\sim N(0, I) \\\\
    \\rho_i &= \\operatorname{softmax}(f(z_i)) \\text{ over the model's genes and the rest} \\\\
    x_{ig} &\\sim \\mathrm{NB}(\\mu_{ig} = s_i\\, c\\, \\rho_{ig},\\ \\theta_g),\\qquad
        \\operatorname{Var} = \\mu + \\mu^2/\\theta

The library size counts all genes, the model decodes some of them; the one extra logit, "the rest",
takes the share of the others, so that the decoded shares need not sum to one. The softmax leaves no
freedom to trade scale between s and rho. c is a constant, 1 when s is a cell's total count; for
library sizes below a cell's total (size factors) it is the headroom that lets mu reach the counts.

The approximate posterior is q(z|x) = N(m(x), diag v(x)). The encoder sees log(1 + counts at a
common depth), so that z need not carry the depth. Training maximises

.. math:: \\mathrm{ELBO}_\\beta = E_q[\\log p(x|z)] - \\beta\\, \\mathrm{KL}(q(z|x) \\| p(z))

Sources: Kingma & Welling 2014, arXiv:1312.6114; Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from omics_vae.data import CountData
from omics_vae.likelihoods import nb_log_likelihood
from omics_vae.priors import kl_standard_normal

# exp of these bounds: a posterior variance from 5e-5 to 150, a theta from 5e-5 to 2e4.
LOG_VARIANCE_RANGE = (-10.0, 5.0)
LOG_THETA_RANGE = (-10.0, 10.0)
# Few cells say little about the dispersion of a rare gene; left alone, theta follows the training
# cells' residuals, which an overfitted mean makes too small.
LOG_THETA_SD = 0.5


@dataclass(frozen=True)
class Architecture:
    """The shape of a model; with its weights, all that is needed to load it again."""

    n_genes: int
    n_latent: int
    n_hidden: int
    dropout: float


class ElboParts(NamedTuple):
    """The parts of the ELBO, in nats; the ELBO at beta = 1 is their difference."""

    reconstruction: torch.Tensor  # (cells,)
    kl: torch.Tensor  # (cells, latent)


class VAE(nn.Module):
    """Encoder, reparameterization, decoder and ELBO of the model above."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = a = architecture
        self.encoder = nn.Sequential(
            nn.Linear(a.n_genes, a.n_hidden),
            nn.LayerNorm(a.n_hidden),
            nn.ReLU(),
            nn.Dropout(a.dropout),
        )
        self.posterior_mean = nn.Linear(a.n_hidden, a.n_latent)
        self.posterior_log_variance = nn.Linear(a.n_hidden, a.n_latent)
        self.decoder_input = nn.Linear(a.n_latent, a.n_hidden)
        self.decoder = nn.Sequential(nn.LayerNorm(a.n_hidden), nn.ReLU(), nn.Dropout(a.dropout))
        self.logits = nn.Linear(a.n_hidden, a.n_genes + 1)  # the last one is "the rest"
        self.log_theta = nn.Parameter(torch.zeros(a.n_genes))
        # Fixed by the training cells, saved with the weights: the depth at which the encoder reads,
        # and log c of the formula above.
        self.register_buffer("log_common_depth", torch.zeros(()))
        self.register_buffer("log_headroom", torch.zeros(()))

    @torch.no_grad()
    def start_from(self, data: CountData) -> None:
        """Start as the null model of the training cells, one profile for all, which saves epochs.

        The profile is the pooled share of each gene; theta starts at 1, the mode of its prior.
        """
        size = np.exp(data.log_offset)
        self.log_common_depth.fill_(float(np.median(data.log_offset)))
        totals = np.asarray(data.counts.sum(1), dtype=np.float64).ravel()
        headroom = max(1.0, float((totals / size).max()))
        self.log_headroom.fill_(math.log(headroom))
        gene_sums = np.asarray(data.counts.sum(0), dtype=np.float64).ravel() + 0.5
        rest = max(1.0, headroom * size.sum() - gene_sums.sum())
        self.logits.bias.copy_(torch.from_numpy(np.log(np.append(gene_sums, rest))))
        self.logits.weight.mul_(0.1)

    def encode(
        self, x: torch.Tensor, log_offset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of q(z|x) from counts (cells, genes) and log offset (cells,)."""
        depth = torch.exp(self.log_common_depth - log_offset)  # (cells,)
        h = self.encoder(torch.log1p(x * depth[:, None]))  # (cells, hidden)
        log_variance = self.posterior_log_variance(h).clamp(*LOG_VARIANCE_RANGE)
        return self.posterior_mean(h), log_variance  # 2 x (cells, latent)

    def decode(self, z: torch.Tensor, log_offset: torch.Tensor) -> torch.Tensor:
        """log mu (cells, genes) of latent points (cells, latent) at log offsets (cells,)."""
        logits = self.logits(self.decoder(self.decoder_input(z)))  # (cells, genes + 1)
        log_share = torch.log_softmax(logits, dim=-1)[..., :-1]  # (cells, genes)
        return log_share + (log_offset + self.log_headroom)[:, None]

    def clamped_log_theta(self) -> torch.Tensor:
        """log theta (genes,), kept where the likelihood is a well-behaved function of it."""
        return self.log_theta.clamp(*LOG_THETA_RANGE)

    def log_theta_prior(self) -> torch.Tensor:
        """Log-density of the prior log theta ~ N(0, 0.5^2), over all genes (scalar)."""
        return -0.5 * (self.log_theta / LOG_THETA_SD).square().sum()

    def reconstruction(
        self, x: torch.Tensor, log_offset: torch.Tensor, z: torch.Tensor
    ) -> torch.Tensor:
        """log p(x|z) of each cell, summed over the genes (cells,), in nats."""
        log_mu = self.decode(z, log_offset)
        return nb_log_likelihood(x, log_mu, self.clamped_log_theta()).sum(-1)

    def forward(self, x: torch.Tensor, log_offset: torch.Tensor) -> ElboParts:
        """The ELBO's parts with one reparameterized sample z = m + sqrt(v) e, e ~ N(0, I)."""
        mean, log_variance = self.encode(x, log_offset)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)  # (cells, latent)
        return ElboParts(
            self.reconstruction(x, log_offset, z), kl_standard_normal(mean, log_variance)
        )


def save_model(model: VAE, weights: Path, description: Path, genes: list[str]) -> None:
    """Write the weights (safetensors) and the architecture with its genes (JSON)."""
    if len(genes) != model.architecture.n_genes:
        raise ValueError(f"{len(genes)} gene names for a model of {model.architecture.n_genes}")
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, weights)
    content = {"architecture": asdict(model.architecture), "genes": list(genes)}
    Path(description).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load_model(weights: Path, description: Path) -> tuple[VAE, list[str]]:
    """Read what :func:`save_model` wrote; the model in evaluation mode, and its genes."""
    content = json.loads(Path(description).read_text("utf-8"))
    model = VAE(Architecture(**content["architecture"]))
    model.load_state_dict(load_file(weights))
    return model.eval(), content["genes"]
