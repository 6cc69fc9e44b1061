"""Test every gene of the query cells: the hits of flagged cells, and the full table beside them.

In a bulk run a row is a sample, and all samples of the query are reported, flagged or not.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gene_panels import Density, top_table
from gene_tests import (
    LOG_10,
    SHIFTS,
    HeldOutTheta,
    benjamini_yekutieli,
    log_two_sided_p,
    randomised_p,
    z_score,
)
from held_cells import SCORING_DEVICE, Cells, read_fits
from job import job, write_atomically, write_json, write_parquet, write_tsv
from omics_vae import anomaly
from omics_vae.inference import decoded
from omics_vae.likelihoods import NegativeBinomial
from omics_vae.model import VAE
from stored_counts import counts_memory

HIT_COLUMNS = [
    *("cell_id", "gene", "observed", "expected", "log2_fold_change", "z_score"),
    *("p_value", "q_value", "log10_p", "direction", "null"),
]
BLOCK_VALUES = 2**21  # cells x genes tested at once; some 30 arrays of 8 bytes each
# Of the full table: names as dictionaries, and no more digits than the estimates have.
FULL_TABLE = pa.schema(
    [
        ("cell_id", pa.dictionary(pa.int32(), pa.string())),
        ("gene", pa.dictionary(pa.int32(), pa.string())),
        ("observed", pa.int32()),
        ("expected", pa.float32()),
        ("log2_fold_change", pa.float32()),
        ("z_score", pa.float32()),
        ("p_value", pa.float64()),
        ("q_value", pa.float64()),
        ("log10_p", pa.float32()),
    ]
)
# A sample is aberrant when more of its genes are outliers: the share as in DROP (Yepez et al. 2021,
# doi:10.1038/s41596-020-00462-5), and a number for runs with few genes.
ABERRANT_SHARE, ABERRANT_GENES = 0.001, 10
LEVELS = (0.01, 0.001, 0.0001)
CHECKED_CELLS = 500  # held-out normal cells on which the p-values are checked, at most
# Times as many p-values below 0.001 as there should be: beyond it the report warns.
WORST_RATIO = 3.0


def gene_blocks(
    model: VAE, cells: Cells, rates: np.ndarray, theta: np.ndarray | None, device
) -> Iterator[dict]:
    """Every gene of some cells, in blocks: a dict of arrays (cells, genes) and the cells' names.

    Genes of the model are held against what it decodes, theta by the posterior ``theta``; all
    others against the reference's pooled ``rates`` at the cell's depth, under a negative binomial
    with theta = 1, which is generous. q is Benjamini-Yekutieli within the cell.
    """
    step = max(1, BLOCK_VALUES // len(cells.genes))
    for start in range(0, len(cells), step):
        block = cells.take(np.arange(start, min(start + step, len(cells))))
        for chunk, x, likelihood in decoded(model, block.data, block.posterior, device):
            part = block.take(chunk)
            observed = part.counts.toarray().astype(np.float64)
            expected = part.size[:, None] * rates
            log_p = _pooled_log_p(observed, expected)
            expected[:, part.in_model] = model.as_counts(likelihood.mean, part.size)
            log_p[:, part.in_model] = log_two_sided_p(x, likelihood, theta)
            yield {
                "names": part.obs.index.to_numpy(),
                "observed": observed,
                "expected": expected,
                "log2_fold_change": np.log2((observed + 1.0) / (expected + 1.0)),
                "z_score": z_score(log_p, observed > expected),
                "log_p": log_p,
                "log_q": benjamini_yekutieli(log_p),
            }


def _pooled_log_p(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    null = NegativeBinomial(
        torch.from_numpy(np.log(expected)), torch.full((1, 1), np.log(anomaly.POOLED_THETA))
    )
    return log_two_sided_p(observed, null.double())


def held_out_theta(fits: list[tuple[VAE, Cells]], device) -> np.ndarray | None:
    """The posterior of theta (shifts, genes) from all fits, the second time without outliers.

    From normal observations that the models have not seen: validation and calibration, or without
    calibration, in cross-fitting, what each model scores. None where the likelihood has no theta.
    """
    if not hasattr(fits[0][0], "log_theta"):
        return None
    theta = None
    for _ in range(2):
        found = HeldOutTheta(len(fits[0][1].in_model))
        for model, cells in fits:
            held_out = cells.of("validation", "calibration")
            if not (held_out.split == "calibration").any():
                held_out = cells.of("query")
            for _, x, likelihood in decoded(model, held_out.data, held_out.posterior, device):
                found.add(x, likelihood, theta)
        theta = found.posterior()
    return theta


def median_ratio(theta: np.ndarray) -> float:
    """Median over genes of the re-estimated theta over the model's."""
    return float(np.exp(np.median((theta * SHIFTS[:, None]).sum(0))))


