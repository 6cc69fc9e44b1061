"""Gives malformed inputs to the readers, in workers with bounds, and says which broke one.

    make fuzz                                 10,000 inputs of every kind
    make fuzz INPUTS=500 KINDS="h5ad zarr"    of some kinds
    make fuzz INPUTS=1234 KINDS="--one h5ad"  that one, which is kept, in this process

Each may take 10 s of computing and 2 GiB of address space. It is survived if it is read, or refused
in one line that names it. All else is a fault: another exception, a crash, a hang.
"""

import argparse
import copy
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from multiprocessing import connection, get_context
from pathlib import Path

from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

import malformed
from configuration import ConfigurationError, check_run, read_config
from conftest import ROOT
from import_counts import import_counts, write_counts
from job import InputError, one_line

SECONDS, BYTES = 10, 2 * 2**30
# Other jobs of the machine may hold up a worker that computes for less.
PATIENCE = 30 * SECONDS
SURVIVED = ("read", "refused")
ROW = {"sample": "a", "role": "query"}


def give(kind: str, path: Path, directly: bool) -> str:
    """Read an input: "read", "refused", or what is wrong about the refusal.

    ``directly``: not in a process of its own, as the pipeline does.
    """
    names = (str(path),)
    try:
        if kind in malformed.FORMATS:
            row = ROW | {"path": str(path), "format": kind}
            read = write_counts if directly else import_counts
            read(str(path), row, "Gene Expression", str(path.parent / "imported.h5ad"))
        else:
            os.chdir(path.parent)
            names = ("config: ", "my.yaml: ")
            config = read_as_snakemake()
            names = (*names, str(ConfigurationError([f"{config['samples']}"]))[:50])
            check_run(config, str(malformed.SCHEMA), set(), {}, files={"my.yaml": "my.yaml"})
        return "read"
    except ConfigurationError as error:
        lines = error.faults
    except InputError as error:
        lines = [one_line(line) for line in error.lines]  # as the job logs them
    return "refused" if all(_is_line(line, names) for line in lines) else f"says {lines}"


def read_as_snakemake() -> dict:
    """my.yaml as it comes to the Snakefile by ``make run``."""
    read_config("my.yaml")
    config = copy.deepcopy(_defaults())
    update_config(config, load_configfile("my.yaml"))
    return config


@cache
def _defaults() -> dict:
    return load_configfile(ROOT / "config.yaml")


def _is_line(text: str, starts: tuple[str, ...]) -> bool:
    return text.startswith(starts) and text.isprintable() and len(text) < 2000


def judge(kind: str, number: int, directly: bool, seeds: Path, folder: Path) -> str:
    """Make an input and give it to its reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = malformed.mutate(kind, number, seeds, folder)
        since = _seconds()
        signal.setitimer(signal.ITIMER_REAL, SECONDS if directly else PATIENCE)
        try:
            answer = give(kind, path, directly)
        except BaseException:
            answer = traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return answer if _seconds() - since < SECONDS else f"took more than {SECONDS} s"


def _seconds() -> float:
    """What this process and those that it started have computed."""
    return sum(os.times()[:4])


def _work(kind: str, pipe, seeds: Path, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder.parent)
    while (asked := pipe.recv()) is not None:
        pipe.send(judge(kind, *asked, seeds, folder))


class _Worker:
    """A process that reads one input after another, until one of them kills it."""

    def __init__(self, kind: str, seeds: Path, folder: Path):
        # Forked, so that nothing is imported anew for each.
        self.pipe, theirs = get_context("fork").Pipe()
        arguments = (kind, theirs, seeds, folder)
        self.process = get_context("fork").Process(target=_work, args=arguments)
        self.process.start()
        theirs.close()

    def ask(self, number: int, directly: bool) -> None:
        self.number, self.directly = number, directly
        self.pipe.send((number, directly))

    def answer(self) -> str | None:
        """What came of the input; None where the worker did not survive it."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            return None

    def end(self) -> int:
        self.process.kill() if self.process.is_alive() and self.process.join(1) else None
        self.process.join()
        return self.process.exitcode


def run(kind: str, numbers: Iterable[int], folder: Path, jobs: int) -> Iterator[tuple[int, str]]:
    """What came of each input, in any order.

    Most are read directly, which takes half as long; what that does not survive is read again as
    the pipeline does, and that counts.
    """
    seeds = folder / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    _prepare(kind, seeds)
    numbers = iter(numbers)
    workers = {}

    def start(place: int, again: int | None = None) -> None:
        number = next(numbers, None) if again is None else again
        if number is not None:
            worker = workers.get(place) or _Worker(kind, seeds, folder / f"{kind}{place}")
            worker.ask(number, directly=again is None)
            workers[place] = worker
        elif place in workers:
            workers[place].pipe.send(None)
            workers.pop(place).process.join()

    for place in range(jobs):
        start(place)
    while workers:
        ready = connection.wait([worker.pipe for worker in workers.values()])
        for place, worker in list(workers.items()):
            if worker.pipe not in ready:
                continue
            answer = worker.answer()
            if answer is None:
                code = workers.pop(place).end()
                died = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                answer = f"took more than {PATIENCE} s" if code == -signal.SIGALRM else died
            if worker.directly and answer not in SURVIVED:
                start(place, again=worker.number)
            else:
                yield worker.number, answer
                start(place)


def _prepare(kind: str, seeds: Path) -> None:
    """The good files, written by another process: zarr leaves threads behind, which no fork has."""
    writer = get_context("spawn").Process(target=_write_seeds, args=(kind, seeds))
    writer.start()
    writer.join()
    assert writer.exitcode == 0


def _write_seeds(kind: str, seeds: Path) -> None:
    warnings.simplefilter("ignore")
    for name in malformed.SEEDS[kind]:
        if not (seeds / name).exists():
            malformed.write_seed(name, seeds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("kinds", nargs="*", default=list(malformed.SEEDS))
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", metavar="KIND")
    given = parser.parse_args()
    if unknown := {*given.kinds, given.one} - {*malformed.SEEDS, None}:
        parser.error(f"no kind {', '.join(unknown)}; there are {', '.join(malformed.SEEDS)}")
    if given.one:
        folder = Path(tempfile.mkdtemp(prefix="anomics-fuzz-"))
        _prepare(given.one, folder)
        os.chdir(folder)
        answer = judge(given.one, given.count, False, folder, folder / given.one)
        print(answer, folder, sep="\n")
        return 0
    numbers = range(given.first, given.first + given.count)
    with tempfile.TemporaryDirectory(prefix="anomics-fuzz-") as folder:
        found = [tell(kind, numbers, Path(folder), given.jobs) for kind in given.kinds]
    return int(any(found))


def tell(kind: str, numbers: range, folder: Path, jobs: int) -> int:
    """Give a reader its inputs and print what came of them; returns the number of faults."""
    since, found = time.monotonic(), Counter()
    for number, answer in run(kind, numbers, folder, jobs):
        found[answer if answer in SURVIVED else "faults"] += 1
        if answer not in SURVIVED:
            print(f"{kind} {number}: {answer}", flush=True)
    print(
        f"{kind}: {found.total()} inputs: {found['refused']} refused, {found['read']} read, "
        f"{found['faults']} faults, {time.monotonic() - since:.0f} s",
        flush=True,
    )
    return found["faults"]


if __name__ == "__main__":
    sys.exit(main())
