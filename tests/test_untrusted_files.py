"""A file that leads elsewhere, or declares more than it can hold, ends in one line."""

import gzip
import json
import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from count_files import (
    CELLS,
    COUNTS,
    GENES,
    write_10x_h5_v3,
    write_10x_mtx,
    write_h5ad,
    write_loom,
    write_table,
    write_zarr,
)
from count_formats import open_counts
from import_counts import import_counts
from job import InputError
from messages import is_said

ROW = {"sample": "a", "role": "query"}


def changed(change: Callable[[h5py.File], None], write=write_h5ad, name="a.h5ad"):
    """What writes a good HDF5 file and changes it then."""

    def make() -> Path:
        path = write(Path(name))
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def replaced(place: str, *shape: int, write=write_h5ad, name="a.h5ad", **how):
    """A dataset in another shape, of which nothing is stored, with its attributes."""

    def change(file: h5py.File) -> None:
        attributes, dtype = dict(file[place].attrs), file[place].dtype
        del file[place]
        file.create_dataset(place, shape, dtype, **how).attrs.update(attributes)

    return changed(change, write, name)


def link_elsewhere(file: h5py.File) -> None:
    del file["obs"]
    file["obs"] = h5py.ExternalLink("other.h5", "/obs")


def store_elsewhere(file: h5py.File) -> None:
    del file["X/data"]
    file["X"].create_dataset("data", (4,), "i8", external=[("/etc/passwd", 0, 32)])


def refer_elsewhere(file: h5py.File) -> None:
    del file["X/data"]
    layout = h5py.VirtualLayout((4,), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file["X"].create_virtual_dataset("data", layout)


def go_round(file: h5py.File) -> None:
    file["uns/round"] = file["uns"]


def go_round_softly(file: h5py.File) -> None:
    file["obs/round"] = h5py.SoftLink("/obs")


def lie_in(place: str, at: int, value) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[place][at] = value

    return change


def write_gz_without_end() -> Path:
    path = Path("a.csv.gz")
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b",g" * 20_000 + b"\n")
        for _ in range(40):
            file.write((b"c" + b",0" * 20_000 + b"\n") * 40)
    return path


def declare_entries() -> Path:
    folder = write_10x_mtx(Path("mtx"), version=2)
    matrix = folder / "matrix.mtx"
    text = matrix.read_text().replace("\n4 3 4\n", f"\n4 3 {10**12}\n")
    assert str(10**12) in text
    matrix.write_text(text)
    return folder


def link_out(folder: Path, name: str) -> Path:
    """A folder of which a file is a link to the same file elsewhere."""
    os.replace(folder / name, "elsewhere")
    (folder / name).symlink_to(Path("elsewhere").resolve())
    return folder


def put_a_pipe() -> Path:
    folder = write_zarr(Path("a.zarr"))
    os.mkfifo(folder / "X" / "data" / "1")
    return folder


def change_json(place: str, **values) -> Path:
    folder = write_zarr(Path("a.zarr"))
    content = json.loads((folder / place).read_text())
    (folder / place).write_text(json.dumps(content | values))
    (folder / ".zmetadata").unlink(missing_ok=True)
    return folder


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


def put_a_pickle() -> Path:
    folder = change_json(
        "obs/_index/.zarray", filters=[{"id": "vlen-utf8"}, {"id": "pickle"}], compressor=None
    )
    for chunk in ("0", "0.0"):
        (folder / "obs" / "_index" / chunk).write_bytes(pickle.dumps([Evil(), "|O", [3]]))
    return folder


def name_cell(name: str) -> Callable[[], Path]:
    return changed(lambda file: lie_in("obs/_index", 1, name)(file))


