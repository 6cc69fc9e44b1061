"""A recorded run can be had again, and what differs is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from conftest import ROOT
from messages import is_said
from reproduce import (
    CannotReproduceError,
    check_inputs,
    compare,
    differences,
    lay_out,
    main,
    new_folder,
    read_record,
)
from workflow_copy import WorkflowCopy

pytest_plugins = ["workflow_copy"]


@pytest.fixture
def study(tmp_path) -> Path:
    """A folder with an input, beside a shared one, and the record of a run there."""
    folder = tmp_path / "studies" / "mine"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "a.h5ad").write_text("a")
    (tmp_path / "shared.h5ad").write_text("b")
    (folder / "results" / "small").mkdir(parents=True)
    write_record(folder)
    return folder


def write_record(folder: Path, **changed) -> dict:
    paths = {"a": "data/a.h5ad", "b": "../../shared.h5ad", "NA": "results/example_input/x.h5ad"}
    record = {
        "git": None,
        "python": "3.0.0",
        "packages": {"numpy": "0.1"},
        "config": {"run": "small", "samples": "tables/samples.tsv", "train": {"beta": 1e-05}},
        "samples": {
            name: {"sample": name, "path": path, "donor": ""} for name, path in paths.items()
        },
        "inputs": {
            path: sha256(content.encode()).hexdigest()
            for path, content in zip(paths.values(), ("a", "b", "made by the run"), strict=True)
        },
        "results": {"report.html": "1"},
    } | changed
    (folder / "results" / "small" / "run.json").write_text(json.dumps(record))
    return record


# ---- before the run


def test_a_folder_and_its_record_are_the_same_run(study):
    record, made_in = read_record(study / "results" / "small")
    assert made_in == study and record["config"]["run"] == "small"
    assert read_record(study / "results" / "small" / "run.json") == (record, made_in)


def write_old_record(study: Path) -> None:
    (study / "results" / "small" / "run.json").write_text('{"config": {}}')


def write_other_table(study: Path) -> None:
    table = study.parent / "table.tsv"
    write_record(study, config={"run": "small", "samples": str(table)})
    table.write_text("sample\tpath\trole\n")


def use_folder(study: Path) -> None:
    (study / "reproduced" / "small").mkdir(parents=True)
    (study / "reproduced" / "small" / "mine.txt").touch()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder without run.json": (
        lambda study: (study / "results" / "small" / "run.json").unlink(),
        "…/small/run.json: there is no such file; give a finished results folder",
    ),
    "a run.json of an early version": (
        write_old_record,
        "…/small/run.json: names no results, as those of older versions; run the workflow once "
        "more",
    ),
    "an input that has changed": (
        lambda study: (study / "data" / "a.h5ad").write_text("A"),
        "data/a.h5ad: has changed since the run; bring the former one back",
    ),
    "an input that is gone": (
        lambda study: (study / "../../shared.h5ad").unlink(),
        "../../shared.h5ad: is not there, from …; bring it back",
    ),
    "a sample table that has changed": (
        write_other_table,
        "…/table.tsv: has changed since the run; bring the former one back",
    ),
    "a folder with files of yours": (
        use_folder,
        "…/reproduced/small: is not empty; remove it or give another folder",
    ),
    "a run that fails": (
        lambda study: write_record(study, threads="none"),
        "…/mine: the run did not end well; see above",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_keeps_a_run_from_being_had_again_is_one_line(name, study, capsys):
    break_it, expected = FAULTS[name]
    break_it(study)
    assert main([str(study / "results" / "small")]) == 1
    lines = capsys.readouterr().err.splitlines()
    (line,) = (line for line in lines if not line.startswith("warning: "))
    assert is_said(expected, line), line


def test_all_inputs_that_are_not_as_they_were_are_told_at_once(study):
    record, _ = read_record(study / "results" / "small")
    check_inputs(record, study)
    (study / "data" / "a.h5ad").write_text("A")
    (study / "../../shared.h5ad").unlink()
    with pytest.raises(CannotReproduceError) as caught:
        check_inputs(record, study)
    assert len(str(caught.value).splitlines()) == 2


def test_other_versions_and_another_commit_are_told(study):
    commit = {"commit": "abc", "is_dirty": True}
    record = write_record(study, packages={"numpy": "0.1", "no-such-package": "1"}, git=commit)
    lines = differences(record)
    assert any(line.startswith("python: was 3.0.0, is 3.") for line in lines)
    assert any(line.startswith("numpy: was 0.1, is ") for line in lines)
    assert "no-such-package: was 1, is not installed" in lines
    assert any(line.startswith("git commit: was abc, is ") for line in lines)
    assert "git: the workflow had changes that no commit holds" in lines


# ---- the new folder


def test_all_lies_at_the_same_path_from_the_new_folder(study, tmp_path):
    record, made_in = read_record(study / "results" / "small")
    out = tmp_path / "new"
    folder = new_folder(record, made_in, out)
    lay_out(record, made_in, folder)
    assert folder == out / "studies" / "mine"
    assert (folder / "data/a.h5ad").read_text() == "a"
    assert os.path.realpath(out / "shared.h5ad") == str(tmp_path / "shared.h5ad")
    # The run makes its example itself.
    assert not (folder / "results").exists()
    assert json.loads((folder / "config.json").read_text()) == record["config"]
    assert (folder / "tables" / "samples.tsv").read_text() == (
        "sample\tpath\tdonor\na\tdata/a.h5ad\t\nb\t../../shared.h5ad\t\n"
        "NA\tresults/example_input/x.h5ad\t\n"
    )


def test_a_folder_in_use_is_refused_and_a_stopped_reproduction_goes_on(study, tmp_path):
    record, made_in = read_record(study / "results" / "small")
    with pytest.raises(CannotReproduceError, match="is not empty; remove it or give another"):
        new_folder(record, made_in, study)
    out = tmp_path / "new"
    folder = new_folder(record, made_in, out)
    lay_out(record, made_in, folder)
    assert new_folder(record, made_in, out) == folder
    lay_out(record, made_in, folder)
    shutil.copytree(study / "results" / "small", folder / "results" / "small")
    with pytest.raises(CannotReproduceError, match="is not empty"):
        new_folder(record, made_in, out)


def test_a_sample_table_outside_of_the_folder_stays_and_must_be_as_it_was(study, tmp_path):
    table = tmp_path / "table.tsv"
    config = {"run": "small", "samples": str(table)}
    record = write_record(study, config=config)
    rows = [record["samples"][name].values() for name in record["samples"]]
    # A blank, an empty row and a missing last cell say nothing.
    lines = ["sample\tpath \tdonor", "", *("\t".join(row).rstrip("\t") for row in rows)]
    table.write_text("\n".join(lines) + "\n")
    lay_out(record, study, tmp_path / "new")
    table.write_text(table.read_text().replace("data/a.h5ad", "data/other.h5ad"))
    with pytest.raises(CannotReproduceError, match=r"table.tsv: has changed since the run"):
        lay_out(record, study, tmp_path / "new")


# ---- after the run


def test_files_are_compared_by_name_and_checksum():
    then, now = {"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}
    assert compare(then, now) == [
        ("identical", "a"),
        ("differs", "b"),
        ("missing", "c"),
        ("new", "d"),
    ]


def test_a_run_is_had_again_to_the_byte_and_a_result_that_is_not_is_named(finished, tmp_path):
    """One of the recorded checksums is false."""
    twin = finished.twin(tmp_path / "twin")
    path = twin.results / "run.json"
    record = json.loads(path.read_text())
    record["results"]["genes/genes.tsv"] = "0" * 64
    path.write_text(json.dumps(record))
    # The user has gone on: another table, another config.
    twin.write_samples("healthy data/healthy.h5ad reference")
    (twin.folder / "my.yaml").unlink()
    process = subprocess.run(
        [sys.executable, str(ROOT / "workflow/scripts/reproduce.py"), "results/small"],
        cwd=twin.folder,
        env=twin.environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = process.stdout.splitlines()
    n = len(record["inputs"]) + len(record["results"])
    assert lines[-2:] == [
        f"identical  {n - 1} of {n} inputs and results",
        "differs    genes/genes.tsv",
    ], process.stdout + process.stderr
    assert process.returncode == 1
    again = WorkflowCopy(twin.folder / "reproduced" / "small")
    assert (again.results / "report.html").exists()
