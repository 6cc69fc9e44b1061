"""Work in a process of its own ends as it would here, and a process that dies ends in a line."""

import faulthandler
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

import own_process
from conftest import ROOT
from job import InputError, Terminated, _handled, _terminate
from own_process import in_own_process

FILE, STATM = Path("a.h5"), Path("/proc/self/statm")


def give(work):
    return in_own_process(FILE, 0, work)


def fail(error: Exception):
    raise error


def compute_for_ever() -> None:
    while True:
        pass


def test_what_the_work_returns_and_writes_is_here(tmp_path):
    def work() -> dict:
        (tmp_path / "a").write_text("x")
        return {"process": os.getpid()}

    assert give(work)["process"] != os.getpid()
    assert (tmp_path / "a").read_text() == "x"


def test_more_than_a_pipe_holds_is_returned():
    assert len(give(lambda: "x" * 10**7)) == 10**7


def test_an_input_error_is_the_same():
    with pytest.raises(InputError) as raised:
        give(lambda: fail(InputError("a: one; mend it", "b: two; mend it")))
    assert raised.value.lines == ["a: one; mend it", "b: two; mend it"]


def test_a_fault_of_ours_keeps_its_kind_its_words_and_its_place():
    with pytest.raises(ZeroDivisionError, match="division by zero") as raised:
        give(lambda: 1 / 0)
    assert "test_own_process.py" in raised.value.__notes__[0]


def test_a_full_disk_keeps_its_number_and_file():
    with pytest.raises(OSError) as raised:
        give(lambda: fail(OSError(28, "full", "x.h5ad")))
    assert (raised.value.errno, raised.value.filename) == (28, "x.h5ad")


def test_an_error_that_cannot_be_sent_is_still_told():
    class LocalError(Exception):
        pass

    with pytest.raises(RuntimeError, match="LocalError: odd"):
        give(lambda: fail(LocalError("odd")))


def crash(number: int) -> None:
    faulthandler.disable()  # which pytest enables, to print a page
    os.kill(os.getpid(), number)


MEND = "it is damaged: fetch it again from where you trust it"
FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    **{
        f"a file that crashes its reader ({number.name})": (
            lambda number=number: crash(number),
            f"a.h5: crashes its reader ({number.name}); {MEND}",
        )
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
    },
    "a file that is read without end": (
        compute_for_ever,
        f"a.h5: keeps its reader busy without end; {MEND}",
    ),
    "a file that fills the memory": (
        lambda: bytearray(2**32),
        "a.h5: takes more memory than there is, or than a file of its size can need; raise mem_mb "
        "for the rule, or, if the file is small, fetch it again: it is damaged",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_breaks_its_reader_is_a_line(name, monkeypatch):
    work, expected = FAULTS[name]
    monkeypatch.setattr(own_process, "SECONDS", 1)
    if "memory" in name and not STATM.exists():
        pytest.skip("memory is bounded on Linux")
    with pytest.raises(InputError) as raised:
        give(work)
    assert str(raised.value) == expected


def seconds_given(name: str, size: int) -> int:
    """Computing time that a file of that name and size may take."""
    limits = in_own_process(Path(name), size, partial(resource.getrlimit, resource.RLIMIT_CPU))
    return limits[0]


def test_only_packed_text_may_be_worked_at_for_long():
    """A file of a few hundred kilobytes ends within ten seconds."""
    assert seconds_given("a.h5ad", 300_000) < 10
    assert seconds_given("a.csv.gz", 300_000) > 40
    assert seconds_given("a.h5ad", 2**30) > 10_000


@pytest.mark.skipif(not STATM.exists(), reason="memory is bounded on Linux")
def test_a_large_file_may_take_more_memory():
    assert in_own_process(FILE, 2**26, lambda: len(bytearray(2**32))) == 2**32


def test_a_process_that_was_killed_had_too_little_memory():
    with pytest.raises(MemoryError):
        give(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_job_that_is_told_to_end_leaves_no_process(tmp_path):
    def tell() -> None:
        try:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            (tmp_path / "cleared").touch()

    since = time.monotonic()
    with pytest.raises(Terminated), _handled(_terminate):
        give(tell)
    assert time.monotonic() - since < 30
    assert (tmp_path / "cleared").exists() and not psutil.Process().children()


def test_a_job_that_is_killed_leaves_no_process(tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent has died")
    code = (
        "import os, time; from pathlib import Path; from own_process import in_own_process\n"
        f"work = lambda: (Path({str(tmp_path / 'id')!r}).write_text(str(os.getpid())), "
        "time.sleep(60))\n"
        "in_own_process(Path('a'), 0, work)"
    )
    path = os.pathsep.join([str(ROOT / "workflow" / "scripts")])
    job = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    while not (tmp_path / "id").exists() or not (tmp_path / "id").read_text():
        time.sleep(0.05)
    number = int((tmp_path / "id").read_text())
    job.kill()
    job.wait()
    for _ in range(100):
        if not psutil.pid_exists(number) or psutil.Process(number).status() == "zombie":
            return
        time.sleep(0.1)
    pytest.fail("the process goes on")
