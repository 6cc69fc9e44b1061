"""A new HDF5 file holds what was written, and a disk that fills up is an error and not a crash."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from conftest import ROOT
from new_hdf5 import new_hdf5

VALUES = np.random.default_rng(0).integers(0, 1000, 60_000)


def fill(file: h5py.File) -> None:
    """Groups, attributes, text, a growing compressed dataset and one that is not compressed."""
    file.attrs["encoding-type"] = "anndata"
    file.create_dataset("obs/names", data=[f"cell {i}" for i in range(3000)])
    growing = file.create_dataset("X/data", (0,), "i8", maxshape=(None,), compression="gzip")
    for start in range(0, len(VALUES), 7000):
        piece = VALUES[start : start + 7000]
        growing.resize((start + len(piece),))
        growing[start:] = piece
    file.create_dataset("X/indices", data=VALUES)


def test_a_file_holds_what_was_written_and_the_same_bytes_again(tmp_path):
    for name in ("one", "two"):
        with new_hdf5(tmp_path / name) as file:
            fill(file)
            file.check()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with h5py.File(tmp_path / "one") as file:
        assert file.attrs["encoding-type"] == "anndata"
        assert file["obs/names"].asstr()[2999] == "cell 2999"
        np.testing.assert_array_equal(file["X/data"][:], VALUES)
        np.testing.assert_array_equal(file["X/indices"][:], VALUES)


def test_an_error_of_the_caller_comes_through(tmp_path):
    with pytest.raises(KeyError, match="mine"), new_hdf5(tmp_path / "a") as file:
        fill(file)
        raise KeyError("mine")


# Files of this process may not grow beyond a limit, as on a disk without room (errno 27, EFBIG).
CHILD = """
import resource, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from new_hdf5 import new_hdf5
from test_new_hdf5 import fill
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for i, limit in enumerate(map(int, sys.argv[2:])):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with new_hdf5(Path(sys.argv[1], str(i))) as file:
            fill(file)
        print(limit, "written")
    except OSError as error:
        print(limit, error.errno)
"""


def test_wherever_the_disk_ends_there_is_an_error_and_no_crash(tmp_path):
    with new_hdf5(tmp_path / "whole") as file:
        fill(file)
    size = (tmp_path / "whole").stat().st_size
    limits = [*range(1, size, size // 60), size - 1, size]
    code = CHILD.format(path=[str(ROOT / "workflow" / "scripts"), str(ROOT / "tests")])
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path, *map(str, limits)], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        *(f"{limit} 27" for limit in limits[:-1]),
        f"{size} written",
    ]
