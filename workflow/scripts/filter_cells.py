"""Drop broken and empty cells of one sample, and say of each why it went.

Every limit is computed from all cells of the sample, reference and query together, and never looks
at the role: a normal query cell is then treated exactly as a normal reference cell, which the
conformal p-values later lean on (exchangeability).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gene_sets import GENE_SETS
from job import InputError, job, write_json, write_parquet, write_tsv
from omics_vae.counts import Counts
from stored_counts import CountFile

QUANTITIES = ["total_counts", "n_genes", *GENE_SETS]

# The config's key for each bound.
BOUNDS = {
    "min_counts": ("total_counts", "lower"),
    "max_counts": ("total_counts", "upper"),
    "min_genes": ("n_genes", "lower"),
    "max_genes": ("n_genes", "upper"),
    "max_pct_mito": ("pct_mito", "upper"),
    "max_pct_ribo": ("pct_ribo", "upper"),
    "max_pct_hb": ("pct_hb", "upper"),
}

# 1.4826 times the median absolute deviation estimates the standard deviation of a normal law.
MAD_TO_SD = 1.4826
# Robust limits may not come closer to the median than this, else a sample whose cells are alike
# (a MAD of 0: down-sampled to one depth, or hardly any mitochondrial counts) would lose up to half
# of them. Depth: within a factor of two of the median nothing is broken.
MIN_LOG_WIDTH = np.log(2)
# Mitochondrial share, in percentage points: what counting noise alone gives a shallow normal cell,
# 5 SD of a binomial share of 2 % in 500 counts (5 * 100 * sqrt(0.02 * 0.98 / 500) = 3.1).
MIN_MITO_WIDTH = 3.0

MANY_DROPPED = 0.2


@dataclass(frozen=True)
class Limit:
    """A bound on one QC quantity; values beyond it (not on it) drop the cell."""

    quantity: str
    side: str  # "lower" or "upper"
    value: float
    origin: str

    def broken_by(self, values: np.ndarray) -> np.ndarray:
        # NaN (the shares of an empty cell) breaks no limit.
        return values < self.value if self.side == "lower" else values > self.value

    def reason(self, value: float) -> str:
        sign = "<" if self.side == "lower" else ">"
        return f"{self.quantity} {_number(value)} {sign} {_number(self.value)} ({self.origin})"


def _number(value: float) -> str:
    # Whole counts in full (13714, not 1.371e+04), shares and robust limits to four digits.
    return f"{value:.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4g}"


def qc_metrics(counts: Counts, genes: pd.Index) -> pd.DataFrame:
    """QC quantities of each cell, from all genes of the sample.

    Parameters
    ----------
    counts: (cells, genes), raw counts.
    genes: gene names; matched without regard to case, so that human and mouse both work.

    Returns
    -------
    total_counts, n_genes (genes with a count), and pct_mito, pct_ribo, pct_hb in percent of
    total_counts (NaN for an empty cell, and for all cells where no gene has such a name).
    """
    in_set = np.array([[bool(p.match(gene)) for gene in genes] for p in GENE_SETS.values()]).T
    parts = [
        np.column_stack([x.sum(1), np.diff(x.indptr), x @ in_set.astype(np.int64)])
        for _, x in counts.blocks()
    ]
    values = np.concatenate([np.empty((0, 2 + len(GENE_SETS)), np.int64), *map(np.asarray, parts)])
    total = values[:, 0]
    metrics = {"total_counts": total, "n_genes": values[:, 1]}
    for name, part, of_set in zip(GENE_SETS, values[:, 2:].T, in_set.T, strict=True):
        known = (total > 0) & of_set.any()
        metrics[name] = np.divide(100.0 * part, total, out=np.full(len(total), np.nan), where=known)
    return pd.DataFrame(metrics)


def median_and_sd(values: np.ndarray) -> tuple[float, float]:
    """The median, and 1.4826 median |x - median|, the robust standard deviation."""
    median = float(np.median(values))
    return median, MAD_TO_SD * float(np.median(np.abs(values - median)))


def fixed_limits(settings: dict) -> list[Limit]:
    """The limits that the config gives as numbers; null is no limit."""
    # An empty cell has no profile to judge, whatever the config says.
    empty = Limit("total_counts", "lower", 1, "empty cell")
    return [empty] + [
        Limit(quantity, side, float(settings[key]), key)
        for key, (quantity, side) in BOUNDS.items()
        if settings[key] is not None
    ]


def robust_limits(metrics: pd.DataFrame, n_mads: float | None) -> list[Limit]:
    """Limits ``n_mads`` robust standard deviations from the median of the sample's cells.

    On log1p(total_counts) and log1p(n_genes) both sides; on pct_mito the upper side only (few
    mitochondrial counts are no fault). Empty cells take no part: in a sample full of empty droplets
    they would be the median. Never closer to the median than MIN_LOG_WIDTH and MIN_MITO_WIDTH.
    """
    cells = metrics[metrics["total_counts"] > 0]
    if n_mads is None or cells.empty:
        return []
    limits = []
    for quantity in ("total_counts", "n_genes"):
        centre, sd = median_and_sd(np.log1p(cells[quantity].to_numpy()))
        width = max(n_mads * sd, MIN_LOG_WIDTH)
        for side, sign in (("lower", -1), ("upper", 1)):
            origin = _robust_origin(n_mads, side, float(np.expm1(centre)), width > n_mads * sd)
            value = max(float(np.expm1(centre + sign * width)), 0.0)
            limits.append(Limit(quantity, side, value, origin))
    if cells["pct_mito"].isna().all():
        return limits
    centre, sd = median_and_sd(cells["pct_mito"].to_numpy())
    width = max(n_mads * sd, MIN_MITO_WIDTH)
    origin = _robust_origin(n_mads, "upper", centre, width > n_mads * sd)
    return [*limits, Limit("pct_mito", "upper", centre + width, origin)]


def _robust_origin(n_mads: float, side: str, median: float, floored: bool) -> str:
    where = "below" if side == "lower" else "above"
    origin = f"{n_mads:g} MAD {where} the median {_number(median)}"
    return origin + (", widened" if floored else "")


def judge_cells(metrics: pd.DataFrame, limits: list[Limit]) -> tuple[np.ndarray, list[dict]]:
    """All reasons against each cell, and what each limit did.

    Returns
    -------
    reasons: (cells,), "; "-joined, empty for a cell that is kept.
    used: for each limit its quantity, side, value, origin and the number of cells beyond it.
    """
    reasons: list[list[str]] = [[] for _ in range(len(metrics))]
    used = []
    for limit in limits:
        values = metrics[limit.quantity].to_numpy()
        broken = np.flatnonzero(limit.broken_by(values))
        for cell in broken:
            reasons[cell].append(limit.reason(values[cell]))
        used.append(
            {
                "quantity": limit.quantity,
                "side": limit.side,
                "limit": limit.value,
                "origin": limit.origin,
                "n_dropped": len(broken),
            }
        )
    return np.array(["; ".join(parts) for parts in reasons], dtype=object), used


def effective_limits(limits: list[Limit]) -> dict[str, dict]:
    """The strictest bound on each side of each quantity, by the config's key for it."""
    effective = {}
    for key, bound in BOUNDS.items():
        bounds = [limit for limit in limits if (limit.quantity, limit.side) == bound]
        if bounds:
            strictest = (max if bound[1] == "lower" else min)(bounds, key=lambda b: b.value)
            effective[key] = {"value": strictest.value, "origin": strictest.origin}
    return effective


