"""Counts, splits and library sizes as the VAE module wants them; shared by the model's rules."""

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from job import InputError
from omics_vae.data import CountData, choose_device


@dataclass(frozen=True)
class ModelInputs:
    """All cells in the order of counts.h5ad."""

    data: CountData  # the model's genes only
    genes: list[str]
    cells: pd.DataFrame  # obs of counts.h5ad, index cell_id

    def split(self, name: str) -> CountData:
        """The cells of one split: train, validation, calibration or query."""
        return self.data.take(np.flatnonzero((self.cells["split"] == name).to_numpy()))


def read_library_size(path: str, cell_ids: pd.Index) -> pd.DataFrame:
    """library_size.parquet, checked to be in the order of the cells of counts.h5ad."""
    sizes = pd.read_parquet(path)
    if not np.array_equal(sizes["cell_id"].to_numpy(), cell_ids.to_numpy()):
        raise InputError(
            f"{path}: its cells are not those of counts.h5ad; delete it and run the same command"
        )
    return sizes


def read_model_inputs(counts: str, library_size: str) -> ModelInputs:
    """Read preprocess/counts.h5ad and library_size/library_size.parquet."""
    adata = ad.read_h5ad(counts)
    selected = np.flatnonzero(adata.var["selected"].to_numpy())
    sizes = read_library_size(library_size, adata.obs_names)
    return ModelInputs(
        data=CountData(
            sp.csr_matrix(adata.X)[:, selected], sizes["log_offset"].to_numpy(np.float64)
        ),
        genes=adata.var_names[selected].tolist(),
        cells=adata.obs,
    )


def device_or_error(name: str):
    """The torch device that config ``device`` asks for."""
    try:
        return choose_device(name)
    except ValueError as error:
        raise InputError(
            f"device: {name}: {error}; set device to auto or cpu, or run where a GPU is visible"
        ) from error
