"""All that is wrong with the files of a run, told at once before its first job.

The Snakefile runs this as it starts, outside the graph of jobs, so that a new sample makes no other
one run again. It reads headers, names and metadata, and the first cells' counts where they lie by
cell; each fault found here would end a job later. What cannot be known yet (a URL that was not
fetched, how many cells the filters leave) is not judged.

    check_inputs.py < asked.json > found.json    the arguments of check(), and what it returns
"""

import filecmp
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from compute_library_size import column_of
from count_formats import open_counts
from design import check_latent, make_design
from design import column_of as design_column
from import_counts import COVARIATES, describe_sample
from job import InputError, collected
from join_samples import ids_of_genes, shared_genes
from own_process import in_own_process
from select_features import find_listed, read_gene_list
from splits import check_before_filtering
from untrusted_files import size_of

# Columns of obs that later stages make from the counts.
ROWS_A_PROCESS = 50  # a process takes a second to start, a sample some 50 ms
MADE_LATER = ("total_counts", "n_genes", "pct_mito", "pct_ribo", "pct_hb")


@dataclass(frozen=True)
class Head:
    """What is known of a sample before its counts are read."""

    row: dict[str, str]
    var: pd.DataFrame
    cells: pd.DataFrame  # each combination of the columns that the run uses, with its cells (n)
    columns: list[str]  # all of obs
    names: bytes  # a digest of the names of the cells that take part
    has_all_cells: bool


def read_head(row: dict, config: dict) -> tuple[Head | None, list[str], list[str]]:
    """One sample, None where it cannot be opened; its faults; its warnings."""
    faults: list[str] = []
    path = Path(row["path"])
    with collected(faults):
        return in_own_process(path, size_of(path), partial(_read_head, row, config))
    return None, faults, []


def _read_head(row: dict, config: dict) -> tuple[Head | None, list[str], list[str]]:
    faults: list[str] = []
    asked = (row.get(name, "") for name in ("format", "matrix", "genome"))
    with collected(faults):
        file = open_counts(row["path"], *asked, config["import"]["feature_type"], head=True)
        warnings: list[str] = []
        with collected(faults):
            warnings = file.check_first_cells()
        obs, _, summary = describe_sample(file, row)
        size = config["library_size"]["column"]
        if size and size not in MADE_LATER:
            with collected(faults):
                column_of(obs, size, row["sample"])
        used = [name for name in ("role", *COVARIATES, *columns_of(config)) if name in obs]
        cells = obs[["sample", *dict.fromkeys(used)]].astype(object)
        cells = cells.value_counts(dropna=False, sort=False).rename("n").reset_index()
        names = digest("\0".join(obs.index))
        head = Head(row, file.var, cells, [*obs, *MADE_LATER], names, file.has_all_cells)
        # Of a part of the cells, numbers in warnings would be wrong.
        return head, faults, warnings + (summary["warnings"] if file.has_all_cells else [])
    return None, faults, []


def digest(text: str) -> bytes:
    return blake2b(text.encode(errors="replace")).digest()


def columns_of(config: dict) -> list[str]:
    """The columns of the metadata that the model is given."""
    train = config["train"]
    named = [*train["covariates"], *train["continuous_covariates"]]
    return [name for given in named for name in (given, f"{given}_input")]


def twice_given(heads: list[Head]) -> list[str]:
    """A line for each two samples with the same cells, of files with the same content."""
    by_cells: dict[tuple, list[dict]] = {}
    for head in heads:
        part = head.row.get("matrix", ""), head.row.get("genome", "")
        by_cells.setdefault((head.names, *part), []).append(head.row)
    return [
        f"{other['path']}: sample {other['sample']} has the cells and counts of sample "
        f"{one['sample']} ({one['path']}), so a cell would be compared with itself; correct the "
        "path of one, or remove it"
        for rows in by_cells.values()
        for one, other in combinations(rows, 2)
        if _same_content(Path(one["path"]), Path(other["path"]))
    ]


def _same_content(one: Path, other: Path) -> bool:
    """Whether two files or folders hold the same bytes; it stops at the first that differ."""
    if one.is_dir() and other.is_dir():
        inside = [sorted(p.relative_to(of) for p in of.rglob("*")) for of in (one, other)]
        files = [name for name in inside[0] if (one / name).is_file()]
        return inside[0] == inside[1] and all(_same_content(one / n, other / n) for n in files)
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def check_cells(heads: list[Head], config: dict, n_folds: int) -> tuple[list[str], list[str]]:
    """Faults and warnings that the cells of all samples show together."""
    faults: list[str] = []
    warnings: list[str] = []
    groups = pd.concat([head.cells for head in heads], ignore_index=True)
    cells = groups[[name for name in ("role", *COVARIATES) if name in groups]]
    cells = cells.loc[groups.index.repeat(groups["n"])]
    split, unit = config["preprocess"]["split"], config["observations"]
    with collected(faults):
        warnings += check_before_filtering(cells, split, n_folds, unit)
    return faults, warnings