DAMAGED = "it is damaged, or made to exhaust the machine: fetch it again from where you trust it"
WHOLE = "a file of counts must hold all of itself: write it anew without such links"
UNREADABLE = (
    "it is damaged, cut short or of another format: fetch it again, or set the column format"
)
CASES: dict[str, tuple[Callable[[], Path], str]] = {
    "a link to another HDF5 file": (
        changed(link_elsewhere),
        f"a.h5ad: /obs is a link to the file 'other.h5'; {WHOLE}",
    ),
    "data in another file": (
        changed(store_elsewhere),
        f"a.h5ad: /X/data is data that lie in another file; {WHOLE}",
    ),
    "a virtual dataset": (
        changed(refer_elsewhere),
        f"a.h5ad: /X/data is data that lie in another file; {WHOLE}",
    ),
    "a group that holds itself": (
        changed(go_round),
        "a.h5ad: /uns/round is a second name of a group; write the file anew, with each group once",
    ),
    "a link in a circle": (
        changed(go_round_softly),
        "a.h5ad: /obs/round is a second name of a group; write the file anew, with each group once",
    ),
    "names without end": (
        replaced("obs/_index", 2**40, chunks=(2**20,)),
        f"a.h5ad: /obs/_index declares 1099511627776 values in chunks of 1048576, more than … "
        f"bytes can hold; {DAMAGED}",
    ),
    "a matrix without end": (
        replaced("matrix", 4, 2**50, write=write_loom, name="a.loom", chunks=(4, 2**20)),
        f"a.loom: /matrix declares 4 x 1125899906842624 values in chunks of 4 x 1048576, more "
        f"than … bytes can hold; {DAMAGED}",
    ),
    "a chunk larger than the file": (
        replaced("matrix/indices", 2**28, write=write_10x_h5_v3, name="a.h5", chunks=(2**28,)),
        f"a.h5: /matrix/indices declares 268435456 values in chunks of 268435456, more than … "
        f"bytes can hold; {DAMAGED}",
    ),
    "more chunks than the file has room for": (
        replaced("matrix/indices", 2**20, write=write_10x_h5_v3, name="a.h5", chunks=(1,)),
        f"a.h5: /matrix/indices declares 1048576 values in chunks of 1, more than … bytes can "
        f"hold; {DAMAGED}",
    ),
    "a zarr array without end": (
        lambda: change_json("obs/_index/.zarray", shape=[2**40]),
        f"a.zarr: /obs/_index declares 1099511627776 values in chunks of 3, more than … bytes can "
        f"hold; {DAMAGED}",
    ),
    "a gz without end": (
        write_gz_without_end,
        f"a.csv.gz: unpacks to more than 500 times its size, as no counts do; {DAMAGED}",
    ),
    "an mtx that declares entries": (
        declare_entries,
        "mtx/matrix.mtx: declares 1000000000000 entries, more than its size can hold; it is "
        "damaged or cut short: fetch it again",
    ),
    "a link out of a matrix folder": (
        lambda: link_out(write_10x_mtx(Path("mtx"), version=2), "barcodes.tsv"),
        "mtx/barcodes.tsv: is a link that leads out of its folder; copy the file there",
    ),
    "a link out of a zarr folder": (
        lambda: link_out(write_zarr(Path("a.zarr")), ".zattrs"),
        "a.zarr/.zattrs: is a link that leads out of its folder; copy the file there",
    ),
    "a pipe in a zarr folder": (
        put_a_pipe,
        "a.zarr/X/data/1: is neither a file nor a folder; remove it",
    ),
    "a device": (lambda: Path("/dev/zero"), "/dev/zero: is a pipe or a device; give a file"),
    "a pickle in a zarr folder": (
        put_a_pickle,
        f"a.zarr: cannot be read (…Pickle.decode is disabled…); {UNREADABLE}",
    ),
    "a name with an escape": (
        name_cell("\x1b[31mred"),
        "a.h5ad: cell number 2 is called '\\x1b[31mred': a name may have 1000 characters, and none "
        "that controls a terminal or is no text; rename it",
    ),
    "a name of a megabyte": (
        name_cell("N" * 2**20),
        f"a.h5ad: cell number 2 is called '{'N' * 40}': a name may have 1000 characters, and none "
        "that controls a terminal or is no text; rename it",
    ),
    "a code without a category": (
        changed(lie_in("obs/cell_type/codes", 0, 9)),
        f"a.h5ad: cannot be read (…codes need to be between -1 and len(categories)-1…); "
        f"{UNREADABLE}",
    ),
    "an index outside the matrix": (
        changed(lie_in("X/indices", 0, 2**30)),
        f"a.h5ad: cannot be read (ValueError: …); {UNREADABLE}",
    ),
    "rows that end before they begin": (
        changed(lie_in("X/indptr", 1, -5)),
        f"a.h5ad: cannot be read (…); {UNREADABLE}",
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_it_ends_in_one_line_that_names_the_file(name, here):
    make, expected = CASES[name]
    path, since = make(), time.process_time()
    with pytest.raises(InputError) as refused:
        import_counts(str(path), ROW | {"path": str(path)}, "Gene Expression", "imported.h5ad")
    assert is_said(expected, str(refused.value)), str(refused.value)
    assert time.process_time() - since < 10
    assert not (here / "imported.h5ad").exists() and not (here / "was_run").exists()


def test_a_million_references_to_one_long_string_end_in_a_line():
    """The file has two megabytes and would fill twenty gigabytes."""
    path, n = Path("a.loom"), 20_000
    names = ["N" * 2**20, *map(str, range(n - 1))]
    with h5py.File(path, "w") as file:
        file["matrix"] = np.zeros((1, n), dtype="i1")
        file["row_attrs/Gene"] = ["g"]
        text = file.create_dataset("col_attrs/CellID", data=names, dtype=h5py.string_dtype())
        at = text.id.get_offset()
    content = bytearray(path.read_bytes())
    content[at : at + 16 * n] = content[at : at + 16] * n
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^a\.loom: .*memory"):
        import_counts(str(path), ROW | {"path": str(path)}, "Gene Expression", "imported.h5ad")


def test_links_inside_a_folder_and_to_a_folder_are_read():
    folder = write_10x_mtx(Path("mtx"), version=2)
    os.replace(folder / "barcodes.tsv", folder / "cells.tsv")
    (folder / "barcodes.tsv").symlink_to("cells.tsv")
    Path("sample").symlink_to(folder)
    store = write_zarr(Path("a.zarr"))
    Path("b.zarr").symlink_to(store)
    for path in ("sample", "b.zarr"):
        np.testing.assert_array_equal(open_counts(path).read().toarray(), COUNTS)


def test_a_soft_link_to_a_dataset_is_read():
    def change(file: h5py.File) -> None:
        file.move("X/data", "values")
        file["X/data"] = h5py.SoftLink("/values")

    path = changed(change)()
    np.testing.assert_array_equal(open_counts(path).read().toarray(), COUNTS)


def test_text_of_zeros_that_packs_well_is_read():
    """As sparse as counts can be: 100 to 1, and beyond what any file may unpack to."""
    genes, path = [f"g{i}" for i in range(3000)], Path("a.tsv.gz")
    row = "\t".join(["0"] * 2990 + ["1"] + ["0"] * 9)
    rows = "".join(f"cell{i}\t{row}\n" for i in range(12_000))
    path.write_bytes(gzip.compress(("\t".join(["", *genes]) + "\n" + rows).encode(), 6))
    assert len(rows) > 2**24 and len(rows) > 100 * path.stat().st_size
    assert open_counts(path).read().sum() == 12_000


def test_a_table_is_whole_in_the_file_it_came_in(here):
    """All is as before where nothing is wrong."""
    for path in (write_table(here / "a.csv.gz"), write_10x_h5_v3(here / "a.h5")):
        file = open_counts(path)
        assert (list(file.obs.index), list(file.var.index)) == (CELLS, GENES)
        assert not re.search("declares|unpacks", " ".join(file.warnings))
