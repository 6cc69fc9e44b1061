"""Place every cell in a plane (UMAP of the posterior means), for looking at and for nothing else.

No number of the pipeline depends on it: UMAP tears and squeezes distances.
"""

import warnings

import numpy as np
import pandas as pd

from job import job, write_parquet

MAX_FITTED = 20_000  # cells that shape the plane; the rest are placed in it


def import_umap():
    """umap, whose compiled functions the next process finds on disk.

    It asks numba to keep those of its neighbour search and not those of its layout, so that every
    process would compile for eight seconds.
    """
    import numba

    njit = numba.njit
    numba.njit = lambda *args, **options: njit(*args, **{"cache": True} | options)
    try:
        import umap
    finally:
        numba.njit = njit
    return umap


def compute_umap(Z: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """Two coordinates for each row of the (n_cells, n_latent) posterior means ``Z``.

    UMAP (McInnes et al. 2018, doi:10.21105/joss.00861), one thread and a fixed seed, so the same
    input gives the same plane. Above 20,000 cells a random 20,000 are fitted and the others
    placed among them. Fewer than four cells, too few for a graph, get their first two latent
    coordinates; more cells than that but fewer than neighbours get n - 1 neighbours.
    """
    n_cells, n_latent = Z.shape
    if n_cells < 4:
        return np.column_stack([Z, np.zeros((n_cells, 2))])[:, :2].astype(np.float32)
    umap = import_umap()  # numba behind it takes seconds to load
    rng = np.random.default_rng(seed)
    fitted = np.arange(n_cells)
    if n_cells > MAX_FITTED:
        fitted = np.sort(rng.choice(n_cells, MAX_FITTED, replace=False))
    mapper = umap.UMAP(
        n_neighbors=min(n_neighbors, len(fitted) - 1),
        # The spectral start solves for eigenvectors, which very few cells do not have.
        init="spectral" if len(fitted) > 10 * n_latent + 10 else "random",
        random_state=seed,
        n_jobs=1,
    )
    placed = np.empty((n_cells, 2), np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*spectral.*|.*n_jobs.*", category=UserWarning)
        placed[fitted] = mapper.fit_transform(Z[fitted].astype(np.float32))
        rest = np.setdiff1d(np.arange(n_cells), fitted)
        for start in range(0, len(rest), MAX_FITTED):  # at once, a million would take 2 GB
            part = rest[start : start + MAX_FITTED]
            placed[part] = mapper.transform(Z[part].astype(np.float32))
    return placed


def posterior_means(latent: pd.DataFrame) -> np.ndarray:
    """The columns mean_0, mean_1, ... of embed/latent.parquet, in the order of their numbers."""
    columns = [name for name in latent.columns if name.startswith("mean_")]
    columns.sort(key=lambda name: int(name.removeprefix("mean_")))
    return latent[columns].to_numpy(np.float64)


if __name__ == "__main__":
    with job(snakemake) as log:
        latent = pd.read_parquet(snakemake.input.latent)
        plane = compute_umap(
            posterior_means(latent), snakemake.params.umap_neighbors, snakemake.params.seed
        )
        table = pd.DataFrame(
            {"cell_id": latent["cell_id"], "umap_1": plane[:, 0], "umap_2": plane[:, 1]}
        )
        write_parquet(table, snakemake.output[0])
        log.info("%d cells", len(table))
