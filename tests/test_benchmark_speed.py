"""The speed benchmark: its counts, our side of the race, and the arithmetic of its table."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from conftest import ROOT

FOLDER = ROOT / "benchmarks" / "speed"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("speed_compare", FOLDER / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_simulated_counts_have_their_density_and_one_type_of_index(compare):
    counts = compare.simulate(600)
    assert counts.shape[1] == compare.N_GENES and counts.dtype == np.float32
    assert counts.nnz / np.prod(counts.shape) == pytest.approx(compare.DENSITY, rel=0.05)
    assert counts.indptr.dtype == counts.indices.dtype == np.int32
    assert (counts.sum(1) > 0).all()
    assert (compare.simulate(600) != counts).nnz == 0


def test_our_side_trains_and_measures(compare, tmp_path):
    rng = np.random.default_rng(0)
    mean = rng.gamma(0.5, 2.0, (1, 60)) * np.exp(rng.normal(0, 1, (400, 1)) * rng.normal(size=60))
    sp.save_npz(tmp_path / "counts.npz", sp.csr_matrix(rng.poisson(mean).astype(np.float32)))
    for precision in ("float32", "autograd"):
        side = compare.Side(
            sys.executable, "anomics", tmp_path / "counts.npz", precision=precision, batch=64
        )
        assert side.cells == 360
        first = side.ask(elbo=True)["elbo"]
        found = side.ask(epochs=12, elbo=True)
        side.close()
        assert found["elbo"] > first + 1.0
        assert found["wall"] > 0 and found["cpu"] > 0 and found["peak_mb"] > 50


def test_a_side_that_ends_is_no_endless_wait(compare, tmp_path):
    with pytest.raises(SystemExit, match="a side ended"):
        compare.Side(sys.executable, "anomics", tmp_path / "missing.npz")


def test_ratios_are_pair_by_pair(compare, monkeypatch):
    monkeypatch.setattr(compare, "matrix_rate", lambda threads, dtype: 1e9)
    setting = {"likelihood": "nb", "threads": 1, "batch": 128, "peak_mb": 100.0, "elbo": -5.0}
    rounds = pd.DataFrame(
        [
            setting
            | {"side": side, "round": k}
            | {"cells_per_second": speed, "cells_per_cpu_second": speed / 2}
            for k, (ours, peer) in enumerate([(800.0, 100.0), (500.0, 50.0), (900.0, 300.0)])
            for side, speed in (("anomics float32", ours), ("scvi-tools", peer))
        ]
    )
    table = compare.summarise(rounds).set_index("side")
    row = table.loc["anomics float32"]
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (8.0, 3.0, 10.0)
    assert row["ratio_cpu"] == 8.0 and row["cells_per_second"] == 800.0
    assert row["share_of_limit"] == pytest.approx(800.0 * compare.flops_of_a_cell("nb") / 1e9)
    assert table.loc["scvi-tools", "ratio"] == 1.0


def test_the_race_to_an_elbo_stops_there_and_counts_the_looks(compare, monkeypatch):
    asked = []

    class Fake:
        cells = 40_000

        def __init__(self, python, name, counts, **options):
            self.name, self.epochs = name, 0

        def ask(self, **request):
            asked.append((self.name, request))
            self.epochs += request.get("epochs", 0)
            return {"wall": 7.0, "elbo": -90.0 if self.name == "scvi" else -100.0 + 4 * self.epochs}

        def close(self):
            pass

    monkeypatch.setattr(compare, "Side", Fake)
    options = SimpleNamespace(peer_python="python", precisions=["float32"])
    peer, ours = compare.race_to_elbo(options, None, "nb")
    assert peer["epochs"] == 200 and peer["ratio"] == 1.0
    assert ours["epochs"] == 3 and ours["elbo"] == -88.0
    assert asked[0] == ("scvi", {"epochs": 200}), "in one call, as its warm-up asks for"
