"""Library sizes measure depth: over the shared genes, on the scale of counts, a row a cell."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from compute_library_size import (
    Sample,
    from_column,
    keep_shared_genes,
    library_sizes,
    summarise,
    take_cells,
)
from job import InputError
from omics_vae.counts import Counts
from run_script import run_script
from stored_counts import CountFile


def make_sample(X, name="s1", rows=None, **obs) -> Sample:
    n_cells, n_genes = X.shape
    index = [f"{name}_{i}" for i in range(n_cells)]
    genes = pd.Index([f"GENE{i}" for i in range(n_genes)])
    rows = np.arange(n_cells) if rows is None else rows
    return Sample(name, Counts.of(X), genes, pd.DataFrame(obs, index=index), rows)


def simulate(depth, n_genes=400, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(np.outer(depth, rng.dirichlet(np.ones(n_genes))))


def test_scaling_a_cell_scales_its_size_alike():
    """Exactly for the total; for ratios up to the pull of one cell in 200 on the gene means."""
    X = simulate(np.full(200, 3000))
    scaled = X.copy()
    scaled[7] *= 3
    for method, tolerance in (("total", 1e-12), ("median_of_ratios", 0.02)):
        before = library_sizes([make_sample(X)], method, None)[0]
        after = library_sizes([make_sample(scaled)], method, None)[0]
        assert after[7] / before[7] == pytest.approx(3, rel=tolerance)
        np.testing.assert_allclose(np.delete(after / before, 7), 1, rtol=tolerance)


def test_median_of_ratios_by_hand():
    """Gene means of logs over all cells, zeros as nothing; medians over a cell's own genes."""
    X = np.array([[1, 4, 0], [2, 8, 3], [4, 0, 6]])
    m = np.exp([np.log(8) / 3, np.log(32) / 3, np.log(18) / 3])
    factors = np.array(
        [
            np.exp(np.mean(np.log([1 / m[0], 4 / m[1]]))),
            np.median([2 / m[0], 8 / m[1], 3 / m[2]]),
            np.exp(np.mean(np.log([4 / m[0], 6 / m[2]]))),
        ]
    )
    sizes = library_sizes([make_sample(X)], "median_of_ratios", None)[0]
    np.testing.assert_allclose(sizes, factors / np.median(factors) * 10)


def test_median_of_ratios_ignores_what_a_few_genes_do():
    depth = np.full(100, 5000)
    X = simulate(depth)
    X[:50, :10] += 2000
    totals = library_sizes([make_sample(X)], "total", None)[0]
    ratios = library_sizes([make_sample(X)], "median_of_ratios", None)[0]
    assert totals[:50].mean() / totals[50:].mean() > 4
    assert ratios[:50].mean() / ratios[50:].mean() == pytest.approx(1, abs=0.05)


def test_the_median_size_is_the_median_total():
    X = simulate(np.random.default_rng(1).lognormal(8, 0.4, 80))
    sizes, totals = library_sizes([make_sample(X)], "median_of_ratios", None)
    assert np.median(sizes) == pytest.approx(np.median(totals))
    assert spearmanr(sizes, totals).statistic > 0.95


def test_samples_are_one_population_over_the_genes_they_share():
    X = simulate(np.random.default_rng(1).lognormal(8, 0.4, 80))
    whole = library_sizes([make_sample(X)], "median_of_ratios", None)[0]
    rows = np.random.default_rng(0).permutation(80)
    first = make_sample(X[rows[:30]], "a", rows[:30])
    second = make_sample(X[rows[30:]], "b", rows[30:])
    np.testing.assert_allclose(
        library_sizes([first, second], "median_of_ratios", None)[0], whole, rtol=1e-12
    )
    # A gene that one sample lacks counts for no size at all, whatever the method.
    extra = np.hstack([X[rows[:30]], np.full((30, 1), 500)])
    shared, warnings = keep_shared_genes([make_sample(extra, "a", rows[:30]), second])
    sizes, totals = library_sizes(shared, "median_of_ratios", None)
    np.testing.assert_allclose(sizes, whole, rtol=1e-12)
    assert totals.tolist() == X.sum(axis=1).tolist()
    assert len(warnings) == 1 and warnings[0].startswith("sample a: ")