def table_of(block: dict, rows: np.ndarray, genes: np.ndarray, names: pd.Index) -> pd.DataFrame:
    """Some tests of a block, by their positions ``rows`` and ``genes``, as a table."""
    at = (rows, genes)
    return pd.DataFrame(
        {
            "cell_id": block["names"][rows],
            "gene": names.to_numpy()[genes],
            "observed": block["observed"][at].astype(np.int64),
            "expected": block["expected"][at],
            "log2_fold_change": block["log2_fold_change"][at],
            "z_score": block["z_score"][at],
            "p_value": np.exp(block["log_p"][at]),
            "q_value": np.exp(block["log_q"][at]),
            "log10_p": block["log_p"][at] / LOG_10,
        }
    )


def are_among(names: np.ndarray, chosen: pd.Index) -> np.ndarray:
    """Which of the names are chosen (names,) bool; the index is hashed once, not at every call."""
    return chosen.get_indexer(names) >= 0


def hits_of(block: dict, reported: pd.Index, cells: Cells, alpha: float) -> pd.DataFrame:
    """Genes with q <= alpha of the ``reported`` cells (names) of a block, the surest first."""
    is_hit = (block["log_q"] <= np.log(alpha)) & are_among(block["names"], reported)[:, None]
    rows, genes = np.nonzero(is_hit)
    table = table_of(block, rows, genes, cells.genes)
    up = block["observed"][rows, genes] > block["expected"][rows, genes]
    table["direction"] = np.where(up, "up", "down")
    table["null"] = np.where(np.isin(genes, cells.in_model), "model", "pooled")
    # By log p: where p is 0 the order would be that of the genes.
    return table.sort_values(["cell_id", "log10_p", "gene"])[HIT_COLUMNS]


def outliers_of(block: dict, alpha: float, names: pd.Index) -> pd.DataFrame:
    """How many genes of each cell are outliers, and the one that is most so."""
    is_hit, is_up = block["log_q"] <= np.log(alpha), block["observed"] > block["expected"]
    first = np.argmin(block["log_p"], axis=1)
    return pd.DataFrame(
        {
            "cell_id": block["names"],
            "n_outlier_genes": is_hit.sum(1),
            "n_up": (is_hit & is_up).sum(1),
            "n_down": (is_hit & ~is_up).sum(1),
            "share": is_hit.mean(1),
            "top_gene": names.to_numpy()[first],
            "top_log10_p": np.take_along_axis(block["log_p"], first[:, None], 1)[:, 0] / LOG_10,
        }
    )


class FullTable:
    """Writes the tests of the model's genes to Parquet, a row group a block of cells."""

    def __init__(self, path, cells: Cells, which: pd.Index):
        """``which``: names of the cells whose tests are kept."""
        self.which, self.cells, self.n_rows = which, cells, 0
        self.writer = pq.ParquetWriter(path, FULL_TABLE, compression="zstd")

    def add(self, block: dict) -> None:
        """Write the kept cells of a block, cell by cell, genes in the model's order."""
        rows = np.flatnonzero(are_among(block["names"], self.which))
        if not len(rows):
            return
        genes = self.cells.in_model
        table = table_of(
            block, np.repeat(rows, len(genes)), np.tile(genes, len(rows)), self.cells.genes
        )
        self.writer.write_table(
            pa.Table.from_pandas(table, FULL_TABLE, preserve_index=False, safe=False)
        )
        self.n_rows += len(table)


def check_on_normal(
    fits: list[tuple[VAE, Cells]], theta: np.ndarray | None, seed: int, device
) -> dict:
    """Randomised p-values of held-out normal cells: share below each level over the level.

    1 where the model's distribution is right. Of calibration cells; {} where there are none.
    """
    model, cells = fits[0]
    normal = cells.of("calibration")
    if not len(normal):
        return {}
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(normal))[:CHECKED_CELLS])
    normal, below, n = normal.take(chosen), np.zeros(len(LEVELS)), 0
    for _, x, likelihood in decoded(model, normal.data, normal.posterior, device):
        p = randomised_p(x, likelihood, rng, theta)
        below += [(p <= level).sum() for level in LEVELS]
        n += p.size
    ratio = below / (n * np.array(LEVELS))
    return {"n_tests": n} | {f"{a:g}": float(r) for a, r in zip(LEVELS, ratio, strict=True)}


