"""What every job does alike: the log, the one line of an error, writing all or nothing."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse

import stored_counts
from conftest import ROOT
from job import (
    InputError,
    Terminated,
    collected,
    job,
    raise_all,
    read_tsv,
    termination_postponed,
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
        rule="train_vae", input=[], log=[str(tmp_path / "logs" / "a.log")], output=["model.json"]
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


def test_an_input_error_of_several_faults_has_a_line_for_each(given):
    faults: list[str] = []
    for line in ("a: x; y", "b: x; y", "a: x; y"):
        with collected(faults):
            raise InputError(line)
    with pytest.raises(InputError) as caught:
        raise_all(faults)
    log = stop_with(given, caught.value)
    assert [line.split(" ERROR ")[1] for line in log.splitlines()] == ["a: x; y", "b: x; y"]
    raise_all([])


FAULTS: dict[str, tuple[BaseException, str]] = {
    "a full disk": (
        OSError(errno.ENOSPC, "full", "results/x.h5ad"),
        "results/x.h5ad: the disk is full; free some space and run the same command again",
    ),
    "a quota that is used up": (
        OSError(errno.EDQUOT, "full", "results/x.h5ad"),
        "results/x.h5ad: the disk is full; free some space and run the same command again",
    ),
    "too little memory": (
        MemoryError(),
        "rule train_vae: not enough memory; run on a machine with more, or raise mem_mb for this "
        "rule in the profile",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_machine_lacks_is_one_line(name, given):
    error, expected = FAULTS[name]
    log = stop_with(given, error)
    assert log.endswith(f" ERROR {expected}\n") and log.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_of_the_output_where_no_file_is_named(given, number):
    assert "model.json: the disk is full" in stop_with(given, OSError(number, "full"))
    # As safetensors says it, which is no OSError and has no number.
    words = RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")
    assert "model.json: the disk is full" in stop_with(given, words)


# Of a fault that only speaks of a full disk in its file name, the number tells.
@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd"),
        OSError(errno.EIO, "odd"),
        OSError(errno.EIO, "odd", os.strerror(errno.ENOSPC)),
        KeyError("odd"),
    ],
)
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


# ---- told to end

SIGNALS = signal.SIGTERM, signal.SIGINT
ENDED = (
    "rule train_vae: ended by a signal (cancelled, preempted or out of time); {}; the same command "
    "goes on from there"
)
SIGNALLED = {
    "a job that you or the cluster tell to end": (SIGNALS, ENDED.format("…")),
}


def signalled(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_job_told_to_end_says_so_in_one_line_and_with_its_code(given, number):
    with pytest.raises(SystemExit) as stopped, job(given):
        signalled(number)
    # Of SIGTERM, as a shell reports it, whichever of the two it was.
    assert stopped.value.code == 143
    log = Path(given.log[0]).read_text()
    assert log.count("\n") == 1
    assert log.endswith("ERROR " + ENDED.format("nothing half-written is left") + "\n")


def half_text(partial: Path, number: int) -> None:
    with partial.open("w") as file:
        file.write("ha")
        signalled(number)
        file.write("lf")


def half_h5ad(partial: Path, number: int) -> None:
    def blocks():
        yield sparse.csr_matrix(np.eye(3, dtype=np.int32))
        signalled(number)
        yield sparse.csr_matrix(np.eye(3, dtype=np.int32))

    obs, var = pd.DataFrame(index=list("abcdef")), pd.DataFrame(index=list("xyz"))
    stored_counts.write_h5ad(partial, {"X": blocks()}, {"obs": obs, "var": var})


def half_order(partial: Path, number: int) -> None:
    """The folder beside a file, where its rows are put in order."""

    def blocks():
        yield slice(0, 3), sparse.csr_matrix(np.eye(3, dtype=np.int32))
        assert len(list(partial.parent.iterdir())) > 1
        signalled(number)

    list(stored_counts.in_order(blocks(), np.arange(6), partial))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("write_half", [half_text, half_h5ad, half_order])
def test_a_job_told_to_end_while_it_writes_leaves_the_old_file_and_nothing_else(
    given, tmp_path, number, write_half
):
    path = tmp_path / "out" / "counts.h5ad"
    path.parent.mkdir()
    path.write_text("old")
    with pytest.raises(SystemExit) as stopped, job(given):
        write_atomically(path, lambda partial: write_half(partial, number))
    assert stopped.value.code == 143
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["counts.h5ad"]


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("error", [None, InputError("x: y; z"), ValueError("odd"), Terminated("k")])
def test_a_job_leaves_the_handlers_of_signals_as_they_were(given, error):
    def own(number, frame):
        pass

    before = handlers()
    for number in SIGNALS:
        signal.signal(number, own)
    try:
        try:
            with job(given):
                assert own not in handlers()
                with termination_postponed():
                    assert own not in handlers()
                if error is not None:
                    raise error
        except (SystemExit, ValueError):
            pass
        assert handlers() == [own, own]
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_can_be_postponed_to_where_one_can_stop(given, number):
    with (
        pytest.raises(SystemExit) as stopped,
        job(given) as log,
        termination_postponed() as is_to_stop,
    ):
        assert not is_to_stop()
        signalled(number)
        assert is_to_stop()
        log.info("tidied up")
        raise Terminated("all is tidied up")
    assert stopped.value.code == 143
    said, last = Path(given.log[0]).read_text().splitlines()
    assert said.endswith("tidied up")
    assert last.endswith("ERROR " + ENDED.format("all is tidied up"))


def test_a_signal_that_nobody_asked_about_ends_the_job_after_all(given):
    """It came after the last time that one could stop."""
    with pytest.raises(SystemExit) as stopped, job(given) as log:
        with termination_postponed():
            signalled(signal.SIGTERM)
        log.info("went on as if nothing had been")
    assert stopped.value.code == 143
    assert "went on" not in Path(given.log[0]).read_text()


CHILD = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from types import SimpleNamespace
from job import job, write_atomically
import test_job
log, output = sys.argv[1:3]
given = SimpleNamespace(rule="train_vae", input=[], log=[log], output=[output])
with job(given):
    {body}
"""


