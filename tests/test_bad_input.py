"""Bad input ends a run with one line that says where, what and how to mend it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from messages import is_said
from workflow_copy import RUN, SAMPLES, SETTINGS, WorkflowCopy, results_of, small_counts

pytest_plugins = ["workflow_copy"]


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Make folders such that nobody may write to them; root may write where only modes forbid."""
    folders = []

    def forbid(folder: Path) -> None:
        if os.geteuid() != 0:
            folder.chmod(0o555)
            return
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=4k", "tmpfs", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"no folder can be made read only here: {mounted.stderr.strip()}")
        folders.append(folder)

    yield forbid
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def with_settings(**sections) -> Callable[[WorkflowCopy], None]:
    return lambda copy: copy.write_config(**sections)


def lose_a_value(copy: WorkflowCopy) -> None:
    """In a matrix stored by genes, of which the check before the run reads the shape alone."""
    cells = small_counts(60, seed=2, first=130)
    cells.X = sparse.csc_matrix(cells.X)
    cells.X.data[0] = np.nan
    cells.write_h5ad(copy.folder / "data" / "patient.h5ad")


CASES: dict[str, tuple[Callable[[WorkflowCopy], None], str]] = {
    "a value that is none, deep in a file": (
        lose_a_value,
        "data/patient.h5ad: cell 'CELL…', gene 'GENE0' is nan (1 such values); fill or drop it",
    ),
    "a GPU that is not there": (
        with_settings(device="cuda"),
        "device: cuda: no CUDA device is visible; set device to auto or cpu, or run where a GPU is "
        "visible",
    ),
    "a covariate made of the counts, of the query alone": (
        with_settings(train=SETTINGS["train"] | {"covariates": ["total_counts"]}),
        "train.covariates: total_counts: … occurs in query cells and in no training cell, so the "
        "model cannot know its effect; bring reference cells of it, leave out those samples, or "
        "remove total_counts from the model",
    ),
    "limits that no cell passes": (
        with_settings(preprocess={"filter_cells": {"min_counts": 5000}}),
        "sample …: none of its … cells is left after filtering: …total_counts < 5000 (min_counts) "
        "dropped …; loosen these limits in preprocess.filter_cells or check the sample's file",
    ),
}


def fail(finished: WorkflowCopy, folder, break_it, *arguments: str) -> list[str]:
    """What a user sees, line by line, after ``break_it`` in a twin of the finished run."""
    copy = finished.twin(folder)
    break_it(copy)
    # One job at a time, so that one line is to be expected.
    code, output = copy.run("--jobs", "1", *arguments)
    assert code == 1, output
    return output.splitlines()


@pytest.mark.parametrize("name", CASES)
def test_one_line_says_what_to_mend(name, finished, tmp_path):
    break_it, expected = CASES[name]
    lines = fail(finished, tmp_path / "copy", break_it)
    shown = "\n".join(lines)
    assert "Traceback" not in shown
    assert [is_said(expected, line) for line in lines].count(True) == 1, shown
    # The end is where a user looks: below it stand at most Snakemake's own closing lines.
    last = max(i for i, line in enumerate(lines) if is_said(expected, line))
    assert len(lines) - last <= 5, shown


def log_transform(copy: WorkflowCopy) -> None:
    cells = small_counts(60, seed=2, first=130)
    cells.X = cells.X.log1p()
    cells.write_h5ad(copy.folder / "data" / "patient.h5ad")


LOGS = (
    "data/patient.h5ad: cell 'CELL130', gene 'GENE0' is …: not a whole number; this looks like "
    "log1p of the raw counts (… such values); give the raw counts"
)


