"""Which jobs ask for a GPU, so that one of them runs at a time and the others side by side."""

import os
import re

import pytest

from workflow_copy import SETTINGS, WorkflowCopy


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return WorkflowCopy.make(tmp_path_factory.mktemp("gpus") / "here")


def asked(copy: WorkflowCopy, device: str, monkeypatch, path: str) -> dict[str, bool]:
    """For each rule of a dry run, whether its jobs ask for a GPU."""
    monkeypatch.setenv("PATH", path)
    copy.write_config(device=device, train=SETTINGS["train"] | {"likelihood": "auto"})
    code, output = copy.run("-n")
    assert code == 0, output
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", output, flags=re.MULTILINE)
    return {rule: "gpu=1" in said for rule, said in jobs}


# What scores decodes for a fraction of its time, and would leave a GPU idle.
OF_THE_MODEL = {
    *("train_vae", "choose_likelihood", "prune_latent", "embed_cells", "measure_evidence")
}


def test_jobs_of_the_model_ask_for_a_gpu_where_there_is_one(copy, tmp_path, monkeypatch):
    no_gpu = os.pathsep.join([str(tmp_path / "empty"), "/usr/bin", "/bin"])
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    with_gpu = os.pathsep.join([str(tool.parent), "/usr/bin", "/bin"])
    there = asked(copy, "auto", monkeypatch, with_gpu)
    assert {rule for rule, asks in there.items() if asks} == OF_THE_MODEL
    assert asked(copy, "cuda", monkeypatch, no_gpu) == there
    assert not any(asked(copy, "cpu", monkeypatch, with_gpu).values())
    if not any(os.access(f"{folder}/nvidia-smi", os.X_OK) for folder in ("/usr/bin", "/bin")):
        assert not any(asked(copy, "auto", monkeypatch, no_gpu).values())
