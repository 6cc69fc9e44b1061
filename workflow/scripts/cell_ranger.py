"""Cell Ranger output of versions 2 and 3: ``.h5`` files and folders with ``matrix.mtx``.

Read with h5py and scipy.io rather than scanpy: importing scanpy takes three seconds in every job,
and its reader passes counts through float32, which is exact only up to 2^24.

Every reader returns the matrix (cells x genes, not yet checked), obs (index: cell names) and var
(index: gene names; ``gene_id``; ``feature_types`` and ``genome`` where the file knows them).
"""

import csv
from pathlib import Path

import h5py
import pandas as pd
from scipy import io, sparse

from count_checks import check_shape, reading
from dense_formats import Unread
from job import InputError
from omics_vae.counts import StoredMatrix

MEMBERS = "matrix.mtx, barcodes.tsv and features.tsv (version 2: genes.tsv), each plain or .gz"


def read_10x_h5(path: Path, genome: str):
    """Open a Cell Ranger ``.h5`` file; version 2 keeps every genome in a group of its own.

    The counts stay in the file.
    """
    file = h5py.File(path, "r")
    if "matrix" in file and "features" in file["matrix"]:
        group = file["matrix"]
        features = group["features"]
        names = _text(features["name"])
        var = pd.DataFrame({"gene_id": _text(features["id"])}, index=names)
        var["feature_types"] = _text(features["feature_type"])
        if "genome" in features:
            var["genome"] = _text(features["genome"])
    else:
        group, genome = _genome_group(file, path, genome)
        names = _text(group["gene_names"])
        var = pd.DataFrame({"gene_id": _text(group["genes"]), "genome": genome}, index=names)
    obs = pd.DataFrame(index=_text(group["barcodes"]))
    n_genes, n_cells = (int(n) for n in group["shape"][:])
    check_shape((n_cells, n_genes), len(obs), len(var), path)
    # Stored by columns (cells) of genes x cells, which is by rows of cells x genes.
    return StoredMatrix(group, (n_cells, n_genes)), obs, var


def _genome_group(file: h5py.File, path: Path, genome: str) -> tuple[h5py.Group, str]:
    genomes = [
        name
        for name in sorted(file)
        if isinstance(file[name], h5py.Group) and "barcodes" in file[name]
    ]
    if not genomes:
        found = ", ".join(sorted(file)) or "nothing"
        raise InputError(
            f"{path}: is not a Cell Ranger file (it holds {found}); if it is an AnnData file, set "
            "the column format to h5ad"
        )
    genome = _choose_genome(path, genomes, genome)
    return file[genome], genome


def read_10x_mtx(folder: Path, genome: str, head: bool = False):
    """Read a folder with ``matrix.mtx``, or with one such subfolder a genome (version 2).

    ``head``: of the matrix only its shape.
    """
    if not _members(folder, "matrix.mtx"):
        subfolders = sorted(f for f in folder.iterdir() if _members(f, "matrix.mtx"))
        if not subfolders:
            raise InputError(f"{folder}: has no matrix.mtx; the folder must hold {MEMBERS}")
        genome = _choose_genome(folder, [f.name for f in subfolders], genome)
        folder = folder / genome
    barcodes = _read_names(_member(folder, "barcodes.tsv"))
    features = _read_names(_member(folder, "features.tsv", "genes.tsv"))
    names = features.get(1, features[0]).to_numpy()
    var = pd.DataFrame({"gene_id": features[0].to_numpy()}, index=names)
    if 2 in features:
        var["feature_types"] = features[2].to_numpy()
    if genome:
        var["genome"] = genome
    obs = pd.DataFrame(index=barcodes[0].to_numpy())
    matrix = _member(folder, "matrix.mtx")
    with reading(matrix):
        if head:
            return Unread(io.mminfo(matrix)[1::-1]), obs, var
        X = sparse.csr_matrix(io.mmread(matrix).T)
    return X, obs, var


def _choose_genome(path: Path, genomes: list[str], genome: str) -> str:
    if genome in genomes:
        return genome
    if genome:
        raise InputError(
            f"{path}: has no genome {genome!r}; set the column genome to one of: "
            f"{', '.join(genomes)}"
        )
    if len(genomes) > 1:
        raise InputError(
            f"{path}: holds {len(genomes)} genomes; set the column genome to one of: "
            f"{', '.join(genomes)}"
        )
    return genomes[0]


def _members(folder: Path, *names: str) -> list[Path]:
    paths = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    return [path for path in paths if path.is_file()]


def _member(folder: Path, *names: str) -> Path:
    found = _members(folder, *names)
    if not found:
        raise InputError(f"{folder}: has no {' or '.join(names)}; the folder must hold {MEMBERS}")
    return found[0]


def _read_names(path: Path) -> pd.DataFrame:
    with reading(path):
        return pd.read_csv(
            path,
            sep="\t",
            header=None,
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
        )


def _text(dataset: h5py.Dataset):
    return dataset.asstr()[:]
