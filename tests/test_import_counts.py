"""What the sample table and the file say of the cells arrives clean in obs."""

import hashlib

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import count_formats
from import_counts import as_text, clean_column, describe_cells, import_counts
from job import InputError

OBS = pd.DataFrame(
    {
        "part": ["reference", "query", None, "query"],
        "patient": [1016.0, 1016.0, 1256.0, 1256.0],
        "plate": pd.Categorical(["b", "a", None, "a"], categories=["b", "a", "unused"]),
        "n_genes": [3, 4, 5, 6],
        "donor": ["x", "x", "y", "y"],
    },
    index=["c1", "c2", "c3", "c4"],
)


def row(**columns: str) -> dict[str, str]:
    empty = dict.fromkeys(("format", "matrix", "genome", "batch", "donor", "condition"), "")
    return empty | {"sample": "s1", "path": "a.h5ad", "role": "query"} | columns


def test_constants_and_columns_of_the_file():
    obs, has_role, _ = describe_cells(
        OBS,
        row(sha256="0" * 64, batch="run 1", donor="obs:patient", tissue="blood", well="obs:plate"),
        "a.h5ad",
    )
    assert has_role.all()
    assert set(obs["sample"]) == {"s1"} and set(obs["role"]) == {"query"}
    assert set(obs["batch"]) == {"run 1"} and set(obs["tissue"]) == {"blood"}
    assert list(obs["donor"]) == ["1016", "1016", "1256", "1256"]
    assert list(obs["well"]) == ["b", "a", "", "a"]
    assert {"condition", "path", "genome", "sha256"}.isdisjoint(obs)


def test_cells_without_a_role_are_left_out():
    obs, has_role, _ = describe_cells(OBS, row(role="obs:part", batch="obs:plate"), "a.h5ad")
    assert has_role.tolist() == [True, True, False, True]
    assert obs["role"].to_dict() == {"c1": "reference", "c2": "query", "c4": "query"}
    assert list(obs["batch"]) == ["b", "a", "a"], "an empty batch of a cell left out is no error"


def test_the_table_wins_and_names_of_the_pipeline_get_a_suffix():
    own = OBS.assign(sample="theirs", tissue="skin", score=1.0, score_input=2.0, _index=3)
    own["a/b"] = 4
    obs, _, warnings = describe_cells(own, row(tissue="blood", n_genes_input="all"), "a.h5ad")
    assert set(obs["sample"]) == {"s1"} and set(obs["tissue"]) == {"blood"}
    assert set(obs["n_genes_input"]) == {"all"} and "n_genes" not in obs
    assert list(obs["n_genes_input_input"]) == [3, 4, 5, 6]
    assert "score" not in obs and set(obs["score_input"]) == {2.0}
    assert set(obs["score_input_input"]) == {1.0}
    assert set(obs["_index_input"]) == {3} and set(obs["a_b"]) == {4}
    assert list(obs["donor_input"]) == ["x", "x", "y", "y"] and "donor" not in obs
    assert len(warnings) == 1 and "write obs:donor" in warnings[0]


def test_all_faults_of_a_sample_are_told_at_once():
    with pytest.raises(InputError) as caught:
        asked = row(role="obs:zzz", donor="obs:patent", batch="obs:plate", p_value="1")
        describe_cells(OBS, asked, "a.h5ad")
    said = [line.split(",")[0] for line in caught.value.lines]
    assert said == [
        "a.h5ad: obs has no column 'zzz'",
        "a.h5ad: obs column 'plate'",
        "a.h5ad: obs has no column 'patent'",
        "sample table: column 'p_value' has a name that the pipeline uses; rename it",
    ]


