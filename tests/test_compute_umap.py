"""The plane holds every cell, however few, and is the same each time."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import compute_umap
from run_script import SCRIPTS


@pytest.mark.parametrize(("n_cells", "n_latent"), [(1, 3), (3, 1), (5, 2), (12, 10), (80, 1)])
def test_umap_places_every_cell_of_small_sets(n_cells, n_latent):
    Z = np.random.default_rng(0).normal(size=(n_cells, n_latent))
    plane = compute_umap.compute_umap(Z, n_neighbors=15, seed=1)
    assert plane.shape == (n_cells, 2) and np.isfinite(plane).all()


def test_umap_is_the_same_again_and_keeps_groups_apart(monkeypatch):
    monkeypatch.setattr(compute_umap, "MAX_FITTED", 150)  # so that half the cells are placed later
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 100)
    Z = rng.normal(size=(200, 4)) + 20 * group[:, None]
    plane = compute_umap.compute_umap(Z, n_neighbors=15, seed=1)
    np.testing.assert_array_equal(plane, compute_umap.compute_umap(Z, n_neighbors=15, seed=1))
    centres = [plane[group == g].mean(axis=0) for g in (0, 1)]
    nearest = np.argmin([np.linalg.norm(plane - c, axis=1) for c in centres], axis=0)
    assert (nearest == group).all()


def test_posterior_means_come_in_the_order_of_their_numbers():
    latent = pd.DataFrame({f"mean_{i}": [float(i)] for i in (10, 2, 0)} | {"variance_0": [9.0]})
    np.testing.assert_array_equal(compute_umap.posterior_means(latent), [[0.0, 2.0, 10.0]])


def test_umap_keeps_what_it_compiled():
    """In a process of its own: here umap may be imported already."""
    code = (
        "import numba; before = numba.njit; from compute_umap import import_umap; "
        "umap = import_umap(); assert numba.njit is before; "
        "print(type(umap.umap_.compute_membership_strengths._cache).__name__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "FunctionCache"
