"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

import run_script
from omics_vae.counts import Counts

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets: ANOMICS_DATA, or ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("ANOMICS_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "pbmc3k.h5ad").exists():
        pytest.skip(f"public data sets are not at {folder} (set ANOMICS_DATA)")
    return folder


@pytest.fixture
def counts_stay(monkeypatch) -> None:
    """Scripts leave counts in their file, as where they are too many for the memory."""
    monkeypatch.setitem(run_script.CONFIG, "memory", 1e-9)


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Counts are passed through seven cells at a time, in place of some thousands."""
    monkeypatch.setattr(Counts.blocks, "__defaults__", (7,))
