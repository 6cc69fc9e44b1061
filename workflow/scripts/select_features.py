"""Join the samples, choose the model's genes, split the cells.

Genes are chosen from all cells, reference and query pooled, and never by role. A gene that only
query cells express is evidence against them, and a choice among genes that vary in the reference
could not take it. Query and calibration cells enter the choice alike, so a normal query cell stays
exchangeable with the calibration cells.
"""

from difflib import get_close_matches
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from cohort import MIN_ROWS, check_cohort
from job import InputError, job, write_h5ad, write_json, write_tsv
from join_samples import join_samples
from splits import MIN_CELLS, fold_cells, labels, split_cells

# A variance from fewer cells is noise; smaller batches vote together.
MIN_BATCH_CELLS = 50
# Seurat's span first. Sparse or few data have so few distinct mean counts that a local quadratic is
# singular; a wider window then holds more of them.
LOESS_SPANS = (0.3, 0.5, 0.7, 1.0)
# The loess library crashes on fewer than four points, and a trend through fewer than these is none.
MIN_LOESS_GENES = 20


def variability(counts: anndata.AnnData) -> tuple[np.ndarray, str]:
    """How much more each gene varies than its mean lets expect.

    Seurat v3: the variance of counts standardised by the loess trend of log variance on log mean,
    clipped at sqrt(cells) (Stuart et al. 2019, doi:10.1016/j.cell.2019.05.031). Where the trend
    cannot be fitted with any span: the variance of analytic Pearson residuals, which need no fit
    (Lause et al. 2021, doi:10.1186/s13059-021-02451-7).

    Returns
    -------
    score: (genes,), higher is more variable.
    method: what gave it, in words.
    """
    variable_genes = int((counts.X.max(axis=0).toarray() != counts.X.min(axis=0).toarray()).sum())
    for span in LOESS_SPANS if variable_genes >= MIN_LOESS_GENES else ():
        try:
            table = sc.pp.highly_variable_genes(
                counts, flavor="seurat_v3", n_top_genes=counts.n_vars, span=span, inplace=False
            )
        except ValueError:  # "near singularities", "svddc failed", "reciprocal condition number"
            continue
        if np.isfinite(table["variances_norm"]).all():
            return table["variances_norm"].to_numpy(), f"seurat_v3, span {span}"
    table = sc.experimental.pp.highly_variable_genes(
        counts, flavor="pearson_residuals", n_top_genes=counts.n_vars, inplace=False
    )
    return np.nan_to_num(table["residual_variances"].to_numpy()), "Pearson residuals"


def rank_over_batches(scores: np.ndarray, n_features: int) -> np.ndarray:
    """Gene order, the best first, as Seurat v3 joins batches.

    By the median rank over those batches where the gene is among the first ``n_features``, ties by
    the number of these batches, then by position. A gene of one batch only thus can come first.

    Parameters
    ----------
    scores: (batches, genes), higher is more variable.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    among = ranks < n_features
    median = np.ma.median(np.ma.masked_array(ranks, ~among), axis=0).filled(np.inf)
    return np.lexsort((-among.sum(axis=0), median))


def voting_groups(batches: np.ndarray) -> np.ndarray:
    """The batch under which each cell votes; small ones together, "" for cells without a vote.

    A single group is returned where no group would have enough cells.
    """
    sizes = pd.Series(batches).value_counts()
    small = np.isin(batches, sizes.index[sizes < MIN_BATCH_CELLS].to_numpy(dtype=object))
    groups = np.where(small, "small batches", "batch " + batches)
    if small.all():
        return np.full(len(batches), "all", dtype=object)
    if 0 < small.sum() < MIN_BATCH_CELLS:
        groups[small] = ""
    return groups


def select_variable(
    counts: anndata.AnnData, n_features: int, batch_aware: bool
) -> tuple[np.ndarray, str, list[str]]:
    """Mark the ``n_features`` most variable genes, voted for by batches where there are several.

    Returns
    -------
    selected: (genes,) bool.
    method: in words. warnings: one line each.
    """
    if n_features >= counts.n_vars:
        return np.ones(counts.n_vars, dtype=bool), "all genes", []
    batches = labels(counts.obs, "batch")
    several = batch_aware and len(set(batches)) > 1
    groups = voting_groups(batches) if several else np.full(counts.n_obs, "all", dtype=object)
    scores, methods, warnings = [], {}, []
    for group in sorted(set(groups) - {""}):
        # A copy of the counts only: scanpy would carry every obs column along.
        part = anndata.AnnData(counts.X[groups == group])
        score, methods[group] = variability(part)
        scores.append(score)
        if methods[group] == "Pearson residuals":
            warnings.append(
                f"variable genes ({group}, {part.n_obs} cells): no mean-variance trend could be "
                "fitted, so the variance of Pearson residuals was used; check the number of cells"
            )
    if "" in groups:
        warnings.append(
            f"variable genes: {int((groups == '').sum())} cells of batches with fewer than "
            f"{MIN_BATCH_CELLS} cells had no vote; set preprocess.select_features.batch_aware: "
            "false to give every cell one"
        )
    selected = np.zeros(counts.n_vars, dtype=bool)
    selected[rank_over_batches(np.array(scores), n_features)[:n_features]] = True
    return selected, "; ".join(f"{group}: {method}" for group, method in methods.items()), warnings


def read_gene_list(path: str | Path) -> list[str]:
    """One name a line; # opens a comment; empty lines are skipped."""
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    names = [line.split("#", 1)[0].strip() for line in lines]
    return list(dict.fromkeys(name for name in names if name))


