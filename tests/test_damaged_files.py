"""After a job has failed, a damaged file among its input is told from a fault of ours."""

import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from scipy import sparse

from damaged_files import READERS, first_damaged
from messages import is_said


@pytest.fixture
def whole(tmp_path) -> dict[str, Path]:
    """A whole file of each kind."""
    files = {suffix: tmp_path / f"a{suffix}" for suffix in (*READERS, ".tsv")}
    counts = sparse.random(300, 40, 0.2, format="csr", dtype=np.float32, random_state=0)
    anndata.AnnData(counts).write_h5ad(files[".h5ad"], compression="gzip")
    pd.DataFrame({"a": np.arange(5000.0)}).to_parquet(files[".parquet"])
    files[".json"].write_text(json.dumps({"a": [1] * 100}))
    save_file({"a": np.zeros((50, 50))}, files[".safetensors"])
    files[".tsv"].write_text("a\tb\n")
    return files


def test_whole_files_are_not_blamed(whole):
    assert first_damaged(whole.values()) == ""


FAULTS = {
    name: (kept, "…: is damaged (…); delete it and run the same command again")
    for name, kept in {
        "an empty file among the results": 0,
        "half a file among the results": 0.5,
        "a file among the results without its end": 0.98,
    }.items()
}


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("name", FAULTS)
def test_half_a_file_is_named_with_the_mend(name, whole, suffix):
    path, (kept, expected) = whole[suffix], FAULTS[name]
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    line = first_damaged(whole.values())
    assert line.startswith(f"{path}: is damaged (") and is_said(expected, line)


def test_a_spoilt_block_within_is_found(whole):
    path = whole[".h5ad"]
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    h5py.File(path).close()  # HDF5 opens it all the same
    assert first_damaged([path]).startswith(f"{path}: is damaged (")


def test_a_file_that_is_gone_is_named(whole):
    whole[".tsv"].unlink()
    assert "No such file" in first_damaged(whole.values())
