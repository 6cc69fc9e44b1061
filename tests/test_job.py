"""What every job does alike: the log, the one line of an error, writing all or nothing."""

import errno
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import psutil
import pytest
from scipy import sparse

from job import (
    InputError,
    job,
    write_atomically,
    write_h5ad,
    write_json,
    write_parquet,
    write_tsv,
)


@pytest.fixture
def given(tmp_path) -> SimpleNamespace:
    """What Snakemake gives to a script."""
    return SimpleNamespace(
        rule="train_vae", log=[str(tmp_path / "logs" / "a.log")], output=["model.json"]
    )


def stop_with(given, error: BaseException) -> str:
    """Raise ``error`` in a job, which must end with exit code 1, and return its log."""
    with pytest.raises(SystemExit) as stopped, job(given):
        raise error
    assert stopped.value.code == 1
    return Path(given.log[0]).read_text()


def test_a_job_that_ends_well_leaves_its_log_and_what_memory_it_took(given):
    with job(given) as log:
        log.info("%d cells", 3)
    said, last = Path(given.log[0]).read_text().splitlines()
    assert said.endswith(" INFO 3 cells")
    (peak,) = re.findall(r" INFO done; peak memory (\d+) MB$", last)
    now = psutil.Process().memory_info().rss / 1e6
    assert 0.9 * now < int(peak) < 100 * now


def test_the_log_is_of_the_last_try_only(given):
    for words in ("first", "second"):
        with job(given) as log:
            log.info(words)
    assert "first" not in Path(given.log[0]).read_text()


def test_an_input_error_is_one_line(given):
    log = stop_with(given, InputError("a.csv: is\n  torn;  mend it"))
    assert log.endswith(" ERROR a.csv: is torn; mend it\n")
    assert log.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_with_the_file(given, number):
    log = stop_with(given, OSError(number, "full", "results/x.h5ad"))
    assert log.endswith(
        " ERROR results/x.h5ad: the disk is full; free some space and run the same command again\n"
    )
    assert "model.json: the disk is full" in stop_with(given, OSError(number, "full"))


def test_too_little_memory_is_one_line(given):
    log = stop_with(given, MemoryError())
    assert "ERROR rule train_vae: not enough memory; run on a machine with more" in log
    assert log.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(errno.EIO, "odd"), KeyError("odd")])
def test_a_fault_of_ours_keeps_its_traceback(given, error):
    with pytest.raises(type(error)), job(given):
        raise error
    log = Path(given.log[0]).read_text()
    assert "ERROR stopped by an unexpected error\nTraceback (most recent call last):" in log
    assert "odd" in log


def test_a_job_takes_its_log_handler_away(given):
    before = list(logging.getLogger("anomics").handlers)
    with job(given):
        pass
    stop_with(given, InputError("x: y; z"))
    assert logging.getLogger("anomics").handlers == before


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("old")

    def write_half(partial: Path) -> None:
        partial.write_text("ha")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError):
        write_atomically(path, write_half)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.tsv"]


def test_nothing_bears_the_final_name_before_it_is_whole(tmp_path):
    path = tmp_path / "new" / "matrix.h5ad"
    seen = []

    def write(partial: Path) -> None:
        partial.write_text("whole")
        seen.append((path.exists(), partial.suffix, partial.stat().st_ino))

    write_atomically(path, write)
    # The very same file under another name, not a copy of it, which would grow in sight of all.
    assert seen == [(False, ".h5ad", path.stat().st_ino)]
    assert path.read_text() == "whole"


TABLE = pd.DataFrame({"name": ["é", None], "x": [1 / 3, np.nan], "ok": [True, False]})
CELLS = anndata.AnnData(
    sparse.csr_matrix([[0, 2], [1, 0]], dtype=np.int32),
    obs=pd.DataFrame({"role": pd.Categorical(["query", "reference"])}, index=["A", "B"]),
)


@pytest.mark.parametrize(
    ("write", "content"),
    [
        (write_tsv, TABLE),
        (write_parquet, TABLE),
        (write_json, {"b": [1, None], "a": "é"}),
        (write_h5ad, CELLS),
    ],
)
def test_the_same_content_gives_the_same_bytes(tmp_path, write, content):
    first, second = tmp_path / "first", tmp_path / "second"
    write(content, first)
    write(content, second)
    assert first.read_bytes() == second.read_bytes()


def test_tables_for_people_have_nine_digits_and_say_na(tmp_path):
    write_tsv(TABLE, tmp_path / "t.tsv")
    text = (tmp_path / "t.tsv").read_text(encoding="utf-8")
    assert text == "name\tx\tok\né\t0.333333333\tTrue\nNA\tNA\tFalse\n"


def test_json_keeps_order_and_letters_and_refuses_what_json_has_not(tmp_path):
    write_json({"b": 1, "a": "é"}, tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["b", "a"]
    assert "é" in text
    assert text.endswith("}\n")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            write_json({"x": value}, tmp_path / "n.json")
    assert not (tmp_path / "n.json").exists()
