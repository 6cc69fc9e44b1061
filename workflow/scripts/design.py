"""What the decoder is told of a cell besides z: covariates, and the batch it belongs to."""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from job import InputError, collected, raise_all


@dataclass(frozen=True)
class Design:
    """How columns of the metadata become numbers; stored with the model.

    ``categorical``: {column: its levels}; ``continuous``: {column: [mean, SD] of the training
    cells}; ``batches``: the levels of ``batch`` that have a dispersion or library prior each.
    """

    categorical: dict[str, list[str]]
    continuous: dict[str, list[float]]
    batches: list[str]

    @property
    def n_covariates(self) -> int:
        return sum(map(len, self.categorical.values())) + len(self.continuous)

    @property
    def n_batches(self) -> int:
        return max(1, len(self.batches))

    def covariates(self, cells: pd.DataFrame) -> np.ndarray:
        """One column a level, then the standardised continuous ones (cells, covariates) float32."""
        columns = [
            (cells[name].astype(str) == level).to_numpy()
            for name, levels in self.categorical.items()
            for level in levels
        ]
        columns += [
            (pd.to_numeric(cells[name]).to_numpy(np.float64) - mean) / sd
            for name, (mean, sd) in self.continuous.items()
        ]
        return np.column_stack([np.zeros((len(cells), 0)), *columns]).astype(np.float32)

    def batch_codes(self, cells: pd.DataFrame) -> np.ndarray:
        """Position of each cell's batch among ``batches``; 0 where they are not told apart."""
        if not self.batches:
            return np.zeros(len(cells), dtype=np.int64)
        return pd.Index(self.batches).get_indexer(cells["batch"].astype(str)).astype(np.int64)

    def as_json(self) -> dict:
        """For model.json."""
        return asdict(self)


def check_latent(n_latent: int, n_genes: int) -> None:
    """Raise InputError where the latent space has more dimensions than the model has genes."""
    if n_latent > n_genes:
        raise InputError(
            f"train.n_latent: {n_latent} latent dimensions for {n_genes} genes; lower it, or bring "
            "counts of more genes"
        )


def make_design(cells: pd.DataFrame, settings: dict) -> Design:
    """The design that config ``train`` asks for.

    ``cells``: obs of counts.h5ad, with ``split``. Raises InputError where a column is missing, has
    gaps, does not vary, or has a level that no training cell shows: the decoder could not know it.
    """
    is_training = (cells["split"] == "train").to_numpy()
    faults: list[str] = []
    categorical, continuous, batches = {}, {}, []
    for name in settings["covariates"]:
        with collected(faults):
            categorical[name] = _levels(cells, name, is_training, "train.covariates")
    for name in settings["continuous_covariates"]:
        with collected(faults):
            continuous[name] = _scale(cells, name, is_training)
    by_batch = settings["dispersion"] == "gene_batch"
    if by_batch or (settings["library_size"] == "latent" and "batch" in cells):
        key = "train.dispersion: gene_batch" if by_batch else "train.library_size: latent"
        with collected(faults):
            batches = _levels(cells, "batch", is_training, key, several=by_batch)
    raise_all(faults)
    return Design(categorical, continuous, batches)


def column_of(cells: pd.DataFrame, name: str, key: str) -> pd.Series:
    """A column of the metadata; InputError where it is missing or has gaps."""
    if f"{name}_input" in cells and name not in cells:
        raise InputError(
            f"{key}: {name}: the files have such a column, which the sample table does not use; "
            f"give the table a column {name} with obs:{name} in it"
        )
    if name not in cells:
        raise InputError(
            f"{key}: {name}: no such column in the metadata; add it to the sample table, or take "
            f"one of {', '.join(sorted(map(str, cells.columns)))}"
        )
    column = cells[name]
    empty = column.isna() | (column.astype(str) == "")
    if empty.any():
        raise InputError(
            f"{key}: {name}: {int(empty.sum())} cells have no value (first {cells.index[empty][0]}"
            "); fill the column or leave it out"
        )
    return column


def _levels(
    cells: pd.DataFrame, name: str, is_training: np.ndarray, key: str, several: bool = True
) -> list[str]:
    column = column_of(cells, name, key).astype(str)
    levels = sorted(set(column[is_training]))
    if several and column.nunique() < 2:
        raise InputError(
            f"{key}: {name}: all cells have the value {levels[0]}, so it says nothing; remove it"
        )
    for split in ("query", "calibration", "validation"):
        unknown = sorted(set(column[cells["split"] == split]) - set(levels))
        if unknown:
            raise InputError(
                f"{key}: {name}: {', '.join(unknown[:3])} occurs in {split} cells and in no "
                "training cell, so the model cannot know its effect; bring reference cells of it, "
                f"leave out those samples, or remove {name} from the model"
            )
    return levels


def _scale(cells: pd.DataFrame, name: str, is_training: np.ndarray) -> list[float]:
    key = "train.continuous_covariates"
    column = pd.to_numeric(column_of(cells, name, key), errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(column)
    if bad.any():
        raise InputError(
            f"{key}: {name}: {cells[name][bad].iloc[0]} is no finite number; correct the column or "
            "list it under train.covariates"
        )
    mean, sd = float(column[is_training].mean()), float(column[is_training].std())
    if sd == 0:
        raise InputError(
            f"{key}: {name}: all training cells have the value {mean:g}, so it says nothing; "
            "remove it"
        )
    return [mean, sd]
