"""Join the samples, choose the model's genes, split the cells.

Genes are chosen from all cells, reference and query pooled, and never by role. A gene that only
query cells express is evidence against them, and a choice among genes that vary in the reference
could not take it. Query and calibration cells enter the choice alike, so a normal query cell stays
exchangeable with the calibration cells.
"""

from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from job import InputError, job, write_json, write_tsv
from join_samples import JoinedCounts, join_samples
from omics_vae.counts import BLOCK_CELLS, BUFFER_BLOCKS
from splits import fold_cells, labels, split_cells
from stored_counts import ROW, CountFile, in_order, write_h5ad
from variable_genes import variability

# A variance from fewer cells is noise; smaller batches vote together.
MIN_BATCH_CELLS = 50


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
    counts: JoinedCounts, batches: np.ndarray, n_features: int, batch_aware: bool
) -> tuple[np.ndarray, str, list[str]]:
    """Mark the ``n_features`` most variable genes, voted for by batches where there are several.

    ``batches``: the batch of each cell.

    Returns
    -------
    selected: (genes,) bool.
    method: in words. warnings: one line each.
    """
    n_cells, n_genes = counts.shape
    if n_features >= n_genes:
        return np.ones(n_genes, dtype=bool), "all genes", []
    several = batch_aware and len(set(batches)) > 1
    groups = voting_groups(batches) if several else np.full(n_cells, "all", dtype=object)
    found = variability(counts, groups)
    warnings = [
        f"variable genes ({group}, {int((groups == group).sum())} cells): no mean-variance trend "
        "could be fitted, so the variance of Pearson residuals was used; check the number of cells"
        for group, (_, method) in found.items()
        if method == "Pearson residuals"
    ]
    if "" in groups:
        warnings.append(
            f"variable genes: {int((groups == '').sum())} cells of batches with fewer than "
            f"{MIN_BATCH_CELLS} cells had no vote; set preprocess.select_features.batch_aware: "
            "false to give every cell one"
        )
    selected = np.zeros(n_genes, dtype=bool)
    scores = np.array([score for score, _ in found.values()])
    selected[rank_over_batches(scores, n_features)[:n_features]] = True
    return (
        selected,
        "; ".join(f"{group}: {method}" for group, (_, method) in found.items()),
        warnings,
    )


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


def keep_seen(
    counts: JoinedCounts, obs: pd.DataFrame, var: pd.DataFrame, min_cells: int
) -> tuple[JoinedCounts, pd.DataFrame, pd.DataFrame, list[str]]:
    """Keep genes seen in ``min_cells`` cells, then cells that still have a count.

    Raises
    ------
    InputError: no gene is left, or a sample has no cell left.
    """
    n_cells = np.zeros(len(var), dtype=np.int64)
    for _, x in counts.blocks():
        n_cells += np.bincount(x.indices, minlength=len(var))
    seen = n_cells >= max(min_cells, 1)
    if not seen.any():
        raise InputError(
            f"preprocess.select_features.min_cells: no gene is seen in {min_cells} cells; lower it"
        )
    if not seen.all():
        counts, var = counts.of_genes(seen), var[seen]
    var = var.assign(n_cells=n_cells[seen])
    kept = np.concatenate([np.diff(x.indptr) > 0 for _, x in counts.blocks()])
    if kept.all():
        return counts, obs, var, []
    left = obs[kept]
    gone = sorted(set(obs["sample"]) - set(left["sample"]))
    if gone:
        raise InputError(
            f"sample {gone[0]}: no cell has a count in the {len(var)} genes that all samples "
            "share and that are in enough cells; check its genes"
        )
    warning = (
        f"{int((~kept).sum())} cells had no count in the {len(var)} shared genes and were "
        f"dropped (first: {obs.index[~kept][0]}); raise preprocess.filter_cells.min_counts"
    )
    return counts.take(kept), left, var, [warning]