def find_listed(var: pd.DataFrame, names: list[str], path: str) -> tuple[np.ndarray, list[str]]:
    """Mark the user's genes, named as the matrix names them or by its gene_id.

    Raises
    ------
    InputError: none of the names is in the matrix.
    """
    wanted = set(names)
    listed = var.index.isin(wanted)
    known = set(var.index)
    if "gene_id" in var:
        listed |= var["gene_id"].isin(wanted).to_numpy()
        known |= set(var["gene_id"])
    missing = [name for name in names if name not in known]
    if not listed.any():
        raise InputError(
            f"{path}: none of its {len(names)} names is a gene of the counts"
            f"{_near(missing, var.index)}; name the genes as the counts do ({var.index[0]})"
        )
    if not missing:
        return listed, []
    return listed, [
        f"{path}: {len(missing)} of {len(names)} names are not genes of the counts (or are in too "
        f"few cells, or not in all samples){_near(missing, var.index)}; correct or remove them"
    ]


def _near(missing: list[str], genes: pd.Index, n_shown: int = 5) -> str:
    """The first names that were not found, each with the gene that is spelt most like it."""
    by_case = {gene.casefold(): gene for gene in reversed(genes)}
    shown = []
    for name in missing[:n_shown]:
        near = get_close_matches(name.casefold(), by_case, n=1, cutoff=0.75)
        shown.append(f"{name} (near: {by_case[near[0]]})" if near else name)
    more = " ..." if len(missing) > n_shown else ""
    return ": " + ", ".join(shown) + more if shown else ""


def keep_seen(counts: anndata.AnnData, min_cells: int) -> tuple[anndata.AnnData, list[str]]:
    """Keep genes seen in ``min_cells`` cells, then cells that still have a count.

    Raises
    ------
    InputError: no gene is left, or a sample has no cell left.
    """
    n_cells = np.asarray((counts.X > 0).sum(axis=0)).ravel()
    seen = n_cells >= max(min_cells, 1)
    if not seen.any():
        raise InputError(
            f"no gene is seen in {min_cells} cells; lower preprocess.select_features.min_cells"
        )
    counts = counts[:, seen].copy()
    counts.var["n_cells"] = n_cells[seen].astype(np.int64)
    empty = np.asarray(counts.X.sum(axis=1)).ravel() == 0
    if not empty.any():
        return counts, []
    left = counts[~empty].copy()
    gone = sorted(set(counts.obs["sample"]) - set(left.obs["sample"]))
    if gone:
        raise InputError(
            f"sample {gone[0]}: no cell has a count in the {counts.n_vars} genes that all samples "
            "share and that are in enough cells; check its genes"
        )
    return left, [
        f"{int(empty.sum())} cells had no count in the {counts.n_vars} shared genes and were "
        f"dropped (first: {counts.obs_names[empty][0]}); raise preprocess.filter_cells.min_counts"
    ]


