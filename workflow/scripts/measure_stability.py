"""Do other seeds tell the same: latent subspaces, neighbourhoods and anomalies compared.

A VAE's latent axes are identified at best up to a rotation, so no axis is compared with another:
two fits agree when one is a linear image of the other, when cells have the same neighbours, and
when the same cells are odd. Source: Khemakhem et al. 2020, arXiv:1907.04809 (identifiability).
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.linalg import subspace_angles
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from job import job, write_json, write_tsv

NEIGHBOURS = 15
COMPARED_CELLS = 5000  # the measures are means; more cells change the third digit
LOW_AGREEMENT = 0.5


def canonical_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of the principal angles between two embeddings of the same cells, largest first.

    ``a`` (cells, p), ``b`` (cells, q): the spaces spanned by their centred columns. min(p, q)
    values; all 1 when each is a linear image of the other. A direction in which no cell differs
    agrees with nothing: 0.
    Source: Björck & Golub 1973, doi:10.1090/S0025-5718-1973-0348991-3.
    """
    cosines = np.sort(np.cos(subspace_angles(a - a.mean(0), b - b.mean(0))))[::-1]
    return np.pad(cosines, (0, min(a.shape[1], b.shape[1]) - len(cosines)))


def shared_neighbours(a: np.ndarray, b: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Mean share of a cell's k nearest cells in one embedding that are so in the other as well.

    Two unrelated embeddings of n cells share k / (n - 1).
    """
    k = min(k, len(a) - 1)
    near = [cKDTree(x).query(x, k=k + 1)[1] for x in (a, b)]
    # Of cells at one place each may be called another's self, so the cell itself is taken out.
    sets = [[set(row) - {i} for i, row in enumerate(rows)] for rows in near]
    return float(np.mean([len(x & y) / k for x, y in zip(*sets, strict=True)]))


def compare(one: dict, other: dict) -> dict:
    """Agreement of two fits: ``latent`` (cells, d), ``score`` and ``flagged`` (query,) of each."""
    correlations = canonical_correlations(one["latent"], other["latent"])
    either = one["flagged"] | other["flagged"]
    both = one["flagged"] & other["flagged"]
    return {
        "n_latent": one["latent"].shape[1],
        "n_latent_other": other["latent"].shape[1],
        "canonical_correlation_mean": float(correlations.mean()),
        "canonical_correlation_smallest": float(correlations[-1]),
        "shared_neighbours": shared_neighbours(one["latent"], other["latent"]),
        "score_spearman": float(spearmanr(one["score"], other["score"]).statistic),
        "flagged_both": int(both.sum()),
        "flagged_either": int(either.sum()),
    }


def read_fit(latent: str, cells: str, chosen: np.ndarray | slice) -> dict:
    """What is compared of one fit: the latent place of the chosen cells, the verdict on queries."""
    table = pd.read_parquet(latent)
    scored = pd.read_parquet(cells)
    query = scored[scored["split"] == "query"]
    means = [name for name in table if name.startswith("mean_")]
    return {
        "latent": table[means].to_numpy(np.float64)[chosen],
        "score": query["score"].to_numpy(),
        "flagged": query["is_anomaly"].to_numpy(bool),
    }


def stability_warnings(pairs: pd.DataFrame) -> list[str]:
    """What a reader of the report should worry about, each with its mend."""
    found = []
    agreement = (pairs["flagged_both"] / pairs["flagged_either"].clip(lower=1)).mean()
    if pairs["flagged_either"].sum() and agreement < LOW_AGREEMENT:
        found.append(
            f"Other seeds flag other cells: on average {100 * agreement:.0f} % of the cells that "
            "either of two seeds flags are flagged by both; trust those that all flag "
            "(stability/cells.tsv), and bring more reference cells."
        )
    return found


if __name__ == "__main__":
    with job(snakemake) as log:
        seeds, files = snakemake.params.seeds, snakemake.input
        n = len(pd.read_parquet(files.latents[0], columns=["cell_id"]))
        rng = np.random.default_rng(snakemake.params.seed)
        chosen = (
            np.sort(rng.choice(n, COMPARED_CELLS, replace=False)) if n > COMPARED_CELLS else ...
        )
        fits = [read_fit(*paths, chosen) for paths in zip(files.latents, files.cells, strict=True)]
        pairs = pd.DataFrame(
            [
                {"seed": seeds[i], "other_seed": seeds[j], **compare(fits[i], fits[j])}
                for i, j in combinations(range(len(fits)), 2)
            ]
        )
        scored = pd.read_parquet(files.cells[0])
        query = scored.loc[scored["split"] == "query", ["cell_id", "sample"]]
        flagged = np.stack([fit["flagged"] for fit in fits])
        ranks = np.stack([pd.Series(fit["score"]).rank(pct=True) for fit in fits])
        cells = query.assign(
            n_flagged=flagged.sum(0),
            n_seeds=len(fits),
            rank_mean=ranks.mean(0),
            rank_sd=ranks.std(0),
        )
        write_tsv(pairs, snakemake.output.pairs)
        write_tsv(cells, snakemake.output.cells)
        write_json(
            {
                "seeds": list(seeds),
                "n_cells": n,
                "n_flagged_by_all": int(flagged.all(0).sum()),
                "n_flagged_by_any": int(flagged.any(0).sum()),
                "warnings": stability_warnings(pairs),
            },
            snakemake.output.summary,
        )
        log.info("measure_stability: %d seeds", len(fits))