def test_counts_that_float32_does_not_hold_are_said(tmp_path):
    counts = sparse.csr_matrix([[2**24, 0], [0, 1]])
    for largest, n_warnings in ((2**24, 0), (2**24 + 1, 1)):
        counts.data[0] = largest
        anndata.AnnData(counts, obs=OBS[:2]).write_h5ad(tmp_path / "a.h5ad")
        summary = import_counts(
            str(tmp_path / "a.h5ad"), row(), "Gene Expression", str(tmp_path / "b.h5ad")
        )
        said = [w for w in summary["warnings"] if f"the largest count is {largest:,}; the" in w]
        assert len(said) == n_warnings


def test_rounded_values_are_said_of_what_is_only_read_here(tmp_path):
    """As of a table with genes as rows; what lies by cell is looked into before the first job."""
    counts = np.random.default_rng(0).poisson(2, (20, 30))
    values = np.round(counts / counts.sum(axis=1, keepdims=True) * 1e6).astype(int)
    for name, table, n_warnings in (("raw", counts, 0), ("cpm", values, 1)):
        path = tmp_path / f"{name}.csv"
        pd.DataFrame(table.T, [f"g{i}" for i in range(30)], [f"c{i}" for i in range(20)]).to_csv(
            path
        )
        asked = row(matrix="transposed")
        summary = import_counts(str(path), asked, "Gene Expression", str(tmp_path / "b.h5ad"))
        said = [w for w in summary["warnings"] if "look like counts per million, rounded" in w]
        assert len(said) == n_warnings


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series(["b", None, "a"]), ["b", "", "a"]),
        (pd.Series([1, "b", np.nan], dtype=object), ["1", "b", ""]),
        (pd.Series([True, None, False], dtype=object), ["True", "", "False"]),
        (pd.Series([b"a", "b", 2.0], dtype=object), ["a", "b", "2"]),
        (pd.Series(pd.Categorical([1.0, np.nan, 2.5])), ["1", "", "2.5"]),
        (pd.Series(pd.to_datetime(["2024-01-02"] * 3)), ["2024-01-02 00:00:00"] * 3),
        (pd.Series([None, None, None], dtype=object), ["", "", ""]),
        (pd.Series(["x", pd.NA, "y"], dtype="string"), ["x", "", "y"]),
    ],
)
def test_text_becomes_categories_without_gaps(values, expected):
    cleaned = clean_column(values)
    assert list(cleaned) == expected
    assert isinstance(cleaned.dtype, pd.CategoricalDtype) and not cleaned.isna().any()
    assert sorted(cleaned.cat.categories) == sorted(set(expected))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (pd.Series([1, 2, 3]), np.int64),
        (pd.Series([1, None, 3], dtype="Int64"), np.float64),
        (pd.Series([1, 2.5, None], dtype=object), np.float64),
        (pd.Series([1, 2.5, np.nan], dtype=np.float16), np.float64),
        (pd.Series([1, 2.5, np.nan], dtype=np.float32), np.float32),
        (pd.Series([True, False, True], dtype="boolean"), np.bool_),
    ],
)
def test_numbers_stay_numbers(values, dtype):
    cleaned = clean_column(values)
    assert cleaned.dtype == dtype
    np.testing.assert_array_equal(cleaned.astype(float), values.astype(float))


def test_the_order_of_categories_stays():
    stages = pd.Series(pd.Categorical(["late", "early"], ["early", "mid", "late"], ordered=True))
    assert list(clean_column(stages).cat.categories) == ["early", "late"]
    assert clean_column(stages).cat.ordered


def test_whole_numbers_are_written_without_a_decimal_point():
    assert list(as_text(pd.Series([1016.0, 0.5, np.nan]))) == ["1016", "0.5", ""]