def check_design(heads: list[Head], train: dict, n_folds: int, are_all: bool) -> list[str]:
    """What is wrong with the columns that the model is given, each judged by itself."""
    nothing = {"covariates": [], "continuous_covariates": [], "dispersion": "", "library_size": ""}
    every = {name: [] for head in heads for name in head.columns}
    asked = [
        (f"train.{kind}", name, {kind: [name]})
        for kind in ("covariates", "continuous_covariates")
        for name in train[kind]
        if name not in MADE_LATER
    ]
    if train["dispersion"] == "gene_batch":
        asked.append(("train.dispersion: gene_batch", "batch", {"dispersion": "gene_batch"}))
    elif train["library_size"] == "latent" and "batch" in every:
        asked.append(("train.library_size: latent", "batch", {"library_size": "latent"}))
    groups = pd.concat([head.cells for head in heads], ignore_index=True)
    # Any reference cell may come to be a training cell, in a ranking any cell.
    is_learnt = (groups["role"] == "reference") | (n_folds > 0)
    groups["split"] = np.where(is_learnt, "train", "query")
    faults: list[str] = []
    for key, name, settings in asked:
        with collected(faults):
            if name not in every:
                design_column(pd.DataFrame(every), name, key)
            has_value = groups[name].notna() & (groups[name].astype(str) != "")
            if lacking := sorted(set(groups["sample"]) - set(groups["sample"][has_value])):
                raise InputError(
                    f"{key}: {name}: sample {', '.join(lacking[:3])} has no value of it; fill the "
                    "column or leave it out"
                )
            if are_all:  # filters may still drop the cells without a value
                make_design(groups[has_value], nothing | settings)
    return faults


def check_genes(heads: list[Head], config: dict) -> list[str]:
    """Faults that the genes of the samples show together."""
    faults: list[str] = []
    with collected(faults):
        genes = shared_genes([h.row["sample"] for h in heads], [h.var.index for h in heads])
        with collected(faults):
            check_latent(config["train"]["n_latent"], len(genes))
        if path := config["preprocess"]["select_features"]["gene_list"]:
            var = ids_of_genes(genes, [head.var for head in heads])
            find_listed(var, read_gene_list(path), path)
    return faults


def check(
    rows: list[dict], config: dict, n_folds: int, are_all: bool, cores: int = 1
) -> dict[str, list[str]]:
    """Faults and warnings of the samples ``rows``; if these ``are_all``, of them together too.

    ``config``: with its defaults; ``n_folds``: of a run without a query, else 0.
    """
    faults: list[str] = []
    warnings: list[str] = []
    genes: dict[bytes, pd.DataFrame] = {}  # most samples have the same, which are held once
    here = [row for row in rows if os.path.exists(row["path"])]  # no URL, no file of an example
    heads = []
    for head, of_head, warned in _read_heads(here, config, cores):
        faults, warnings = faults + of_head, warnings + warned
        if head is not None:
            names = "\0".join([*head.var.index, *head.var.get("gene_id", [])])
            heads.append(replace(head, var=genes.setdefault(digest(names), head.var)))
    faults += twice_given(heads)
    are_all &= len(heads) == len(rows) > 0 and all(head.has_all_cells for head in heads)
    if heads:
        faults += check_genes(heads, config) + check_design(
            heads, config["train"], n_folds, are_all
        )
    if are_all:
        found = check_cells(heads, config, n_folds)
        faults, warnings = faults + found[0], warnings + found[1]
    return {"faults": list(dict.fromkeys(faults)), "warnings": list(dict.fromkeys(warnings))}


def _read_heads(rows: list[dict], config: dict, cores: int) -> Iterator[tuple]:
    """:func:`read_head` of each, by several processes where they are many."""
    read = partial(read_head, config=config)
    n = min(cores, len(rows) // ROWS_A_PROCESS)
    if n < 2:
        yield from map(read, rows)
        return
    with ProcessPoolExecutor(n) as pool:
        yield from pool.map(read, rows, chunksize=10)


if __name__ == "__main__":
    json.dump(check(**json.load(sys.stdin)), sys.stdout)
