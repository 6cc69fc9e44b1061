"""The whole pipeline on a real Slurm, with failures on the way. Run by ``make test-cluster``.

Slurm runs on this machine (slurm.sh): two CPUs, 4 GB, one GPU that is none.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workflow_copy import WorkflowCopy, differing, kill_with_children

pytest_plugins = ["workflow_copy"]

HERE = Path(__file__).resolve().parent
# Faster than on a cluster that others use, without the database of its accounts, and no larger
# than its node.
HASTE = (
    *("--profile", "profiles/slurm", "--slurm-status-command", "squeue", "--slurm-no-account"),
    *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"),
    *("--latency-wait", "5", "--group-components", "samples=1", "figures=1"),
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Slurm, running; skipped with the reason where there can be none."""
    folder = tmp_path_factory.mktemp("slurm")
    start = [HERE / "slurm.sh", "start", folder]
    started = subprocess.run(start, capture_output=True, text=True, timeout=300)
    if started.returncode == 77:
        pytest.skip(started.stdout.strip())
    assert started.returncode == 0, started.stdout + started.stderr
    yield
    subprocess.run([HERE / "slurm.sh", "stop", folder], check=True, timeout=60)


def waited_for(what: Callable[[], object], seconds: float = 300) -> object:
    """The first true value of ``what()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"nothing after {seconds} s")


def queued() -> dict[str, str]:
    """What waits or runs: number of the Slurm job by rule and wildcards."""
    lines = subprocess.run(
        ["squeue", "--noheader", "--format", "%i %k"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {comment: number for number, _, comment in (line.partition(" ") for line in lines)}


def cancel(rule: str) -> None:
    (number,) = [number for comment, number in queued().items() if rule in comment]
    subprocess.run(["scancel", number], check=True)


def say(text: str) -> None:
    """For the log of CI, since the run takes minutes."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@pytest.fixture(scope="module")
def survived(cluster, tmp_path_factory) -> tuple[WorkflowCopy, str]:
    """A run in which jobs fail, take too much memory and are cancelled, and all that it printed."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("survived") / "here", device="auto")
    faults = tmp_path_factory.mktemp("faults")
    copy.extra = {
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(HERE / "faults")]),
        "FAULTS": "filter_cells=fail,compute_library_size=memory,select_features=slow",
        "FAULTS_FOLDER": str(faults),
    }
    run = copy.start(*HASTE)
    try:
        half = copy.results / "preprocess" / ".counts.partial.h5ad"
        waited_for(half.exists)
        cancel("select_features")
        say("cancelled select_features as it wrote")
        waited_for((copy.results / "train" / "seed1" / "checkpoint.safetensors").exists)
        cancel("train_vae")
        say("cancelled train_vae in mid-training")
        output, _ = run.communicate(timeout=900)
    finally:
        if run.poll() is None:
            kill_with_children(run)
    assert run.returncode == 0, output
    assert {path.name for path in faults.iterdir()} == {
        *("filter_cells", "compute_library_size", "select_features")
    }
    return copy, output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> WorkflowCopy:
    """The same on this machine, without Slurm."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("undisturbed") / "here", device="auto")
    code, output = copy.run()
    assert code == 0, output
    return copy


def test_each_fault_is_told_and_what_was_done_counts(survived):
    copy, output = survived
    assert len(re.findall("Trying to restart job", output)) == 4
    assert output.count("SLURM status is: 'CANCELLED'") == 2
    log = (copy.results / "logs" / "train_vae" / "seed1.log").read_text()
    assert re.search(r"train_vae: goes on from the checkpoint of step [1-9]\d*\n", log)


def test_results_are_those_of_an_undisturbed_run_on_this_machine(survived, undisturbed):
    assert differing(survived[0], undisturbed) == []


def test_a_killed_controller_is_followed_by_another(survived, undisturbed, tmp_path):
    """Its jobs go on without it; once they are over, the lock is all that is left."""
    copy = survived[0].twin(tmp_path / "here")
    run = copy.start(*HASTE, "--forcerun", "train_vae")
    waited_for((copy.results / "train" / "seed1" / "checkpoint.safetensors").exists)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    say("killed the controller")
    code, output = copy.run(*HASTE)
    assert code == 1 and "Directory cannot be locked" in output
    waited_for(lambda: not queued())
    assert copy.run("--unlock")[0] == 0
    code, output = copy.run(*HASTE)
    assert code == 0, output
    assert differing(copy, undisturbed) == []


def test_a_job_that_fits_no_node_is_named_before_the_first_one_runs(survived, tmp_path):
    copy = survived[0].twin(tmp_path / "here")
    request = ("--set-resources", "train_vae:mem_mb=900000", "--forcerun", "train_vae")
    code, output = copy.run(*HASTE, *request)
    assert code == 1
    said = "rule train_vae: asks for 900000 MB of memory, partition cpu gives 4000 at most"
    assert said in output
    assert queued() == {}
