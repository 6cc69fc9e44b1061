"""The whole pipeline beside a plain scanpy and scvi-tools script of the same steps, in turn.

::

    python pipeline.py --out FOLDER --counts COUNTS.h5ad --peer-python PYTHON [--cores 2]

``COUNTS.h5ad``: raw counts with ``obs["role"]``. Both sides get as many cores. Written:
``pipeline.tsv``, seconds from the command to its end, round by round.
"""

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def seconds(command: list[str], threads: int) -> float:
    """Of a command, from its start to its end."""
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def main() -> None:
    """Run both, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=Path, required=True)
    parser.add_argument("--peer-python", required=True, help="interpreter that has scvi-tools")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    counts, config = options.counts.resolve(), folder / "config.json"
    (folder / "samples.tsv").write_text(f"sample\tpath\trole\nS\t{counts}\tobs:role\n")
    config.write_text(json.dumps({"run": "pipeline", "samples": "samples.tsv"}))
    ours = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    ours += ["--configfile", str(config), "--cores", str(options.cores), "--quiet", "all"]
    ours += ["--workflow-profile", str(ROOT / "profiles" / "default")]
    peer = [options.peer_python, str(HERE / "plain.py"), str(counts), str(folder / "plain.h5ad")]
    peer += ["--threads", str(options.cores)]
    rows = []
    for number in range(options.rounds):
        shutil.rmtree(folder / "results", ignore_errors=True)
        # Snakemake gives each job its threads; a single process has all of them.
        row = {"round": number, "anomics": seconds(ours, 1), "plain": seconds(peer, options.cores)}
        rows.append(row | {"ratio": row["plain"] / row["anomics"]})
        table = pd.DataFrame(rows)
        table.to_csv(folder / "pipeline.tsv", sep="\t", index=False, float_format="%.4g")
        print(table.tail(1).round(2).to_string(index=False, header=number == 0), flush=True)


if __name__ == "__main__":
    main()