def child(body: str, log: Path, output: Path) -> subprocess.Popen:
    """A process with a job whose ``body`` writes to ``output``."""
    path = [str(ROOT / "tests"), str(ROOT / "workflow" / "scripts")]
    command = [sys.executable, "-c", CHILD.format(path=path, body=body), str(log), str(output)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes)


def write_for_ever(partial: Path) -> None:
    with partial.open("w") as file:
        while True:
            file.write("a line\n")
            file.flush()
            print(partial.name, flush=True)
            time.sleep(0.1)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_told_to_end_while_it_writes_ends_at_once(tmp_path, number):
    log, path = tmp_path / "a.log", tmp_path / "out" / "table.tsv"
    path.parent.mkdir()
    path.write_text("old")
    process = child("write_atomically(output, test_job.write_for_ever)", log, path)
    partial = process.stdout.readline().strip()
    assert (path.parent / partial).exists()
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (143, "")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["table.tsv"]
    assert log.read_text().endswith("ERROR " + ENDED.format("nothing half-written is left") + "\n")


def end_twice(partial: Path) -> None:
    """A second signal comes while what the first one left is cleared away, and a third one then."""
    real, info = Path.unlink, logging.Logger.error

    def unlink(path, **how):
        signalled(signal.SIGTERM)
        real(path, **how)

    def error(log, *said):
        signalled(signal.SIGTERM)
        info(log, *said)

    Path.unlink, logging.Logger.error = unlink, error
    partial.write_text("half")
    signalled(signal.SIGINT)


def test_a_job_told_to_end_more_than_once_still_clears_away_and_says_so(tmp_path):
    """Ctrl-C comes to all processes of a terminal, and the one above sends its own signal."""
    log, path = tmp_path / "a.log", tmp_path / "out" / "table.tsv"
    process = child("write_atomically(output, test_job.end_twice)", log, path)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "")
    assert list(path.parent.iterdir()) == []
    assert log.read_text().endswith("ERROR " + ENDED.format("nothing half-written is left") + "\n")


# ---- a full disk


def long_order(path: Path) -> None:
    blocks = [(slice(0, 400), sparse.csr_matrix(np.ones((400, 1000), dtype=np.int32)))]
    list(stored_counts.in_order(blocks, np.arange(400), path))


def many_counts(path: Path, n_cells: int = 2000, **how) -> None:
    counts = np.random.default_rng(1).integers(1, 2**30, (n_cells, 200), dtype=np.int32)
    blocks = (sparse.csr_matrix(counts[i : i + 100]) for i in range(0, n_cells, 100))
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(200)])
    stored_counts.write_h5ad(path, {"X": blocks}, {"obs": obs, "var": var}, **how)


