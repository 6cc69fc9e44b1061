"""The library size of each cell: its sequencing depth, before feature selection.

It is counted over the genes that all samples share, as the model's counts are. Over each sample's
own genes, a query counted on a panel of genes would be set against a reference counted on the whole
transcriptome, and every one of its genes would seem too high.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from job import InputError, job, write_json, write_parquet, write_tsv
from omics_vae.counts import Counts
from stored_counts import CountFile

# Beyond this ratio of the medians depth and role are confounded.
MAX_MEDIAN_RATIO = 2.0
# A column this far off the counts' own totals is on another scale (size factors around one).
MAX_SCALE_RATIO = 10.0
# Median of ratios on sparse counts compares ones with ones: sizes that spread less than half as
# much (in logarithms) as the totals no longer follow depth.
MIN_SPREAD = 0.5
# Samples of one annotation lose nearly nothing in the genes that another sample lacks.
MAX_LOST_SHARE = 0.05


@dataclass(frozen=True)
class Sample:
    """The kept cells of one sample that are in counts.h5ad."""

    name: str
    X: Counts  # (cells, genes)
    genes: pd.Index
    obs: pd.DataFrame  # index: the input's cell names
    rows: np.ndarray  # place of each cell in counts.h5ad

    @cached_property
    def total(self) -> np.ndarray:
        return self.X.sum(axis=1)


def take_cells(file: CountFile, cells: pd.DataFrame) -> Sample:
    """The cells of one sample in the order of ``cells`` (obs of counts.h5ad: sample, cell)."""
    name = str(file.obs["sample"].iloc[0])
    rows = np.flatnonzero((cells["sample"].astype(str) == name).to_numpy())
    place = file.obs.index.get_indexer(cells["cell"].astype(str).to_numpy()[rows])
    return Sample(name, file.counts.take(place), file.var.index, file.obs.iloc[place], rows)


def keep_shared_genes(samples: list[Sample]) -> tuple[list[Sample], list[str]]:
    """The samples over the genes that all of them share, and a warning for each that loses much.

    Every cell of counts.h5ad has a count in them.
    """
    shared = samples[0].genes
    for sample in samples[1:]:
        shared = shared[shared.isin(sample.genes)]
    kept, warnings = [], []
    for sample in samples:
        cut = sample
        if not sample.genes.equals(shared):
            X = sample.X.of_genes(sample.genes.get_indexer(shared))
            cut = replace(sample, X=X, genes=shared)
        lost = 1 - cut.total.sum() / sample.total.sum()
        if lost > MAX_LOST_SHARE:
            warnings.append(
                f"sample {sample.name}: {100 * lost:.0f} % of its counts are in genes that another "
                "sample lacks, and its library sizes leave them out; count all samples with the "
                f"same annotation, or read the results as those of the {len(shared)} shared genes"
            )
        kept.append(cut)
    return kept, warnings


def median_of_ratios(samples: list[Sample]) -> list[np.ndarray]:
    r"""DESeq2's size factors, the ``poscounts`` variant, on the scale of counts.

    .. math::
        \log m_g = \frac{1}{n} \sum_{i: x_{ig} > 0} \log x_{ig}, \qquad
        f_i = \operatorname{median}_{g: x_{ig} > 0} \frac{x_{ig}}{m_g}, \qquad
        s_i = f_i \frac{\operatorname{median}_k t_k}{\operatorname{median}_k f_k}

    with x counts (the median is taken of logarithms), n all cells of all samples, t_i the total
    count; g runs over the genes that all samples share (:func:`keep_shared_genes`), and so does the
    sum of t_i. Anders & Huber 2010, doi:10.1186/gb-2010-11-10-r106; poscounts: Love et al. 2014,
    doi:10.1186/s13059-014-0550-8.

    Returns
    -------
    For each sample its library sizes, (cells,).
    """
    n_cells = sum(len(sample.X) for sample in samples)
    log_sum = np.zeros(samples[0].X.shape[1])
    for sample in samples:
        for _, x in sample.X.blocks():
            log_sum += np.bincount(x.indices, np.log(x.data), len(log_sum))
    log_mean = log_sum / n_cells

    factors = []
    for sample in samples:
        of_sample = []
        for _, x in sample.X.blocks():
            ratios = np.log(x.data) - log_mean[x.indices]
            of_sample += [np.median(cell) for cell in np.split(ratios, x.indptr[1:-1])]
        factors.append(np.exp(of_sample))
    scale = np.median(np.concatenate([sample.total for sample in samples]))
    scale /= np.median(np.concatenate(factors))
    return [factor * scale for factor in factors]


def column_of(obs: pd.DataFrame, column: str, sample: str) -> pd.Series:
    """The column of library sizes, under the name that importing may have given it."""
    renamed = f"{column}_input"
    found = renamed if renamed in obs else column
    if found not in obs:
        raise InputError(
            f"sample {sample}: library_size.column is {column}, but its cells have no such column "
            f"(they have {', '.join(map(str, obs.columns))}); correct it or set "
            "library_size.method: total"
        )
    return obs[found]


def from_column(sample: Sample, column: str) -> np.ndarray:
    """The obs column of the user's file, as it stands there.

    Where the input's column had a name that the pipeline itself uses, importing renamed it to
    ``<column>_input``, and that one is meant.

    Raises
    ------
    InputError: no such column; a value that is no number, not finite or not positive.
    """
    values = column_of(sample.obs, column, sample.name)
    sizes = pd.to_numeric(values.astype(object), errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~(np.isfinite(sizes) & (sizes > 0)))
    if bad.size:
        raise InputError(
            f"sample {sample.name}: cell {sample.obs.index[bad[0]]} has {column} "
            f"{values.iloc[bad[0]]}, and {bad.size} cells in all are so; library sizes must be "
            "finite and positive: mend the column or set library_size.method: total"
        )
    return sizes


def library_sizes(
    samples: list[Sample], method: str, column: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """The library size and the total count of each cell, in the order of counts.h5ad.

    ``samples``: over the same genes, as :func:`keep_shared_genes` leaves them.
    """
    totals = [sample.total for sample in samples]
    if method == "median_of_ratios":
        sizes = median_of_ratios(samples)
    elif method == "column":
        sizes = [from_column(sample, column) for sample in samples]
    else:
        sizes = totals
    order = np.argsort(np.concatenate([sample.rows for sample in samples]))
    return np.concatenate(sizes)[order], np.concatenate(totals)[order]


def quantiles(sizes: pd.Series) -> dict[str, float]:
    """Number, median and spread of library sizes."""
    levels = {"median": 0.5, "q05": 0.05, "q25": 0.25, "q75": 0.75, "q95": 0.95}
    return {"n_cells": len(sizes)} | {k: float(sizes.quantile(q)) for k, q in levels.items()}


def summarise(cells: pd.DataFrame, sizes: np.ndarray, totals: np.ndarray, method: str) -> dict:
    """What the report shows of the library sizes, and its warnings.

    Parameters
    ----------
    cells: obs of counts.h5ad (role). sizes, totals: (cells,).
    """
    role = cells["role"].astype(str).to_numpy()
    by_role = {name: quantiles(pd.Series(sizes[role == name])) for name in sorted(set(role))}
    # Without a query all cells are reference.
    medians = [by_role[name]["median"] for name in ("query", "reference") if name in by_role]
    ratio = medians[0] / medians[-1]
    warnings = []
    if not 1 / MAX_MEDIAN_RATIO <= ratio <= MAX_MEDIAN_RATIO:
        warnings.append(
            f"the median library size is {medians[1]:.4g} in reference and {medians[0]:.4g} in "
            "query cells, so depth and role are confounded; look at the depth checks of the "
            "anomaly stage, or thin the deeper cells to the depth of the others"
        )
    median, total = float(np.median(sizes)), float(np.median(totals))
    if not 1 / MAX_SCALE_RATIO <= median / total <= MAX_SCALE_RATIO:
        warnings.append(
            f"the median library size is {median:.4g} and the median total count {total:.4g}, but "
            "the model takes library sizes on the scale of counts; multiply the column by "
            f"{total / median:.4g}"
        )
    spread = _log_iqr(sizes) / _log_iqr(totals) if _log_iqr(totals) > 0 else 1.0
    if method == "median_of_ratios" and spread < MIN_SPREAD:
        warnings.append(
            f"library sizes by median of ratios spread only {spread:.2f} times as much as total "
            "counts, since the counts are too sparse for them; set library_size.method: total"
        )
    return {
        "method": method,
        "n_cells": len(sizes),
        "median": median,
        "median_total_counts": total,
        "by_role": by_role,
        "query_over_reference": ratio,
        "spread_over_total_counts": spread,
        "spearman_total_counts": _spearman(sizes, totals),
        "warnings": warnings,
    }


def _log_iqr(sizes: np.ndarray) -> float:
    return float(np.subtract(*np.quantile(np.log(sizes), [0.75, 0.25])))


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation; None where one of them is constant (JSON has no NaN)."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(pd.Series(a).rank().corr(pd.Series(b).rank()))


if __name__ == "__main__":
    with job(snakemake) as log:
        with h5py.File(snakemake.input.counts) as file:
            cells = read_elem(file["obs"])
        samples = [take_cells(CountFile.open(path), cells) for path in snakemake.input.samples]
        samples, warnings = keep_shared_genes(samples)
        method = snakemake.params.method
        sizes, totals = library_sizes(samples, method, snakemake.params.column)
        table = pd.DataFrame(
            {
                "cell_id": cells.index.astype(str),
                "sample": cells["sample"].astype(str).to_numpy(),
                "role": cells["role"].astype(str).to_numpy(),
                "library_size": sizes,
                "log_offset": np.log(sizes),
            }
        )
        by_sample = table.groupby("sample", sort=False)["library_size"]
        rows = [{"sample": name} | quantiles(part) for name, part in by_sample]
        summary = summarise(cells, sizes, totals, method)
        summary["warnings"] = warnings + summary["warnings"]
        write_parquet(table, snakemake.output.library_size)
        write_tsv(pd.DataFrame(rows), snakemake.output.samples)
        write_json(summary, snakemake.output.summary)
        log.info("%s: median library size %.4g", method, summary["median"])
        for warning in summary["warnings"]:
            log.warning(warning)
