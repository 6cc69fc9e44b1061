"""What runs again after a change, and what does not: the promise of the hash in params.

All is asked of ``snakemake -n`` on a finished run. Two twins of it work side by side.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest
import yaml

from workflow_copy import OPTIONS, SAMPLES, WorkflowCopy, small_counts

pytest_plugins = ["workflow_copy"]

SCRIPTS = "workflow/scripts"

# Which rules read what a rule writes.
READ_BY = {
    "import_counts": "filter_cells write_report",
    "filter_cells": "plot_qc select_features compute_library_size write_report",
    "select_features": "compute_library_size train_vae prune_latent embed_cells detect_anomalies "
    "plot_latent annotate_counts write_report",
    "compute_library_size": "train_vae prune_latent embed_cells detect_anomalies annotate_counts "
    "plot_library_size write_report",
    "train_vae": "prune_latent plot_training write_report",
    "prune_latent": "embed_cells detect_anomalies plot_pruning write_report",
    "embed_cells": "compute_umap detect_anomalies annotate_counts",
    "compute_umap": "plot_latent annotate_counts",
    "detect_anomalies": "plot_latent plot_anomalies annotate_counts write_report",
    "plot_qc": "write_report",
    "plot_library_size": "write_report",
    "plot_training": "write_report",
    "plot_pruning": "write_report",
    "plot_latent": "write_report",
    "plot_anomalies": "write_report",
    "annotate_counts": "",
    "write_report": "",
}
ALL = " ".join(READ_BY)
PLOTS = "plot_qc plot_library_size plot_training plot_pruning plot_latent plot_anomalies"
MODEL = "train_vae prune_latent embed_cells detect_anomalies"


def with_all_after(rules: str) -> set[str]:
    """The rules and all that comes after them."""
    found: set[str] = set()
    waiting = rules.split()
    while waiting:
        rule = waiting.pop()
        if rule not in found:
            found.add(rule)
            waiting += READ_BY[rule].split()
    return found


# A changed setting: the rules that it reaches directly. The report prints the whole config.
SETTINGS = {
    ("run", "again"): ALL,
    ("samples", "same.tsv"): "write_report",
    ("seed", 2): "select_features",
    ("device", "auto"): MODEL,
    ("import.feature_type", "Peaks"): "import_counts",
    ("preprocess.filter_cells.min_counts", 21): "filter_cells",
    ("preprocess.filter_cells.n_mads", None): "filter_cells",
    ("preprocess.select_features.n_features", 41): "select_features",
    ("preprocess.select_features.gene_list", "genes.txt"): "select_features",
    ("preprocess.split.calibration", 0.3): "select_features",
    ("library_size.method", "median_of_ratios"): "compute_library_size",
    ("train.n_latent", 5): "train_vae",
    ("train.learning_rate", 0.002): "train_vae",
    # Changes no result; still a setting of the training, so a trained model is trained again.
    ("train.checkpoint_seconds", 30): "train_vae",
    ("prune.min_kl", 0.1): "prune_latent",
    ("anomaly.alpha", 0.05): "detect_anomalies",
    ("report.umap_neighbors", 9): "compute_umap write_report",
}

# An edited file: the rules that it reaches directly.
FILES = {
    **{f"{SCRIPTS}/{rule}.py": rule for rule in READ_BY},
    f"{SCRIPTS}/make_example.py": "",  # the example is not in this run
    f"{SCRIPTS}/train_vae.py": "train_vae prune_latent",
    f"{SCRIPTS}/compute_umap.py": "compute_umap annotate_counts",
    f"{SCRIPTS}/job.py": ALL,
    f"{SCRIPTS}/cell_ranger.py": "import_counts",
    f"{SCRIPTS}/count_checks.py": "import_counts",
    f"{SCRIPTS}/count_formats.py": "import_counts",
    f"{SCRIPTS}/dense_formats.py": "import_counts",
    f"{SCRIPTS}/join_samples.py": "select_features",
    f"{SCRIPTS}/splits.py": "select_features",
    f"{SCRIPTS}/model_inputs.py": MODEL,
    f"{SCRIPTS}/latent_place.py": "detect_anomalies",
    f"{SCRIPTS}/evidence_channels.py": "detect_anomalies",
    f"{SCRIPTS}/figure_style.py": PLOTS,
    f"{SCRIPTS}/report_tables.py": "write_report",
    f"{SCRIPTS}/run_record.py": "write_report",
    f"{SCRIPTS}/omics_vae/__init__.py": MODEL,
    f"{SCRIPTS}/omics_vae/data.py": MODEL,
    f"{SCRIPTS}/omics_vae/inference.py": MODEL,
    f"{SCRIPTS}/omics_vae/likelihoods.py": MODEL,
    f"{SCRIPTS}/omics_vae/model.py": MODEL,
    f"{SCRIPTS}/omics_vae/priors.py": MODEL,
    f"{SCRIPTS}/omics_vae/training.py": "train_vae prune_latent",
    f"{SCRIPTS}/omics_vae/pruning.py": "train_vae prune_latent",
    f"{SCRIPTS}/omics_vae/anomaly.py": "detect_anomalies",
    "workflow/report/report.html": "write_report",
    # What no result depends on.
    f"{SCRIPTS}/configuration.py": "",
    f"{SCRIPTS}/import_closure.py": "",
    "workflow/report/qc.rst": "",
    "workflow/rules/train.smk": "",
    "workflow/schemas/config.schema.yaml": "",
    "Snakefile": "",
    "config.yaml": "",
    "profiles/default/config.yaml": "",
    "README.md": "",
    "tests/test_splits.py": "",
}


def jobs_of(code: int, output: str) -> set[str]:
    """The rules that would run, each with its sample where it has one."""
    assert code == 0, output
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)*)", output, re.MULTILINE)
    names = set()
    for rule, details in jobs:
        sample = re.search(r"wildcards: sample=(\S+)", details)
        names.add(f"{rule} {sample[1]}" if sample else rule)
    assert names or "Nothing to be done" in output
    return names - {"all"}


def planned(copy: WorkflowCopy, *arguments: str) -> set[str]:
    return jobs_of(*copy.run("-n", *arguments))


class Planner:
    """A twin of the finished run, and a process beside it that answers with its dry runs."""

    def __init__(self, twin: WorkflowCopy):
        self.folder = twin.folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "dry_runs.py")],
            cwd=twin.folder,
            env=twin.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def planned(self, *arguments: str) -> set[str]:
        print(json.dumps(["-n", *OPTIONS, *arguments]), file=self.process.stdin, flush=True)
        return jobs_of(*json.loads(self.process.stdout.readline()))

    def after_edit(self, file: str) -> set[str]:
        with edited(self.folder / file):
            return self.planned()

    def after_setting(self, key: str, value) -> set[str]:
        *sections, name = key.split(".")
        content = {name: value}
        for section in reversed(sections):
            content = {section: content}
        (self.folder / "over.yaml").write_text(yaml.safe_dump(content))
        return self.planned("--configfile", "my.yaml", "over.yaml")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@contextmanager
def edited(path: Path):
    """A comment at the end of a file, and then the file as it was, date included."""
    before, status = path.read_bytes(), path.stat()
    comment = b"<!-- a comment -->\n" if path.suffix == ".html" else b"# a comment\n"
    path.write_bytes(before + comment)
    yield
    path.write_bytes(before)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def plans(finished, tmp_path_factory) -> dict:
    """For every change of the two tables, the jobs that it would bring."""
    planners: Queue[Planner] = Queue()
    folder = tmp_path_factory.mktemp("twins")
    for name in ("one", "two"):
        twin = finished.twin(folder / name)
        (twin.folder / "tests").mkdir()
        for file in ("README.md", "tests/test_splits.py", "genes.txt"):
            (twin.folder / file).write_text("# GENE1\n")
        (twin.folder / "same.tsv").write_bytes((twin.folder / "samples.tsv").read_bytes())
        planners.put(Planner(twin))

    def ask(question: Callable, *arguments) -> set[str]:
        planner = planners.get()
        try:
            return question(planner, *arguments)
        finally:
            planners.put(planner)

    with ThreadPoolExecutor(max_workers=2) as pool:
        answers = {file: pool.submit(ask, Planner.after_edit, file) for file in FILES}
        answers |= {key: pool.submit(ask, Planner.after_setting, *key) for key in SETTINGS}
    while not planners.empty():
        planners.get().close()
    return {change: answer.result() for change, answer in answers.items()}


def in_both_samples(rules: set[str]) -> set[str]:
    """import_counts and filter_cells run once a sample."""
    by_sample = {"import_counts", "filter_cells"}
    return rules - by_sample | {
        f"{rule} {sample}" for rule in rules & by_sample for sample in ("healthy", "patient")
    }


@pytest.mark.parametrize("file", FILES)
def test_an_edited_file_reruns_what_depends_on_it(file, plans):
    assert plans[file] == in_both_samples(with_all_after(FILES[file]))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
def test_a_changed_setting_reruns_what_depends_on_it(setting, plans):
    expected = with_all_after(SETTINGS[setting]) | {"write_report"}
    assert plans[setting] == in_both_samples(expected)


def test_every_file_of_the_scripts_is_in_the_table(finished):
    found = (finished.folder / SCRIPTS).rglob("*.py")
    named = {path.relative_to(finished.folder).as_posix() for path in found}
    assert named == {file for file in FILES if file.startswith(SCRIPTS)}


def test_every_rule_is_in_the_table(finished):
    code, output = finished.run("--list-rules")
    assert code == 0
    listed = re.findall(r"^(?:local)?(\w+)$", output, re.MULTILINE)
    assert set(READ_BY) == set(listed) - {"all", "make_example"}


@pytest.fixture
def twin(finished, tmp_path) -> WorkflowCopy:
    return finished.twin(tmp_path / "twin")


def test_a_second_run_does_nothing(twin):
    code, output = twin.run()
    assert code == 0
    assert "Nothing to be done" in output


def test_a_touch_reruns_nothing(twin):
    for path in [*twin.folder.rglob("workflow/**/*"), *twin.folder.glob("data/*")]:
        path.touch()
    assert planned(twin) == set()


def test_the_same_bytes_written_anew_rerun_nothing(twin):
    """As a git checkout of another branch and back does, here to inputs and results as well."""
    files = [path for path in twin.folder.rglob("*") if ".snakemake" not in path.parts]
    for path in files:
        if path.is_file():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    assert planned(twin) == set()


JOINED = with_all_after("select_features") | {"plot_qc", "write_report"}


def test_a_new_sample_reruns_only_itself_and_what_is_joined(twin):
    small_counts(40, seed=3).write_h5ad(twin.folder / "data" / "third.h5ad")
    twin.write_samples(*SAMPLES, "third data/third.h5ad query")
    assert planned(twin) == {"import_counts third", "filter_cells third"} | JOINED


def test_new_counts_of_a_sample_rerun_only_it_and_what_is_joined(twin):
    small_counts(60, seed=4).write_h5ad(twin.folder / "data" / "patient.h5ad")
    assert planned(twin) == {"import_counts patient", "filter_cells patient"} | JOINED


def test_another_role_reruns_only_that_sample_and_what_is_joined(twin):
    twin.write_samples(SAMPLES[0], "patient data/patient.h5ad obs:role")
    assert planned(twin) == {"import_counts patient", "filter_cells patient"} | JOINED


def test_a_change_inside_a_folder_is_seen(twin):
    """Snakemake itself looks at a folder's date only, which an overwritten file does not change."""
    folder = twin.folder / "data" / "third"
    folder.mkdir()
    (folder / "genes.tsv").write_text("".join(f"ID{g}\tGENE{g}\n" for g in range(3)))
    (folder / "barcodes.tsv").write_text("A\nB\n")
    head = "%%MatrixMarket matrix coordinate integer general\n3 2 2\n"
    (folder / "matrix.mtx").write_text(head + "1 1 5\n2 2 5\n")
    twin.write_samples(*SAMPLES, "third data/third query")
    target = "results/small/import/third.h5ad"
    code, output = twin.run(target)
    assert code == 0, output
    assert planned(twin, target) == set()
    (folder / "matrix.mtx").write_text(head + "1 1 5\n2 2 7\n")
    assert planned(twin, target) == {"import_counts third"}
