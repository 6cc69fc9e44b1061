"""Samples are joined on shared genes only, and what cannot be joined is said."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from job import InputError
from join_samples import JoinedCounts, cell_ids, join_samples, shared_genes
from omics_vae.counts import Counts
from stored_counts import CountFile, write_h5ad

SYMBOLS = [f"GENE{i}" for i in range(40)]


def make_sample(name, genes, n_cells=4, cells=None, **obs) -> CountFile:
    rng = np.random.default_rng(len(name) + len(genes))
    X = sparse.csr_matrix(rng.poisson(3, (n_cells, len(genes))).astype(np.int32))
    table = pd.DataFrame({"sample": [name] * n_cells, "role": "reference"} | obs)
    table.index = cells or [f"{name}_{i}" for i in range(n_cells)]
    return CountFile(Counts(X), table, pd.DataFrame(index=genes))


def read(counts: JoinedCounts) -> sparse.csr_matrix:
    return sparse.vstack([block for _, block in counts.blocks()], format="csr")


def test_counts_of_each_cell_and_gene_survive_the_join():
    first = make_sample("a", SYMBOLS)
    second = make_sample("b", [*reversed(SYMBOLS[5:]), "ONLY_B"], n_cells=3)
    counts, obs, var, lost, warnings = join_samples([first, second])
    assert var.index.tolist() == SYMBOLS[5:]
    assert counts.shape == (7, 35)
    assert lost == {"a": 5, "b": 1}
    assert warnings == []
    joined = pd.DataFrame(read(counts).toarray(), obs.index, var.index)
    for sample in (first, second):
        of_sample = pd.DataFrame(sample.counts.toarray(), sample.obs.index, sample.var.index)
        expected = of_sample[var.index]
        pd.testing.assert_frame_equal(joined.loc[expected.index], expected, check_names=False)


def test_of_joined_counts_the_kept_cells_and_genes_are_left(small_blocks):
    """Also where a sample keeps none; blocks say which rows of all they are."""
    samples = [make_sample("a", SYMBOLS), make_sample("b", SYMBOLS), make_sample("c", SYMBOLS)]
    counts = join_samples(samples)[0]
    kept = np.array([0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1], dtype=bool)
    genes = np.array([7, 2, 30])
    found = counts.take(kept).of_genes(genes)
    assert found.shape == (4, 3)
    expected = read(counts).toarray()[kept][:, genes]
    np.testing.assert_array_equal(read(found).toarray(), expected)
    for rows, block in found.blocks():
        np.testing.assert_array_equal(block.toarray(), expected[rows])


def test_only_clashing_names_get_the_sample_and_all_of_them_do():
    ids = cell_ids(np.array(["x", "y", "x", "z"]), np.array(["a", "a", "b", "b"]))
    assert ids.tolist() == ["a:x", "y", "b:x", "z"]
    assert ids.name == "cell_id"


FAULTS = {
    "a cell called as another one of a sample": (
        (["x", "x", "a:x"], ["a", "b", "c"]),
        "cell a:x: two cells would have this id, which is <sample>:<name> where a name is in "
        "several samples; rename the cell or the sample",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_ambiguous_id_is_an_error(name):
    (cells, samples), expected = FAULTS[name]
    with pytest.raises(InputError) as caught:
        cell_ids(np.array(cells), np.array(samples))
    assert str(caught.value) == expected


def test_columns_of_different_types_or_of_one_sample_only_can_be_written(tmp_path):
    first = make_sample("a", SYMBOLS, batch=1, good=True, note=["x", "y", "x", "z"])
    second = make_sample("b", SYMBOLS, batch="two", age=3)
    counts, obs, var, *_ = join_samples([first, second])
    blocks = (block for _, block in counts.blocks())
    write_h5ad(tmp_path / "joined.h5ad", {"X": blocks}, {"obs": obs, "var": var})
    obs = anndata.read_h5ad(tmp_path / "joined.h5ad").obs
    assert obs["batch"].tolist() == ["1"] * 4 + ["two"] * 4
    assert obs["good"].tolist()[:4] == ["True"] * 4
    assert obs["good"].isna().tolist() == [False] * 4 + [True] * 4
    assert obs["age"].tolist()[4:] == [3] * 4


def ensembl(n, version=""):
    return [f"ENSG{i:011d}{version}" for i in range(n)]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (SYMBOLS, ensembl(40), "one sample has Ensembl ids and the other symbols"),
        (SYMBOLS, [s.capitalize() for s in SYMBOLS], "upper and lower case"),
        (ensembl(40, ".3"), ensembl(40, ".12"), "version suffixes"),
        (SYMBOLS, [f"AT1G{i}" for i in range(30)], "different species, annotations or assays"),
    ],
)
def test_names_that_do_not_match_are_shown_and_explained(first, second, message):
    with pytest.raises(InputError, match=message) as error:
        join_samples([make_sample("s1", first), make_sample("s2", second)])
    text = str(error.value)
    assert f"share only 0 genes, fewer than half of the {min(len(first), len(second))}" in text
    assert f"s1 has {first[0]} {first[1]}" in text
    assert f"s2 has {second[0]} {second[1]}" in text


def test_the_odd_sample_out_is_the_one_shown():
    samples = [make_sample(name, SYMBOLS) for name in ("s1", "s2")]
    with pytest.raises(InputError, match="s3 has ENSG"):
        join_samples([*samples, make_sample("s3", ensembl(40))])


@pytest.mark.parametrize("odd", [0, 1, 777, 999])
def test_the_odd_one_of_a_thousand_is_found(odd):
    """All pairs of 1,000 samples of 30,000 genes would take hours."""
    genes = [pd.Index([*SYMBOLS, f"EXTRA{i}"]) for i in range(1000)]
    genes[odd] = pd.Index([f"OTHER{g}" for g in range(40)])
    with pytest.raises(InputError, match=f"s{odd} has OTHER0 OTHER1 OTHER2"):
        shared_genes([f"s{i}" for i in range(1000)], genes)


def test_few_shared_genes_are_a_warning():
    second = make_sample("b", SYMBOLS[:28] + [f"NEW{i}" for i in range(12)])
    *_, warnings = join_samples([make_sample("a", SYMBOLS), second])
    assert len(warnings) == 1
    assert "only 28 genes are shared" in warnings[0]


def test_gene_ids_stay_with_their_genes():
    first = make_sample("a", SYMBOLS)
    second = make_sample("b", [*reversed(SYMBOLS)])
    second.var["gene_id"] = ["id_" + gene for gene in second.var.index]
    var = join_samples([first, second])[2]
    assert var["gene_id"].tolist() == ["id_" + gene for gene in var.index]
