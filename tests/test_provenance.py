"""What is recorded of files, packages, the checkout, the machine and the jobs."""

import json
import os
import re
import subprocess
from importlib.metadata import requires

import pytest

from conftest import ROOT
from provenance import (
    git_state,
    hardware,
    package_versions,
    read_jobs,
    with_all_needed,
)


def test_versions_of_packages_and_what_is_said_of_those_that_are_not_there():
    versions = package_versions(["numpy", "no-such-package"])
    assert versions["no-such-package"] == "not installed"
    assert re.match(r"\d+\.\d+", versions["numpy"])


def test_packages_bring_all_that_they_need_and_nothing_optional():
    found = with_all_needed(["Pandas", "umap_learn", "no-such-package"])
    assert any(line.startswith("pyarrow") and "extra" in line for line in requires("pandas"))
    assert {"pandas", "python-dateutil", "umap-learn", "pynndescent", "llvmlite"} <= found
    assert not found & {"pyarrow", "no-such-package"}


# ---- git


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with the files that decide the results, and one that does not."""

    def git(*arguments: str) -> str:
        given = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-C", str(tmp_path))
        done = subprocess.run(["git", *given, *arguments], capture_output=True, check=True)
        return done.stdout.decode().strip()

    (tmp_path / "workflow" / "scripts").mkdir(parents=True)
    for file in ("workflow/scripts/job.py", "Snakefile", "config.yaml", "README.md"):
        (tmp_path / file).write_text(file)
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    return tmp_path, git("rev-parse", "HEAD")


def test_a_clean_checkout_is_its_commit(checkout):
    folder, commit = checkout
    state = git_state(str(folder / "workflow" / "scripts"))
    assert state == {"commit": commit, "is_dirty": False}


@pytest.mark.parametrize(
    ("file", "is_dirty"),
    [
        ("workflow/scripts/job.py", True),
        ("workflow/scripts/new.py", True),
        ("Snakefile", True),
        ("config.yaml", True),
        ("README.md", False),
        ("my_config.yaml", False),
    ],
)
def test_only_changes_of_what_decides_the_results_make_it_dirty(checkout, file, is_dirty):
    folder, commit = checkout
    (folder / file).write_text("changed")
    state = git_state(str(folder / "workflow" / "scripts"))
    assert state == {"commit": commit, "is_dirty": is_dirty}


def test_a_copy_within_another_checkout_has_no_commit(checkout):
    folder, _ = checkout
    (folder / "copied" / "workflow" / "scripts").mkdir(parents=True)
    (folder / "copied" / "workflow" / "scripts" / "job.py").write_text("code")
    assert git_state(str(folder / "copied" / "workflow" / "scripts")) is None


def test_without_checkout_or_without_git_there_is_no_commit(tmp_path, monkeypatch):
    assert git_state(str(tmp_path)) is None
    assert git_state("https://somewhere.example/workflow/scripts") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(str(ROOT / "workflow" / "scripts")) is None


# ---- the machine, the jobs


def test_the_machine_has_a_processor_with_a_name_and_no_gpu_without_its_driver(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = hardware()
    assert machine["gpus"] == [] and machine["cpu_count"] == os.cpu_count()
    assert machine["processor"] or machine["machine"]


def test_gpus_are_named_one_a_line(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho GPU A\necho GPU B\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert hardware()["gpus"] == ["GPU A", "GPU B"]


def test_jobs_have_rule_name_times_and_memory_in_the_order_they_began(tmp_path):
    written = {
        "benchmarks/late.jsonl": (2.5, 300.5, 1000),
        "benchmarks/train_vae/seed1-beta0.5.jsonl": (90.0, None, 990),
    }
    for file, (seconds, memory, ended) in written.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"s": seconds, "max_rss": memory, "cpu_time": 1}) + "\n")
        os.utime(path, (ended, ended))
    first, second = read_jobs(tmp_path, written)
    assert first == {
        "rule": "train_vae",
        "name": "seed1-beta0.5",
        "started": "1970-01-01T00:15:00+00:00",
        "ended": "1970-01-01T00:16:30+00:00",
        "seconds": 90.0,
        "peak_mb": None,
    }
    assert (second["rule"], second["name"], second["peak_mb"]) == ("late", None, 300.5)
