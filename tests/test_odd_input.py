"""Odd but right: what nobody tidies up goes through the whole pipeline to a report."""

import gzip
import re
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from workflow_copy import SETTINGS, WorkflowCopy, small_counts

# What anndata says of names that occur twice, and of the zarr that it writes.
pytestmark = pytest.mark.filterwarnings("ignore")

# Nothing is filtered out, so that cells with one count stay.
UNFILTERED = {
    **{name: None for name in ("min_counts", "min_genes", "max_pct_mito", "n_mads")},
}
QUICK = SETTINGS["train"] | {"max_steps": 150, "kl_warmup_steps": 20, "patience": 4}
# Two folds, and no check, which other runs have.
FOLDS = {"anomaly": {"folds": 2}, "check": {"injected": False}}
SYMBOLS = [f"GENE{g}" for g in range(60)]
# Symbols, Ensembl ids with versions, a name twice, two that differ in case, other alphabets.
MIXED = [*SYMBOLS[:20], *(f"ENSG{g:011d}.{g % 4 + 1}" for g in range(30)), *SYMBOLS[50:]]
MIXED[3], MIXED[7], MIXED[8], MIXED[9] = "GENE2", "gene1", "βactin", '基因 9; "x"'
N_SAMPLES = 16


def cells_of(n: int, seed: int, n_odd: int = 0) -> anndata.AnnData:
    cells = small_counts(n, seed, first=1000 * seed, n_odd=n_odd)
    cells.var_names = MIXED
    return cells


def write_old_h5ad(cells: anndata.AnnData, path: Path) -> None:
    """As anndata wrote it before version 0.7."""
    counts = sparse.csr_matrix(cells.X)
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["h5sparse_format"] = "csr"
        group.attrs["h5sparse_shape"] = counts.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        for name, names in (("obs", cells.obs_names), ("var", cells.var_names)):
            dtype = [("index", h5py.string_dtype())]
            file[name] = np.array([(value,) for value in names], dtype=dtype)


