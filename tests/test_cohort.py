"""How many bulk samples are enough is said at once."""

import pytest

from cohort import MIN_SAMPLES, check_cohort
from job import InputError
from splits import MIN_CELLS


@pytest.mark.parametrize(("reference", "query"), [(9, 0), (9, 50), (0, 12)])
def test_fewer_than_ten_reference_samples_are_an_error(reference, query):
    with pytest.raises(InputError, match=r"sample table: \d+ reference .*; add controls"):
        check_cohort(reference, query)


@pytest.mark.parametrize(("reference", "n_warnings"), [(10, 1), (29, 1), (30, 0), (500, 0)])
def test_fewer_than_thirty_warn(reference, n_warnings):
    found = check_cohort(reference, 5)
    assert len(found) == n_warnings
    assert all("; add controls" in line and "\n" not in line for line in found)


def test_the_smallest_cohort_fills_every_split():
    assert sum(MIN_CELLS.values()) <= MIN_SAMPLES
