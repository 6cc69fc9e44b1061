"""What goes into a page comes out again, small, and cannot end the element it stands in."""

import base64
import json
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packed import as_json, packed, packed_floats, packed_json, plain


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def floats(text: str) -> np.ndarray:
    """As page.js puts the bytes together again."""
    apart = np.frombuffer(unpacked(text), dtype=np.uint8).reshape(4, -1)
    return np.ascontiguousarray(apart.T).view("<f4").ravel()


@given(st.text())
def test_any_text_is_the_same_json_without_markup(text):
    shown = as_json({text: text})
    assert json.loads(shown) == {text: text}
    assert not set(shown) & set("<>&\u2028\u2029")


def test_a_number_that_json_has_not_is_refused():
    for write in (as_json, packed_json):
        with pytest.raises(ValueError, match="JSON"):
            write([float("nan")])


def test_bytes_and_json_come_out_again():
    assert unpacked(packed(b"ab" * 99)) == b"ab" * 99
    assert json.loads(unpacked(packed_json(["</script>", None, 1.5]))) == ["</script>", None, 1.5]


@given(st.lists(st.floats(width=32, allow_infinity=False)))
def test_floats_keep_their_first_digits_and_what_is_missing(values):
    read, wanted = floats(packed_floats(values)), np.array(values, dtype=np.float32)
    assert np.array_equal(np.isnan(read), np.isnan(wanted))
    normal = np.isfinite(wanted) & (np.abs(wanted) > 1e-37) & (np.abs(wanted) < 1e38)
    off = np.abs(read[normal].astype(float) / wanted[normal] - 1)
    assert not (off > 2.0**-14).any()


def test_floats_with_few_bits_are_two_thirds_as_large():
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    assert len(packed_floats(values)) < 0.67 * len(packed(values.tobytes()))


def test_columns_are_plain_values_and_what_is_missing_is_null():
    assert plain(pd.Series([True, False])) == [True, False]
    assert plain(pd.Series([1, 2**40])) == [1, 2**40]
    assert plain(pd.Series([1 / 3, np.nan, np.inf])) == [0.333333, None, None]
    assert plain(pd.Series(["NA", None, ""])) == ["NA", None, ""]
