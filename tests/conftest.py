"""Fixtures shared by all tests."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import run_script
from omics_vae.counts import Counts

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First the files that run the whole workflow, lest one of them be the last, on one core."""
    items.sort(key=lambda item: not hasattr(item.module, "WorkflowCopy"))


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


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    # Lazily, as a library may still hold a file of a write that failed.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(file: Path) -> None:
    """Take all room that is left on a disk."""
    with file.open("wb", buffering=0) as taking, pytest.raises(OSError, match="No space left"):
        while True:
            taking.write(bytes(4096))
