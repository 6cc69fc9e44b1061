"""How alike bulk samples are before and after the model has explained what it can.

Samples of one batch resemble each other in all genes. What the model holds for normal must not be
left in the residuals, or outliers of one batch are outliers together.
"""

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from held_cells import SCORING_DEVICE, Cells, read_fits, some_of
from job import job, write_json, write_parquet, write_tsv
from omics_vae.inference import decoded
from omics_vae.model import VAE
from stored_counts import counts_memory

# A heatmap of more has less than two dots of print a sample; the pairs grow with the square.
MOST_SAMPLES = 500
MOST_LEVELS = 12  # of a column of the metadata that a colour bar can tell apart
# What this pipeline drew by chance groups no samples.
NO_GROUPING = {"split", "fold"}
PAIR_COLUMNS = ["sample_1", "sample_2", "before", "after"]


def levels_of(model: VAE, cells: Cells, device) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the counts at equal depth, and of the counts over the expected (samples, genes).

    .. math:: \\log_2 \\frac{x + 1}{s}, \\qquad \\log_2 \\frac{x + 1}{\\mu + 1}

    of the model's genes; s is the library size and mu what the model expects.
    """
    before, after = [], []
    for chunk, _, likelihood in decoded(model, cells.data, cells.posterior, device):
        part = cells.take(chunk)
        log_count = np.log2(part.counts.of_genes(part.in_model).toarray() + 1.0)
        expected = np.maximum(model.as_counts(likelihood.mean, part.size), 0.0)
        before.append(log_count - np.log2(part.size)[:, None])
        after.append(log_count - np.log2(expected + 1.0))
    return np.concatenate(before), np.concatenate(after)


def correlation(levels: np.ndarray) -> np.ndarray:
    """Spearman's correlation of samples over genes, each gene centred (samples, samples).

    Without the centring all correlations are near 1: highly expressed genes are so in all samples.
    """
    return np.corrcoef(rankdata(levels - levels.mean(0), axis=1))


def clustered(correlation: np.ndarray) -> np.ndarray:
    """The samples in an order that has like ones side by side: average linkage of 1 - r."""
    if len(correlation) < 3:
        return np.arange(len(correlation))
    distance = squareform(np.clip(1.0 - correlation, 0.0, 2.0), checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(distance, "average"), distance))


def groupings(obs: pd.DataFrame) -> pd.DataFrame:
    """The columns of the metadata that group the samples into 2 to 12 levels, as text.

    Of those that make the same groups the first, and ``role`` before all.
    """
    texts = obs.drop(columns=NO_GROUPING, errors="ignore").select_dtypes(exclude="number")
    texts = texts.astype(object).fillna("").astype(str)
    n_levels = texts.nunique()
    texts = texts.loc[:, (n_levels > 1) & (n_levels <= min(MOST_LEVELS, len(obs) - 1))]
    texts = texts[sorted(texts, key=lambda name: name != "role")]
    codes = texts.apply(lambda column: pd.factorize(column)[0])
    return texts.loc[:, ~codes.T.duplicated()]


def left(correlation: np.ndarray) -> float:
    """Median size of the correlation of two samples."""
    pairs = np.abs(correlation[np.triu_indices(len(correlation), 1)])
    return float(np.median(pairs)) if len(pairs) else 0.0


def pair_table(names: np.ndarray, before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """pairs.parquet: a row a pair of samples, each once."""
    one, other = np.triu_indices(len(names), 1)
    columns = [names[one], names[other], before[one, other], after[one, other]]
    return pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True)))


if __name__ == "__main__":
    with job(snakemake) as log:
        files, output = snakemake.input, snakemake.output
        torch.set_num_threads(snakemake.threads)
        fits = read_fits(files, snakemake.params.folds, counts_memory(snakemake))
        # In cross-fitting each sample's expectation is of a model that has not seen it.
        parts = [(model, cells.of("query") if len(fits) > 1 else cells) for model, cells in fits]
        chosen = pd.concat([cells.obs for _, cells in parts]).index
        chosen = chosen[some_of(chosen, MOST_SAMPLES)]
        parts = [(model, cells.take(cells.obs.index.isin(chosen))) for model, cells in parts]
        obs = pd.concat([cells.obs for _, cells in parts])
        levels = [levels_of(model, cells, SCORING_DEVICE) for model, cells in parts]
        before, after = (correlation(np.concatenate(part)) for part in zip(*levels, strict=True))
        order = clustered(before)
        samples = groupings(obs).rename_axis("cell_id").iloc[order].reset_index()
        write_parquet(pair_table(obs.index.to_numpy(), before, after), output.pairs)
        write_tsv(samples, output.samples)
        summary = {
            "n_samples": len(obs),
            "n_genes": len(fits[0][1].in_model),
            "median_before": left(before),
            "median_after": left(after),
            "warnings": [],
        }
        write_json(summary, output.summary)
        log.info(
            "%d samples, median |r| %.2f before, %.2f after", len(obs), left(before), left(after)
        )
