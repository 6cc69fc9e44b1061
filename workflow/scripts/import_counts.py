"""Bring one sample of any format into the form that all later stages read.

Writes raw counts with unique names, and in obs what the sample table and the file say of the cells.
"""

from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from checksums import verified_checksum
from count_checks import CONTROL, LONGEST_NAME, warn_of_rounding
from count_formats import SampleFile, open_counts
from job import InputError, collected, job, raise_all, write_json
from own_process import in_own_process
from spreadsheet_names import warn_of_dates
from stored_counts import ROW, write_h5ad
from untrusted_files import check_there, size_of

LONGEST_TEXT = 10_000  # characters of a label that are kept
ROLES = ("reference", "query")
# Columns of the sample table that say where and how the counts lie, not what the cells are.
FILE_COLUMNS = ("path", "format", "matrix", "genome", "sha256")
# Later stages split, correct and compare by these, so a value must be meant and complete.
COVARIATES = ("batch", "donor", "condition")
# Names that the pipeline gives a meaning, so the file's own columns may not bear them.
PIPELINE_COLUMNS = (
    *("sample", "role", *COVARIATES, "cell", "cell_id", "split"),
    *("total_counts", "n_genes", "pct_mito", "pct_ribo", "pct_hb", "library_size", "log_offset"),
    *("score", "p_value", "q_value", "is_anomaly", "fold", "_index", ROW),
    *("pattern", "nearest_reference", "technical_cause", "doublet_probability"),
)
FROM_OBS = "obs:"
LARGEST_EXACT = 2**24  # whole number up to which float32, of which the model is, has them all


def describe_cells(
    obs: pd.DataFrame, row: dict[str, str], path: str
) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """What is known of each cell: the columns of the sample table, then the file's own.

    A value ``obs:COLUMN`` in the table takes the file's column. The table wins a clash of names;
    other columns of the file whose names mean something to the pipeline get the suffix ``_input``.

    Returns the table of the cells that have a role, which cells these are (bool, one a cell of
    ``obs``), and warnings. Raises InputError with all of: a missing column, an unknown role in
    it, a covariate that is empty for some cells, a column with a name of the pipeline's.
    """
    faults: list[str] = []
    roles, has_role = pd.Series("", index=obs.index), np.ones(len(obs), dtype=bool)
    with collected(faults):
        roles = _roles(obs, row["role"], path)
        has_role = (roles != "").to_numpy()
    if not has_role.any():
        raise InputError(
            f"{path}: the role of every cell is empty; write reference or query into the column "
            f"{row['role'].removeprefix(FROM_OBS)!r} or into the sample table"
        )
    kept = obs.loc[has_role]
    table = {"sample": _constant(row["sample"], kept), "role": roles[has_role].astype("category")}
    for name, value in row.items():
        if name in ("sample", "role", *FILE_COLUMNS) or value == "":
            continue
        with collected(faults):
            if name in PIPELINE_COLUMNS and name not in COVARIATES:
                raise InputError(
                    f"sample table: column {name!r} has a name that the pipeline uses; rename it"
                )
            if value.startswith(FROM_OBS):
                source = _column(kept, name, value, path)
                table[name] = _complete_labels(source, name, path) if name in COVARIATES else source
            else:
                table[name] = _constant(value, kept)
    raise_all(faults)
    own, warnings = _own_columns(kept, table, row["sample"])
    described = pd.DataFrame({**table, **own}, index=kept.index)
    return pd.DataFrame({n: clean_column(described[n]) for n in described}), has_role, warnings


def _column(obs: pd.DataFrame, name: str, value: str, path: str) -> pd.Series:
    """The column of the file that the sample table's ``name`` asks for as ``obs:COLUMN``."""
    column = value.removeprefix(FROM_OBS)
    if column in obs:
        return obs[column]
    near = get_close_matches(column, [str(c) for c in obs], n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(near)}?" if near else f"it has: {_listed(obs.columns)}"
    raise InputError(
        f"{path}: obs has no column {column!r}, asked for by the sample table's column {name}; "
        f"{known}"
    )


def _roles(obs: pd.DataFrame, role: str, path: str) -> pd.Series:
    """The role of each cell; "" where it has none."""
    if not role.startswith(FROM_OBS):
        return pd.Series(role, index=obs.index)
    roles = as_text(_column(obs, "role", role, path)).str.strip()
    unknown = sorted(set(roles) - {*ROLES, ""})
    if unknown:
        raise InputError(
            f"{path}: obs column {role.removeprefix(FROM_OBS)!r} has the values "
            f"{_listed(map(repr, unknown))}; a role is reference, query or empty"
        )
    return roles


def _complete_labels(column: pd.Series, name: str, path: str) -> pd.Series:
    """The column as text; InputError if a cell has none."""
    labels = as_text(column).str.strip()
    n_empty = int((labels == "").sum())
    if n_empty:
        raise InputError(
            f"{path}: obs column {column.name!r}, asked for as {name}, is empty for {n_empty} of "
            f"{len(labels)} cells; fill it in, or leave these cells out by an empty role"
        )
    return labels.astype("category")


