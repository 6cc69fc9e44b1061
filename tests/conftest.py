"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets: ANOMICS_DATA, or ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("ANOMICS_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "pbmc3k.h5ad").exists():
        pytest.skip(f"public data sets are not at {folder} (set ANOMICS_DATA)")
    return folder
