"""The variability of genes is scanpy's, from blocks of cells, whatever the data are like."""

import anndata
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

import variable_genes
from join_samples import JoinedCounts
from omics_vae.counts import Counts
from variable_genes import variability

N_CELLS, N_GENES = 330, 400


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """NB counts of genes from rare to common, ten of which only some cells express."""
    rng = np.random.default_rng(0)
    depth = rng.lognormal(0, 0.3, (N_CELLS, 1))
    mean = depth * np.exp(rng.normal(-0.5, 1.5, N_GENES))
    mean[::3, :10] *= 12
    return rng.negative_binomial(2, 2 / (2 + mean)).astype(np.int32)


def joined(x, *ends: int) -> JoinedCounts:
    """The cells as samples that end after so many cells."""
    return JoinedCounts([Counts.of(part) for part in np.split(np.asarray(x, np.int32), ends)])


def all_in(x, group: str = "all") -> np.ndarray:
    return np.full(len(x), group, dtype=object)


def of_scanpy(x) -> np.ndarray:
    adata = anndata.AnnData(sparse.csr_matrix(x.astype(np.float64)))
    table = sc.pp.highly_variable_genes(
        adata, flavor="seurat_v3", span=0.3, n_top_genes=50, inplace=False
    )
    return table["variances_norm"].to_numpy()


def test_the_score_is_seurats_as_scanpy_has_it(x, small_blocks):
    ((score, method),) = variability(joined(x, 100, 101, 250), all_in(x)).values()
    assert method == "seurat_v3, span 0.3"
    np.testing.assert_allclose(score, of_scanpy(x), rtol=1e-9)


GROUPS = np.random.default_rng(1).choice(["b", "a", ""], N_CELLS, p=[0.4, 0.4, 0.2]).astype(object)


def test_each_group_has_the_score_of_its_own_cells(x, small_blocks):
    """Those of group "" take no part."""
    found = variability(joined(x, 200), GROUPS)
    assert list(found) == ["a", "b"]
    for name, (score, method) in found.items():
        assert method == "seurat_v3, span 0.3"
        np.testing.assert_allclose(score, of_scanpy(x[name == GROUPS]), rtol=1e-9)
    changed = x.copy()
    changed[GROUPS == ""] = 500
    for name, (score, _) in variability(joined(changed, 200), GROUPS).items():
        np.testing.assert_array_equal(score, found[name][0])


def test_one_huge_count_makes_no_gene_variable(x, small_blocks):
    """It counts as sqrt(cells) standard deviations above the mean at most."""
    odd = x.copy()
    odd[7, 200] = 1_000_000
    score = variability(joined(odd), all_in(odd))["all"][0]
    np.testing.assert_allclose(score, of_scanpy(odd), rtol=1e-9)
    assert score[200] < 5


@pytest.mark.parametrize("most", [1, N_GENES, 2 * N_GENES + 1, 2**24])
def test_how_many_groups_are_done_at_once_changes_nothing(x, most, monkeypatch):
    groups = np.random.default_rng(2).choice(list("abcd"), N_CELLS).astype(object)
    calls, real = [], variable_genes._variability
    monkeypatch.setattr(
        variable_genes, "_variability", lambda *given: calls.append(given[2]) or real(*given)
    )
    expected = real(joined(x), groups, list("abcd"))
    monkeypatch.setattr(variable_genes, "MOST_SUMS", most)
    found = variability(joined(x), groups)
    assert list(found) == list("abcd")
    assert len(calls) == {1: 4, N_GENES: 4, 2 * N_GENES + 1: 2, 2**24: 1}[most]
    for name in found:
        np.testing.assert_array_equal(found[name][0], expected[name][0])
        assert found[name][1] == expected[name][1]


def test_without_a_trend_the_score_is_the_variance_of_pearson_residuals(small_blocks):
    """Here of 15 genes, in the cells of each group alone."""
    x = np.random.default_rng(0).poisson(2.0, (240, 15))
    x[::3, 3] += 9
    groups = np.array(["b", "a", "", "a"] * 60, dtype=object)
    for name, (score, method) in variability(joined(x, 90), groups).items():
        assert method == "Pearson residuals"
        table = sc.experimental.pp.highly_variable_genes(
            anndata.AnnData(sparse.csr_matrix(x[groups == name].astype(np.float32))),
            flavor="pearson_residuals",
            n_top_genes=15,
            inplace=False,
        )
        np.testing.assert_allclose(score, table["residual_variances"], rtol=1e-5)


def test_one_group_may_have_a_trend_and_another_none(x):
    groups = np.repeat(np.array(["few", "many"], dtype=object), [3, N_CELLS - 3])
    flat = x.copy()
    flat[:3] = 1  # nothing varies
    found = variability(joined(flat), groups)
    assert found["few"][1] == "Pearson residuals"
    assert found["many"][1] == "seurat_v3, span 0.3"
    np.testing.assert_allclose(found["many"][0], of_scanpy(flat[3:]), rtol=1e-9)


def test_a_gene_that_does_not_vary_has_no_variability(x):
    """Never seen, or of the same count in every cell, whatever rounding makes of its variance."""
    still = x.copy()
    still[:, 5], still[:, 6] = 0, 7
    score = variability(joined(still), all_in(still))["all"][0]
    np.testing.assert_allclose(score, of_scanpy(still), rtol=1e-9)
    assert score[5] == score[6] == 0.0


@pytest.mark.parametrize(
    "X",
    [
        np.random.default_rng(0).random((300, 400)) < 0.01,
        np.random.default_rng(0).poisson(0.02, (10, 500)),
        np.random.default_rng(0).poisson(2, (200, 2)),
        np.random.default_rng(0).poisson(2, (200, 5)),
        np.eye(50),
        np.ones((50, 30)),
        np.random.default_rng(0).poisson(1, (1, 100)) + 1,
    ],
    ids=["binary", "ten cells", "two genes", "five genes", "one mean", "constant", "one cell"],
)
def test_variability_is_finite_where_a_loess_fails_or_crashes(X):
    ((score, method),) = variability(joined(X), all_in(X)).values()
    assert score.shape == (X.shape[1],)
    assert np.isfinite(score).all()
    assert (variability(joined(X), all_in(X))["all"][0] == score).all()
    assert method
