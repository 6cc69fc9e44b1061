"""Counts, splits, library sizes and covariates as the VAE module wants them.

Shared by the model's rules.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow.parquet import ParquetFile

from design import Design
from job import InputError
from omics_vae.data import CountData, choose_device
from omics_vae.inference import Embedding
from omics_vae.model import VAE, load_model
from stored_counts import ROW, CountFile


@dataclass(frozen=True)
class ModelInputs:
    """All cells in the order of model_counts.h5ad; cells[ROW] is where they are in counts.h5ad."""

    data: CountData  # the model's genes only
    genes: list[str]
    cells: pd.DataFrame  # obs of model_counts.h5ad, index cell_id

    def split(self, name: str) -> CountData:
        """The cells of one split: train, validation, calibration or query."""
        return self.data.take(np.flatnonzero((self.cells["split"] == name).to_numpy()))

    def validation(self, at_most: int) -> CountData:
        """Evenly spaced validation cells, in memory."""
        cells = self.split("validation")
        spread = np.linspace(0, len(cells) - 1, min(len(cells), at_most)).astype(np.int64)
        return cells.take(spread).in_memory()

    def with_design(self, design: Design) -> "ModelInputs":
        """The same, with the covariates and batches of a design."""
        data = replace(
            self.data,
            covariates=design.covariates(self.cells),
            batch=design.batch_codes(self.cells),
        )
        return replace(self, data=data)


# The cell's name in the input: no model needs it, and a million of them take 70 MB.
INPUT_NAMES = ("cell",)


def read_library_size(path: str, cell_ids: pd.Index) -> pd.DataFrame:
    """Sizes of library_size.parquet, checked to be in the order of the cells of counts.h5ad."""
    names, at, is_same = ParquetFile(path), 0, True
    for batch in names.iter_batches(columns=["cell_id"]):
        # As arrow arrays: a million strings of Python would take 70 MB.
        expected = pa.array(cell_ids[at : at + len(batch)], type=batch.schema.types[0])
        is_same = is_same and batch.column(0).equals(expected)
        at += len(batch)
    if not is_same or at != len(cell_ids):
        raise InputError(
            f"{path}: its cells are not those of counts.h5ad; delete it and run the same command"
        )
    return pd.read_parquet(path, columns=["library_size", "log_offset"])


def hold_out(
    cells: pd.DataFrame, fold: int | None = None, held: np.ndarray | None = None
) -> pd.DataFrame:
    """obs with the cells that a model must not be trained on taken out of their splits.

    Those of a ``fold`` become the query, those named ``held`` (cell_id) become the split held.
    """
    # As objects the cells share the names; astype(str) would make a million of them.
    split = cells["split"].astype(object).to_numpy(copy=True)
    if fold is not None:
        split[(cells["fold"] == fold).to_numpy()] = "query"
    if held is not None:
        split[cells.index.isin(held)] = "held"
    result = cells.copy(deep=False)  # assign would copy all of a million rows
    result["split"] = split
    return result


def read_model_inputs(
    counts: str, library_size: str, memory: float, fold: int | None = None, held: str = ""
) -> ModelInputs:
    """Read preprocess/model_counts.h5ad and library_size/library_size.parquet.

    Counts of more than ``memory`` bytes stay in the file. ``fold`` and ``held``, a table of
    cell_id, are not for training (:func:`hold_out`).
    """
    file = CountFile.open(counts, memory, without=INPUT_NAMES)
    row = file.obs[ROW].to_numpy()
    in_counts = np.argsort(row)
    sizes = read_library_size(library_size, file.obs.index[in_counts])
    return ModelInputs(
        data=CountData(file.counts, sizes["log_offset"].to_numpy(np.float64)[row]),
        genes=file.var.index.tolist(),
        cells=hold_out(file.obs, fold, pd.read_parquet(held)["cell_id"] if held else None),
    )


def read_model(weights: str, description: str, inputs: ModelInputs) -> tuple[VAE, ModelInputs]:
    """A trained model, and the inputs with its covariates."""
    model, content = load_model(weights, description)
    if content["genes"] != inputs.genes:
        raise InputError(
            f"{description}: the model's genes are not those of counts.h5ad; delete the train "
            "folder and run the same command"
        )
    return model, inputs.with_design(Design(**content["design"]))


def read_fit(files, memory: float, fold: int | None = None) -> tuple[VAE, ModelInputs]:
    """The model and the cells that a rule's input ``files`` name."""
    held = files.get("held") or ""
    inputs = read_model_inputs(files.counts, files.library_size, memory, fold, held)
    return read_model(files.weights, files.description, inputs)


LATENT_COLUMNS = {"mean": "mean_{}", "variance": "variance_{}"}


def latent_table(cell_ids: np.ndarray, embedding: Embedding) -> pd.DataFrame:
    """latent.parquet: cell_id, mean_j and variance_j of each dimension, those of log size."""
    columns = {"cell_id": cell_ids}
    for name, column in LATENT_COLUMNS.items():
        values = getattr(embedding, name)
        columns |= {column.format(j): values[:, j] for j in range(values.shape[1])}
    columns |= {"log_size": embedding.log_size, "log_size_variance": embedding.log_size_variance}
    return pd.DataFrame(columns)


def embedding_of(table: pd.DataFrame) -> Embedding:
    """The posterior of the cells that :func:`latent_table` wrote."""
    n_latent = sum(name.startswith("mean_") for name in table)
    matrices = [
        table[[column.format(j) for j in range(n_latent)]].to_numpy()
        for column in LATENT_COLUMNS.values()
    ]
    return Embedding(*matrices, table["log_size"].to_numpy(), table["log_size_variance"].to_numpy())


def device_or_error(name: str):
    """The torch device that config ``device`` asks for."""
    try:
        return choose_device(name)
    except ValueError as error:
        raise InputError(
            f"device: {name}: {error}; set device to auto or cpu, or run where a GPU is visible"
        ) from error