def select_features(
    samples: list[anndata.AnnData],
    gene_list: str | None,
    settings: dict,
    split: dict,
    n_folds: int,
    observations: str,
    seed: int,
) -> tuple[anndata.AnnData, dict]:
    """Join, choose, split: the matrix with obs.split and var.selected, and its summary.

    ``n_folds``: 0, or without a query the number of folds, then in obs.fold; ``observations``:
    cells, or samples of bulk RNA-seq, of which a cohort has fewer.
    """
    joined, lost, warnings = join_samples(samples)
    counts, more = keep_seen(joined, settings["min_cells"])
    warnings += more
    at_least = MIN_CELLS
    if observations == "samples":
        n_reference = int((counts.obs["role"] == "reference").sum())
        warnings += check_cohort(n_reference, counts.n_obs - n_reference)
        at_least = MIN_ROWS
    if n_folds:
        counts.obs["split"], counts.obs["fold"], split_by = fold_cells(
            counts.obs, split, n_folds, seed, at_least
        )
    else:
        counts.obs["split"], split_by, more = split_cells(counts.obs, split, seed, at_least)
        warnings += more
    variable, method, more = select_variable(
        counts, settings["n_features"], settings["batch_aware"]
    )
    warnings += more
    listed = np.zeros(counts.n_vars, dtype=bool)
    if gene_list is not None:
        listed, more = find_listed(counts.var, read_gene_list(gene_list), gene_list)
        warnings += more
    counts.var["selected"] = variable | listed
    by = {(0, 0): "", (1, 0): "variable", (0, 1): "list", (1, 1): "variable, list"}
    counts.var["selected_by"] = [by[pair] for pair in zip(variable, listed, strict=True)]
    warnings += _without_selected(counts)

    order = ["cell", "sample", "role", "split", *(["fold"] if n_folds else [])]
    counts.obs = counts.obs[order + [c for c in counts.obs if c not in order]]
    summary = {
        "n_cells": counts.n_obs,
        "n_genes": counts.n_vars,
        "n_selected": int(counts.var["selected"].sum()),
        "selected_by": {k: int(v) for k, v in counts.var["selected_by"].value_counts().items()},
        "method": method,
        "split_by": split_by,
        "splits": {k: int(v) for k, v in counts.obs["split"].value_counts().items()},
        "n_genes_shared": joined.n_vars,
        "n_genes_in_too_few_cells": joined.n_vars - counts.n_vars,
        "n_genes_lost_in_join": lost,
        "n_empty_cells_dropped": joined.n_obs - counts.n_obs,
        "warnings": warnings,
    }
    return counts, summary


def _without_selected(counts: anndata.AnnData) -> list[str]:
    """Warn of cells that the model would see as empty."""
    in_model = sparse.csr_matrix(counts.X)[:, counts.var["selected"].to_numpy()].sum(axis=1)
    n = int((np.asarray(in_model).ravel() == 0).sum())
    if n == 0:
        return []
    return [
        f"{n} cells have no count in the selected genes, so the model sees them as empty; raise "
        "preprocess.select_features.n_features or preprocess.filter_cells.min_counts"
    ]


if __name__ == "__main__":
    with job(snakemake) as log:
        counts, summary = select_features(
            [anndata.read_h5ad(path) for path in snakemake.input.counts],
            snakemake.input.get("gene_list") or None,
            snakemake.params.settings,
            snakemake.params.split,
            snakemake.params.n_folds,
            snakemake.params.observations,
            snakemake.params.seed,
        )
        splits = counts.obs.groupby(["sample", "role", "split"], sort=True, observed=True).size()
        write_h5ad(counts, snakemake.output.counts)
        write_tsv(splits.rename("n_cells").reset_index(), snakemake.output.splits)
        write_json(summary, snakemake.output.summary)
        log.info("selected %d of %d genes", summary["n_selected"], counts.n_vars)
        for warning in summary["warnings"]:
            log.warning(warning)
