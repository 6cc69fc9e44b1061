"""Training throughput beside scvi-tools: same layers, same cells, same run, in turn.

::

    python compare.py --out FOLDER --peer-python PYTHON [--likelihoods nb zinb] [--threads 1 2]

Both sides live in processes of their own and train an epoch or more in turn, A B A B, so that a
machine whose speed drifts is slow for both. Written: ``rounds.tsv``, every epoch; ``table.tsv``,
medians with their range, the ratio pair by pair, peak memory, the held-out ELBO after the same
number of epochs, and the share that each side reaches of what the processor multiplies. With
``--to-elbo`` instead ``to_elbo.tsv``: seconds to the ELBO with which the peer's defaults end; with
``--out-of-core`` instead ``out_of_core.tsv``: ours with the counts in memory and on disk.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

HERE = Path(__file__).resolve().parent
N_GENES, DENSITY = 2000, 0.08


def simulate(n_cells: int, seed: int = 0) -> sp.csr_matrix:
    """All of :func:`simulated_blocks` at once, float32; without cells that have no count."""
    counts = sp.vstack(list(simulated_blocks(n_cells, seed)), format="csr").astype(np.float32)
    return counts[np.asarray(counts.sum(1)).ravel() > 0]


def simulated_blocks(n_cells: int, seed: int = 0) -> Iterator[sp.csr_matrix]:
    """Counts of eight types of cells (NB, theta 1.5), DENSITY of them above 0; 5000 at a time.

    The types are the same whatever the seed.
    """
    rng = np.random.default_rng(0)
    shares = rng.gamma(0.3, 1.0, N_GENES) * np.exp(rng.normal(0.0, 0.8, (8, N_GENES)))
    shares /= shares.sum(1, keepdims=True)

    def draw(n: int, size: float) -> sp.csr_matrix:
        mean = shares[rng.integers(0, 8, n)] * (size * rng.lognormal(0.0, 0.4, (n, 1)))
        return sp.csr_matrix(rng.poisson(rng.gamma(1.5, mean / 1.5)).astype(np.int32))

    # The mean depth that gives the density: found on a few cells.
    low, high = 1.0, 1e5
    for _ in range(30):
        size = np.sqrt(low * high)
        few = draw(200, size)
        low, high = (size, high) if few.nnz < DENSITY * np.prod(few.shape) else (low, size)
    rng = np.random.default_rng([seed, 1])
    for start in range(0, n_cells, 5000):
        yield draw(min(5000, n_cells - start), size)


class Side:
    """A process of side.py."""

    def __init__(self, python: str, name: str, counts: Path, **options):
        more = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        # As Snakemake sets it for the threads of a rule.
        threads = {"OMP_NUM_THREADS": str(options.get("threads", 1))}
        self.process = subprocess.Popen(
            [python, str(HERE / "side.py"), name, str(counts), *more],
            env=os.environ | threads,
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
        )
        self.cells = self._read()["cells"]

    def ask(self, **request) -> dict:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side ended; its message stands above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def matrix_rate(threads: int, dtype: torch.dtype) -> float:
    """Measured flop/s of the product that dominates a step (128 x 128 times 128 x 2001)."""
    torch.set_num_threads(threads)
    a, b = torch.randn(128, 128).to(dtype), torch.randn(128, N_GENES + 1).to(dtype)
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(50):
            a @ b
        best = min(best, (time.perf_counter() - start) / 50)
    return 2 * 128 * 128 * (N_GENES + 1) / best


def flops_of_a_cell(likelihood: str) -> float:
    """Of the output layer's three products: forward, and the gradients of weights and units."""
    n_out = N_GENES + 1 + (N_GENES if likelihood == "zinb" else 0)
    return 3 * 2 * 128 * n_out


def race(options, counts: Path, likelihood: str, threads: int, batch: int) -> list[dict]:
    """The rounds of one setting."""
    setting = {"likelihood": likelihood, "threads": threads, "batch": batch}
    ours = {
        f"anomics {p}": Side(sys.executable, "anomics", counts, precision=p, **setting)
        for p in options.precisions
    }
    sides = ours | {"scvi-tools": Side(options.peer_python, "scvi", counts, **setting)}
    rows = []
    for side in sides.values():
        side.ask(epochs=1)
    for number in range(options.rounds):
        for name, side in sides.items():
            found = side.ask(epochs=1)
            rate = {key: side.cells / found[key] for key in ("wall", "cpu")}
            rows.append(
                setting
                | {"side": name, "round": number, "cells_per_second": rate["wall"]}
                | {"cells_per_cpu_second": rate["cpu"], "peak_mb": found["peak_mb"]}
            )
    elbo = {name: side.ask(elbo=True)["elbo"] for name, side in sides.items()}
    for side in sides.values():
        side.close()
    return [row | {"elbo": elbo[row["side"]]} for row in rows]


