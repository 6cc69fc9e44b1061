"""Bad input ends a run with one line that says where, what and how to mend it."""

import re
from collections.abc import Callable

import anndata
import numpy as np
import pandas as pd
import pytest

from workflow_copy import HEADER, SAMPLES, SETTINGS, WorkflowCopy, small_counts

pytest_plugins = ["workflow_copy"]

HEALTHY, PATIENT = SAMPLES


def with_rows(*rows: str, header: str = HEADER, **sections) -> Callable[[WorkflowCopy], None]:
    def apply(copy: WorkflowCopy) -> None:
        copy.write_samples(*rows, header=header)
        copy.write_config(**sections)

    return apply


def with_settings(**sections) -> Callable[[WorkflowCopy], None]:
    return lambda copy: copy.write_config(**sections)


def with_patient(change: Callable[[anndata.AnnData], None]) -> Callable[[WorkflowCopy], None]:
    """Change the patient's counts, 60 cells."""

    def apply(copy: WorkflowCopy) -> None:
        cells = small_counts(60, seed=2, first=130)
        change(cells)
        cells.write_h5ad(copy.folder / "data" / "patient.h5ad")

    return apply


def negative(copy: WorkflowCopy) -> None:
    """The patient as a CSV with a negative count."""
    cells = small_counts(60, seed=2, first=130)
    counts = pd.DataFrame(cells.X.toarray(), cells.obs_names, cells.var_names).astype(int)
    counts.loc["CELL133", "GENE7"] = -2
    counts.to_csv(copy.folder / "data" / "patient.csv")
    copy.write_samples(HEALTHY, "patient data/patient.csv query")


def log_transform(cells: anndata.AnnData) -> None:
    cells.X.data[:] = np.log1p(cells.X.data)


def log_transform_with_layer(cells: anndata.AnnData) -> None:
    cells.layers["raw_counts"] = cells.X.copy()
    log_transform(cells)


def lose_a_value(cells: anndata.AnnData) -> None:
    cells.X.data[0] = np.nan


def name_by_ensembl(cells: anndata.AnnData) -> None:
    cells.var_names = [f"ENSG{g:011d}" for g in range(60)]


def trust_all(copy: WorkflowCopy) -> None:
    """The patient's file says that all its cells are reference."""
    cells = small_counts(60, seed=2, first=130)
    cells.obs["role"] = "reference"
    cells.write_h5ad(copy.folder / "data" / "patient.h5ad")
    copy.write_samples(HEALTHY, "patient data/patient.h5ad obs:role")


def cut_short(copy: WorkflowCopy) -> None:
    path = copy.folder / "data" / "patient.h5ad"
    path.write_bytes(path.read_bytes()[:5000])


