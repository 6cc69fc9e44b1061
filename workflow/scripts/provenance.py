"""What a run was made from and on: files, packages, the commit, the machine, the time of its jobs.

``reproduce.py`` imports this outside of Snakemake, so it needs no package of the pipeline.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What decides the results, from the folder of the scripts; the rest of a checkout does not.
PARTS_OF_THE_CODE = ("..", "../../Snakefile", "../../config.yaml")


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The version of each installed package; ``not installed`` where there is none."""
    found = {}
    for name in sorted(names, key=str.lower):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def with_all_needed(names: Iterable[str]) -> set[str]:
    """The packages and those that they need, and so on, as far as they are installed."""
    found, waiting = set(), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        found.add(name)
        waiting += [n.name for n in needed if not n.marker or n.marker.evaluate({"extra": ""})]
    return found


def git_state(scripts: str) -> dict | None:
    """The commit of the workflow and whether its files differ from it; None outside of a checkout.

    ``scripts``: the workflow's folder of scripts; for a workflow used from afar it is no folder.
    """
    # A copy of the workflow within a checkout of something else is no part of that.
    if _printed_by("git", "-C", scripts, "ls-files", "--error-unmatch", ".") is None:
        return None
    commit = _printed_by("git", "-C", scripts, "rev-parse", "HEAD")
    # Without the lock it may run beside any other git.
    status = ("--no-optional-locks", "status", "--porcelain", "--", *PARTS_OF_THE_CODE)
    changes = _printed_by("git", "-C", scripts, *status)
    return {"commit": commit, "is_dirty": None if changes is None else changes != ""}


def hardware() -> dict:
    """The machine that this runs on; on a cluster other jobs may have had another."""
    gpus = _printed_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "gpus": gpus.splitlines() if gpus else [],
    }


def _processor() -> str:
    """The processor's name, which Python does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _printed_by(*command: str) -> str | None:
    """What a program prints; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def read_jobs(run: Path, files: Iterable[str]) -> list[dict]:
    """Rule, times, wall time (s) and peak memory (MB) of each job, as they began.

    ``files``: benchmark files of Snakemake's, ``benchmarks/<rule>.jsonl`` or
    ``benchmarks/<rule>/<sample or fit>.jsonl`` under ``run``. Each is written as its job ends.
    """
    jobs = []
    for file in files:
        measured = json.loads((run / file).read_text(encoding="utf-8"))
        rule, *name = Path(file).with_suffix("").parts[1:]
        ended, memory = (run / file).stat().st_mtime, measured["max_rss"]
        jobs.append(
            {
                "rule": rule,
                "name": name[0] if name else None,
                "started": _moment(ended - measured["s"]),
                "ended": _moment(ended),
                "seconds": measured["s"],
                # A job may be over before its memory is measured.
                "peak_mb": memory if isinstance(memory, float) else None,
            }
        )
    return sorted(jobs, key=lambda job: (job["started"], job["ended"], job["rule"]))


def _moment(seconds: float) -> str:
    """A time since 1970 in ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
