"""The record of a run and its RO-Crate."""

import hashlib
import json
import warnings

import pytest
from rocrate.rocrate import ROCrate

from fake_run import CONFIG
from record_run import make_crate
from run_script import run_script

RESULTS = {"report.html": b"page", "train/seed7/model.json": b"{}"}


@pytest.fixture
def written(tmp_path) -> dict:
    """The rule record_run on two results, an input, a gene list and one job."""
    run = tmp_path / "results" / "first-look"
    for file, content in {**RESULTS, "train/seed1/model.json": b"of other settings"}.items():
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_bytes(content)
    (run / "benchmarks" / "train_vae").mkdir(parents=True)
    (run / "benchmarks/train_vae/seed7.jsonl").write_text('{"s": 3.5, "max_rss": 400.5}\n')
    (tmp_path / "genes.txt").write_text("LYZ")
    (tmp_path / "import.json").write_text(json.dumps({"sha256": "of the import", "n_cells": 3}))
    (tmp_path / "summary.json").write_text(
        json.dumps({"device": "cuda", "threads": 2, "precision": "bfloat16", "beta": 1})
    )
    inputs = {
        "imports": [str(tmp_path / "import.json")],
        "gene_list": [str(tmp_path / "genes.txt")],
        "train": str(tmp_path / "summary.json"),
    }
    params = {
        "config": CONFIG,
        "samples": {"NA": {"sample": "NA", "path": "counts file.h5ad", "role": "query"}},
        "packages": ["numpy", "no-such-package"],
        # Not all that may be written is: no rule is run for every fit.
        "files": [*RESULTS, "prune/seed8/model.json", "benchmarks/train_vae/seed7.jsonl"],
    }
    output = {"record": "run.json", "crate": "ro-crate-metadata.json"}
    return run_script("record_run", run, inputs, output, params)


def test_the_record_holds_what_made_the_run(written, tmp_path):
    record = json.loads(written["record"].read_text())
    assert record["config"] == CONFIG and record["seeds"] == [7]
    assert record["samples"]["NA"]["role"] == "query"
    assert (record["device"], record["threads"], record["precision"]) == ("cuda", 2, "bfloat16")
    assert set(record["packages"]) == {"numpy"}
    assert {"python", "git", "hardware"} < set(record)
    assert record["matrix_kernels"] and all(len(k.split()) == 2 for k in record["matrix_kernels"])
    assert record["inputs"] == {
        "counts file.h5ad": "of the import",
        str(tmp_path / "genes.txt"): hashlib.sha256(b"LYZ").hexdigest(),
    }


def test_the_record_holds_the_results_of_these_settings_and_the_jobs(written):
    record = json.loads(written["record"].read_text())
    expected = {file: hashlib.sha256(content).hexdigest() for file, content in RESULTS.items()}
    assert record["results"] == expected
    (job,) = record["jobs"]
    assert (job["rule"], job["name"], job["seconds"]) == ("train_vae", "seed7", 3.5)
    assert (record["started"], record["ended"]) == (job["started"], job["ended"])


@pytest.fixture
def crate(written) -> ROCrate:
    with warnings.catch_warnings():
        # The library leaves the file it reads to be closed with its garbage.
        warnings.simplefilter("error", UserWarning)
        return ROCrate(written["crate"].parent)


def test_the_crate_lists_every_result_with_checksum_and_size(crate, written):
    files = {entity.id: entity for entity in crate.data_entities}
    assert set(files) == {*RESULTS, "run.json"}
    for file, content in RESULTS.items():
        assert files[file]["sha256"] == hashlib.sha256(content).hexdigest()
        assert files[file]["contentSize"] == str(len(content))
    assert files["run.json"]["contentSize"] == str(written["record"].stat().st_size)


def test_the_crate_says_which_workflow_made_which_results_of_which_inputs(crate, written):
    record = json.loads(written["record"].read_text())
    (action,) = crate.root_dataset["mentions"]
    assert action.type == "CreateAction"
    assert {entity.id for entity in action["result"]} == set(RESULTS)
    assert {entity["name"]: entity["sha256"] for entity in action["object"]} == record["inputs"]
    assert (action["startTime"], action["endTime"]) == (record["started"], record["ended"])
    workflow = action["instrument"]
    assert workflow["name"] == "anomics: calibrated anomalies in omics counts"
    assert workflow["license"]["name"] == "BSD-3-Clause"
    assert workflow["programmingLanguage"]["name"] == "Snakemake"
    needed = {
        entity["name"]: entity["softwareVersion"] for entity in workflow.get("softwareRequirements")
    }
    assert needed == {"python": record["python"]} | record["packages"]
    assert [p["name"] for p in crate.root_dataset["conformsTo"]] == ["Process Run Crate"]


def test_the_workflow_in_the_crate_is_a_commit_or_else_a_version(written):
    record, run = json.loads(written["record"].read_text()), written["record"].parent
    for git, citation, expected in (
        ({"commit": "abc", "is_dirty": False}, {"version": "1.2"}, "abc"),
        (None, {"version": "1.2"}, "1.2"),
        (None, {}, None),
    ):
        content = make_crate(record | {"git": git}, run, citation)
        (workflow,) = (e for e in content["@graph"] if e["@id"] == "#workflow")
        assert workflow.get("version") == expected
        assert ("license" in workflow) == ("license" in citation)


def referred(value) -> set[str]:
    """Every identifier that some property points to."""
    if isinstance(value, list):
        return set().union(*map(referred, value))
    return {value["@id"]} if isinstance(value, dict) else set()


def test_the_crate_points_to_nothing_that_it_does_not_describe(written):
    content = json.loads(written["crate"].read_text())
    described = [entity["@id"] for entity in content["@graph"]]
    assert len(described) == len(set(described))
    pointed = {
        name: referred(value)
        for entity in content["@graph"]
        for name, value in entity.items()
        # The web pages of Snakemake, and the version of RO-Crate.
        if (entity["@id"], name) != ("ro-crate-metadata.json", "conformsTo")
        and entity["@type"] != "ComputerLanguage"
    }
    assert set().union(*pointed.values()) <= set(described)
    assert content["@context"] == "https://w3id.org/ro/crate/1.3/context"
