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
from untrusted_files import UNPACKED, UNPACKED_ROOM, check_member, open_bytes, open_hdf5

LONGEST_LINE = 2**16
BANNERS = [
    ["%%matrixmarket", "matrix", "coordinate", kind, "general"]
    for kind in ("integer", "real", "double", "unsigned-integer", "pattern")
]
SHORTEST_ENTRY = 4  # bytes of a line such as "1 1"
MEMBERS = "matrix.mtx, barcodes.tsv and features.tsv (version 2: genes.tsv), each plain or .gz"


def read_10x_h5(path: Path, genome: str):
    """Open a Cell Ranger ``.h5`` file; version 2 keeps every genome in a group of its own.

    The counts stay in the file.
    """
    file, room = open_hdf5(path)
    if "features" in _groups(file).get("matrix", {}):
        group = file["matrix"]
        features = group["features"]
        room.hold(features)
        names = _text(features["name"])
        var = pd.DataFrame({"gene_id": _text(features["id"])}, index=names)
        var["feature_types"] = _text(features["feature_type"])
        if "genome" in features:
            var["genome"] = _text(features["genome"])
    else:
        group, genome = _genome_group(file, path, genome)
        room.hold(group["gene_names"], group["genes"])
        names = _text(group["gene_names"])
        var = pd.DataFrame({"gene_id": _text(group["genes"]), "genome": genome}, index=names)
    room.hold(group["barcodes"], group["shape"], group["indptr"])
    room.pass_through(group["data"], group["indices"])
    obs = pd.DataFrame(index=_text(group["barcodes"]))
    n_genes, n_cells = (int(n) for n in group["shape"][:])
    check_shape((n_cells, n_genes), len(obs), len(var), path)
    # Stored by columns (cells) of genes x cells, which is by rows of cells x genes.
    return StoredMatrix(group, (n_cells, n_genes)), obs, var


def _groups(file: h5py.File) -> dict[str, h5py.Group]:
    return {name: item for name, item in file.items() if isinstance(item, h5py.Group)}


def _genome_group(file: h5py.File, path: Path, genome: str) -> tuple[h5py.Group, str]:
    genomes = sorted(name for name, group in _groups(file).items() if "barcodes" in group)
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
    given = folder
    if not _members(folder, "matrix.mtx"):
        subfolders = sorted(f for f in folder.iterdir() if _members(f, "matrix.mtx"))
        if not subfolders:
            raise InputError(f"{folder}: has no matrix.mtx; the folder must hold {MEMBERS}")
        genome = _choose_genome(folder, [f.name for f in subfolders], genome)
        folder = folder / genome
    barcodes = _read_names(_member(given, folder, "barcodes.tsv"))
    features = _read_names(_member(given, folder, "features.tsv", "genes.tsv"))
    names = features.get(1, features[0]).to_numpy()
    var = pd.DataFrame({"gene_id": features[0].to_numpy()}, index=names)
    if 2 in features:
        var["feature_types"] = features[2].to_numpy()
    if genome:
        var["genome"] = genome
    obs = pd.DataFrame(index=barcodes[0].to_numpy())
    matrix = _member(given, folder, "matrix.mtx")
    with reading(matrix):
        _check_header(matrix, len(obs), len(var))
        if head:
            return Unread((len(obs), len(var))), obs, var
        X = sparse.csr_matrix(_read_mtx(matrix).T)
    return X, obs, var


class _Stream:
    """A stream whose reading never fails but ends: an error would end the C++ parser's process."""

    def __init__(self, stream):
        self._stream, self.error = stream, None

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except Exception as error:
            self.error = error
            return b""


def _read_mtx(path: Path) -> sparse.coo_matrix:
    if path.suffix != ".gz":
        return io.mmread(path)
    with open_bytes(path) as file:
        stream = _Stream(file)
        try:
            return io.mmread(stream)
        finally:
            if stream.error:
                raise stream.error


def _check_header(path: Path, n_cells: int, n_genes: int) -> None:
    """Raise InputError where the first lines of an mtx file declare what it cannot hold."""
    with open_bytes(path) as stream:
        banner = stream.readline(LONGEST_LINE).decode().split()
        line = stream.readline(LONGEST_LINE)
        while line.startswith(b"%") or (line and not line.strip()):
            line = stream.readline(LONGEST_LINE)
    if [word.lower() for word in banner] not in BANNERS:
        raise InputError(
            f"{path}: cannot be read: it does not begin with %%MatrixMarket matrix coordinate "
            "integer general, as Cell Ranger's matrices do; export it again"
        )
    n_rows, n_columns, n_entries = (int(number) for number in line.split())
    check_shape((n_columns, n_rows), n_cells, n_genes, path)
    size = path.stat().st_size * (UNPACKED if path.suffix == ".gz" else 1)
    if n_entries * SHORTEST_ENTRY > size + UNPACKED_ROOM:
        raise InputError(
            f"{path}: declares {n_entries} entries, more than its size can hold; it is damaged or "
            "cut short: fetch it again"
        )


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


def _member(given: Path, folder: Path, *names: str) -> Path:
    """The file of a folder that lies in the ``given`` one, or is it."""
    found = _members(folder, *names)
    if not found:
        raise InputError(f"{folder}: has no {' or '.join(names)}; the folder must hold {MEMBERS}")
    check_member(found[0], given.resolve())
    return found[0]


def _read_names(path: Path) -> pd.DataFrame:
    with reading(path), open_bytes(path) as stream:
        return pd.read_csv(
            stream,
            sep="\t",
            header=None,
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
        )


def _text(dataset: h5py.Dataset):
    return dataset.asstr()[:]