def write_cell_ranger(cells: anndata.AnnData, folder: Path) -> None:
    folder.mkdir()
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(cells.X.T.astype(int)))
    genes = "".join(f"{name}\t{name}\tGene Expression\n" for name in cells.var_names)
    texts = {
        "features.tsv.gz": genes,
        "barcodes.tsv.gz": "".join(f"{name}\n" for name in cells.obs_names),
    }
    for name, text in texts.items():
        (folder / name).write_bytes(gzip.compress(text.encode()))


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> WorkflowCopy:
    """Sixteen samples, no two alike, in a folder with a blank and an umlaut."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("many") / "Größe 2")
    data = copy.folder / "data"
    rows = []

    def add(sample: str, path: str, role: str = "reference", **columns: str) -> Path:
        keys = ("format", "matrix", "batch", "donor", "Age")
        rows.append("\t".join([sample, f"data/{path}", role, *(columns.get(k, "") for k in keys)]))
        return data / path

    cells = cells_of(40, 1)
    cells.X = sparse.csc_matrix(cells.X.astype(np.int64))
    cells.obs["LANE"] = cells.obs["batch"] = "x"  # beside lane, and of a name the table has too
    cells.write_h5ad(add("csc_int64", "gene βeta.h5ad", batch="µ-1", donor="Łukasz"))
    dense = cells_of(40, 2)
    dense.X = dense.X.toarray().astype(np.float32)
    one_count = np.zeros((2, 60), dtype=np.float32)
    one_count[0, 1] = one_count[1, 30] = 1
    dense.X[:2] = one_count
    dense.write_h5ad(add("dense_float32", "dense.h5ad", batch="µ-1", donor="Łukasz"))
    write_old_h5ad(cells_of(30, 3), add("old", "old.h5ad", batch="2", donor="D'Arcy"))
    write_cell_ranger(cells_of(30, 4), add("mtx", "mtx", batch="2", donor="D'Arcy"))
    frame = cells_of(30, 5)
    table = pd.DataFrame(frame.X.toarray().astype(int), frame.obs_names, frame.var_names)
    path = add("semicolons", "bom.csv", batch="2", donor="=1+1")
    table.to_csv(path, sep=";", encoding="utf-8-sig", quoting=1)
    path = add("turned", "turned.tsv.gz", matrix="transposed", batch="2", donor="=1+1")
    table = table.set_axis([f"t{name}" for name in table.index])
    table.T.to_csv(path, sep="\t")
    for i in range(N_SAMPLES - 8):
        of = cells_of(20, 10 + i)
        of.write_h5ad(add(f"s{i}", f"s{i}.h5ad", batch=str(i % 2 + 1), donor=f"D{i}", Age=str(i)))
    # Of the query neither batch nor donor is known, and one sample has a single cell.
    cells_of(49, 40, n_odd=10).write_zarr(add("query", "query.zarr", role="query"))
    cells_of(1, 41).write_h5ad(add("Single", "single.h5ad", role="query"))
    header = "\t".join(["sample", "path", "role", "format", "matrix", "batch", "donor", "Age"])
    (copy.folder / "samples.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    copy.write_config(
        preprocess=SETTINGS["preprocess"] | {"filter_cells": UNFILTERED},
        train=QUICK,
        check={"held_out_group": False},
    )
    assert len(rows) == N_SAMPLES
    return copy


def of_fifty(folder: Path, role: str, **sections) -> WorkflowCopy:
    """One sample of fifty cells, neither batch nor donor, 30 genes from a list."""
    copy = WorkflowCopy.make(folder / "here")
    cells = small_counts(50, 1, n_odd=4)
    del cells.obs["lane"]
    cells.obs["role"] = ["reference"] * 40 + ["query"] * 10
    cells.write_h5ad(copy.folder / "data" / "one.h5ad")
    copy.write_samples(f"one data/one.h5ad {role}")
    (copy.folder / "genes.txt").write_text("".join(f"GENE{g}\n" for g in range(30, 60)))
    copy.write_config(
        preprocess={
            "filter_cells": SETTINGS["preprocess"]["filter_cells"],
            "select_features": {"n_features": 10, "gene_list": "genes.txt"},
        },
        train=QUICK,
        **{"check": {"held_out_group": False}, **sections},
    )
    return copy


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> WorkflowCopy:
    """Of fifty cells in one file forty are the reference."""
    return of_fifty(tmp_path_factory.mktemp("single"), "obs:role")


@pytest.fixture(scope="module")
def query_only(tmp_path_factory) -> WorkflowCopy:
    return of_fifty(tmp_path_factory.mktemp("query_only"), "query", **FOLDS)


@pytest.mark.parametrize(
    ("name", "n_judged", "said"),
    [
        ("many", 50, ""),
        ("single", 10, "only 23 train, 4 validation, 13 calibration cells (advised: 50, 10, 20)"),
        ("query_only", 50, "no sample has the role reference, so all cells are ranked among"),
    ],
)
def test_it_goes_through_to_a_report(name, n_judged, said, request):
    copy = request.getfixturevalue(name)
    code, output = copy.run()
    assert code == 0, output[-4000:]
    assert "Traceback" not in output
    page = (copy.results / "report.html").read_text(encoding="utf-8")
    assert len(page) > 50_000
    assert said in output and said in page
    verdict = pd.read_csv(copy.results / "anomaly" / "cells.tsv", sep="\t")
    assert len(verdict) == n_judged
    assert verdict[["score", "p_value", "q_value"]].notna().all(axis=None)
    counts = anndata.read_h5ad(copy.results / "annotated.h5ad")
    if name != "many":
        assert counts.n_obs == 50
        return
    # Cells with one count stay.
    assert counts.n_obs == 40 + 40 + 4 * 30 + 8 * 20 + 50
    assert (np.asarray(counts.layers["counts"].sum(axis=1)).ravel() == 1).sum() == 2
    assert {"GENE2", "GENE2-1", "gene1", "GENE1", "βactin", "ENSG00000000000.1"} <= set(
        counts.var_names
    )
    assert {"Łukasz", "D'Arcy"} <= set(counts.obs["donor"])


def test_a_thousand_samples_are_planned(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "here")
    rows = [f"s{i} data/healthy.h5ad {'query' if i % 2 else 'reference'}" for i in range(1000)]
    copy.write_samples(*rows)
    code, output = copy.run("-n", "--quiet", "rules")
    assert code == 0, output
    assert re.search(r"import_counts +1000\b", output), output
