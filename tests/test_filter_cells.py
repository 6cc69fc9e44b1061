"""Cells that are broken go, with every reason said; the others stay, whatever their role."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from filter_cells import GENE_SETS, filter_cells, median_and_sd, qc_metrics, robust_limits
from job import InputError
from omics_vae.counts import Counts
from run_script import run_script
from stored_counts import CountFile

OFF = dict.fromkeys(
    [
        "min_counts",
        "max_counts",
        "min_genes",
        "max_genes",
        "max_pct_mito",
        "max_pct_ribo",
        "max_pct_hb",
        "n_mads",
    ]
)


def make_sample(X, genes=None, roles=None) -> CountFile:
    X = sparse.csr_matrix(np.asarray(X, dtype=np.int32))
    genes = genes or [f"GENE{i}" for i in range(X.shape[1])]
    obs = pd.DataFrame({"sample": "s1", "role": roles or ["reference"] * X.shape[0]})
    obs.index = [f"cell{i}" for i in range(X.shape[0])]
    return CountFile(Counts(X), obs, pd.DataFrame(index=genes))


def simulate(n_cells: int, n_genes: int = 200, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = rng.lognormal(7, 0.3, n_cells)
    return rng.poisson(np.outer(depth, rng.dirichlet(np.full(n_genes, 0.5))))


@pytest.mark.parametrize(
    ("quantity", "inside", "outside"),
    [
        (
            "pct_mito",
            ["MT-ND1", "mt-Nd1", "MT.CO2", "GRCh38_MT-ND1", "mm10___mt-Co1"],
            ["MTOR", "MT1A", "AMT-X", "SMT-1"],
        ),
        (
            "pct_ribo",
            ["RPS6", "RPL13A", "Rpl36al", "RPLP0", "RPSA", "RPS4X", "RPS27A"],
            ["RPS6KA1", "RPS6KL1", "RP11-206L10.2", "RPRM", "RPSAP58", "RPS19BP1", "MRPL20"],
        ),
        (
            "pct_hb",
            ["HBA1", "HBB", "HBD", "HBE1", "HBG2", "HBM", "HBQ1", "HBZ", "Hba-a1", "Hbb-bs"],
            ["HBP1", "HBEGF", "HBS1L", "HBXIP", "HBBP1", "HBAP1", "CHBB"],
        ),
    ],
)
def test_gene_sets_hold_their_genes_and_no_namesakes(quantity, inside, outside):
    found = [gene for gene in inside + outside if GENE_SETS[quantity].match(gene)]
    assert found == inside


def test_metrics_of_a_known_cell():
    X = Counts.of([[1, 0, 3, 4], [0, 0, 0, 0]])
    metrics = qc_metrics(X, pd.Index(["MT-ND1", "RPL3", "HBB", "CD3D"]))
    assert metrics.loc[0].tolist() == [8, 3, 12.5, 0.0, 37.5]
    assert metrics.loc[1, ["total_counts", "n_genes"]].tolist() == [0, 0]
    assert metrics.loc[1, list(GENE_SETS)].isna().all()


def test_metrics_of_a_cell_do_not_depend_on_the_others(small_blocks):
    """Cells are passed through in blocks."""
    X = simulate(40)
    genes = pd.Index([f"{name}{i}" for i in range(40) for name in ("MT-", "RPS", "HBB", "G", "H")])
    metrics = qc_metrics(Counts.of(X), genes)
    assert metrics["total_counts"].tolist() == X.sum(1).tolist()
    assert metrics["n_genes"].tolist() == (X > 0).sum(1).tolist()
    np.testing.assert_allclose(metrics["pct_mito"], 100 * X[:, ::5].sum(1) / X.sum(1))
    np.testing.assert_allclose(metrics["pct_ribo"], 100 * X[:, 1::5].sum(1) / X.sum(1))


def test_robust_sd_is_the_sd_of_a_normal_law_and_ignores_outliers():
    values = np.random.default_rng(0).normal(3, 2, 20_000)
    values[:200] = 1e6
    median, sd = median_and_sd(values)
    assert median == pytest.approx(3, abs=0.1)
    assert sd == pytest.approx(2, rel=0.05)


def test_robust_limits_on_a_known_sample():
    """log1p(total) is 0, 2, ..., 8: median 4, MAD 2; half-width 1.4826 * 2 at one MAD."""
    metrics = pd.DataFrame(
        {
            "total_counts": np.expm1([0.5, 2, 4, 6, 8]),
            "n_genes": np.expm1([4.0, 4, 4, 4, 4]),
            "pct_mito": [1.0, 1, 1, 1, 1],
        }
    )
    limits = {(x.quantity, x.side): x for x in robust_limits(metrics, 1)}
    assert np.log1p(limits["total_counts", "lower"].value) == pytest.approx(4 - 2 * 1.4826)
    assert np.log1p(limits["total_counts", "upper"].value) == pytest.approx(4 + 2 * 1.4826)
    # A MAD of zero: the limits are a factor of two, and three points, away.
    assert np.log1p(limits["n_genes", "upper"].value) == pytest.approx(4 + np.log(2))
    assert limits["pct_mito", "upper"].value == pytest.approx(4.0)
    assert "widened" in limits["pct_mito", "upper"].origin
    assert ("pct_mito", "lower") not in limits


def test_a_sample_of_equal_cells_loses_none():
    X = np.full((40, 30), 20)
    X[::2, 0] += 1
    _, table, summary = filter_cells(make_sample(X), "s1", OFF | {"n_mads": 5})
    assert table["kept"].all()
    assert summary["n_kept"] == 40


def test_every_reason_is_said_with_its_numbers():
    X = simulate(50)
    X[3] = 0
    X[3, :2] = [100, 12]
    limits = OFF | {"min_counts": 200, "min_genes": 10}
    filtered, table, summary = filter_cells(make_sample(X), "s1", limits)
    assert table.loc[3, "reasons"] == (
        "total_counts 112 < 200 (min_counts); n_genes 2 < 10 (min_genes)"
    )
    assert not table.loc[3, "kept"]
    assert table["kept"].sum() == summary["n_kept"] == 49
    assert len(filtered.obs) == len(filtered.counts) == 49
    assert "cell3" not in filtered.obs.index
    assert {x["origin"]: x["n_dropped"] for x in summary["dropped_by"]} == {
        "empty cell": 0,
        "min_counts": 1,
        "min_genes": 1,
    }


def test_a_cell_on_a_limit_stays_and_one_beyond_it_goes():
    X = np.array([[99, 1, 1], [99, 1, 0], [100, 1, 1]])
    table = filter_cells(make_sample(X), "s1", OFF | {"min_counts": 101, "max_counts": 101})[1]
    assert table["kept"].tolist() == [True, False, False]


def test_empty_cells_go_even_without_limits_and_do_not_move_the_median():
    X = np.vstack([simulate(30), np.zeros((60, 200), dtype=int)])
    _, table, _ = filter_cells(make_sample(X), "s1", OFF | {"n_mads": 5})
    assert table["kept"].tolist() == [True] * 30 + [False] * 60
    assert table.loc[40, "reasons"].startswith("total_counts 0 < 1 (empty cell)")


def test_roles_do_not_matter_to_the_limits():
    X = simulate(100)
    X[:20] //= 40
    settings = OFF | {"n_mads": 3}
    as_reference = filter_cells(make_sample(X), "s1", settings)[1]
    mixed = filter_cells(make_sample(X, roles=["query", "reference"] * 50), "s1", settings)[1]
    assert not as_reference["kept"].all()
    assert mixed["kept"].tolist() == as_reference["kept"].tolist()


def test_the_strictest_limit_is_the_one_shown():
    X = simulate(100)
    summary = filter_cells(make_sample(X), "s1", OFF | {"n_mads": 5, "min_counts": 1})[2]
    assert "5 MAD below" in summary["limits"]["min_counts"]["origin"]
    summary = filter_cells(make_sample(X), "s1", OFF | {"n_mads": 5, "min_counts": 800})[2]
    assert summary["limits"]["min_counts"] == {"value": 800.0, "origin": "min_counts"}


def test_nothing_left_names_the_limits():
    with pytest.raises(InputError, match=r"sample s1: none of its 20.*min_counts\) dropped 20"):
        filter_cells(make_sample(simulate(20)), "s1", OFF | {"min_counts": 10**7})


def test_losing_more_than_a_fifth_of_a_role_is_a_warning():
    X = simulate(100)
    X[:6] = 0
    X[:6, 0] = 5
    roles = ["query"] * 20 + ["reference"] * 80
    warnings = filter_cells(make_sample(X, roles=roles), "s1", OFF | {"min_counts": 100})[2][
        "warnings"
    ]
    assert len(warnings) == 1
    assert "6 of 20 query cells (30%)" in warnings[0]


def test_a_mitochondrial_limit_without_such_genes_is_a_warning():
    summary = filter_cells(make_sample(simulate(30)), "s1", OFF | {"max_pct_mito": 10})[2]
    assert any("pct_mito is unknown" in warning for warning in summary["warnings"])


@pytest.fixture
def pbmc(shared_data, tmp_path):
    counts = anndata.read_h5ad(shared_data / "pbmc3k.h5ad")
    counts.obs["sample"], counts.obs["role"] = "pbmc", "reference"
    path = tmp_path / "pbmc.h5ad"
    counts.write_h5ad(path)
    return path


def test_pbmc3k_keeps_its_cells_and_drops_damaged_ones_twice_alike(pbmc, tmp_path):
    output = {
        "counts": "pbmc.h5ad",
        "qc": "pbmc.qc.parquet",
        "dropped": "pbmc.dropped.tsv",
        "summary": "pbmc.summary.json",
    }
    limits = {"limits": OFF | {"min_counts": 200, "n_mads": 5}}
    first, second = (
        run_script(
            "filter_cells", tmp_path / run, {"counts": str(pbmc)}, output, limits, sample="pbmc"
        )
        for run in ("first", "second")
    )
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes()
    table = pd.read_parquet(first["qc"])
    cell_type = anndata.read_h5ad(pbmc).obs["cell_type"].astype(str).to_numpy()
    damaged = cell_type == "Unassigned"
    assert table["kept"].mean() > 0.98
    assert (~table["kept"])[damaged].mean() > 10 * (~table["kept"])[~damaged].mean()
    dropped = pd.read_csv(first["dropped"], sep="\t")
    assert len(dropped) == (~table["kept"]).sum()
    assert dropped["reasons"].str.len().min() > 0
    kept = anndata.read_h5ad(first["counts"])
    assert kept.obs_names.tolist() == table.loc[table["kept"], "cell"].tolist()
    assert kept.X.dtype == np.int32
