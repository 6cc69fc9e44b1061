"""Tables small enough to draw, from more tests of genes than anyone can draw one by one."""

import numpy as np
import pandas as pd
import torch

from gene_tests import LOG_10, possible
from held_cells import Cells, some_of
from omics_vae import anomaly
from omics_vae.inference import decoded
from omics_vae.likelihoods import Gaussian, Likelihood, NegativeBinomial
from omics_vae.model import VAE

# Two planes of the tests, and how fine their cells are.
PLANES = {"counts": (0.05, 0.05), "volcano": (0.1, 0.2)}
MOST_SHARP = 60.0  # -log10 p of the volcano; beyond it are hits alone, which have marks
DENSITY_COLUMNS = ["plane", "x", "y", "n_tests"]
TOP_GENES = 4
TOP_CELLS = 1000  # of the flagged cells, and of the others, in the panel of a gene, at most
TOP_COLUMNS = ["gene", "cell_id", "observed", "expected", "low", "high", "is_hit"]
INTERVAL = (0.025, 0.975)
BISECTIONS = 60  # halvings: a count of 10^9 to the last digit, a logarithm to 15


class Density:
    """How many tests lie where: of log10 (count + 1) observed on expected, and of the volcano."""

    def __init__(self):
        self.tables: list[pd.DataFrame] = []

    def add(self, block: dict, rows: np.ndarray) -> None:
        """Count in the tests of some rows of a block of :func:`score_genes.gene_blocks`."""
        if not len(rows):
            return
        expected = np.maximum(block["expected"][rows], 0.0)  # a Gaussian may expect less than none
        planes = {
            "counts": (np.log10(expected + 1.0), np.log10(block["observed"][rows] + 1.0)),
            "volcano": (block["log2_fold_change"][rows], -block["log_p"][rows] / LOG_10),
        }
        for plane, places in planes.items():
            seen = planes["volcano"][1] < MOST_SHARP if plane == "volcano" else ...
            at = [
                np.floor(place[seen].ravel() / step).astype(np.int64)
                for place, step in zip(places, PLANES[plane], strict=True)
            ]
            cells, n = np.unique(np.stack(at), axis=1, return_counts=True)
            self.tables.append(
                pd.DataFrame({"plane": plane, "x": cells[0], "y": cells[1], "n_tests": n})
            )

    def table(self) -> pd.DataFrame:
        """density.tsv: the lower left corner of each place that has tests, and their number."""
        if not self.tables:
            return pd.DataFrame(columns=DENSITY_COLUMNS)
        table = pd.concat(self.tables).groupby(["plane", "x", "y"])["n_tests"].sum().reset_index()
        steps = np.array([PLANES[plane] for plane in table["plane"]])
        # As rounded as they are read: 3 times 0.1 is not 0.3.
        return table.assign(**{name: (table[name] * steps[:, i]).round(6)
                               for i, name in enumerate("xy")})  # fmt: skip


def top_genes(hits: pd.DataFrame, is_bulk: bool) -> list[str]:
    """The genes worth a panel: of cells those most often hit, of samples those of smallest p."""
    genes = hits.groupby("gene")["log10_p"].agg(["size", "min"]).reset_index()
    by = ["min", "gene"] if is_bulk else ["size", "min", "gene"]
    order = genes.sort_values(by, ascending=[name != "size" for name in by], kind="stable")
    return order["gene"].head(TOP_GENES).tolist()


def quantile(expected: Likelihood, level: float, theta: np.ndarray | None = None) -> np.ndarray:
    r"""The smallest value x (cells, genes) with P(X <= x) >= ``level``; counts are whole.

    With ``theta``, a posterior of :class:`gene_tests.HeldOutTheta`, of the average over it.
    """

    is_whole = not isinstance(expected, Gaussian)

    def share_below(x: np.ndarray) -> np.ndarray:
        x, below = np.floor(x) if is_whole else x, np.zeros(x.shape)
        for genes, w, one in possible(expected, theta):
            below[:, genes] += w * one.cdf(x[:, genes])
        return below

    mean = expected.mean.numpy()
    width = 1.0 + np.sqrt(expected.variance.numpy() + np.zeros_like(mean))
    low, high = (np.full(mean.shape, -1.0) if is_whole else mean - 40.0 * width), mean + width
    while (short := share_below(high) < level).any():
        high = np.where(short, 2.0 * high - mean + 1.0, high)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        enough = share_below(middle) >= level
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.floor(high) if is_whole else high


def of_genes(
    model: VAE, cells: Cells, genes: list[str], rates: np.ndarray, theta: np.ndarray | None, device
) -> pd.DataFrame:
    """Some genes of some cells: columns of top.parquet but ``is_hit``; ``low`` to ``high``: 95 %.

    Expectations as in :func:`score_genes.gene_blocks`.
    """
    tables = []
    for chunk, _, likelihood in decoded(model, cells.data, cells.posterior, device):
        part = cells.take(chunk)
        counts = part.counts.of_genes(part.genes.get_indexer(genes)).toarray()
        for k, gene in enumerate(genes):
            of_all = part.genes.get_loc(gene)
            column = np.flatnonzero(part.in_model == of_all)
            if len(column):
                of_gene = None if theta is None else theta[:, column]
                one = likelihood[:, column]
                ends = [
                    model.as_counts(torch.from_numpy(quantile(one, q, of_gene)), part.size)
                    for q in INTERVAL
                ]
                expected = model.as_counts(one.mean, part.size)
            else:
                expected = part.size[:, None] * rates[of_all]
                log_theta = torch.full((1, 1), np.log(anomaly.POOLED_THETA)).double()
                pooled = NegativeBinomial(torch.from_numpy(np.log(expected)), log_theta)
                ends = [quantile(pooled, q) for q in INTERVAL]
            values = {"observed": counts[:, [k]], "expected": expected}
            values |= dict(zip(("low", "high"), ends, strict=True))
            tables.append(
                pd.DataFrame({"gene": gene, "cell_id": part.obs.index.to_numpy()})
                .assign(**{name: value[:, 0] for name, value in values.items()})
            )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def top_table(
    fits: list[tuple[VAE, Cells]],
    hits: pd.DataFrame,
    flagged: pd.Index,
    theta: np.ndarray | None,
    is_bulk: bool,
    device,
) -> pd.DataFrame:
    """top.parquet: the :func:`top_genes` in query cells, flagged ones and others."""
    genes = top_genes(hits, is_bulk)
    tables = []
    for model, cells in fits if genes else []:
        query, seen = cells.of("query"), cells.of("train", "validation")
        rates = anomaly.pooled_rates(seen.counts, seen.size)
        is_flagged = query.obs.index.isin(flagged)
        for some in (query.take(is_flagged), query.take(~is_flagged)):
            some = some.take(some_of(some.obs.index, TOP_CELLS))
            if len(some):
                tables.append(of_genes(model, some, genes, rates, theta, device))
    if not tables:
        return pd.DataFrame(columns=TOP_COLUMNS)
    table = pd.concat(tables, ignore_index=True)
    named = pd.MultiIndex.from_frame(hits[["gene", "cell_id"]])
    table["is_hit"] = pd.MultiIndex.from_frame(table[["gene", "cell_id"]]).isin(named)
    place = table["gene"].map(genes.index)
    order = table.assign(place=place).sort_values(["place", "cell_id"], kind="stable").index
    return table.loc[order, TOP_COLUMNS].reset_index(drop=True)
