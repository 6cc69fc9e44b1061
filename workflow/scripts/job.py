"""What every job of the pipeline shares: its log, its one-line errors, its writers.

Writers are atomic (a temporary file in the same folder, then a rename), so that a killed job leaves
no half file under a final name, and byte-stable, so that the same numbers give the same bytes.
"""

import ctypes
import errno
import json
import logging
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from damaged_files import first_damaged

LONGEST_LINE = 1500  # characters of a message; of longer ones the middle is left out
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


# mallopt's M_MMAP_THRESHOLD. Left to itself glibc raises it to what was last freed; what is kept of
# each chunk of cells then lies between its large temporary arrays, whose place is never used again:
# embedding 1e5 cells took 1.9 GB in place of 0.7.
MMAP_THRESHOLD, BYTES = -3, 2**20


def _return_large_arrays() -> None:
    """Have the C library give arrays of more than a megabyte back as soon as they are freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, BYTES)


class InputError(ValueError):
    """What the user can mend, a line each: where: what is wrong; what to do."""

    def __init__(self, *lines: str):
        super().__init__(*lines)
        self.lines = [" ".join(line.split()) for line in lines]

    def __str__(self) -> str:
        return "\n".join(self.lines)


@contextmanager
def collected(faults: list[str]) -> Iterator[None]:
    """Add the lines of an InputError to ``faults`` and go on, so that all are told at once."""
    try:
        yield
    except InputError as error:
        faults += [line for line in error.lines if line not in faults]


def raise_all(faults: list[str]) -> None:
    """Raise one InputError with all ``faults``, if there are any."""
    if faults:
        raise InputError(*faults)


class Terminated(BaseException):
    """The job was told to end: cancelled, preempted, or out of its time. The text: what is kept."""


SIGNALS = signal.SIGTERM, signal.SIGINT
EXIT_CODE = 128 + signal.SIGTERM  # as a shell reports it; Snakemake retries on any but 0


@contextmanager
def _handled(handler: Callable) -> Iterator[None]:
    """SIGTERM and SIGINT go to ``handler``."""
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _terminate(number: int, frame) -> None:
    # Another signal would cut short the clearing away after this one.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Terminated("nothing half-written is left")


@contextmanager
def termination_postponed() -> Iterator[Callable[[], bool]]:
    """Within, a signal to end only makes true what is yielded, to be asked where one can stop."""
    asked = threading.Event()
    with _handled(lambda number, frame: asked.set()):
        yield asked.is_set
    if asked.is_set():  # after it was last asked
        _terminate(signal.SIGTERM, None)


@contextmanager
def job(snakemake) -> Iterator[logging.Logger]:
    """Log to the rule's log file and end on an :class:`InputError` with its lines, exit code 1.

    Anything else that goes wrong is a fault of ours, so it keeps its traceback, in the log and on
    stderr. A full disk and memory that ran out are the machine's, so they get one line too.
    """
    _return_large_arrays()
    path = Path(str(snakemake.log[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(_Formatter(LOG_FORMAT, datefmt="%H:%M:%S"))
    log = logging.getLogger("anomics")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        with _handled(_terminate), _explained(snakemake, log):
            yield log
            # In KiB on Linux, in bytes on macOS.
            unit = 1e6 if sys.platform == "darwin" else 1e3 / 1.024
            whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
            peak = max(resource.getrusage(who).ru_maxrss for who in whose) / unit
            log.info("done; peak memory %.0f MB", peak)
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def _explained(snakemake, log: logging.Logger) -> Iterator[None]:
    """What goes wrong within, in one line where a user or an administrator can mend it."""
    try:
        yield
    except InputError as error:
        _stop(log, *error.lines)
    except Terminated as kept:
        _stop(
            log,
            f"rule {snakemake.rule}: ended by a signal (cancelled, preempted or out of time); "
            f"{kept}; the same command goes on from there",
            code=EXIT_CODE,
        )
    except MemoryError:
        _stop(
            log,
            f"rule {snakemake.rule}: not enough memory; run on a machine with more, or raise "
            "mem_mb for this rule in the profile",
        )
    except Exception as error:
        if _is_full(error):
            where = getattr(error, "filename", None) or snakemake.output[0]
            _stop(log, f"{where}: the disk is full; free some space and run the same command again")
        of_run = [path for path in snakemake.input if str(path).startswith("results/")]
        if damage := first_damaged(of_run):
            _stop(log, damage)
        log.exception("stopped by an unexpected error")
        raise


def _is_full(error: Exception) -> bool:
    """Whether the disk is full; safetensors has no errno and says so in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def one_line(text: str) -> str:
    """Text as a line, in which what a terminal would act on (escapes, as in names) is spelt out."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= LONGEST_LINE else f"{line[:800]} ... {line[-200:]}"


class _Formatter(logging.Formatter):
    """Each record on one line, with its traceback below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return one_line(super().formatMessage(record))


def _stop(log: logging.Logger, *lines: str, code: int = 1) -> None:
    """Lines to the log (the Snakefile prints them when the run ends) and the code of failure."""
    for line in lines:
        log.error(line)
    sys.exit(code)


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as h5py and matplotlib read the format from it.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# What a spreadsheet takes for a formula; with what :func:`write_tsv` puts before it.
FORMULA = re.compile(r"'*[=+\-@\t\n\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_tsv(table, path: str | Path) -> None:
    """Write a DataFrame as a tab-separated table; numbers with 9 significant digits.

    A text that a spreadsheet would run as a formula, as a gene called ``=cmd()``, gets an
    apostrophe in front, which :func:`read_tsv` takes away again. Numbers stay as they are.
    """
    table = table.rename(columns=_quoted)
    for name in _texts(table):
        table[name] = table[name].astype(object).map(_quoted)
    write_atomically(
        path, lambda p: table.to_csv(p, sep="\t", index=False, float_format="%.9g", na_rep="NA")
    )


def read_tsv(path: str | Path, **options):
    """What :func:`write_tsv` wrote; ``options`` of pandas.read_csv."""
    import pandas as pd  # the jobs that read none need not wait for it

    table = pd.read_csv(path, sep="\t", **options).rename(columns=_unquoted)
    for name in _texts(table):
        table[name] = table[name].map(_unquoted)
    return table


def _texts(table) -> list[str]:
    return list(table.select_dtypes(["object", "string", "category"]))


def _quoted(value):
    if not isinstance(value, str):
        return value
    value = value.replace("\r", " ")  # which would end the row, for pandas does not quote it
    return f"'{value}" if FORMULA.match(value) and not NUMBER.fullmatch(value) else value


def _unquoted(value):
    is_quoted = isinstance(value, str) and value.startswith("'") and FORMULA.match(value)
    return value[1:] if is_quoted else value


def write_parquet(table, path: str | Path) -> None:
    """Write a DataFrame, without its index, as Parquet."""
    write_atomically(path, lambda p: table.to_parquet(p, index=False))


def write_json(content: dict, path: str | Path) -> None:
    """Write a dict as JSON with a final newline; NaN and infinity are refused."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def read_json(path: str | Path) -> dict:
    """What :func:`write_json` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_h5ad(adata, path: str | Path) -> None:
    """Write an AnnData object, gzip compressed (HDF5 stores no time stamp there)."""
    write_atomically(path, lambda p: adata.write_h5ad(p, compression="gzip"))
