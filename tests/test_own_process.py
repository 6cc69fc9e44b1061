"""Work in a process of its own ends as it would here, and a process that dies ends in a line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import own_process
from conftest import ROOT
from job import InputError, Terminated, _handled, _terminate
from own_process import in_own_process

FILE = Path("a.h5")


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


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_is_a_line(number):
    with pytest.raises(InputError, match=rf"^a\.h5: crashes its reader \({number.name}\); it is"):
        give(lambda: os.kill(os.getpid(), number))


def test_work_without_end_is_a_line(monkeypatch):
    monkeypatch.setattr(own_process, "SECONDS", 1)
    with pytest.raises(InputError, match=r"^a\.h5: keeps its reader busy without end; it is"):
        give(compute_for_ever)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded on Linux")
def test_work_without_bounds_is_a_line():
    with pytest.raises(InputError, match=r"^a\.h5: takes more memory than there is, or than a"):
        give(lambda: bytearray(2**32))
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