@pytest.mark.parametrize("method", ["total", "median_of_ratios"])
def test_sizes_do_not_depend_on_how_cells_are_passed_through(method, request):
    X = simulate(np.random.default_rng(1).lognormal(8, 0.4, 80))

    def sizes() -> np.ndarray:
        samples = [make_sample(X[:33], "a"), make_sample(X[33:], "b", np.arange(33, 80))]
        return library_sizes(samples, method, None)[0]

    at_once = sizes()
    request.getfixturevalue("small_blocks")
    np.testing.assert_allclose(sizes(), at_once, rtol=1e-12)


def test_a_panel_and_a_whole_transcriptome_are_measured_over_the_same_genes():
    """One kind of cell, of one depth; the query's file has a tenth of the genes, out of order."""
    X = simulate(np.full(100, 4000))
    panel = np.arange(0, 400, 10)[::-1]
    reference = make_sample(X[:50], "whole")
    query = make_sample(X[50:], "panel", np.arange(50, 100))
    cut = Sample("panel", query.X.of_genes(panel), query.genes[panel], query.obs, query.rows)
    shared, warnings = keep_shared_genes([reference, cut])
    for method in ("total", "median_of_ratios"):
        sizes, totals = library_sizes(shared, method, None)
        assert np.median(sizes[50:]) / np.median(sizes[:50]) == pytest.approx(1, abs=0.1)
        assert totals.tolist() == X[:, panel].sum(axis=1).tolist()
    lost = 100 * (1 - X[:50][:, panel].sum() / X[:50].sum())
    assert len(warnings) == 1
    assert warnings[0].startswith(f"sample whole: {lost:.0f} % of its counts")
    assert "; count all samples" in warnings[0] and "40 shared genes" in warnings[0]


def test_samples_of_the_same_genes_stay_as_they_are():
    X = simulate(np.full(20, 400))
    samples = [make_sample(X[:10], "a"), make_sample(X[10:], "b", np.arange(10, 20))]
    shared, warnings = keep_shared_genes(samples)
    assert shared == samples and warnings == []
    # 4 % of the counts in genes that the other lacks are not worth a warning.
    wider = make_sample(np.hstack([X[:10], np.full((10, 1), 16)]), "a")
    assert keep_shared_genes([wider, samples[1]])[1] == []


def test_a_column_is_taken_as_it_is_and_the_input_s_own_wins():
    X = simulate(np.full(3, 100))
    assert from_column(make_sample(X, ercc=[10.0, 20, 30]), "ercc").tolist() == [10, 20, 30]
    renamed = make_sample(X, total_counts=[1, 2, 3], total_counts_input=[7, 8, 9])
    assert from_column(renamed, "total_counts").tolist() == [7, 8, 9]
    categorical = make_sample(X, depth=pd.Categorical(["5", "6", "7"]))
    assert from_column(categorical, "depth").tolist() == [5, 6, 7]