def test_faults_of_config_table_and_files_are_told_at_once(finished, tmp_path):
    def break_it(copy: WorkflowCopy) -> None:
        log_transform(copy)
        copy.write_samples(*SAMPLES, "third data/nobody.h5ad query")
        copy.write_config(train={"n_latents": 4})
        with (copy.folder / "config.yaml").open("a", encoding="utf-8") as file:
            file.write("seed: 1\nseed: 2\n")

    lines = fail(finished, tmp_path / "copy", break_it)
    for message in (
        "config.yaml: seed stands more than once (lines …), of which only the last would count; "
        "make one of them",
        "config: train.n_latents: unknown key; did you mean n_latent?",
        "samples.tsv: row 4: sample third: there is no file data/nobody.h5ad; correct the path",
        LOGS,
    ):
        assert sum(is_said(message, line) for line in lines) == 1, "\n".join(lines)
    assert not any("Traceback" in line for line in lines)


def test_faults_of_files_are_told_before_the_first_job_and_leave_all_results(finished, tmp_path):
    def break_it(copy: WorkflowCopy) -> None:
        log_transform(copy)
        copy.write_samples(SAMPLES[0], "patient data/patient.h5ad obs:rolle")
        copy.write_config(train=SETTINGS["train"] | {"covariates": ["sex"]})

    lines = fail(finished, tmp_path / "copy", break_it)
    for message in (
        LOGS,
        "data/patient.h5ad: obs has no column 'rolle', asked for by the sample table's column "
        "role; it has: lane",
        "train.covariates: sex: no such column in the metadata; add it to the sample table, or "
        "take one of …",
    ):
        assert sum(is_said(message, line) for line in lines) == 1, "\n".join(lines)
    assert not any(line.startswith(("rule ", "localrule ", "Traceback")) for line in lines)
    assert results_of(WorkflowCopy(tmp_path / "copy")) == results_of(finished)


def test_a_warning_stops_nothing_and_a_dry_run_reads_no_file(finished, tmp_path):
    copy = finished.twin(tmp_path / "copy")
    copy.write_samples(*(f"{row} {row[:3]}" for row in SAMPLES), header="sample path role batch")
    imported = f"results/{RUN}/import/patient.h5ad"
    code, output = copy.run(imported, "results/small/preprocess/counts.h5ad")
    assert code == 0, output
    assert "warning: no batch holds both reference and query (query: pat)" in output
    log_transform(copy)
    code, output = copy.run("-n", imported)
    assert code == 0 and "rule import_counts:" in output, output


READ_ONLY = {
    "a folder of results that is read only": (
        "other",
        "results/other: may not be written to; give yourself permission, or run in another folder",
    ),
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_results_that_may_not_be_written_to_are_said(name, finished, tmp_path, read_only):
    run, expected = READ_ONLY[name]
    copy = finished.twin(tmp_path / "copy")
    copy.write_config(run=run)
    folder = copy.folder / "results" / run
    folder.mkdir()
    read_only(folder)
    code, output = copy.run()
    assert code == 1
    assert expected in output.splitlines() and "Traceback" not in output, output


def test_the_line_is_shown_without_the_profile_too(finished, tmp_path):
    arguments = ("--workflow-profile", "none", "--rerun-triggers", "mtime", "params")
    lines = fail(finished, tmp_path / "copy", lose_a_value, *arguments)
    assert sum(line.startswith("data/patient.h5ad: cell 'CELL") for line in lines) == 1


def test_a_fault_of_ours_says_so_once_and_where_the_traceback_is(finished, tmp_path):
    def break_it(copy: WorkflowCopy) -> None:
        script = copy.folder / "workflow" / "scripts" / "plot_qc.py"
        script.write_text(script.read_text().replace("as log:", "as log:\n        1 / 0", 1))

    lines = fail(finished, tmp_path / "copy", break_it)
    words = "stopped by an unexpected error; it is a fault of anomics, please report this file"
    assert lines.count(f"results/small/logs/plot_qc.log: {words}") == 1
    assert sum("Traceback" in line for line in lines) == 1
    log = (tmp_path / "copy" / "results" / "small" / "logs" / "plot_qc.log").read_text()
    assert "ZeroDivisionError" in log
