"""Data inside a page: small, and safe between script tags."""

import base64
import json
import zlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

SIGNIFICANT_BITS = 14  # of a number's 24; three digits stay as they are
# What could end a script element, open a comment, or end a line for old browsers.
UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def as_json(content: object) -> str:
    """JSON that holds no markup, whatever its texts say; NaN is an error."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(UNSAFE)


def packed(content: bytes) -> str:
    """Deflated (zlib), in base64."""
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")


def packed_json(content: object) -> str:
    """Any JSON content, packed."""
    return packed(json.dumps(content, allow_nan=False, separators=(",", ":")).encode())


def packed_floats(values: Iterable[float]) -> str:
    """float32 to ``SIGNIFICANT_BITS``, its bytes apart: all first ones, all second ones, ...

    So apart, and without the noise of the last bits, they deflate to two thirds.
    """
    bits = np.asarray(values, dtype="<f4").view("<u4").astype(np.uint64)
    lost = 24 - SIGNIFICANT_BITS
    rounded = ((bits + (1 << (lost - 1))) >> lost) << lost
    # A NaN would round to another number.
    rounded = np.where(np.isnan(np.asarray(values, dtype=float)), 0x7FC00000, rounded)
    return packed(rounded.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes())


def plain(values: pd.Series) -> list:
    """A column as JSON has it: missing values are null, numbers have six digits."""
    if pd.api.types.is_bool_dtype(values):
        return [bool(value) for value in values]
    if pd.api.types.is_integer_dtype(values):
        return [int(value) for value in values]
    if pd.api.types.is_float_dtype(values):
        return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
    return [None if pd.isna(value) else str(value) for value in values]
