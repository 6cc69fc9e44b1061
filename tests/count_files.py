"""Writes the same small counts in every format, for the tests of reading."""

import gzip
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import io, sparse

# A cell and a gene without counts, and a count that float32 cannot hold.
COUNTS = np.array([[0, 3, 0, 1], [7, 0, 0, 16_777_217], [0, 0, 0, 0]])
CELLS = ["AAAC-1", "AAAG-1", "AAAT-1"]
GENES = ["CD3E", "MS4A1", "LYZ", "NKG7"]
IDS = [f"ENSG0000000000{i}" for i in range(4)]
TYPES = ["Gene Expression"] * 4


def annotated(X=None, cells=CELLS, **parts) -> anndata.AnnData:
    X = sparse.csr_matrix(COUNTS) if X is None else X
    obs = pd.DataFrame({"cell_type": np.resize(["T", "B"], len(cells))}, index=cells)
    obs = obs.astype("category")
    return anndata.AnnData(X, obs=obs, var=pd.DataFrame({"gene_ids": IDS}, index=GENES), **parts)


def write_h5ad(path: Path, **parts) -> Path:
    annotated(**parts).write_h5ad(path)
    return path


def write_zarr(path: Path, **parts) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        annotated(**parts).write_zarr(path)
    return path


def put_sparse(group: h5py.Group, counts: np.ndarray) -> None:
    by_cell = sparse.csr_matrix(counts)
    for name in ("data", "indices", "indptr"):
        group[name] = getattr(by_cell, name)
    group["shape"] = np.array(counts.shape[::-1], dtype=np.int32)


def write_10x_h5_v2(path: Path, genomes: dict[str, np.ndarray] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        for genome, counts in (genomes or {"hg19": COUNTS}).items():
            group = file.create_group(genome)
            put_sparse(group, counts)
            group["barcodes"] = np.array(CELLS, dtype="S")
            group["genes"] = np.array(IDS, dtype="S")
            group["gene_names"] = np.array(GENES, dtype="S")
    return path


def write_10x_h5_v3(
    path: Path, types=TYPES, genomes=("GRCh38",) * 4, cells=CELLS, counts=COUNTS
) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        put_sparse(group, counts)
        group["barcodes"] = np.array(cells, dtype="S")
        features = {"id": IDS, "name": GENES, "feature_type": types, "genome": genomes}
        for name, values in features.items():
            group[f"features/{name}"] = np.array(values, dtype="S")
    return path


def write_10x_mtx(folder: Path, version: int = 3, counts=COUNTS, types=TYPES) -> Path:
    folder.mkdir(parents=True)
    columns = [IDS, GENES, types] if version == 3 else [IDS, GENES]
    features = "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    name = "features.tsv" if version == 3 else "genes.tsv"
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(counts.T))
    (folder / name).write_text(features)
    (folder / "barcodes.tsv").write_text("".join(f"{cell}\n" for cell in CELLS))
    if version == 3:
        for plain in list(folder.iterdir()):
            plain.with_name(f"{plain.name}.gz").write_bytes(
                gzip.compress(plain.read_bytes(), mtime=0)
            )
            plain.unlink()
    return folder


def write_loom(path: Path, counts=COUNTS, cells=CELLS) -> Path:
    with h5py.File(path, "w") as file:
        file["matrix"] = counts.T
        file["layers/doubled"] = 2 * counts.T
        file["row_attrs/Gene"] = GENES
        file["row_attrs/Accession"] = np.array(IDS, dtype="S")
        file["col_attrs/CellID"] = cells
        file["col_attrs/depth"] = counts.sum(axis=1)
        file["col_attrs/pca"] = np.zeros((len(cells), 2))
    return path


def write_table(path: Path, counts=COUNTS, separator=",", corner=("",), cells=CELLS) -> Path:
    lines = [separator.join([*corner, *GENES])]
    lines += [
        separator.join([cell, *map(str, row)]) for cell, row in zip(cells, counts, strict=True)
    ]
    text = "\n".join(lines) + "\n"
    path.write_bytes(
        gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()
    )
    return path


# A file of each form in every format, by the end of its name, with any counts of CELLS and GENES.
WRITERS = {
    "v2.h5": lambda path, counts: write_10x_h5_v2(path, {"hg19": counts}),
    "v3.h5": lambda path, counts: write_10x_h5_v3(path, counts=counts),
    "mtx_v3": lambda path, counts: write_10x_mtx(path, counts=counts),
    "mtx_v2": lambda path, counts: write_10x_mtx(path, version=2, counts=counts),
    "mtx_v2_genome": lambda path, counts: write_10x_mtx(path / "hg19", 2, counts).parent,
    "csr.h5ad": lambda path, counts: write_h5ad(path, X=sparse.csr_matrix(counts)),
    "csc_int64.h5ad": lambda path, counts: write_h5ad(path, X=sparse.csc_matrix(counts)),
    "dense_float.h5ad": lambda path, counts: write_h5ad(path, X=counts.astype(np.float64)),
    "array.h5ad": lambda path, counts: write_h5ad(path, X=sparse.csr_array(counts)),
    "csr.zarr": lambda path, counts: write_zarr(path, X=sparse.csr_matrix(counts)),
    "dense.zarr": lambda path, counts: write_zarr(path, X=counts),
    "store.loom": write_loom,
    "table.csv": write_table,
    "table.csv.gz": write_table,
    "from_r.csv": lambda path, counts: write_table(path, counts, corner=()),
    "table.tsv": lambda path, counts: write_table(path, counts, separator="\t"),
    "table.txt.gz": lambda path, counts: write_table(path, counts, separator="\t"),
}
