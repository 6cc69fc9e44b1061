"""What was done to counts is told from what is left of them."""

import numpy as np
import pytest
from scipy import sparse

from transformed_counts import UNKNOWN, what_was_done

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
