"""What was done to counts is told from what is left of them."""

from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import sparse

from transformed_counts import UNKNOWN, what_was_done, what_was_rounded

COUNTS = np.random.default_rng(0).negative_binomial(2, 0.4, (300, 50)).astype(float)
SHARES = COUNTS / COUNTS.sum(axis=1, keepdims=True)
LOGS = np.log1p(1e4 * SHARES)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.log1p(COUNTS), "log1p of the raw counts"),
        (np.log2(COUNTS + 1), "log2(x + 1) of the raw counts"),
        (np.log10(COUNTS + 1), "log10(x + 1) of the raw counts"),
        (1e6 * SHARES, "counts per million"),
        (SHARES, "shares of a cell"),
        (np.log1p(1e6 * SHARES), "log1p of counts per million"),
        (np.log2(1e6 * SHARES + 1), "log2(x + 1) of counts per million"),
        (LOGS, "log1p of counts normalised to 10,000 a cell"),
        (148.9 * SHARES, "counts normalised to 149 a cell"),
        # Of some genes only, a cell's total is lost and its smallest count is not.
        (LOGS[:, :30], "log1p of counts scaled by a factor a cell"),
        ((LOGS - LOGS.mean(axis=0)) / LOGS.std(axis=0), "scaled data (z-scores)"),
        (LOGS[:5], UNKNOWN),
        (np.sqrt(COUNTS), UNKNOWN),
        (COUNTS * 0.97 + np.random.default_rng(1).random(COUNTS.shape), UNKNOWN),
        (np.random.default_rng(1).gamma(2, 1, COUNTS.shape), UNKNOWN),
    ],
    ids=range(15),
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_transformation_is_known_by_its_inverse(values, said, dtype):
    assert what_was_done(sparse.csr_matrix(values.astype(dtype))) == said


def test_a_few_fractions_among_counts_are_no_transformation():
    values = COUNTS.copy()
    values[3, 7] = 0.5
    assert what_was_done(sparse.csr_matrix(values)) == UNKNOWN


def test_cells_of_one_value_show_nothing():
    assert what_was_done(sparse.csr_matrix(np.eye(50) * 0.5)) == UNKNOWN
    assert what_was_done(sparse.csr_matrix((50, 50))) == UNKNOWN


def rounded(counts: sparse.csr_matrix, total: float, how=np.round) -> sparse.csr_matrix:
    """Normalised to a total a cell and rounded, without zeros."""
    counts = sparse.csr_matrix(counts)[np.asarray(counts.sum(axis=1)).ravel() > 0]
    totals = np.asarray(counts.sum(axis=1)).ravel()
    values = how(counts.data * np.repeat(total / totals, np.diff(counts.indptr)))
    made = sparse.csr_matrix((values, counts.indices, counts.indptr), counts.shape)
    made.eliminate_zeros()
    return made


def thinned(counts: sparse.csr_matrix, depth: int) -> sparse.csr_matrix:
    """The same number of counts of each cell, or all of them."""
    rng = np.random.default_rng(0)
    counts = counts.toarray().astype(int)
    kept = [rng.multivariate_hypergeometric(cell, min(depth, cell.sum())) for cell in counts]
    return sparse.csr_matrix(np.array(kept))


def reads(counts: sparse.csr_matrix, each: float) -> sparse.csr_matrix:
    """Each molecule read so many times on average, as without molecular barcodes."""
    values = np.random.default_rng(0).negative_binomial(2 * counts.data.astype(int), 2 / (2 + each))
    made = sparse.csr_matrix((values, counts.indices, counts.indptr), counts.shape)
    made.eliminate_zeros()
    return made


CELLS = sparse.csr_matrix(np.random.default_rng(0).negative_binomial(0.3, 0.2, (300, 400)))


@pytest.mark.parametrize("how", [np.round, np.floor, np.ceil])
@pytest.mark.parametrize(
    ("total", "said"),
    [
        (1e6, "counts per million"),
        (1e5, "counts normalised to some 100,000 a cell"),
    ],
)
def test_what_was_normalised_and_rounded_is_known_by_its_totals_and_gaps(total, said, how):
    assert what_was_rounded(rounded(CELLS, total, how)) == said


def test_counts_of_deep_cells_a_million_are_known_by_their_totals_alone():
    """Each is scaled by one or two, which leaves no gap."""
    assert what_was_rounded(rounded(CELLS * 3000 + CELLS.power(2), 1e6)) == "counts per million"


def test_of_some_genes_the_factor_is_known():
    assert what_was_rounded(rounded(CELLS, 1e4)[:, :150]) == "counts scaled by a factor a cell"
    assert what_was_rounded(CELLS * 4) == "counts scaled by a factor a cell"


@pytest.mark.parametrize(
    "counts",
    [
        CELLS,
        sparse.csr_matrix(COUNTS),
        CELLS * 2,
        thinned(CELLS, 200),
        thinned(CELLS, int(CELLS.sum(axis=1).min())),
        reads(CELLS, 30),
        reads(CELLS, 30).multiply(reads(CELLS, 30) >= 5),  # the fewest left out
        sparse.vstack([rounded(CELLS[:5], 1e4), CELLS[5:20]]),  # a few odd cells
        sparse.csr_matrix(np.add.reduceat(CELLS.toarray(), range(0, 300, 20))),  # bulk
        sparse.csr_matrix(np.full((50, 4), 250_000)),  # equal totals of a million
        rounded(CELLS, 1e4)[:9],  # too few to tell
        sparse.csr_matrix(np.eye(50) * 7),
        sparse.csr_matrix(np.tile([7, 14, 30], (50, 1))),  # one gene alone has the smallest
        sparse.csr_matrix((50, 50)),
    ],
    ids=range(14),
)
def test_counts_are_not_taken_for_rounded_values(counts):
    assert what_was_rounded(sparse.csr_matrix(counts)) == ""


# Median depth 545 to 3,600; deeper sets hardly show 10,000 a cell, as each is scaled by one or two.
SHALLOW = ("kang_ifnb_2000", "kang_ctrl_12k_1287genes", "pbmc3k", "pbmc_zheng_sorted_ref")
DEEP = ("zeisel_cortex_3types_1000genes", "mix_cell_lines_5batches", "jurkat_rare_in_293t_fire")


@pytest.mark.parametrize("name", [*SHALLOW, *DEEP])
def test_real_counts_are_told_from_real_rounded_values(name, shared_data: Path):
    X = sparse.csr_matrix(anndata.read_h5ad(shared_data / f"{name}.h5ad").X)[:2000]
    some = X[np.asarray(X.sum(axis=1)).ravel() > 0][:200]
    depth = int(np.quantile(np.asarray(some.sum(axis=1)), 0.2))
    genes = np.random.default_rng(0).permutation(X.shape[1])
    most = np.argsort(-np.asarray(X.sum(axis=0)).ravel())
    bulk = sparse.csr_matrix(np.add.reduceat(X.toarray(), range(0, X.shape[0], 50)))
    counts = [X[i : i + 200] for i in range(0, X.shape[0], 200)]
    counts += [some[:, genes[:n]] for n in (20, 50, 200)] + [some[:, most[:50]], bulk]
    counts += [thinned(some, depth), reads(some, 30)]
    assert [what_was_rounded(sparse.csr_matrix(x)) for x in counts] == [""] * len(counts)
    assert what_was_rounded(rounded(some, 1e6)) == "counts per million"
    assert bool(what_was_rounded(rounded(some, 1e4))) == (name in SHALLOW)