FAULTS = {
    name: (
        bad,
        f"sample s1: cell s1_1 has ercc {bad}, and 1 cells in all are so; library sizes must be "
        "finite and positive: mend the column or set library_size.method: total",
    )
    for name, bad in {
        "a library size of zero": 0.0,
        "a negative library size": -1.0,
        "a cell without a library size": np.nan,
        "an infinite library size": np.inf,
        "text for a library size": "many",
    }.items()
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_size_that_is_none_names_sample_and_cell(name):
    bad, message = FAULTS[name]
    sample = make_sample(simulate(np.full(3, 100)), ercc=[10.0, bad, 30])
    with pytest.raises(InputError) as caught:
        library_sizes([sample], "column", "ercc")
    assert str(caught.value) == message


def test_a_missing_column_is_said():
    sample = make_sample(simulate(np.full(3, 100)), ercc=[1.0, 2, 3])
    with pytest.raises(InputError, match=r"sample s1: .* depth, .*\(they have ercc\)"):
        library_sizes([sample], "column", "depth")


def test_depth_that_goes_with_the_role_and_a_foreign_scale_are_warnings():
    cells = pd.DataFrame({"role": ["reference"] * 50 + ["query"] * 50})
    totals = np.linspace(900, 1100, 100)
    assert summarise(cells, totals, totals, "total")["warnings"] == []
    deep = np.where(np.arange(100) < 50, totals, 2.5 * totals)
    (warning,) = summarise(cells, deep, deep, "total")["warnings"]
    assert "depth and role are confounded" in warning
    (warning,) = summarise(cells, totals / 1000, totals, "column")["warnings"]
    assert "multiply the column by 1000" in warning


def test_without_a_query_there_is_no_depth_to_compare():
    cells = pd.DataFrame({"role": ["reference"] * 100})
    totals = np.linspace(500, 5000, 100)
    summary = summarise(cells, totals, totals, "total")
    assert summary["warnings"] == [] and summary["query_over_reference"] == 1
    assert list(summary["by_role"]) == ["reference"]
    assert summary["by_role"]["reference"]["n_cells"] == 100


def test_ratios_on_counts_too_sparse_for_them_are_a_warning():
    depth = np.random.default_rng(1).lognormal(4.5, 0.6, 300)
    cells = pd.DataFrame({"role": ["reference", "query"] * 150})
    for scale, warned in ((1, 1), (100, 0)):
        sample = make_sample(simulate(scale * depth))
        sizes, totals = library_sizes([sample], "median_of_ratios", None)
        warnings = summarise(cells, sizes, totals, "median_of_ratios")["warnings"]
        assert len([w for w in warnings if "too sparse" in w]) == warned


def test_constant_sizes_have_no_rank_correlation():
    cells = pd.DataFrame({"role": ["reference", "query"]})
    summary = summarise(cells, np.array([5.0, 5]), np.array([4.0, 6]), "column")
    assert summary["spearman_total_counts"] is None


def test_pbmc3k_rows_follow_the_counts_and_bytes_repeat(shared_data, tmp_path):
    counts = anndata.read_h5ad(shared_data / "pbmc3k.h5ad")[:600].copy()
    counts.obs["role"] = ["reference", "query"] * 300
    paths = []
    for name, rows in (("a", slice(0, 300)), ("b", slice(300, 600))):
        part = counts[rows].copy()
        part.obs["sample"] = name
        paths.append(str(tmp_path / f"{name}.h5ad"))
        part.write_h5ad(paths[-1])
    order = np.random.default_rng(0).permutation(600)[:500]
    joined = counts[order, :50].copy()
    joined.obs["cell"] = joined.obs_names
    joined.obs["sample"] = np.where(order < 300, "a", "b")
    joined.obs_names = [f"id_{name}" for name in joined.obs_names]
    joined.write_h5ad(tmp_path / "counts.h5ad")

    output = {
        "library_size": "library_size.parquet",
        "samples": "samples.tsv",
        "summary": "summary.json",
    }
    inputs = {"samples": paths, "counts": str(tmp_path / "counts.h5ad")}
    for method in ("total", "median_of_ratios"):
        params = {"method": method, "column": None}
        first, second = (
            run_script("compute_library_size", tmp_path / method / run, inputs, output, params)
            for run in ("first", "second")
        )
        for name, path in first.items():
            assert path.read_bytes() == second[name].read_bytes()
        table = pd.read_parquet(first["library_size"])
        totals = np.asarray(counts.X.sum(axis=1)).ravel()[order]
        assert table["cell_id"].tolist() == joined.obs_names.tolist()
        assert table["role"].tolist() == counts.obs["role"].iloc[order].tolist()
        np.testing.assert_allclose(np.exp(table["log_offset"]), table["library_size"])
        if method == "total":
            assert table["library_size"].tolist() == totals.tolist()
        else:
            assert spearmanr(table["library_size"], totals).statistic > 0.8
        by_sample = pd.read_csv(first["samples"], sep="\t")
        assert by_sample.columns.tolist() == [
            "sample",
            "n_cells",
            "median",
            "q05",
            "q25",
            "q75",
            "q95",
        ]
        assert by_sample["n_cells"].sum() == 500


def test_cells_are_found_by_sample_and_name():
    X = Counts.of(np.arange(1, 7).reshape(3, 2))
    obs = pd.DataFrame({"sample": "b"}, index=["x", "y", "z"])
    cells = pd.DataFrame({"sample": ["b", "a", "b"], "cell": ["z", "x", "x"]})
    sample = take_cells(CountFile(X, obs, pd.DataFrame(index=["u", "v"])), cells)
    assert sample.rows.tolist() == [0, 2]
    assert sample.total.tolist() == [11, 3]
