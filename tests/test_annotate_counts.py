"""The annotated object holds what its users expect, cell by cell, and scanpy plots it."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from annotate_counts import annotate, normalise, write_annotated
from fake_reasons import CAUSES
from fake_run import write_fake_run
from job import InputError
from stored_counts import CountFile

PATHS = (
    "library_size/library_size.parquet",
    "embed/seed1/latent.parquet",
    "embed/seed1/umap.parquet",
    "anomaly/cells.parquet",
    "patterns/cells.parquet",
    "doublets/cells.parquet",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    run = write_fake_run(tmp_path_factory.mktemp("run"), n_cells=300)
    counts = CountFile.open(run / "preprocess/counts.h5ad")
    return counts, [pd.read_parquet(run / path) for path in PATHS]


def test_every_value_stands_at_its_cell_whatever_the_order_of_the_tables(inputs):
    counts, tables = inputs
    shuffled = [table.sample(frac=1, random_state=i) for i, table in enumerate(tables)]
    result = annotate(counts, *shuffled)
    library_size, latent, umap, cells, reasons, doublets = (
        table.set_index("cell_id") for table in tables
    )
    names = result.obs_names
    assert list(names) == list(counts.obs.index)
    np.testing.assert_array_equal(
        result.obs["library_size"], library_size.loc[names, "library_size"]
    )
    means = latent.loc[names, [f"mean_{d}" for d in range(4)]].to_numpy(np.float32)
    np.testing.assert_array_equal(result.obsm["X_vae"], means)
    np.testing.assert_array_equal(
        result.obsm["X_umap"][:, 0], umap.loc[names, "umap_1"].astype("f4")
    )
    query = cells[cells["split"] == "query"]
    np.testing.assert_array_equal(result.obs.loc[query.index, "score"], query["score"])
    np.testing.assert_array_equal(result.obs.loc[query.index, "is_anomaly"], query["is_anomaly"])
    for name in ("pattern", "nearest_reference", "technical_cause"):
        assert result.obs.loc[reasons.index, name].tolist() == reasons[name].tolist()
    np.testing.assert_array_equal(
        result.obs.loc[doublets.index, "doublet_probability"], doublets["doublet_probability"]
    )


def test_only_flagged_cells_have_reasons_and_only_scored_cells_a_doublet_probability(inputs):
    counts, tables = inputs
    obs = annotate(counts, *tables).obs
    assert set(obs.loc[obs["is_anomaly"], "technical_cause"]) == set(CAUSES)
    assert set(obs.loc[obs["is_anomaly"], "pattern"]) == {"P1", "P2", ""}
    others = obs.loc[~obs["is_anomaly"], ["pattern", "nearest_reference", "technical_cause"]]
    assert (others == "").all().all() and len(others)
    judged = obs["split"].isin(["calibration", "query"])
    assert (obs["doublet_probability"].notna() == judged).all() and not judged.all()


def test_a_run_that_flags_nobody_has_empty_reasons(inputs, tmp_path):
    counts, tables = inputs
    tables = [*tables[:4], tables[4].iloc[:0], tables[5]]
    write_annotated(counts, annotate(counts, *tables), tmp_path / "none.h5ad")
    obs = anndata.read_h5ad(tmp_path / "none.h5ad").obs
    for name in ("pattern", "nearest_reference", "technical_cause"):
        assert (obs[name] == "").all()


def test_of_bulk_samples_none_is_a_doublet(inputs):
    counts, tables = inputs
    assert "doublet_probability" not in annotate(counts, *tables[:5], None).obs


def test_of_a_ranking_every_cell_has_a_result(tmp_path):
    run = write_fake_run(tmp_path, n_cells=120, is_ranking=True)
    counts = CountFile.open(run / "preprocess/counts.h5ad")
    result = annotate(counts, *(pd.read_parquet(run / path) for path in PATHS))
    assert result.obs[["score", "p_value", "q_value", "doublet_probability"]].notna().all().all()
    assert (result.obs["role"] == "reference").all() and result.obs["is_anomaly"].any()
    assert result.uns["anomics"]["n_query"] == 120


def test_cells_outside_the_query_have_no_result(inputs):
    counts, tables = inputs
    result = annotate(counts, *tables)
    others = result.obs[result.obs["split"] != "query"]
    assert others[["score", "p_value", "q_value"]].isna().all().all()
    assert not others["is_anomaly"].any()
    assert result.obs["is_anomaly"].dtype == bool and result.obs["is_anomaly"].any()


def test_counts_stay_raw_and_x_is_their_normalised_logarithm(inputs, tmp_path, small_blocks):
    counts, tables = inputs
    annotated = annotate(counts, *tables)
    write_annotated(counts, annotated, tmp_path / "a.h5ad")
    result = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(result.obsm["X_vae"], annotated.obsm["X_vae"])
    assert result.uns["anomics"] == annotated.uns["anomics"]
    raw = counts.counts.toarray()
    np.testing.assert_array_equal(result.layers["counts"].toarray(), raw)
    assert result.layers["counts"].dtype == np.int32
    assert result.X.format == "csr" and result.X.dtype == np.float32
    sizes = result.obs["library_size"].to_numpy()
    expected = np.log1p(raw / sizes[:, None] * np.median(sizes))
    np.testing.assert_allclose(result.X.toarray(), expected, rtol=1e-5)


def test_depth_alone_makes_no_difference_after_normalisation():
    profile = np.array([4, 0, 10, 2])
    scale = 20.0 / np.array([16.0, 48.0])
    X = normalise(sparse.csr_matrix(np.stack([profile, 3 * profile])), scale)
    np.testing.assert_allclose(X.toarray()[0], X.toarray()[1], rtol=1e-6)


FAULTS = {
    "library sizes without one of the cells": (
        "library_size.parquet",
        "library_size.parquet: does not hold each cell of the counts once; remove it and run again",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_table_without_a_cell_is_named_in_one_line(name, inputs):
    _, expected = FAULTS[name]
    counts, (library_size, *rest) = inputs
    with pytest.raises(InputError) as caught:
        annotate(counts, library_size.iloc[1:], *rest)
    assert str(caught.value) == expected


def test_scanpy_opens_and_plots_it_and_the_bytes_are_stable(inputs, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    scanpy = pytest.importorskip("scanpy")
    counts, tables = inputs
    for name in ("one.h5ad", "two.h5ad"):
        write_annotated(counts, annotate(counts, *tables), tmp_path / name)
    assert (tmp_path / "one.h5ad").read_bytes() == (tmp_path / "two.h5ad").read_bytes()
    opened = scanpy.read_h5ad(tmp_path / "one.h5ad")
    figure = scanpy.pl.umap(opened, color=["is_anomaly", "score"], show=False, return_fig=True)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["is_anomaly", "score"]
