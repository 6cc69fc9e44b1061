"""Columns of the cells in an h5ad file, without its counts."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import pandas as pd
from anndata.io import read_elem


def read_obs(path: str | Path, columns: Iterable[str]) -> pd.DataFrame:
    """``cell_id`` and those of ``columns`` that the h5ad has; its counts are not read."""
    with h5py.File(path, "r") as file:
        obs = file["obs"]
        table = {"cell_id": read_elem(obs[obs.attrs["_index"]])}
        table |= {name: read_elem(obs[name]) for name in columns if name in obs}
    return pd.DataFrame(table)