def many_cells(path: Path) -> None:
    """Where it is not the counts that fill the disk."""
    n_cells = 400_000
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    blocks = iter([sparse.csr_matrix((n_cells, 1), dtype=np.int32)])
    stored_counts.write_h5ad(path, {"X": blocks}, {"obs": obs, "var": pd.DataFrame(index=["a"])})


def random_table() -> pd.DataFrame:
    return pd.DataFrame({"x": np.random.default_rng(1).random(400_000)})


# Each more than a megabyte.
LARGE = {
    "write_tsv": lambda path: write_tsv(random_table(), path),
    "write_parquet": lambda path: write_parquet(random_table(), path),
    "write_json": lambda path: write_json({"x": list(range(400_000))}, path),
    "safetensors": lambda path: write_atomically(
        path, lambda partial: save_file({"x": torch.rand(400_000)}, partial)
    ),
    "rows in another order": long_order,
    "counts": many_counts,
    "more counts": lambda path: many_counts(path, 20_000),
    "counts not compressed": lambda path: many_counts(path, compressed=False),
    "names of cells": many_cells,
}


@pytest.mark.parametrize("name", LARGE)
def test_on_a_disk_that_fills_up_a_job_ends_with_one_line_and_leaves_nothing(
    tmp_path, small_disk, name
):
    """In a process of its own: a library that loses its file may crash when it ends."""
    log, path = tmp_path / "a.log", small_disk / "out" / "a.out"
    path.parent.mkdir()
    process = child(f"test_job.LARGE[{name!r}](Path(output))", log, path)
    _, errors = process.communicate(timeout=120)
    assert log.read_text().endswith(
        f" ERROR {path}: the disk is full; free some space and run the same command again\n"
    ), errors
    assert log.read_text().count("\n") == 1
    assert list(path.parent.iterdir()) == []
    assert process.returncode == 1, errors


# ---- names from data

ODD = (
    *("=cmd|'/c calc'!A0", "+SUM(1)", "-x", "@x", "\t=x", "\n=x", "＝x", "'=x", "''+x"),
    *("", "'", "'x", "x=1", "a\tb", "a\nb", 'a"b', "NA", "nan", "-1", "+1.5e-3", "-", "1-2", " =x"),
)


def test_no_text_of_a_table_is_a_formula_and_all_come_back(tmp_path):
    table = pd.DataFrame({"=gene": ODD, "x": -1.5, "label": pd.Categorical(ODD)})
    write_tsv(table, tmp_path / "t.tsv")
    plain = {"dtype": str, "keep_default_na": False}
    written = pd.read_csv(tmp_path / "t.tsv", sep="\t", **plain)
    texts = [*written.columns, *written["'=gene"], *written["label"]]
    runs = re.compile(r"[=+@\t\r\n＝＋－＠]|-(?!\d)")
    assert {text for text in texts if runs.match(text)} == {"+1.5e-3"}, "which is a number"
    assert set(written["x"]) == {"-1.5"}
    read = read_tsv(tmp_path / "t.tsv", **plain)
    assert list(read) == ["=gene", "x", "label"]
    assert tuple(read["=gene"]) == tuple(read["label"]) == ODD


def test_numbers_and_missing_values_are_as_they_were(tmp_path):
    table = pd.DataFrame({"a": [-1, 2], "b": [0.5, None], "c": ["-x", None], "d": [True, False]})
    write_tsv(table, tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "a\tb\tc\td\n-1\t0.5\t'-x\tTrue\n2\tNA\tNA\tFalse\n"
    pd.testing.assert_frame_equal(read_tsv(tmp_path / "t.tsv"), table.replace({None: np.nan}))
    assert list(table["c"]) == ["-x", None], "the table itself is as before"
    write_tsv(pd.DataFrame({"a": ["x\r=y"]}), tmp_path / "t.tsv")
    assert list(read_tsv(tmp_path / "t.tsv")["a"]) == ["x =y"]


def test_a_log_holds_nothing_that_a_terminal_acts_on(given):
    with job(given) as log:
        log.warning("cell %s", "\x1b[31mred\x1b]0;title\x07\nERROR forged")
    line = Path(given.log[0]).read_text().splitlines()[0]
    assert line.endswith(r" WARNING cell \x1b[31mred\x1b]0;title\x07 ERROR forged")
    said = stop_with(given, InputError("a: \x1b[31mred; mend it", "b: " + "N" * 10**6))
    assert r" ERROR a: \x1b[31mred; mend it" in said
    assert len(said) < 2000
