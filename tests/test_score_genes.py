"""The rule score_genes: hits, the full table, outliers a sample, and its check on normal cells."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

import score_genes
from detect_anomalies import read_fits
from gene_panels import MOST_SHARP
from gene_tests import SHIFTS
from job import read_json
from model_jobs import GENES_TESTED, embed, train
from omics_vae.counts import Counts
from omics_vae.inference import decoded
from run_script import Named, run_script
from score_genes import (
    HIT_COLUMNS,
    check_on_normal,
    gene_blocks,
    gene_warnings,
    held_out_theta,
    median_ratio,
)
from simulated_counts import CPU, N_SELECTED, SPLITS, small_run

SPIKED = [f"cell{i}" for i in range(408, 420)]
QUERY = [f"cell{i}" for i in range(360, 420)]
LONGER = {"max_steps": 200, "checkpoint_seconds": 1e9}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A trained run of which the last 12 query cells, the flagged ones, have two genes too much."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("inputs")
    paths = small_run(folder, spike=True)
    model = train(tmp_path_factory.mktemp("train"), paths, **LONGER)
    latent = embed(tmp_path_factory.mktemp("embed"), paths, model)
    verdict = pd.DataFrame(
        {
            "cell_id": [f"cell{i}" for i in range(260, 420)],
            "sample": "S1",
            "split": np.repeat(["calibration", "query"], [100, 60]),
        }
    ).assign(is_anomaly=lambda table: table["cell_id"].isin(SPIKED))
    verdict.to_parquet(folder / "cells.parquet")
    return Named(
        paths
        | {
            "weights": [str(model["weights"])],
            "descriptions": [str(model["description"])],
            "latents": [str(latent)],
            "cells": str(folder / "cells.parquet"),
        }
    )


@pytest.fixture
def run(inputs, tmp_path):
    """score_genes with some settings changed."""

    def _run(observations="cells", **changed):
        settings = {"alpha": 0.05, "full_table": "query"} | changed
        params = {
            **{"settings": settings, "observations": observations},
            **{"folds": [None], "seed": 1},
        }
        return run_script("score_genes", tmp_path, inputs, GENES_TESTED, params)

    return _run


@pytest.fixture(scope="module")
def fits(inputs):
    return read_fits(inputs, [None], np.inf)


def block_of(model, cells) -> dict:
    (block,) = gene_blocks(model, cells, np.full(len(cells.genes), 1e-4), None, CPU)
    return block


def test_the_genes_of_flagged_cells_are_named(run):
    written = run()
    hits = pd.read_parquet(written["genes"])
    assert list(hits.columns) == HIT_COLUMNS
    assert set(hits["cell_id"]) == set(SPIKED), "unflagged cells are not explained"
    for _, of_cell in hits.groupby("cell_id"):
        of_cell = of_cell.set_index("gene")
        assert of_cell.loc[["G3", "G55"], "null"].tolist() == ["model", "pooled"]
        assert (of_cell.loc[["G3", "G55"], "direction"] == "up").all()
        assert (of_cell.loc[["G3", "G55"], "observed"] >= 1000).all()
        assert of_cell["p_value"].is_monotonic_increasing
    assert (hits["q_value"] <= 0.05).all() and (hits["q_value"] >= hits["p_value"]).all()
    np.testing.assert_array_equal(hits["z_score"] > 0, hits["direction"] == "up")
    text = pd.read_csv(written["genes_tsv"], sep="\t")
    np.testing.assert_allclose(text["log10_p"], hits["log10_p"], rtol=1e-8)


def test_the_full_table_has_every_gene_of_the_model_and_agrees_with_the_hits(run):
    written = run()
    full = pd.read_parquet(written["full"])
    assert len(full) == SPLITS["query"] * N_SELECTED
    assert list(full["cell_id"].unique()) == QUERY
    assert list(full["gene"][:N_SELECTED]) == [f"G{g}" for g in range(N_SELECTED)]
    stored = pq.ParquetFile(written["full"])
    assert str(stored.schema_arrow.field("gene").type).startswith("dictionary")
    assert stored.schema_arrow.field("expected").type == "float"
    hits = pd.read_parquet(written["genes"])
    both = hits.merge(full, on=["cell_id", "gene"], suffixes=("", "_full"))
    assert len(both) == (hits["null"] == "model").sum() > 0
    for name in ("observed", "expected", "log2_fold_change", "z_score", "p_value", "q_value"):
        np.testing.assert_allclose(both[f"{name}_full"], both[name], rtol=1e-6)
    again = full[full["cell_id"].isin(SPIKED) & (full["q_value"] <= 0.05)]
    assert len(again) == len(both)


@pytest.mark.parametrize(("which", "n"), [("query", 60), ("flagged", 12), ("none", 0)])
def test_the_full_table_is_of_whom_it_was_asked_for(run, which, n):
    written = run(full_table=which)
    assert pq.ParquetFile(written["full"]).metadata.num_rows == n * N_SELECTED
    assert read_json(written["summary"])["n_rows_full_table"] == n * N_SELECTED
    assert len(pd.read_csv(written["outliers"], sep="\t")) == 60, "whatever the full table holds"


def test_blocks_of_cells_change_nothing(fits, monkeypatch):
    model, cells = fits[0]
    rates = np.full(len(cells.genes), 1e-4)
    whole = block_of(model, cells.of("query"))
    monkeypatch.setattr(score_genes, "BLOCK_VALUES", 7 * len(cells.genes))
    parts = list(gene_blocks(model, cells.of("query"), rates, None, CPU))
    assert [len(part["names"]) for part in parts] == [7] * 8 + [4]
    for name in ("log_p", "log_q", "expected"):
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, whole[name], rtol=1e-5)


def test_a_block_is_a_row_group(fits, tmp_path, monkeypatch):
    model, cells = fits[0]
    monkeypatch.setattr(score_genes, "BLOCK_VALUES", 20 * len(cells.genes))
    full = score_genes.FullTable(tmp_path / "full.parquet", cells, pd.Index(QUERY))
    for block in gene_blocks(model, cells.of("query"), np.full(60, 1e-4), None, CPU):
        full.add(block)
    full.writer.close()
    assert pq.ParquetFile(tmp_path / "full.parquet").num_row_groups == 3


def test_outliers_are_counted_for_every_query_cell(run):
    table = pd.read_csv(run()["outliers"], sep="\t").set_index("cell_id")
    assert list(table.index) == QUERY
    assert (table["n_outlier_genes"] == table["n_up"] + table["n_down"]).all()
    assert (table.loc[SPIKED, "n_up"] >= 2).all()
    assert (table.loc[SPIKED, "top_gene"].isin(["G3", "G55"])).all()
    assert (table["n_outlier_genes"].drop(SPIKED) == 0).mean() > 0.9
    np.testing.assert_allclose(table["share"], table["n_outlier_genes"] / 60)


def test_a_bulk_run_reports_all_samples_and_names_the_aberrant(run):
    written = run("samples")
    table = pd.read_csv(written["outliers"], sep="\t").set_index("cell_id")
    hits = pd.read_parquet(written["genes"])
    with_hits = table.index[table["n_outlier_genes"] > 0]
    assert set(hits["cell_id"]) == set(with_hits)
    assert set(with_hits) >= set(SPIKED)
    many = table["n_outlier_genes"] > 10
    np.testing.assert_array_equal(table["is_aberrant"], many)
    summary = read_json(written["summary"])
    assert summary["n_aberrant"] == table["is_aberrant"].sum()
    assert summary["median_theta_ratio"] > 1, "theta is 4 and its prior in the model is at 1"


def test_the_same_inputs_give_the_same_bytes(run):
    first = {name: path.read_bytes() for name, path in run().items()}
    assert {name: path.read_bytes() for name, path in run().items()} == first


def test_where_the_counts_lie_changes_no_byte(run, request):
    read = {name: path.read_bytes() for name, path in run().items()}
    request.getfixturevalue("counts_stay")
    assert {name: path.read_bytes() for name, path in run().items()} == read


def test_a_run_that_flags_nobody_still_writes_its_tables(run, inputs, tmp_path):
    verdict = pd.read_parquet(inputs.cells).assign(is_anomaly=False)
    verdict.to_parquet(tmp_path / "nobody.parquet")
    params = {
        "settings": {"alpha": 0.05, "full_table": "flagged"},
        **{"observations": "cells", "folds": [None], "seed": 1},
    }
    given = inputs | {"cells": str(tmp_path / "nobody.parquet")}
    written = run_script("score_genes", tmp_path, given, GENES_TESTED, params)
    assert written["genes_tsv"].read_text() == "\t".join(HIT_COLUMNS) + "\n"
    assert len(pd.read_parquet(written["full"])) == 0
    assert not list(tmp_path.glob(".*partial*"))


def test_p_values_are_two_sided_from_both_tails_and_by_within_the_cell(fits):
    model, cells = fits[0]
    spiked = cells.take(np.flatnonzero(cells.obs.index.isin(SPIKED[:3])))
    block = block_of(model, spiked)
    (_, x, nb) = next(iter(decoded(model, spiked.data, spiked.posterior, CPU)))
    mu, theta = nb.mean.numpy(), np.broadcast_to(np.exp(nb.log_theta.numpy()), x.shape)
    known = stats.nbinom(theta, theta / (theta + mu))
    p = np.minimum(1.0, 2 * np.minimum(known.cdf(x), known.sf(x - 1)))
    of_model = np.exp(block["log_p"][:, spiked.in_model])
    np.testing.assert_allclose(of_model, p, rtol=1e-6)
    q = [stats.false_discovery_control(row, method="by") for row in np.exp(block["log_p"])]
    np.testing.assert_allclose(np.exp(block["log_q"]), q, rtol=1e-9)
    others = np.setdiff1d(np.arange(60), spiked.in_model)
    mean = spiked.size[:, None] * 1e-4
    p0 = stats.nbinom(1.0, 1.0 / (1.0 + mean))
    x0 = block["observed"][:, others]
    expected = np.minimum(1.0, 2 * np.minimum(p0.cdf(x0), p0.sf(x0 - 1)))
    np.testing.assert_allclose(np.exp(block["log_p"][:, others]), expected, rtol=1e-6)


def with_count(cells, gene: int, count: int):
    """The same cells, expectation and all, with another count of one gene."""
    counts = cells.counts[:].tolil()
    counts[:, gene] = count
    return type(cells)(**{**vars(cells), "counts": Counts.of(counts)})


def test_a_gene_that_is_missing_is_down(fits):
    model, cells = fits[0]
    one = cells.take(np.flatnonzero(cells.obs.index == "cell300"))
    gene = int(np.argmax(block_of(model, one)["expected"][0, :N_SELECTED]))
    block = block_of(model, with_count(one, gene, 0))
    assert block["z_score"][0, gene] < -1
    assert block["log2_fold_change"][0, gene] < -1


def test_the_far_tail_keeps_its_order(fits):
    """Both have p = 0 in floating point."""
    model, cells = fits[0]
    one = cells.take(np.flatnonzero(cells.obs.index == "cell300"))
    far, farther = (block_of(model, with_count(one, 7, n)) for n in (1_000_000, 2_000_000))
    assert farther["log_p"][0, 7] < far["log_p"][0, 7] < -400 * np.log(10)
    assert farther["z_score"][0, 7] > far["z_score"][0, 7] > 37


def test_normal_cells_have_the_p_values_they_should(fits):
    """Counts drawn from the fitted model itself: the ratios are 1."""
    model, cells = fits[0]
    normal = cells.of("calibration")
    torch.manual_seed(0)
    counts = normal.counts[:].tolil()
    for chunk, _, nb in decoded(model, normal.data, normal.posterior, CPU):
        counts[chunk, : len(normal.in_model)] = nb.sample().numpy()
    drawn = type(normal)(**{**vars(normal), "counts": Counts.of(counts.astype(np.int32))})
    check = check_on_normal([(model, drawn)], None, 1, CPU)
    assert check["n_tests"] == 100 * N_SELECTED
    assert check["0.01"] == pytest.approx(1.0, abs=0.5)
    narrow = np.zeros((len(SHIFTS), N_SELECTED))
    narrow[-1] = 1.0  # theta too large by a factor of 400
    wrong = check_on_normal([(model, drawn)], narrow, 1, CPU)
    assert wrong["0.01"] > 3


def test_theta_comes_from_held_out_observations(fits):
    ratio = median_ratio(held_out_theta(fits, CPU))
    model, _ = fits[0]
    theta = np.exp(np.median(model.log_theta[0].detach().numpy()))
    assert theta * ratio == pytest.approx(4.0, rel=0.35), "the simulated one"


@pytest.mark.parametrize(("ratio", "n_warnings"), [(1.0, 0), (2.9, 0), (5.0, 1)])
def test_gene_p_values_that_are_too_small_warn(ratio, n_warnings):
    found = gene_warnings({"0.001": ratio}, pd.DataFrame({"n_outlier_genes": [0]}), "cell")
    assert len(found) == n_warnings
    assert all("read the gene hits as a ranking" in line for line in found)


@pytest.mark.parametrize(
    ("split", "counts"), [("train", False), ("query", False), ("calibration", True)]
)
def test_only_cells_that_were_held_out_of_the_reference_say_what_theta_is(fits, split, counts):
    model, cells = fits[0]
    odd = cells.counts[:].multiply(np.where(cells.split == split, 5, 1)[:, None])
    changed = type(cells)(**{**vars(cells), "counts": Counts.of(odd)})
    theta = [held_out_theta([(model, one)], CPU) for one in (cells, changed)]
    assert np.allclose(*theta) is not counts


def test_without_calibration_cells_the_scored_ones_say_what_theta_is(fits):
    """As in cross-fitting, where nearly all of them are normal."""
    model, cells = fits[0]
    fold = cells.of("train", "validation", "query")
    (ratio, other) = (median_ratio(held_out_theta([(model, c)], CPU)) for c in (fold, cells))
    assert ratio == pytest.approx(other, rel=0.5) and ratio != other


def test_aberrant_samples_are_named_in_a_warning():
    table = pd.DataFrame({"is_aberrant": [True, False, False]})
    (line,) = gene_warnings({}, table, "sample")
    assert line.startswith("1 of 3 samples are aberrant") and "; look for a swapped" in line


def test_the_density_counts_every_test_of_the_flagged_cells(run):
    written = run()
    density = pd.read_csv(written["density"], sep="\t")
    n_tests = len(SPIKED) * read_json(written["summary"])["n_genes"]
    # Tests beyond the volcano's upper end are drawn one by one.
    log10_p = pd.read_parquet(written["genes"])["log10_p"]
    n_beyond = int((-log10_p >= MOST_SHARP).sum())
    found = density.groupby("plane")["n_tests"].sum().to_dict()
    assert found == {"counts": n_tests, "volcano": n_tests - n_beyond}
    assert read_json(written["summary"])["n_reported"] == len(SPIKED)


@pytest.mark.parametrize("observations", ["cells", "samples"])
def test_the_leading_genes_have_the_numbers_of_the_hits_outside_their_interval(run, observations):
    written = run(observations=observations)
    hits, top = pd.read_parquet(written["genes"]), pd.read_parquet(written["top"])
    assert {"G3", "G55"} <= set(top["gene"])
    assert (top.groupby("gene")["cell_id"].nunique() == 60).all()
    both = top.merge(hits, on=["gene", "cell_id"], suffixes=("", "_of_hit"))
    assert len(both) == top["is_hit"].sum() == hits["gene"].isin(top["gene"]).sum()
    for name in ("observed", "expected"):
        np.testing.assert_allclose(both[name], both[f"{name}_of_hit"], rtol=1e-6)
    outside = (both["observed"] < both["low"]) | (both["observed"] > both["high"])
    assert outside.all()
    usual = top[~top["is_hit"]]
    assert usual["observed"].between(usual["low"], usual["high"]).mean() > 0.85
