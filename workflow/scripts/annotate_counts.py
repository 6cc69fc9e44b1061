"""Give the user one AnnData object with everything that the run found out about each cell."""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from compute_umap import posterior_means
from job import InputError, job
from stored_counts import CountFile, write_h5ad

SCORES = ("score", "p_value", "q_value")
REASONS = ("pattern", "nearest_reference", "technical_cause")


def in_order(table: pd.DataFrame, cell_ids: pd.Index, name: str) -> pd.DataFrame:
    """The rows of ``table`` in the order of ``cell_ids``; every cell must have exactly one."""
    indexed = table.set_index("cell_id")
    if not indexed.index.is_unique or len(cell_ids.difference(indexed.index)):
        raise InputError(
            f"{name}: does not hold each cell of the counts once; remove it and run again"
        )
    return indexed.loc[cell_ids]


def normalise(counts: sparse.csr_matrix, scale: np.ndarray) -> sparse.csr_matrix:
    """log(1 + counts * scale), CSR float32; empty entries stay so. ``scale`` (cells,)."""
    X = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    X.data = np.log1p(X.data * np.repeat(scale, np.diff(X.indptr))).astype(np.float32)
    return X


def annotate(
    counts: CountFile,
    library_size: pd.DataFrame,
    latent: pd.DataFrame,
    umap: pd.DataFrame,
    cells: pd.DataFrame,
    reasons: pd.DataFrame,
    doublets: pd.DataFrame | None,
) -> anndata.AnnData:
    """All cells: obsm X_vae and X_umap, obs with the scores; X is not here, it may be large.

    score, p_value and q_value are NaN and is_anomaly is False for cells that are not in the query;
    pattern and technical_cause are empty for cells that were not flagged.
    """
    names = counts.obs.index
    sizes = in_order(library_size, names, "library_size.parquet")["library_size"].to_numpy()
    result = anndata.AnnData(obs=counts.obs.copy(), var=counts.var.copy())
    latent = in_order(latent, names, "latent.parquet")
    result.obsm["X_vae"] = posterior_means(latent).astype(np.float32)
    plane = in_order(umap, names, "umap.parquet")[["umap_1", "umap_2"]]
    result.obsm["X_umap"] = plane.to_numpy(np.float32)
    query = cells[cells["split"] == "query"].set_index("cell_id").reindex(names)
    result.obs["library_size"] = sizes
    for name in SCORES:
        result.obs[name] = query[name].to_numpy(np.float64)
    result.obs["is_anomaly"] = (query["is_anomaly"] == True).to_numpy(bool)  # noqa: E712
    reasons = reasons.set_index("cell_id").reindex(names)
    for name in REASONS:
        result.obs[name] = reasons[name].fillna("").astype(str).to_numpy(object)
    if doublets is not None:
        probability = doublets.set_index("cell_id")["doublet_probability"].reindex(names)
        result.obs["doublet_probability"] = probability.to_numpy(np.float64)
    result.uns["anomics"] = {
        "X": "log1p(counts / library_size * median library size)",
        "X_vae": "posterior means of the latent variables",
        "median_library_size": float(np.median(sizes)),
        "n_query": int(query["score"].notna().sum()),
        "n_anomalies": int(result.obs["is_anomaly"].sum()),
    }
    return result


def write_annotated(counts: CountFile, result: anndata.AnnData, path: str) -> None:
    """The AnnData file: X normalised, layers["counts"] raw, and all that ``result`` says."""
    size = result.obs["library_size"].to_numpy()
    scale = np.median(size) / size
    raw = counts.counts
    matrices = {
        "X": (normalise(x, scale[rows]) for rows, x in raw.blocks()),
        "layers/counts": (x for _, x in raw.blocks()),
    }
    tables = {"obs": result.obs, "var": result.var, "obsm": dict(result.obsm)}
    write_h5ad(path, matrices, tables | {"uns": dict(result.uns)})


if __name__ == "__main__":
    with job(snakemake) as log:
        files = snakemake.input
        names = ("library_size", "latent", "umap", "cells", "reasons")
        tables = [pd.read_parquet(files[name]) for name in names]
        tables.append(pd.read_parquet(files.doublets[0]) if files.doublets else None)
        counts = CountFile.open(snakemake.input.counts)
        result = annotate(counts, *tables)
        write_annotated(counts, result, snakemake.output[0])
        log.info("%d cells, %d genes", *result.shape)
