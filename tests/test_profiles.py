"""Profiles name rules that exist, and a job goes through a batch system and comes back."""

import importlib.util
import re

import pytest
import yaml

from conftest import ROOT
from workflow_copy import WorkflowCopy

SLURM, GENERIC, DEFAULT = (
    yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
    for name in ("slurm", "generic", "default")
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return WorkflowCopy.make(tmp_path_factory.mktemp("profiles") / "here", device="cuda")


@pytest.fixture(scope="module")
def rules(tmp_path_factory) -> dict[str, str]:
    """What a dry run with every option on says of each rule."""
    likelihood = {"likelihood": "auto", "kl_warmup_steps": 100, "max_steps": 800}
    copy = WorkflowCopy.make(
        tmp_path_factory.mktemp("rules") / "here",
        **{"device": "cuda", "train": likelihood},
        **{"rate_distortion": {"betas": [2]}, "stability": {"n_seeds": 2}},
    )
    code, output = copy.run("-n")
    assert code == 0, output
    return dict(re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)+)", output, re.MULTILINE))


def test_slurm_sends_to_the_gpu_partition_what_asks_for_a_gpu(rules):
    asking = {rule for rule, said in rules.items() if "gpu=1" in said}
    assert set(SLURM["set-resources"]) == asking
    assert asking == {
        *("train_vae", "choose_likelihood", "prune_latent", "embed_cells", "measure_evidence")
    }


def test_only_small_jobs_share_a_submission(rules):
    grouped = {}
    for rule, group in SLURM["groups"].items():
        grouped.setdefault(group, set()).add(rule)
    assert grouped == {
        "samples": {"import_counts", "filter_cells"},
        # A run of cells has no correlations of its samples.
        "figures": {rule for rule in rules if rule.startswith("plot_")} | {"plot_correlation"},
    }
    assert set(SLURM["group-components"]) == set(grouped)


def test_every_job_asks_for_memory_and_time(rules):
    lacking = [r for r, said in rules.items() if "mem_mb=" not in said or "runtime=" not in said]
    assert lacking == ["all"]


def test_what_a_cluster_profile_says_is_not_said_otherwise_by_the_default_one():
    for profile in (SLURM, GENERIC):
        assert set(profile) & set(DEFAULT) == set()


def asked(copy: WorkflowCopy, *arguments: str) -> tuple[int, int]:
    """Memory (MB) and minutes that importing a sample asks for."""
    code, output = copy.run("-n", *arguments, "--", "results/small/import/healthy.h5ad")
    assert code == 0, output
    memory, minutes = (re.search(rf" {name}=(\d+)", output)[1] for name in ("mem_mb", "runtime"))
    return int(memory), int(minutes)


def test_requests_follow_the_size_of_the_input_and_double_at_each_retry(copy):
    small = asked(copy)
    path = copy.folder / "data" / "healthy.h5ad"
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * 500_000_000)
    large = asked(copy)
    path.write_bytes(content)
    assert small[0] in range(2000, 2010) and small[1] == 30
    # 500 MB are 477 MiB.
    assert large[0] - small[0] == pytest.approx(6 * 477, abs=10)
    assert large[1] - small[1] == pytest.approx(0.2 * 477, abs=2)
    assert asked(copy, "--attempt", "3") == pytest.approx((4 * small[0], 4 * small[1]), abs=3)


@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_cluster_generic") is None,
    reason="snakemake-executor-plugin-cluster-generic is not installed",
)
def test_a_job_goes_through_any_batch_system(copy):
    """In place of qsub a shell, which is done when it returns."""
    submit = copy.folder / "submit"
    submit.write_text('#!/bin/sh\necho "$1 MB" >>submitted\nsh "$2" >/dev/null 2>&1\necho 17\n')
    submit.chmod(0o755)
    code, output = copy.run(
        *("--profile", "profiles/generic", "--latency-wait", "5"),
        *("--cluster-generic-submit-cmd", "./submit {resources.mem_mb}"),
        *("--", "results/small/import/healthy.h5ad"),
    )
    assert code == 0, output
    assert re.fullmatch(r"20\d\d MB\n", (copy.folder / "submitted").read_text())
    assert (copy.results / "import" / "healthy.h5ad").exists()