def test_one_sample_from_file_to_file(tmp_path):
    counts = np.array([[1, 0], [0, 2], [3, 3], [0, 0]])
    source = anndata.AnnData(sparse.csr_matrix(counts), obs=OBS, uns={"note": "x"})
    source.var_names = ["LYZ", "LYZ"]
    source.obsm["X_pca"] = np.zeros((4, 2))
    path = tmp_path / "a.h5ad"
    source.write_h5ad(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    asked = row(role="obs:part", condition="obs:donor", path="data/a.h5ad", sha256=sha256)
    for name in ("one.h5ad", "two.h5ad"):
        summary = import_counts(str(path), asked, "Gene Expression", str(tmp_path / name))
    assert (tmp_path / "one.h5ad").read_bytes() == (tmp_path / "two.h5ad").read_bytes()
    written = anndata.read_h5ad(tmp_path / "one.h5ad")
    assert written.X.dtype == np.int32 and written.X.format == "csr"
    np.testing.assert_array_equal(written.X.toarray(), counts[[0, 1, 3]])
    assert list(written.obs_names) == ["c1", "c2", "c4"]
    assert list(written.var_names) == ["LYZ", "LYZ-1"]
    assert not written.obsm and not written.uns and not written.layers
    assert list(written.obs["condition"]) == ["x", "x", "y"]
    warnings = summary.pop("warnings")
    assert len(warnings) == 3 and "1 gene names" in warnings[0] and "obs:donor" in warnings[1]
    assert warnings[2].startswith("s1: 1 of 4 cells have no role in the obs column 'part' and")
    assert summary == {
        "sample": "s1",
        "path": "data/a.h5ad",
        "format": "h5ad",
        "n_cells": 4,
        "n_genes": 2,
        "n_cells_by_role": {"reference": 1, "query": 2},
        "n_cells_without_role": 1,
        "dropped_features": {},
        "sha256": sha256,
    }


def test_a_file_of_another_checksum_is_not_read(tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"not even HDF5")
    with pytest.raises(InputError, match=r"the SHA-256 of a\.h5ad is "):
        import_counts(
            str(tmp_path / "a.h5ad"), row(sha256="0" * 64), "Gene Expression", str(tmp_path / "out")
        )


def test_blocks_of_cells_without_a_role_are_left_out(tmp_path, monkeypatch):
    """At the start, between others and at the end of the file."""
    monkeypatch.setattr(count_formats, "BLOCK_ROWS", 2)
    part = ["", "", "query", "", "", "", "reference", "query", "", ""]
    counts = np.arange(1, 31).reshape(10, 3)
    obs = pd.DataFrame({"part": part}, index=[f"c{i}" for i in range(10)])
    anndata.AnnData(sparse.csr_matrix(counts), obs=obs).write_h5ad(tmp_path / "a.h5ad")
    asked, output = row(role="obs:part"), str(tmp_path / "out.h5ad")
    import_counts(str(tmp_path / "a.h5ad"), asked, "Gene Expression", output)
    written = anndata.read_h5ad(output)
    assert list(written.obs_names) == ["c2", "c6", "c7"]
    np.testing.assert_array_equal(written.X.toarray(), counts[[2, 6, 7]])


def test_a_wrong_value_in_a_late_cell_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(count_formats, "BLOCK_ROWS", 2)
    counts = np.ones((7, 2))
    counts[5, 1] = 0.5
    anndata.AnnData(sparse.csr_matrix(counts)).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=r"cell '5', gene '1' is 0\.5"):
        import_counts(
            str(tmp_path / "a.h5ad"), row(), "Gene Expression", str(tmp_path / "out.h5ad")
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


def test_real_data_with_donors(shared_data, tmp_path):
    path = str(shared_data / "kang_ifnb_2000.h5ad")
    asked = row(path=path, role="reference", condition="obs:condition")
    summary = import_counts(path, asked, "Gene Expression", str(tmp_path / "kang.h5ad"))
    adata = anndata.read_h5ad(tmp_path / "kang.h5ad")
    assert adata.shape == (2000, 9015) and summary["n_cells_by_role"]["reference"] == 2000
    assert adata.obs["condition"].value_counts().to_dict() == {"ctrl": 1000, "stim": 1000}
    assert not adata.obs.isna().any().any()
