"""Work that a damaged file may crash, hold up or fill the memory with, in a process of its own.

HDF5, zarr's codecs and the parser of mtx files are C; some files crash them, and some keep them
busy for ever. In the job itself that would be a signal without a word.
"""

import ctypes
import os
import resource
import signal
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from job import InputError, Terminated

# Bytes beyond those of the job that any file may take, and for each byte of it. For what its
# structure does not tell, as one long string that a million cells refer to.
MEMORY, MEMORY_A_BYTE = 3 * 2**29, 100
# Seconds of computing (not of waiting for a disk) for any file, and for each megabyte of it: far
# more than formats of cells and plain text take; and of a packed table twice what one of 20,000
# genes takes that unpacks to the most that untrusted_files allows, at 6 MB of text a second.
SECONDS, SECONDS_A_MEGABYTE, OF_A_PACKED_ONE = 4, 16, 160
SECONDS_TO_END = 10
PR_SET_PDEATHSIG = 1


def in_own_process(path: Path, size: int, work: Callable[[], object]):
    """What ``work`` returns or raises; ``path``, of ``size`` bytes, is what it reads.

    Raises InputError if the process crashes or computes for far longer than the file can need, and
    MemoryError if it is killed.
    """
    fork = get_context("fork")  # nothing is imported or handed over anew
    ours, theirs = fork.Pipe(duplex=False)
    a_megabyte = OF_A_PACKED_ONE if path.suffix == ".gz" else SECONDS_A_MEGABYTE
    seconds = SECONDS + a_megabyte * size // 2**20
    process = fork.Process(target=_answer, args=(theirs, size, seconds, work))
    process.start()
    theirs.close()
    try:
        result, error, trace = ours.recv()
    except EOFError:
        process.join()
        raise _of_death(path, -process.exitcode) from None
    except Terminated:
        process.terminate()  # it clears away what it has half written
        process.join(SECONDS_TO_END)
        process.kill()
        raise
    finally:
        process.join()
    if error is None:
        return result
    if isinstance(error, MemoryError):
        raise InputError(
            f"{path}: takes more memory than there is, or than a file of its size can need; raise "
            "mem_mb for the rule, or, if the file is small, fetch it again: it is damaged"
        )
    if isinstance(error, InputError):
        raise error
    error.add_note(trace)  # where it was
    raise error


def _answer(pipe, size: int, seconds: int, work: Callable[[], object]) -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:  # not to go on writing beside the next try of a job that was killed
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _limit(resource.RLIMIT_CPU, seconds)
    if taken := _memory_taken():
        _limit(resource.RLIMIT_AS, taken + MEMORY + MEMORY_A_BYTE * size)
    try:
        answer = work(), None, ""
    except Terminated:
        os._exit(1)
    except Exception as error:
        answer = None, error, traceback.format_exc()
    try:
        pipe.send(answer)
    except Exception:  # an error that cannot be sent
        pipe.send((None, RuntimeError(answer[2]), answer[2]))
    # What a damaged file has left behind in C may crash in the end too.
    pipe.close()
    os._exit(0)


def _limit(what: int, most: int) -> None:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (min(most, soft) if soft != resource.RLIM_INFINITY else most, hard))


def _memory_taken() -> int:
    """Bytes of address space; 0 where that is not known, outside Linux, which keeps no limit."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


def _of_death(path: Path, number: int) -> Exception:
    if number == signal.SIGKILL:
        return MemoryError()
    if number == signal.SIGXCPU:
        why = "keeps its reader busy without end"
    else:
        why = f"crashes its reader ({signal.Signals(number).name if number > 0 else 'no signal'})"
    return InputError(f"{path}: {why}; it is damaged: fetch it again from where you trust it")