def race_to_elbo(options, counts: Path, likelihood: str) -> list[dict]:
    """Seconds until the held-out ELBO with which the peer ends its default training.

    The peer trains in one call, as its KL warm-up asks for; we look after every epoch, and pay.
    """
    peer = Side(options.peer_python, "scvi", counts, likelihood=likelihood)
    epochs = min(round(20_000 / peer.cells * 400), 400)
    wall, elbo = peer.ask(epochs=epochs)["wall"], peer.ask(elbo=True)["elbo"]
    peer.close()
    rows = [{"side": "scvi-tools", "epochs": epochs, "seconds": wall, "elbo": elbo}]
    for precision in options.precisions:
        side = Side(sys.executable, "anomics", counts, likelihood=likelihood, precision=precision)
        row = {"side": f"anomics {precision}", "epochs": 0, "seconds": 0.0, "elbo": -np.inf}
        while row["elbo"] < elbo and row["epochs"] < 2 * epochs:
            start = time.perf_counter()
            row["elbo"] = side.ask(epochs=1, elbo=True)["elbo"]
            row["seconds"] += time.perf_counter() - start
            row["epochs"] += 1
        side.close()
        rows.append(row)
    return [{"likelihood": likelihood} | row | {"ratio": wall / row["seconds"]} for row in rows]


def race_from_disk(options) -> pd.DataFrame:
    """Epochs of ours with the counts in memory and on disk, in turn: a row a round."""
    sys.path.insert(0, str(HERE.parents[1] / "workflow" / "scripts"))
    from stored_counts import write_h5ad

    counts = options.out / f"simulated_{options.cells}.h5ad"
    if not counts.exists():
        tables = {"obs": pd.DataFrame(index=pd.RangeIndex(options.cells).astype(str))}
        tables["var"] = pd.DataFrame(index=pd.RangeIndex(N_GENES).astype(str))
        write_h5ad(counts, {"X": simulated_blocks(options.cells)}, tables, compressed=False)
    sides = {
        place: Side(sys.executable, "anomics", counts, memory=memory)
        for place, memory in (("in memory", 1e15), ("on disk", 0))
    }
    rows = []
    for number in range(options.rounds):
        for place, side in sides.items():
            found = side.ask(epochs=1)
            row = {"round": number, "counts": place, "seconds": found["wall"]}
            rows.append(row | {"peak_mb": found["peak_mb"]})
            print(row, flush=True)
    elbo = {place: side.ask(elbo=True)["elbo"] for place, side in sides.items()}
    for side in sides.values():
        side.close()
    table = pd.DataFrame(rows)
    in_memory = table[table["counts"] == "in memory"].set_index("round")["seconds"]
    table["ratio"] = table["seconds"] / table["round"].map(in_memory)
    return table.assign(elbo=table["counts"].map(elbo))


def summarise(rounds: pd.DataFrame) -> pd.DataFrame:
    """A row a setting and side: medians, ranges, ratios to the peer pair by pair."""
    setting = ["likelihood", "threads", "batch"]
    rows = []
    for values, part in rounds.groupby(setting, sort=False):
        speed = part.pivot(index="round", columns="side", values="cells_per_second")
        work = part.pivot(index="round", columns="side", values="cells_per_cpu_second")
        for name in part["side"].unique():
            ratio = (speed[name] / speed["scvi-tools"]).quantile([0.0, 0.5, 1.0])
            dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
            limit = matrix_rate(values[1], dtype) / flops_of_a_cell(values[0])
            of_side = part[part["side"] == name]
            rows.append(
                dict(zip(setting, values, strict=True))
                | {"side": name, "cells_per_second": speed[name].median()}
                | {"ratio": ratio[0.5], "ratio_min": ratio[0.0], "ratio_max": ratio[1.0]}
                | {"ratio_cpu": (work[name] / work["scvi-tools"]).median()}
                | {"share_of_limit": speed[name].median() / limit}
                | {"peak_mb": of_side["peak_mb"].max(), "elbo": of_side["elbo"].iloc[0]}
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Race, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peer-python", help="interpreter that has scvi-tools")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--counts", type=Path, help=".npz, scipy CSR, instead of simulated ones")
    parser.add_argument("--likelihoods", nargs="+", default=["nb", "zinb"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[128])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--to-elbo", action="store_true", help="time to the peer's final ELBO")
    parser.add_argument("--out-of-core", action="store_true", help="ours, in memory and on disk")
    options = parser.parse_args()
    if not (options.peer_python or options.out_of_core):
        parser.error("--peer-python: the interpreter of an environment with scvi-tools is needed")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.out_of_core:
        table = race_from_disk(options)
        table.to_csv(options.out / "out_of_core.tsv", sep="\t", index=False, float_format="%.5g")
        print(table.round(3).to_string(index=False))
        return
    counts = options.counts or options.out / f"simulated_{options.cells}.npz"
    if not counts.exists():
        sp.save_npz(counts, simulate(options.cells))
    if options.to_elbo:
        rows = [row for name in options.likelihoods for row in race_to_elbo(options, counts, name)]
        table = pd.DataFrame(rows)
        table.to_csv(options.out / "to_elbo.tsv", sep="\t", index=False, float_format="%.5g")
        print(table.round(2).to_string(index=False))
        return
    rows = []
    for setting in product(options.likelihoods, options.threads, options.batches):
        rows += race(options, counts, *setting)
        rounds = pd.DataFrame(rows)
        rounds.to_csv(options.out / "rounds.tsv", sep="\t", index=False, float_format="%.5g")
        table = summarise(rounds)
        table.to_csv(options.out / "table.tsv", sep="\t", index=False, float_format="%.4g")
        print(table.round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