def _own_columns(
    obs: pd.DataFrame, table: dict[str, pd.Series], sample: str
) -> tuple[dict[str, pd.Series], list[str]]:
    """The file's own columns that do not clash with the table's, under names that are free."""
    own, warnings = {}, []
    for column in obs:
        # A slash would make a group of it in HDF5, and a dot alone be the group itself.
        name = CONTROL.sub("_", str(column)).replace("/", "_")[:LONGEST_NAME]
        name = "_" + name if name in ("", ".", "..") else name
        if name in table:
            continue
        taken = {*PIPELINE_COLUMNS, *table, *own, *(c for c in obs if c != column)}
        while name in taken:
            name += "_input"
        own[name] = obs[column]
        if column in COVARIATES:
            warnings.append(
                f"{sample}: the file has an obs column {column!r} that the sample table does not "
                f"use; write obs:{column} into its column {column} if it should"
            )
    return own, warnings


def _constant(value: str, obs: pd.DataFrame) -> pd.Series:
    return pd.Series(value, index=obs.index).astype("category")


def as_text(column: pd.Series) -> pd.Series:
    """Values as text, missing ones as ""; whole numbers without a decimal point (donor 1016).

    What would control a terminal or break a line becomes a space.
    """

    def text(value) -> str:
        if isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
        return CONTROL.sub(" ", str(int(value)) if is_whole else str(value)[:LONGEST_TEXT])

    values = column.astype(object)
    return values.map(text).where(values.notna(), "").astype(object)


def clean_column(column: pd.Series) -> pd.Series:
    """A column that every later stage can join and write: numbers, booleans or categories of text.

    Missing text is "", so that no column mixes text and NaN. The order of the categories stays.
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        order = as_text(pd.Series(dtype.categories)).unique()
    else:
        inferred = pd.api.types.infer_dtype(column, skipna=True)
        if pd.api.types.is_bool_dtype(dtype) and not column.isna().any():
            return column.astype(bool)
        if inferred in ("integer", "floating", "mixed-integer-float"):
            is_plain = isinstance(dtype, np.dtype) and dtype.kind in "iuf" and dtype.itemsize > 2
            return column if is_plain else column.astype(np.float64)
        order = []
    values = as_text(column)
    known = [category for category in order if category in set(values)]
    rest = sorted(set(values) - set(known))
    ordered = bool(getattr(dtype, "ordered", False))
    return values.astype(pd.CategoricalDtype([*rest, *known], ordered=ordered))


def _listed(names, most: int = 10) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") or "nothing"


def describe_sample(file: SampleFile, row: dict[str, str]) -> tuple[pd.DataFrame, np.ndarray, dict]:
    """obs and which cells have a role, as :func:`describe_cells` says, and the summary."""
    obs, has_role, warnings = describe_cells(file.obs, row, str(file.path))
    warnings += warn_of_dates(file.var.index, row["path"])
    n_cells, n_left_out = len(file.obs), int((~has_role).sum())
    if n_left_out:
        warnings.append(
            f"{row['sample']}: {n_left_out} of {n_cells} cells have no role in the obs column "
            f"{row['role'].removeprefix(FROM_OBS)!r} and were left out; write reference or query "
            "there if they should take part"
        )
    n_by_role = obs["role"].value_counts()
    summary = {
        "sample": row["sample"],
        "path": row["path"],
        "format": file.format,
        "n_cells": n_cells,
        "n_genes": len(file.var),
        "n_cells_by_role": {role: int(n_by_role.get(role, 0)) for role in ROLES},
        "n_cells_without_role": n_left_out,
        "dropped_features": file.dropped_features,
        "warnings": file.warnings + warnings,
    }
    return obs, has_role, summary


def import_counts(path: str, row: dict[str, str], feature_type: str, output: str) -> dict:
    """Write one sample's raw counts to ``output``; returns the summary."""
    check_there(Path(path))
    sha256 = verified_checksum(path, row)
    work = partial(write_counts, path, row, feature_type, output)
    return in_own_process(Path(path), size_of(Path(path)), work) | {"sha256": sha256}


def write_counts(path: str, row: dict[str, str], feature_type: str, output: str) -> dict:
    """:func:`import_counts` in this process, for files that are known to be whole."""
    asked = (row.get(name, "") for name in ("format", "matrix", "genome"))
    file = open_counts(path, *asked, feature_type)
    obs, has_role, summary = describe_sample(file, row)
    largest = 0

    def blocks():
        nonlocal largest
        for rows, block in file.blocks():
            if rows.start == 0:
                summary["warnings"] += warn_of_rounding(block, file.path)
            largest = max(largest, int(block.data.max(initial=0)))
            yield block[has_role[rows]]

    write_h5ad(output, {"X": blocks()}, {"obs": obs, "var": file.var})
    if largest > LARGEST_EXACT:
        summary["warnings"].append(
            f"{row['path']}: the largest count is {largest:,}; the model's numbers (float32) are "
            f"exact up to {LARGEST_EXACT:,} and rounded beyond; check that the matrix holds counts"
        )
    return summary


if __name__ == "__main__":
    with job(snakemake) as log:
        source, output = snakemake.input.counts, snakemake.output
        row, feature_type = dict(snakemake.params.row), snakemake.params.feature_type
        summary = import_counts(str(source), row, feature_type, output.counts)
        log.info(
            "%s: %d cells, %d genes (%s)",
            *(summary[key] for key in ("sample", "n_cells", "n_genes", "format")),
        )
        for warning in summary["warnings"]:
            log.warning(warning)
        write_json(summary, output.summary)