def gene_warnings(check: dict, outliers: pd.DataFrame, unit: str) -> list[str]:
    """What a reader of the gene tables should worry about, each with its mend."""
    found = []
    if check and check["0.001"] > WORST_RATIO:
        found.append(
            f"Genes of normal held-out {unit}s have p <= 0.001 {check['0.001']:.1f} times as often "
            "as they should, so gene q-values are too small; read the gene hits as a ranking, or "
            "bring more reference and check the library sizes."
        )
    if "is_aberrant" in outliers and outliers["is_aberrant"].any():
        found.append(
            f"{int(outliers['is_aberrant'].sum())} of {len(outliers)} samples are aberrant: more "
            f"than {100 * ABERRANT_SHARE:g} % of their genes are outliers; look for a swapped or "
            "degraded sample before you read its genes."
        )
    return found


def score(
    fits: list[tuple[VAE, Cells]],
    verdict: pd.DataFrame,
    settings: dict,
    is_bulk: bool,
    full_table: str,
    device,
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray | None, int, pd.DataFrame, pd.DataFrame]:
    """Hits, outliers per query cell, the posterior of theta, and the rows of the full table.

    And of the same cells as the hits the tables for the figure, density.tsv and top.parquet.

    ``verdict``: cells.parquet; ``full_table``: the path to write it to.
    """
    query = verdict.loc[verdict["split"] == "query", ["cell_id", "sample", "is_anomaly"]]
    flagged = pd.Index(query.loc[query["is_anomaly"], "cell_id"])
    everyone, none = pd.Index(query["cell_id"]), pd.Index([], dtype=object)
    reported = everyone if is_bulk else flagged
    kept = {"query": everyone, "flagged": flagged, "none": none}[settings["full_table"]]
    theta = held_out_theta(fits, device) if is_bulk else None
    hits, outliers = [pd.DataFrame(columns=HIT_COLUMNS)], []
    full, density = FullTable(full_table, fits[0][1], kept), Density()
    for model, cells in fits:
        seen = cells.of("train", "validation")
        rates = anomaly.pooled_rates(seen.counts, seen.size)
        for block in gene_blocks(model, cells.of("query"), rates, theta, device):
            hits.append(hits_of(block, reported, cells, settings["alpha"]))
            outliers.append(outliers_of(block, settings["alpha"], cells.genes))
            full.add(block)
            density.add(block, np.flatnonzero(are_among(block["names"], reported)))
    full.writer.close()
    table = query.merge(pd.concat(outliers), on="cell_id", validate="one_to_one")
    if is_bulk:
        many = table["n_outlier_genes"] > ABERRANT_GENES
        table["is_aberrant"] = many & (table["share"] > ABERRANT_SHARE)
    hits = pd.concat([part for part in hits if len(part)] or hits[:1], ignore_index=True)
    top = top_table(fits, hits, flagged, theta, is_bulk, device)
    return hits, table, theta, full.n_rows, density.table(), top


if __name__ == "__main__":
    with job(snakemake) as log:
        params, output = snakemake.params, snakemake.output
        settings, is_bulk = params.settings, params.observations == "samples"
        torch.set_num_threads(snakemake.threads)
        device = SCORING_DEVICE
        fits = read_fits(snakemake.input, params.folds, counts_memory(snakemake))
        verdict = pd.read_parquet(snakemake.input.cells)
        found = []
        write_atomically(
            output.full,
            lambda path: found.extend(score(fits, verdict, settings, is_bulk, path, device)),
        )
        hits, outliers, theta, n_rows, density, top = found
        check = check_on_normal(fits, theta, params.seed, device)
        write_parquet(hits, output.genes)
        write_tsv(hits, output.genes_tsv)
        write_tsv(outliers, output.outliers)
        write_tsv(density, output.density)
        write_parquet(top, output.top)
        write_json(
            {
                "observations": params.observations,
                "alpha": settings["alpha"],
                "n_query": len(outliers),
                "n_genes": len(fits[0][1].genes),
                "n_genes_of_model": len(fits[0][1].in_model),
                "n_reported": len(outliers) if is_bulk else int(outliers["is_anomaly"].sum()),
                "n_hits": len(hits),
                "n_genes_hit": int(hits["gene"].nunique()),
                "n_with_outliers": int((outliers["n_outlier_genes"] > 0).sum()),
                "median_outlier_genes": float(outliers["n_outlier_genes"].median()),
                "n_aberrant": int(outliers["is_aberrant"].sum()) if is_bulk else None,
                "aberrant_above": max(ABERRANT_GENES, ABERRANT_SHARE * len(fits[0][1].genes)),
                "full_table": settings["full_table"],
                "n_rows_full_table": n_rows,
                "median_theta_ratio": None if theta is None else median_ratio(theta),
                "null_ratio": check,
                "warnings": gene_warnings(check, outliers, params.observations.removesuffix("s")),
            },
            output.summary,
        )
        log.info("score_genes: %d genes of %d %s", len(hits), len(outliers), params.observations)