SPLIT = SETTINGS["preprocess"] | {"split": {"validation": 0.15, "calibration": 0.05}}
CASES: dict[str, tuple[Callable[[WorkflowCopy], None], str]] = {
    "a sample that leaves its folder": (
        with_rows(HEALTHY, "../../x data/patient.h5ad query"),
        "samples.tsv: row 3: sample '../../x': a name may hold letters, digits, _ . - and must "
        "start with a letter or digit; rename it",
    ),
    "a sample twice": (
        with_rows(HEALTHY, PATIENT, PATIENT),
        "samples.tsv: row 4: sample patient stands twice; names must differ",
    ),
    "a missing file": (
        with_rows(HEALTHY, "patient data/nobody.h5ad query"),
        "samples.tsv: row 3: sample patient: there is no file data/nobody.h5ad; correct the path",
    ),
    "no reference": (
        with_rows(HEALTHY.replace("reference", "query")),
        "samples.tsv: no sample has the role reference; the pipeline learns from reference cells: "
        "give it to trusted normal samples, or to all samples to rank them against each other",
    ),
    "seeds without a query": (
        with_rows(HEALTHY, stability={"n_seeds": 2}),
        "config: stability.n_seeds: all samples are reference, so each cell is scored by "
        "cross-fitting, which further seeds do not repeat; set it to 1 or give the samples to be "
        "scored the role query",
    ),
    "an unknown key": (
        with_settings(train={"n_latents": 4}),
        "config: train.n_latents: unknown key; did you mean n_latent?",
    ),
    "a negative count": (
        negative,
        "data/patient.csv: cell 'CELL133', gene 'GENE7' is -2.0, but a count cannot be negative "
        "(1 such values); give the raw counts, not scaled or corrected values",
    ),
    "fractions": (
        with_patient(log_transform),
        r"data/patient\.h5ad: cell 'CELL130', gene 'GENE0' is \d\.\d+: not a whole number; this "
        r"looks like log1p of the raw counts \(\d+ such values\); give the raw counts",
    ),
    "fractions, with the counts in a layer": (
        with_patient(log_transform_with_layer),
        r"data/patient\.h5ad: .*; set the column matrix to what holds whole numbers: raw_counts",
    ),
    "not a number": (
        with_patient(lose_a_value),
        "data/patient.h5ad: cell 'CELL130', gene 'GENE0' is nan (1 such values); fill or drop it",
    ),
    "a file cut short": (
        cut_short,
        r"data/patient\.h5ad: cannot be read \(.*\); it is damaged, cut short or of another "
        r"format: fetch it again, or set the column format",
    ),
    "an obs column that is not there": (
        with_rows(HEALTHY, "patient data/patient.h5ad obs:rolle"),
        "data/patient.h5ad: obs has no column 'rolle', asked for by the sample table's column "
        "role; it has: lane",
    ),
    "symbols against Ensembl ids": (
        with_patient(name_by_ensembl),
        "the samples share only 0 genes, fewer than half of the 60 of sample healthy: healthy has "
        "GENE0 GENE1 GENE2, patient has ENSG00000000000 ENSG00000000001 ENSG00000000002; one "
        "sample has Ensembl ids and the other symbols; name the genes alike in both",
    ),
    "too few calibration cells": (
        with_settings(preprocess=SPLIT),
        "preprocess.split: only 8 calibration cells and 20 are needed; give more reference cells, "
        "change preprocess.split.validation and preprocess.split.calibration",
    ),
    "no query inside the files": (
        trust_all,
        "sample table: no query cells are left; give role query to the cells to be scored (role "
        "may be obs:COLUMN where one file holds both), or role reference to every sample to rank "
        "all cells among themselves",
    ),
    "a GPU that is not there": (
        with_settings(device="cuda"),
        "device: cuda: no CUDA device is visible; set device to auto or cpu, or run where a GPU is "
        "visible",
    ),
    "no column of library sizes": (
        with_settings(library_size={"method": "column", "column": "depth"}),
        r"sample healthy: library_size\.column is depth, but its cells have no such column \(they "
        r"have .*\); correct it or set library_size\.method: total",
    ),
    "a batch of the query alone": (
        with_rows(
            f"{HEALTHY} one",
            f"{PATIENT} two",
            header="sample path role batch",
            train={"covariates": ["batch"]},
        ),
        "config: train.covariates: batch two occurs in query samples only, so the model cannot "
        "know its effect; bring reference samples of it, leave out those query samples, or remove "
        "batch from the model",
    ),
    "a covariate whose values only the query has, inside the files": (
        with_settings(train=SETTINGS["train"] | {"covariates": ["total_counts"]}),
        r"train\.covariates: total_counts: \d+, .* occurs in query cells and in no training cell, "
        r"so the model cannot know its effect; bring reference cells of it, leave out those "
        r"samples, or remove total_counts from the model",
    ),
    "a likelihood and a setting that do not go together": (
        with_settings(train={"likelihood": "gaussian", "library_size": "latent"}),
        "config: train.library_size: latent: a Gaussian models counts at a common depth and has "
        "no library size; set it to observed",
    ),
    "limits that no cell passes": (
        with_settings(preprocess={"filter_cells": {"min_counts": 5000}}),
        r"sample (healthy|patient): none of its \d+ cells is left after filtering: .*min_counts.*; "
        r"loosen these limits in preprocess\.filter_cells or check the sample's file",
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
    pattern = expected if "\\" in expected else re.escape(expected)
    assert [bool(re.fullmatch(pattern, line)) for line in lines].count(True) == 1, shown
    # The end is where a user looks: below it stand at most Snakemake's own closing lines.
    last = max(i for i, line in enumerate(lines) if re.fullmatch(pattern, line))
    assert len(lines) - last <= 5, shown


def test_the_line_is_shown_without_the_profile_too(finished, tmp_path):
    arguments = ("--workflow-profile", "none", "--rerun-triggers", "mtime", "params")
    lines = fail(finished, tmp_path / "copy", with_patient(lose_a_value), *arguments)
    assert sum(line.startswith("data/patient.h5ad: cell 'CELL130'") for line in lines) == 1


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