def select_features(
    samples: list[CountFile],
    gene_list: str | None,
    settings: dict,
    split: dict,
    n_folds: int,
    observations: str,
    seed: int,
) -> tuple[JoinedCounts, pd.DataFrame, pd.DataFrame, dict]:
    """Join, choose, split: counts, obs with split, var with selected, and the summary.

    ``n_folds``: 0, or without a query the number of folds, then in obs.fold; ``observations``:
    cells, or samples of bulk RNA-seq, of which a cohort has fewer.
    """
    joined, obs, var, lost, warnings = join_samples(samples)
    n_shared = len(var)
    n_joined = len(obs)
    counts, obs, var, more = keep_seen(joined, obs, var, settings["min_cells"])
    warnings += more
    if n_folds:
        part, fold, split_by, more = fold_cells(obs, split, n_folds, seed, observations)
        place = {"split": part, "fold": fold}
    else:
        part, split_by, more = split_cells(obs, split, seed, observations)
        place = {"split": part}
    warnings += more
    first = obs[["cell", "sample", "role"]].assign(**place)
    obs = pd.concat([first, obs.drop(columns=["cell", "sample", "role"])], axis=1)
    batches = labels(obs, "batch")
    variable, method, more = select_variable(
        counts, batches, settings["n_features"], settings["batch_aware"]
    )
    warnings += more
    listed = np.zeros(len(var), dtype=bool)
    if gene_list is not None:
        listed, more = find_listed(var, read_gene_list(gene_list), gene_list)
        warnings += more
    by = {(0, 0): "", (1, 0): "variable", (0, 1): "list", (1, 1): "variable, list"}
    selected_by = [by[pair] for pair in zip(variable, listed, strict=True)]
    var = var.assign(selected=variable | listed, selected_by=selected_by)
    summary = {
        "n_cells": len(obs),
        "n_genes": len(var),
        "n_selected": int(var["selected"].sum()),
        "selected_by": {k: int(v) for k, v in var["selected_by"].value_counts().items()},
        "method": method,
        "split_by": split_by,
        "splits": {k: int(v) for k, v in obs["split"].value_counts().items()},
        "n_genes_shared": n_shared,
        "n_genes_in_too_few_cells": n_shared - len(var),
        "n_genes_lost_in_join": lost,
        "n_empty_cells_dropped": n_joined - len(obs),
        "warnings": warnings,
    }
    return counts, obs, var, summary


def training_order(n_cells: int, seed: int) -> np.ndarray:
    """The order of the cells in model_counts.h5ad: as they are, or at random where they are many.

    Then training reads neighbouring cells together, and the input may be sorted.
    """
    if n_cells <= BUFFER_BLOCKS * BLOCK_CELLS:
        return np.arange(n_cells)
    return np.random.default_rng(seed).permutation(n_cells)


def write_all(
    counts: JoinedCounts, obs: pd.DataFrame, var: pd.DataFrame, seed: int, output
) -> list[str]:
    """counts.h5ad, all genes, and model_counts.h5ad, those of the model; returns warnings."""
    n_empty = 0

    def blocks_of_model():
        nonlocal n_empty
        for block in in_order(counts.of_genes(selected).blocks(), order, Path(output.counts)):
            n_empty += int((np.diff(block.indptr) == 0).sum())
            yield block

    order = training_order(len(obs), seed)
    selected = np.flatnonzero(var["selected"].to_numpy())
    blocks = (block for _, block in counts.blocks())
    write_h5ad(output.counts, {"X": blocks}, {"obs": obs, "var": var})
    tables = {"obs": obs.iloc[order].assign(**{ROW: order}), "var": var.iloc[selected]}
    # Read over and over in small pieces, so without compression.
    write_h5ad(output.model_counts, {"X": blocks_of_model()}, tables, compressed=False)
    if n_empty == 0:
        return []
    return [
        f"{n_empty} cells have no count in the selected genes, so the model sees them as empty; "
        "raise preprocess.select_features.n_features or preprocess.filter_cells.min_counts"
    ]


if __name__ == "__main__":
    with job(snakemake) as log:
        output = snakemake.output
        counts, obs, var, summary = select_features(
            [CountFile.open(path) for path in snakemake.input.counts],
            snakemake.input.get("gene_list") or None,
            snakemake.params.settings,
            snakemake.params.split,
            snakemake.params.n_folds,
            snakemake.params.observations,
            snakemake.params.seed,
        )
        splits = obs.groupby(["sample", "role", "split"], sort=True, observed=True).size()
        summary["warnings"] += write_all(counts, obs, var, snakemake.params.seed, output)
        write_tsv(splits.rename("n_cells").reset_index(), output.splits)
        write_json(summary, output.summary)
        log.info("selected %d of %d genes", summary["n_selected"], len(var))
        for warning in summary["warnings"]:
            log.warning(warning)
