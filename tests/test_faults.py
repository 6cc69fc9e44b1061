"""A disk that fills up, a file that is damaged, a process that is killed, two runs at once.

After each, what the user is told, that nothing half-written is left, and that what is made again
has the bytes of an undisturbed run. Faults of a cluster are in tests/cluster.
"""

import os
import re
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from workflow_copy import WorkflowCopy, differing, kill_with_children

pytest_plugins = ["workflow_copy"]


def partial_files(run: WorkflowCopy) -> list[Path]:
    return [path for path in run.results.rglob("*partial*") if path.is_file()]


# ---- a full disk


@contextmanager
def small_disk(folder: Path, megabytes: int):
    """A file system of its own with so much room."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system of its own cannot be mounted here (needs root)")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(tmp_path, finished):
    copy = WorkflowCopy.make(tmp_path / "here")
    disk = copy.results.parent
    with small_disk(disk, 1):
        room = os.statvfs(disk)
        (disk / "ballast").write_bytes(b"0" * (room.f_bavail * room.f_frsize - 200_000))
        code, output = copy.run("--keep-going")
        assert code == 1
        assert re.search(r"results/small/\S+: the disk is full; free some space", output), output
        assert "Traceback" not in output
        assert partial_files(copy) == []
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        (disk / "ballast").unlink()
        code, output = copy.run()
        assert code == 0, output
        assert differing(copy, finished) == []


# ---- a damaged file


@pytest.mark.parametrize(
    ("damaged", "rule"),
    [
        ("preprocess/counts.h5ad", "detect_anomalies"),
        ("prune/seed1/model.safetensors", "embed_cells"),
    ],
)
def test_half_a_file_is_named_and_made_again(tmp_path, finished, damaged, rule):
    copy = finished.twin(tmp_path / "here")
    path = copy.results / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, output = copy.run("--forcerun", rule)
    assert code == 1
    assert f"results/small/{damaged}: is damaged (" in output, output
    assert "delete it and run the same command again" in output
    path.unlink()
    code, output = copy.run(f"results/small/{damaged}")
    assert code == 0, output
    assert path.read_bytes() == (finished.results / damaged).read_bytes()


# ---- killed, and started twice


def training_of(run: psutil.Process) -> psutil.Process:
    """The process that trains."""
    for child in run.children(recursive=True):
        if any("train_vae.py" in part for part in child.cmdline()):
            return child
    raise LookupError("nothing trains")


def test_a_second_run_is_refused_and_a_killed_training_is_tried_again(tmp_path, finished):
    copy = finished.twin(tmp_path / "here")
    checkpoint = copy.results / "train" / "seed1" / "checkpoint.safetensors"
    patience = time.monotonic() + 120
    trained = "results/small/train/seed1/model.safetensors"
    run = copy.start("--retries", "1", "--forcerun", "train_vae", "--", trained)
    try:
        while not checkpoint.exists() and time.monotonic() < patience:
            time.sleep(0.01)
        training = training_of(psutil.Process(run.pid))
        training.suspend()
        code, output = copy.run()
        assert code == 1
        assert "Directory cannot be locked" in output
        training.kill()
        output, _ = run.communicate(timeout=300)
    finally:
        if run.poll() is None:
            kill_with_children(run)
    assert run.returncode == 0, output
    log = (copy.results / "logs" / "train_vae" / "seed1.log").read_text()
    assert re.search(r"train_vae: goes on from the checkpoint of step [1-9]\d*\n", log)
    assert differing(copy, finished) == []
