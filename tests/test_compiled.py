"""Compiled functions are found again from any copy of their file, and work without a cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

SOURCE = """
from omics_vae.compiled import compiled

@compiled({"reassoc"})
def half(x):
    return x / 2.0

@compiled()
def ratio(a, b):
    return half(a) / b
"""
RUN = """
import json, sys
sys.path[:0] = sys.argv[1:]
import functions
from numba import config
value = functions.ratio(6.0, 2.0)
hits = sum(functions.ratio.stats.cache_hits.values())
is_cached = bool(functions.ratio._cache.cache_path)
infinite = functions.ratio(1.0, 0.0) > 1e300
print(json.dumps([value, infinite, is_cached, hits, config.CACHE_LOCATOR_CLASSES]))
"""


def run(folder: Path, cache: str | Path, source: str = SOURCE) -> list:
    """What a process that imports a copy of the functions in ``folder`` says."""
    folder.mkdir(exist_ok=True)
    (folder / "functions.py").write_text(source)
    command = [sys.executable, "-c", RUN, str(folder), str(ROOT / "workflow" / "scripts")]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "HOME": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_copy_elsewhere_is_not_compiled_again(tmp_path):
    cache = tmp_path / "cache"
    assert run(tmp_path / "one", cache) == [1.5, True, True, 0, ""]
    assert run(tmp_path / "two", cache) == [1.5, True, True, 1, ""]
    assert len(list(cache.iterdir())) == 1, "one folder, by the content of the file"


def test_an_edited_copy_is(tmp_path):
    cache = tmp_path / "cache"
    run(tmp_path / "one", cache)
    # Of another length: Python takes an edit within a second that keeps it for no edit.
    edited = SOURCE.replace("x / 2.0", "x / 4.00")
    assert run(tmp_path / "one", cache, edited) == [0.75, True, True, 0, ""]
    assert run(tmp_path / "one", cache)[0] == 1.5


@pytest.mark.parametrize("cache", ["/proc/no/such/folder", "/dev/null/x"])
def test_without_a_place_to_write_it_is_compiled_all_the_same(tmp_path, cache):
    assert run(tmp_path / "one", cache)[:4] == [1.5, True, False, 0]
