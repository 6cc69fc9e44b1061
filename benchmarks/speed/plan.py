"""How Snakemake itself fares with many samples, seeds and betas: a dry run of jobs that never run.

    python benchmarks/speed/plan.py --samples 1000 --seeds 10 --betas 20

Prints the seconds of a dry run, the number of jobs, and the critical path: the longest chain of
jobs that wait for each other, which is what is left to wait for on a cluster without end.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import anndata
import numpy as np
import yaml
from scipy import sparse

ROOT = Path(__file__).resolve().parents[2]


def write_run(folder: Path, samples: int, seeds: int, betas: int) -> None:
    """Config, sample table and one file that all samples are links to; every fifth is query."""
    first = folder / "0.h5ad"
    anndata.AnnData(sparse.csr_matrix(np.eye(3, dtype=np.float32))).write_h5ad(first)
    rows = ["sample\tpath\trole"]
    for i in range(samples):
        path = folder / f"{i}.h5ad"
        if i:
            path.hardlink_to(first)
        rows.append(f"s{i}\t{path}\t{'query' if i % 5 == 4 else 'reference'}")
    (folder / "samples.tsv").write_text("\n".join(rows) + "\n")
    config = {
        "run": "plan",
        "samples": str(folder / "samples.tsv"),
        "stability": {"n_seeds": seeds},
        # 1 is the beta of the fit that is reported, which is there anyway.
        "rate_distortion": {"betas": [round(1.05 + 0.05 * i, 2) for i in range(betas)]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def snakemake(folder: Path, *arguments: str) -> str:
    """What ``snakemake`` prints of this run."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "-d", folder]
    command += ["--configfile", folder / "config.yaml", "--nocolor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def critical_path(dot: str) -> list[str]:
    """Rules of the longest chain in the graph of jobs that ``snakemake --dag`` prints."""
    rules = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)', dot, re.MULTILINE))
    before: dict[str, list[str]] = {job: [] for job in rules}
    for first, then in re.findall(r"^\s*(\d+) -> (\d+)", dot, re.MULTILINE):
        before[then].append(first)

    @cache
    def chain(job: str) -> tuple[str, ...]:
        longest = max(map(chain, before[job]), key=len, default=())
        return (*longest, job)

    return [rules[job] for job in max(map(chain, rules), key=len)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("samples", 1000), ("seeds", 10), ("betas", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, given.samples, given.seeds, given.betas)
        start = time.perf_counter()
        snakemake(folder, "-n", "--quiet")
        seconds = time.perf_counter() - start
        dot = snakemake(folder, "--dag")
    jobs = Counter(re.findall(r'^\s*\d+\[label = "(\w+)', dot, re.MULTILINE))
    print(f"{given.samples} samples, {given.seeds} seeds, {given.betas} betas")
    print(f"dry run        {seconds:.1f} s")
    most = ", ".join(f"{n} {rule}" for rule, n in jobs.most_common(5))
    print(f"jobs           {sum(jobs.values())} ({most})")
    path = critical_path(dot)
    print(f"critical path  {len(path)} jobs: {' > '.join(path)}")


if __name__ == "__main__":
    main()