def filter_cells(
    file: CountFile, sample: str, settings: dict
) -> tuple[CountFile, pd.DataFrame, dict]:
    """The kept cells, the QC table of every cell, and the summary.

    Raises
    ------
    InputError: no cell is left; says which limit dropped how many.
    """
    metrics = qc_metrics(file.counts, file.var.index)
    limits = fixed_limits(settings) + robust_limits(metrics, settings["n_mads"])
    reasons, used = judge_cells(metrics, limits)
    kept = reasons == ""
    if not kept.any():
        raise InputError(
            f"sample {sample}: none of its {len(file.obs)} cells is left after filtering: "
            f"{_by_limit(used)}; loosen these limits in preprocess.filter_cells or check the "
            "sample's file"
        )

    table = pd.DataFrame({"cell": file.obs.index.astype(str), "sample": sample})
    table["role"] = file.obs["role"].astype(str).to_numpy()
    table = pd.concat([table, metrics], axis=1).assign(kept=kept, reasons=reasons)

    filtered = file.take(kept)
    for quantity in QUANTITIES:
        filtered.obs[quantity] = metrics[quantity].to_numpy()[kept]
    roles = table.groupby("role", sort=True)["kept"].agg(n_cells="size", n_kept="sum")
    summary = {
        "sample": sample,
        "n_cells": int(kept.size),
        "n_kept": int(kept.sum()),
        "by_role": {role: {k: int(v) for k, v in row.items()} for role, row in roles.iterrows()},
        "limits": effective_limits(limits),
        "dropped_by": used,
        "warnings": _warnings(sample, metrics, used, roles, robust=settings["n_mads"] is not None),
    }
    return filtered, table, summary


def _by_limit(used: list[dict]) -> str:
    """What the limits dropped, the worst first."""
    worst = sorted((u for u in used if u["n_dropped"]), key=lambda u: -u["n_dropped"])
    words = {"lower": "<", "upper": ">"}
    return ", ".join(
        f"{u['quantity']} {words[u['side']]} {_number(u['limit'])} ({u['origin']}) "
        f"dropped {u['n_dropped']}"
        for u in worst
    )


def _warnings(
    sample: str, metrics: pd.DataFrame, limits: list[dict], roles: pd.DataFrame, robust: bool
) -> list[str]:
    warnings = [
        f"sample {sample}: {n - kept} of {n} {role} cells ({(n - kept) / n:.0%}) were dropped: "
        f"{_by_limit(limits)}; look at its QC figure, loosen preprocess.filter_cells, and give the "
        "filtered, not the raw droplet matrix"
        for role, n, kept in roles.itertuples()
        if n - kept > MANY_DROPPED * n
    ]
    wanted = {limit["quantity"] for limit in limits} | ({"pct_mito"} if robust else set())
    for quantity in sorted(wanted & set(GENE_SETS)):
        if not (metrics[quantity] > 0).any():
            warnings.append(
                f"sample {sample}: {quantity} is unknown or 0 in all cells (no gene is named like "
                "MT-ND1, RPL3 or HBB, or they were removed), so its limit drops nothing; name "
                "genes by symbols to have it act"
            )
    return warnings


if __name__ == "__main__":
    with job(snakemake) as log:
        file = CountFile.open(snakemake.input.counts)
        filtered, table, summary = filter_cells(
            file, snakemake.wildcards.sample, snakemake.params.limits
        )
        filtered.write(snakemake.output.counts)
        write_parquet(table, snakemake.output.qc)
        write_tsv(table[~table["kept"]], snakemake.output.dropped)
        write_json(summary, snakemake.output.summary)
        log.info("%s: kept %d of %d cells", summary["sample"], summary["n_kept"], table.shape[0])
        for warning in summary["warnings"]:
            log.warning(warning)
