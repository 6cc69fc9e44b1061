"""numba's compiler, with a cache that the next run finds again.

Snakemake runs scripts from copies in a folder that is new in each run, and numba looks for what it
compiled beside the source: each run would compile anew, for some ten seconds. Here the cache is a
folder of the user (or in NUMBA_CACHE_DIR), named by what the source says.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from numba import config, njit
from numba.core.caching import UserWideCacheLocator


class ByContent(UserWideCacheLocator):
    """Where the compiled functions of a file are: the same place for each copy of it."""

    def __init__(self, py_func, py_file):
        super().__init__(py_func, py_file)
        base = config.CACHE_DIR or os.path.dirname(self._cache_path)
        content = hashlib.sha256(Path(py_file).read_bytes()).hexdigest()[:16]
        self._cache_path = os.path.join(base, f"anomics_{content}")


def compiled(fastmath: frozenset[str] | set[str] = frozenset()) -> Callable[[Callable], Callable]:
    """Decorator of a function that numba compiles at its first call, without holding the GIL.

    ``fastmath``: LLVM's flags of inexact arithmetic. Division by zero is inf or NaN, as in numpy.
    Where no cache can be written, the function is compiled in each process.
    """
    options = {"error_model": "numpy", "nogil": True, "fastmath": set(fastmath)}

    def decorate(function: Callable) -> Callable:
        before = config.CACHE_LOCATOR_CLASSES
        config.CACHE_LOCATOR_CLASSES = f"{__name__}.{ByContent.__name__}"
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # numba's "cannot cache function ...: no locator available"
            return njit(**options)(function)
        finally:
            config.CACHE_LOCATOR_CLASSES = before

    return decorate
