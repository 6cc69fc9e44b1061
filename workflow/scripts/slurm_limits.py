"""What the partitions of a Slurm cluster can give, so that no job waits for what none has.

Slurm may keep a job that fits no node in its queue for ever, without an error. The Snakefile
imports this, so it needs nothing beyond what Snakemake itself brings.
"""

import math
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

# Memory (MB), CPUs, time limit and GPUs of a node; a * marks the default partition.
SINFO = ("sinfo", "--noheader", "--format", "%P|%m|%c|%l|%G")
SECONDS = 30
UNITS = {"mem_mb": "MB of memory", "threads": "CPUs", "runtime": "minutes", "gpu": "GPUs"}


@dataclass(frozen=True)
class Partition:
    """The most that one job can have in a partition."""

    name: str
    is_default: bool
    mem_mb: float
    threads: float
    runtime: float
    gpu: float


def read_partitions(text: str) -> list[Partition]:
    """The partitions that ``sinfo`` names in the format of SINFO, each with its largest of all."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, memory, cpus, limit, gres = line.strip().split("|")
        plain = name.removesuffix("*")
        most = found.get(plain, Partition(plain, name != plain, 0, 0, 0, 0))
        found[plain] = Partition(
            plain,
            most.is_default,
            max(most.mem_mb, float(memory.rstrip("+"))),
            max(most.threads, float(cpus.rstrip("+"))),
            max(most.runtime, _minutes(limit)),
            max(most.gpu, _gpus(gres)),
        )
    return list(found.values())


def ask_partitions() -> list[Partition]:
    """The partitions of the cluster that this machine submits to; none where it does not answer."""
    try:
        asked = subprocess.run(SINFO, capture_output=True, text=True, timeout=SECONDS, check=True)
        return read_partitions(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []  # no controller, or a sinfo of the site's own


def _minutes(limit: str) -> float:
    """Minutes of ``days-hours:minutes:seconds``, where what stands in front may be missing."""
    if limit == "infinite":
        return math.inf
    days, _, rest = limit.rpartition("-")
    hours, minutes, seconds = [0, 0, *map(int, rest.split(":"))][-3:]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _gpus(gres: str) -> float:
    """GPUs of ``gpu:a100:4(S:0-1),shard:8``."""
    return sum(int(number) for number in re.findall(r"\bgpu:(?:[^:,(]+:)?(\d+)", gres))


def too_large(jobs: Iterable[tuple[str, dict]], partitions: list[Partition]) -> list[str]:
    """A line for each rule that asks for more than its partition has.

    ``jobs``: rule and resources of each; what is no number yet cannot be judged.
    """
    by_name = {p.name: p for p in partitions}
    default = next((p for p in partitions if p.is_default), None)
    faults = {}
    for rule, asked in jobs:
        named = asked.get("slurm_partition")
        partition = by_name.get(str(named)) if named else default
        for name, unit in UNITS.items():
            amount = asked.get(name)
            if not partition or not isinstance(amount, int | float):
                continue
            most = getattr(partition, name)
            if amount > most:
                faults[rule, name] = (
                    f"rule {rule}: asks for {amount:g} {unit}, partition {partition.name} gives "
                    f"{most:g} at most; Slurm would let it wait for ever: lower {name} or name "
                    "another slurm_partition under set-resources in the profile"
                )
    return list(faults.values())
