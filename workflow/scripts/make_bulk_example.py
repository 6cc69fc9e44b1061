"""Make the input of the bulk example: a simulated cohort of samples with known outlier genes.

Negative binomial counts whose log rates are moved by confounders, as batch, sex and tissue purity
move those of real cohorts. Nothing in it is anybody's data.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from job import job, write_tsv

N_CONFOUNDERS = 8
CONFOUNDED_SD = 0.5  # of log rates, over samples, from all confounders together
MEAN_COUNT, MEAN_SPREAD = 200.0, 1.5  # median over genes, and SD of its log
THETA, THETA_SPREAD = 20.0, 0.8  # median over genes and SD of its log: a CV of 22 % beyond sampling
SIZE_SPREAD = 0.3  # SD of log sequencing depth
# The example: controls, patients, genes, and what is wrong with the patients.
CONTROLS, PATIENTS, GENES = 60, 20, 2000
OUTLIERS_A_PATIENT, OUTLIER_Z = 3, (5.0, 6.0, 8.0)
DEGRADED, DEGRADED_SHARE = "patient20", 0.03  # the aberrant sample: so many of its genes are off


@dataclass(frozen=True)
class Cohort:
    """Counts of samples and what made them."""

    counts: np.ndarray  # (samples, genes) int64
    mu: np.ndarray  # (samples, genes)
    theta: np.ndarray  # (genes,)


def simulate_cohort(n_samples: int, n_genes: int, seed: int) -> Cohort:
    r"""Samples of one tissue.

    .. math:: x_{ig} \sim \mathrm{NB}(s_i \exp(b_g + z_i^\top w_g),\ \theta_g)

    The first confounder is a batch (half of the samples), the second has three levels, the others
    are normal; their strength falls geometrically to 0.3 of the first.
    """
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_samples, N_CONFOUNDERS))
    z[:, 0] = rng.permutation(np.arange(n_samples) % 2) * 2.0 - 1.0
    z[:, 1] = rng.integers(0, 3, n_samples) - 1.0
    loadings = rng.standard_normal((N_CONFOUNDERS, n_genes))
    loadings *= np.geomspace(1.0, 0.3, N_CONFOUNDERS)[:, None]
    loadings *= CONFOUNDED_SD / np.sqrt(np.square(loadings).sum(0).mean())
    log_rate = rng.normal(np.log(MEAN_COUNT), MEAN_SPREAD, n_genes) + z @ loadings
    log_size = rng.normal(0.0, SIZE_SPREAD, n_samples)
    mu = np.exp(log_size[:, None] + log_rate)
    theta = np.exp(rng.normal(np.log(THETA), THETA_SPREAD, n_genes))
    return Cohort(rng.poisson(rng.gamma(theta, mu / theta)), mu, theta)


def size_factors(counts: np.ndarray) -> np.ndarray:
    """Median of ratios (Anders & Huber 2010) over genes that all samples show, median 1."""
    log_counts = np.log(counts[:, (counts > 0).all(0)])
    factors = np.exp(np.median(log_counts - log_counts.mean(0), axis=1))
    return factors / np.median(factors)


def outlier_counts(counts: np.ndarray, z: np.ndarray) -> np.ndarray:
    r"""The count that each gene of each sample would have z SDs from the gene's mean.

    .. math:: k' = \operatorname{round}(s_i\, 2^{m_g + z_{ig} v_g})

    with m and v mean and SD over the samples of log2((k + 1) / s). ``z`` (samples, genes).
    Source: Brechtmann et al. 2018 (OUTRIDER), doi:10.1016/j.ajhg.2018.10.025.
    """
    factors = size_factors(counts)[:, None]
    level = np.log2((counts + 1.0) / factors)
    return np.round(factors * np.exp2(level.mean(0) + z * level.std(0, ddof=1))).astype(np.int64)


def make_cohort(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts (samples x genes) and the outliers put into the patients (sample, gene, z).

    Each patient but the degraded one has one outlier gene of each z in OUTLIER_Z, up or down.
    """
    cohort = simulate_cohort(CONTROLS + PATIENTS, GENES, seed)
    samples = [f"control{i:02d}" for i in range(1, CONTROLS + 1)]
    samples += [f"patient{i:02d}" for i in range(1, PATIENTS + 1)]
    genes = [f"GENE{g:04d}" for g in range(1, GENES + 1)]
    rng = np.random.default_rng([seed, 1])
    z = np.zeros(cohort.counts.shape)
    for sample in range(CONTROLS, len(samples)):
        is_degraded = samples[sample] == DEGRADED
        n = round(DEGRADED_SHARE * GENES) if is_degraded else OUTLIERS_A_PATIENT
        chosen = rng.permutation(GENES)[:n]
        z[sample, chosen] = np.resize(OUTLIER_Z, n) * rng.choice([-1.0, 1.0], n)
    counts = np.where(z != 0, outlier_counts(cohort.counts, z), cohort.counts)
    table = pd.DataFrame(counts, index=pd.Index(samples, name="sample"), columns=genes)
    rows, columns = np.nonzero(z)
    outliers = pd.DataFrame(
        {
            "sample": table.index.to_numpy()[rows],
            "gene": table.columns.to_numpy()[columns],
            "z": z[rows, columns],
        }
    )
    return table, outliers


if __name__ == "__main__":
    with job(snakemake) as log:
        counts, outliers = make_cohort(snakemake.params.seed)
        is_control = counts.index.str.startswith("control")
        write_tsv(counts[is_control].reset_index(), snakemake.output.controls)
        write_tsv(counts[~is_control].reset_index(), snakemake.output.patients)
        write_tsv(outliers, snakemake.output.outliers)
        log.info("%d samples, %d genes, %d outliers", *counts.shape, len(outliers))
