"""What a Slurm cluster can give is read from sinfo; a job that fits no node is named at once."""

import math

import pytest

import slurm_limits
from slurm_limits import Partition, ask_partitions, read_partitions, too_large

CPU = Partition("cpu", True, 64_000, 32, 1440, 0)
GPU = Partition("gpu", False, 256_000, 64, math.inf, 4)


def test_a_partition_has_the_most_that_any_of_its_nodes_has():
    text = "cpu*|32000|32|1-00:00:00|(null)\ncpu*|64000+|16+|1-00:00:00|(null)\n"
    text += "gpu|256000|64|infinite|gpu:a100:4(S:0-1),shard:8\n"
    assert read_partitions(text) == [CPU, GPU]


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("infinite", math.inf),
        ("2-12:30:00", 3630),
        ("1:00:00", 60),
        ("30:00", 30),
        ("0:30", 0.5),
    ],
)
def test_time_limits_are_read_in_every_form(limit, minutes):
    (partition,) = read_partitions(f"long|1000|4|{limit}|(null)")
    assert partition.runtime == minutes


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:4,gpu:v100:2", 6),
        ("nic:4,gpu:none:1", 1),
        ("craynetwork:4", 0),
    ],
)
def test_gpus_are_counted_of_any_kind(gres, gpus):
    assert read_partitions(f"cpu|1000|4|infinite|{gres}")[0].gpu == gpus


def test_what_fits_is_no_fault():
    most = {"mem_mb": 64_000, "threads": 32, "runtime": 1440, "gpu": 0}
    assert too_large([("train_vae", most)], [CPU, GPU]) == []
    assert too_large([("train_vae", most | {"gpu": 4, "slurm_partition": "gpu"})], [CPU, GPU]) == []


FAULTS = {
    f"a job of too {much} for the partition": (
        (name, amount),
        f"rule train_vae: asks for {asked}, partition cpu gives {most} at most; Slurm would let it "
        f"wait for ever: lower {name} or name another slurm_partition under set-resources in the "
        "profile",
    )
    for much, name, amount, asked, most in (
        ("much memory", "mem_mb", 64_001, "64001 MB of memory", 64000),
        ("many CPUs", "threads", 33, "33 CPUs", 32),
        ("much time", "runtime", 2000, "2000 minutes", 1440),
        ("many GPUs", "gpu", 1, "1 GPUs", 0),
    )
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_no_node_has_is_a_line_with_the_rule_and_the_mend(name):
    (resource, amount), expected = FAULTS[name]
    assert too_large([("train_vae", {resource: amount})] * 2, [CPU, GPU]) == [expected]


def test_a_job_is_judged_by_the_partition_it_names():
    asked = {"mem_mb": 100_000}
    assert too_large([("a", asked | {"slurm_partition": "gpu"})], [CPU, GPU]) == []
    assert len(too_large([("a", asked | {"slurm_partition": "cpu"})], [CPU, GPU])) == 1
    # Of a partition that is not seen, and of what is not known yet, nothing can be said.
    assert too_large([("a", asked | {"slurm_partition": "other"})], [CPU, GPU]) == []
    assert too_large([("a", {"mem_mb": "<TBD>"})], [CPU, GPU]) == []
    assert too_large([("a", asked)], [GPU]) == []


@pytest.mark.parametrize(
    "script", ["exit 1", "echo of the site", "sleep 9", None], ids=["down", "own", "slow", "none"]
)
def test_a_cluster_that_does_not_answer_has_no_limits(tmp_path, monkeypatch, script):
    if script:
        (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv(
        "PATH", f"{tmp_path}:/nowhere" if not script else f"{tmp_path}:/usr/bin:/bin"
    )
    monkeypatch.setattr(slurm_limits, "SECONDS", 1)
    assert ask_partitions() == []


def test_a_cluster_that_answers_is_read(tmp_path, monkeypatch):
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'cpu*|64000|32|1-00:00:00|(null)'\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert ask_partitions() == [CPU]
