"""What runs again after a change, and what does not: the promise of the hashes in params.

All is asked of ``snakemake -n`` on a finished run. Two twins of it work side by side.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest
import yaml

from test_repository import SCHEMA, schema_leaves
from workflow_copy import OPTIONS, SAMPLES, WorkflowCopy, small_counts

pytest_plugins = ["workflow_copy"]

SCRIPTS = "workflow/scripts"

# Which rules read what a rule writes.
READ_BY = {
    "import_counts": "filter_cells write_report",
    "filter_cells": "plot_qc select_features compute_library_size write_report",
    "select_features": "compute_library_size train_vae choose_likelihood prune_latent embed_cells "
    "measure_evidence detect_anomalies detect_anomalies_again plot_latent annotate_counts "
    "score_genes score_doublets explain_anomalies choose_held_group check_injected write_report "
    "plot_anomalies plot_patterns",
    "compute_library_size": "train_vae choose_likelihood prune_latent embed_cells measure_evidence "
    "detect_anomalies detect_anomalies_again annotate_counts plot_library_size score_genes "
    "score_doublets explain_anomalies choose_held_group check_injected write_report",
    "train_vae": "choose_likelihood trace_rate_distortion prune_latent plot_training write_report",
    "choose_likelihood": "trace_rate_distortion prune_latent plot_training write_report",
    "trace_rate_distortion": "plot_rate_distortion write_report",
    "prune_latent": "embed_cells measure_evidence detect_anomalies detect_anomalies_again "
    "score_genes score_doublets explain_anomalies choose_held_group check_injected plot_pruning "
    "write_report",
    "embed_cells": "compute_umap detect_anomalies detect_anomalies_again measure_stability "
    "score_genes score_doublets explain_anomalies choose_held_group check_injected annotate_counts",
    "compute_umap": "plot_latent annotate_counts write_report",
    "measure_evidence": "write_report",
    "detect_anomalies": "measure_stability plot_latent plot_anomalies annotate_counts write_report "
    "score_genes explain_anomalies",
    "score_genes": "explain_anomalies plot_genes write_report",
    "score_doublets": "explain_anomalies annotate_counts write_report",
    "explain_anomalies": "plot_patterns annotate_counts write_report",
    "choose_held_group": "check_injected",
    "check_injected": "plot_check write_report",
    "detect_anomalies_again": "measure_stability",
    "measure_stability": "write_report",
    "plot_qc": "write_report",
    "plot_library_size": "write_report",
    "plot_training": "write_report",
    "plot_rate_distortion": "write_report",
    "plot_pruning": "write_report",
    "plot_latent": "write_report",
    "plot_anomalies": "write_report",
    "plot_patterns": "write_report",
    "plot_genes": "write_report",
    "plot_check": "write_report",
    "annotate_counts": "record_run",
    "write_report": "record_run",
    "record_run": "",
}
# Rules that exist only with train.likelihood: auto, rate_distortion.betas or stability.n_seeds.
OPTIONAL = {
    *("choose_likelihood", "trace_rate_distortion", "plot_rate_distortion"),
    *("detect_anomalies_again", "measure_stability"),
}
# The jobs of a rule that runs more than once, with every option on and without.
SAMPLES_OF = {rule: ("healthy", "patient") for rule in ("import_counts", "filter_cells")}
# The model without a group of the reference, which check_injected judges.
GROUP = "seed1-group"
FITS = SAMPLES_OF | {
    **{rule: ("seed1", GROUP) for rule in ("train_vae", "prune_latent", "embed_cells")},
    "compute_umap": ("seed1",),
}
WITHOUT_THE_GROUP = {f"{rule} {GROUP}" for rule in ("train_vae", "prune_latent", "embed_cells")}
BETAS, CANDIDATES = ("seed1-beta0.5", "seed1-beta2"), ("seed1-nb", "seed1-zinb", "seed1-poisson")
ALL_FITS = FITS | {
    "train_vae": (*CANDIDATES, *BETAS, "seed2", GROUP),
    "prune_latent": ("seed1", "seed2", GROUP),
    "embed_cells": ("seed1", "seed2", GROUP),
    "detect_anomalies_again": ("seed2",),
}
ALL = " ".join(set(READ_BY) - OPTIONAL)
# The report prints the whole config, and the record holds it.
REPORT = {"write_report", "record_run"}
PLOTS = "plot_qc plot_library_size plot_training plot_pruning plot_latent plot_anomalies "
PLOTS += "plot_patterns plot_genes plot_check"
HELD = "detect_anomalies score_genes score_doublets explain_anomalies choose_held_group "
HELD += "check_injected"
ON_A_GPU = "train_vae prune_latent embed_cells measure_evidence"
MODEL = f"{ON_A_GPU} {HELD}"
DETECTION = "detect_anomalies check_injected"
COUNTS = f"import_counts filter_cells select_features compute_library_size {MODEL} annotate_counts"


def with_all_after(rules: str, left_out=OPTIONAL) -> set[str]:
    """The rules and all that comes after them."""
    found: set[str] = set()
    waiting = rules.split()
    while waiting:
        rule = waiting.pop()
        if rule not in found | left_out:
            found.add(rule)
            waiting += READ_BY[rule].split()
    return found


def jobs_after(rules: str, jobs=FITS, left_out=OPTIONAL) -> set[str]:
    """All jobs of the rules, and of all that comes after them."""
    found = with_all_after(rules, left_out)
    named = {f"{rule} {name}" for rule in found & set(jobs) for name in jobs[rule]}
    if "choose_held_group" in found:
        named |= WITHOUT_THE_GROUP
    return found - set(jobs) | named


# Every setting changed: the rules that it reaches directly.
SETTINGS = {
    ("run", "again"): ALL,
    ("samples", "same.tsv"): "write_report",
    ("seed", 2): "select_features",
    ("device", "auto"): ON_A_GPU,
    # How much of the counts is held changes no result.
    ("memory", 2): "write_report",
    ("import.feature_type", "Peaks"): "import_counts",
    ("preprocess.filter_cells.min_counts", 21): "filter_cells",
    ("preprocess.filter_cells.max_counts", 5000): "filter_cells",
    ("preprocess.filter_cells.min_genes", 6): "filter_cells",
    ("preprocess.filter_cells.max_genes", 59): "filter_cells",
    ("preprocess.filter_cells.max_pct_mito", 30): "filter_cells",
    ("preprocess.filter_cells.max_pct_ribo", 60): "filter_cells",
    ("preprocess.filter_cells.max_pct_hb", 5): "filter_cells",
    ("preprocess.filter_cells.n_mads", None): "filter_cells",
    ("preprocess.select_features.n_features", 41): "select_features",
    ("preprocess.select_features.min_cells", 6): "select_features",
    ("preprocess.select_features.gene_list", "genes.txt"): "select_features",
    ("preprocess.select_features.batch_aware", False): "select_features",
    ("preprocess.split.validation", 0.16): "select_features",
    ("preprocess.split.calibration", 0.28): "select_features",
    ("preprocess.split.by", "cell"): "select_features",
    ("preprocess.split.min_donors", 5): "select_features",
    ("library_size.method", "median_of_ratios"): "compute_library_size",
    ("train.n_latent", 5): "train_vae",
    ("train.likelihood", "zinb"): "train_vae",
    ("train.dispersion", "gene_batch"): "train_vae",
    ("train.library_size", "latent"): "train_vae",
    ("train.decoder", "free"): "train_vae",
    ("train.n_hidden", 17): "train_vae",
    ("train.n_layers", 2): "train_vae",
    ("train.normalization", "batch"): "train_vae",
    ("train.dropout", 0.2): "train_vae",
    ("train.skip", "film"): "train_vae",
    ("train.prior", "mixture"): "train_vae",
    ("train.prior_components", 5): "train_vae",
    ("train.covariates", ("lane",)): "train_vae",
    ("train.continuous_covariates", ("lane",)): "train_vae",
    ("train.batch_size", 33): "train_vae",
    ("train.weight_decay", 101): "train_vae",
    ("train.beta", 2): "train_vae",
    ("train.kl_warmup", "cosine"): "train_vae",
    ("train.kl_warmup_steps", 101): "train_vae",
    ("train.kl_cycles", 5): "train_vae",
    ("train.free_bits", 0.05): "train_vae",
    ("train.learning_rate", 0.002): "train_vae",
    ("train.learning_rate_drops", 1): "train_vae",
    ("train.max_steps", 801): "train_vae",
    ("train.validation_interval", 26): "train_vae",
    ("train.validation_cells", 100): "train_vae",
    ("train.patience", 61): "train_vae",
    ("train.min_improvement", 0.04): "train_vae",
    # Changes no result; still a setting of the training, so a trained model is trained again.
    ("train.precision", "float32"): "train_vae",
    ("train.checkpoint_seconds", 30): "train_vae",
    ("prune.min_kl", 0.1): "prune_latent",
    ("prune.min_ablation", 0.1): "prune_latent",
    ("prune.fine_tune_steps", 51): "prune_latent",
    ("prune.fine_tune_learning_rate", 0.0002): "prune_latent",
    # Refined or not, the posterior of each cell comes from the same rule.
    ("refine.steps", 29): "measure_evidence",
    ("refine.learning_rate", 0.04): "measure_evidence",
    ("refine.for_scores", True): "embed_cells measure_evidence",
    ("evidence.samples", 40): "measure_evidence",
    ("evidence.cells", 20): "measure_evidence",
    ("anomaly.alpha", 0.05): DETECTION,
    ("anomaly.program_genes", 11): DETECTION,
    ("anomaly.contamination", 0.05): DETECTION,
    ("anomaly.by_batch", "never"): DETECTION,
    ("anomaly.guarantee", "conditional"): DETECTION,
    ("anomaly.conditional_delta", 0.2): DETECTION,
    # Folds are for a run without a query.
    ("anomaly.folds", 3): "write_report",
    ("genes.full_table", "none"): "score_genes",
    ("genes.alpha", 0.1): "score_genes",
    ("doublets.rate", 0.1): "score_doublets",
    ("check.held_out_group", False): "check_injected",
    ("check.injected", False): "write_report",
    ("report.umap_neighbors", 9): "compute_umap write_report",
}

# A changed setting that brings rules or fits: the jobs that it brings, and no others.
BROUGHT = {
    ("rate_distortion.betas", (0.5,)): "train_vae seed1-beta0.5, trace_rate_distortion, "
    "plot_rate_distortion, write_report, record_run",
    # The fit at the chosen beta is there already.
    ("rate_distortion.betas", (1, 4)): "train_vae seed1-beta4, trace_rate_distortion, "
    "plot_rate_distortion, write_report, record_run",
    ("stability.n_seeds", 2): "train_vae seed2, prune_latent seed2, embed_cells seed2, "
    "detect_anomalies_again seed2, measure_stability, write_report, record_run",
}

# An error without another setting, which is in the table.
NEVER_ALONE = {"library_size.column", "train.gaussian_variance", "train.encode_covariates"}

# Samples are neither doublets nor of a cell type.
AS_BULK = ("observations", "samples")
OF_CELLS = {"score_doublets", "choose_held_group"} | WITHOUT_THE_GROUP
OF_SAMPLES = {"correlate_samples", "plot_correlation"}

# An edited file: the rules that it reaches directly.
FILES = {
    **{f"{SCRIPTS}/{rule}.py": rule for rule in READ_BY if rule != "detect_anomalies_again"},
    f"{SCRIPTS}/make_example.py": "",  # the examples are not in this run
    f"{SCRIPTS}/make_bulk_example.py": "",
    f"{SCRIPTS}/train_vae.py": "train_vae prune_latent",
    f"{SCRIPTS}/compute_umap.py": "compute_umap annotate_counts",
    f"{SCRIPTS}/plot_latent.py": "plot_latent",
    f"{SCRIPTS}/obs_columns.py": "plot_latent plot_anomalies write_report",
    f"{SCRIPTS}/job.py": ALL,
    f"{SCRIPTS}/damaged_files.py": ALL,
    f"{SCRIPTS}/cell_ranger.py": "import_counts",
    f"{SCRIPTS}/checksums.py": "import_counts record_run",
    f"{SCRIPTS}/count_checks.py": "import_counts",
    f"{SCRIPTS}/count_formats.py": "import_counts",
    f"{SCRIPTS}/spreadsheet_names.py": "import_counts",
    f"{SCRIPTS}/transformed_counts.py": "import_counts",
    f"{SCRIPTS}/dense_formats.py": "import_counts",
    f"{SCRIPTS}/own_process.py": "import_counts",
    f"{SCRIPTS}/untrusted_files.py": "import_counts",
    f"{SCRIPTS}/join_samples.py": "select_features",
    f"{SCRIPTS}/variable_genes.py": "select_features",
    f"{SCRIPTS}/splits.py": "select_features",
    f"{SCRIPTS}/cohort.py": "select_features",
    f"{SCRIPTS}/stored_counts.py": COUNTS,
    f"{SCRIPTS}/new_hdf5.py": COUNTS,
    f"{SCRIPTS}/model_inputs.py": MODEL,
    f"{SCRIPTS}/design.py": MODEL,
    f"{SCRIPTS}/held_cells.py": HELD,
    f"{SCRIPTS}/bulk_words.py": "detect_anomalies write_report",
    f"{SCRIPTS}/latent_place.py": DETECTION,
    f"{SCRIPTS}/evidence_channels.py": DETECTION,
    f"{SCRIPTS}/enrichment.py": DETECTION,
    f"{SCRIPTS}/detection.py": DETECTION,
    f"{SCRIPTS}/gene_sets.py": f"filter_cells {DETECTION}",
    f"{SCRIPTS}/gene_tests.py": "score_genes",
    f"{SCRIPTS}/gene_panels.py": "score_genes",
    # Of bulk samples, which are not in this run.
    f"{SCRIPTS}/correlate_samples.py": "",
    f"{SCRIPTS}/plot_correlation.py": "",
    f"{SCRIPTS}/injection.py": "check_injected",
    f"{SCRIPTS}/doublets.py": "score_doublets check_injected",
    f"{SCRIPTS}/doublet_model.py": "score_doublets",
    f"{SCRIPTS}/reference_groups.py": "score_doublets explain_anomalies choose_held_group",
    f"{SCRIPTS}/reference_profile.py": "explain_anomalies",
    f"{SCRIPTS}/technical_causes.py": "explain_anomalies",
    f"{SCRIPTS}/patterns.py": "explain_anomalies",
    f"{SCRIPTS}/pattern_tables.py": "explain_anomalies",
    f"{SCRIPTS}/figure_style.py": f"{PLOTS} write_report",
    **{
        f"{SCRIPTS}/{name}.py": "write_report"
        for name in ("report_findings", "report_map", "report_page", "report_tables")
    },
    f"{SCRIPTS}/finding_columns.py": "write_report",
    f"{SCRIPTS}/stage_columns.py": "write_report",
    f"{SCRIPTS}/packed.py": "write_report",
    f"{SCRIPTS}/references.py": "write_report",
    f"{SCRIPTS}/methods.py": "write_report",
    f"{SCRIPTS}/provenance.py": "write_report record_run",
    f"{SCRIPTS}/reproduce.py": "",
    f"{SCRIPTS}/omics_vae/__init__.py": f"{COUNTS} write_report",
    f"{SCRIPTS}/omics_vae/adam.py": MODEL,
    f"{SCRIPTS}/omics_vae/compiled.py": MODEL,
    f"{SCRIPTS}/omics_vae/counts.py": f"{COUNTS} write_report",
    f"{SCRIPTS}/omics_vae/data.py": MODEL,
    f"{SCRIPTS}/omics_vae/fused.py": MODEL,
    f"{SCRIPTS}/omics_vae/inference.py": MODEL,
    f"{SCRIPTS}/omics_vae/kernels.py": MODEL,
    f"{SCRIPTS}/omics_vae/likelihoods.py": MODEL,
    f"{SCRIPTS}/omics_vae/model.py": MODEL,
    f"{SCRIPTS}/omics_vae/priors.py": MODEL,
    f"{SCRIPTS}/omics_vae/checkpoint.py": "train_vae prune_latent",
    f"{SCRIPTS}/omics_vae/collapse.py": "train_vae prune_latent",
    f"{SCRIPTS}/omics_vae/initialisation.py": "train_vae prune_latent",
    f"{SCRIPTS}/omics_vae/training.py": "train_vae prune_latent",
    f"{SCRIPTS}/omics_vae/pruning.py": "train_vae prune_latent",
    f"{SCRIPTS}/omics_vae/anomaly.py": f"{DETECTION} score_genes score_doublets explain_anomalies",
    **{
        f"workflow/report/{file}": "write_report"
        for file in ("report.html", "report.css", "page.js", "table.js", "map.js")
    },
    # What no result depends on.
    f"{SCRIPTS}/configuration.py": "",
    f"{SCRIPTS}/check_inputs.py": "",
    f"{SCRIPTS}/import_closure.py": "",
    f"{SCRIPTS}/why.py": "",
    f"{SCRIPTS}/slurm_limits.py": "",
    f"{SCRIPTS}/terminal.py": "",
    "workflow/report/qc.rst": "",
    "workflow/rules/train.smk": "",
    "workflow/schemas/config.schema.yaml": "",
    "Snakefile": "",
    "config.yaml": "",
    "profiles/default/config.yaml": "",
    "envs/anomics.yaml": "",  # without --sdm conda
    "README.md": "",
    "tests/test_splits.py": "",
}


def jobs_of(code: int, output: str) -> set[str]:
    """The rules that would run, each with its sample or fit where it has one."""
    assert code == 0, output
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)*)", output, re.MULTILINE)
    names = set()
    for rule, details in jobs:
        name = re.search(r"wildcards: (?:sample|fit)=(\S+)", details)
        names.add(f"{rule} {name[1]}" if name else rule)
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
        content = {name: list(value) if isinstance(value, tuple) else value}
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
            (twin.folder / file).write_text("GENE1\n")
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
        settings = [*SETTINGS, *BROUGHT, AS_BULK]
        answers |= {key: pool.submit(ask, Planner.after_setting, *key) for key in settings}
    while not planners.empty():
        planners.get().close()
    return {change: answer.result() for change, answer in answers.items()}


@pytest.mark.parametrize("file", FILES)
def test_an_edited_file_reruns_what_depends_on_it(file, plans):
    assert plans[file] == jobs_after(FILES[file])


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
def test_a_changed_setting_reruns_what_depends_on_it(setting, plans):
    expected = jobs_after(SETTINGS[setting]) | REPORT
    if setting[0] == "seed":
        expected = {job.replace("seed1", f"seed{setting[1]}") for job in expected}
    assert plans[setting] == expected


@pytest.mark.parametrize("setting", BROUGHT, ids=lambda setting: setting[0])
def test_more_betas_or_seeds_bring_their_own_jobs_only(setting, plans):
    assert plans[setting] == set(BROUGHT[setting].split(", "))


def test_cells_taken_for_samples_are_joined_anew(plans):
    assert plans[AS_BULK] == jobs_after("select_features plot_qc") - OF_CELLS | OF_SAMPLES


def test_every_setting_is_in_a_table():
    changed = {key for key, _ in [*SETTINGS, *BROUGHT, AS_BULK]}
    assert changed | NEVER_ALONE == set(schema_leaves(SCHEMA))
    assert not changed & NEVER_ALONE


def test_every_file_of_the_scripts_is_in_the_table(finished):
    found = (finished.folder / SCRIPTS).rglob("*.py")
    named = {path.relative_to(finished.folder).as_posix() for path in found}
    assert named == {file for file in FILES if file.startswith(SCRIPTS)}


def rules_of(run: WorkflowCopy) -> set[str]:
    code, output = run.run("--list-rules")
    assert code == 0
    listed = re.findall(r"^(?:local)?(\w+)$", output, re.MULTILINE)
    return set(listed) - {"all", "make_example", "make_bulk_example"}


def test_every_rule_is_in_the_table(finished, everything):
    assert rules_of(finished) == set(READ_BY) - OPTIONAL
    assert rules_of(everything) == set(READ_BY)


# ---- with every option on


def all_jobs_after(rules: str) -> set[str]:
    return jobs_after(rules, ALL_FITS, left_out=set())


# For the choice of the likelihood.
WAITING = {f"train_vae {fit}" for fit in (*BETAS, "seed2", GROUP)}
CURVE = {"trace_rate_distortion", "plot_rate_distortion"} | REPORT
STABILITY = {"measure_stability"} | REPORT
CHOSEN = all_jobs_after("choose_likelihood") | WAITING
WITH_EVERYTHING = {
    f"{SCRIPTS}/choose_likelihood.py": CHOSEN,
    f"{SCRIPTS}/trace_rate_distortion.py": CURVE,
    f"{SCRIPTS}/plot_rate_distortion.py": {"plot_rate_distortion"} | REPORT,
    f"{SCRIPTS}/measure_stability.py": STABILITY,
    f"{SCRIPTS}/detect_anomalies.py": all_jobs_after("detect_anomalies detect_anomalies_again"),
    f"{SCRIPTS}/choose_held_group.py": all_jobs_after("choose_held_group"),
    f"{SCRIPTS}/design.py": all_jobs_after("train_vae"),
    # The draws that the evidence of the candidates stands on, too.
    ("evidence.samples", 40): CHOSEN | {"measure_evidence"},
    ("evidence.cells", 20): {"measure_evidence"} | REPORT,
    ("rate_distortion.betas", (0.5, 2, 4)): CURVE | {"train_vae seed1-beta4"},
    ("rate_distortion.betas", (2,)): CURVE,
    ("stability.n_seeds", 3): STABILITY
    | {f"{rule} seed3" for rule in ("train_vae", "prune_latent", "embed_cells")}
    | {"detect_anomalies_again seed3"},
    # One of the candidates is trained as the main fit, and all others anew with its likelihood.
    ("train.likelihood", "nb"): all_jobs_after("train_vae")
    - {"choose_likelihood", *(f"train_vae {fit}" for fit in CANDIDATES)}
    | {"train_vae seed1"},
    ("train.prior", "normal"): all_jobs_after("train_vae"),
    ("anomaly.alpha", 0.05): all_jobs_after(f"{DETECTION} detect_anomalies_again"),
}


@pytest.fixture(scope="module")
def more_plans(everything, tmp_path_factory) -> dict:
    planner = Planner(everything.twin(tmp_path_factory.mktemp("more") / "twin"))
    answers = {
        change: planner.after_edit(change)
        if isinstance(change, str)
        else planner.after_setting(*change)
        for change in WITH_EVERYTHING
    }
    planner.close()
    return answers


@pytest.mark.parametrize("change", WITH_EVERYTHING, ids=str)
def test_with_every_option_on_only_what_depends_reruns(change, more_plans):
    assert more_plans[change] == WITH_EVERYTHING[change]


def test_a_second_run_with_every_option_on_does_nothing(everything):
    assert planned(everything) == set()


# ---- what is no change, and what is one of the inputs


@pytest.fixture
def twin(finished, tmp_path) -> WorkflowCopy:
    return finished.twin(tmp_path / "twin")


def test_a_second_run_does_nothing(twin):
    code, output = twin.run()
    assert code == 0
    assert "Nothing to be done" in output


def test_a_touch_of_all_that_is_no_result_reruns_nothing(twin):
    """As in a fresh clone, to which results and .snakemake are copied with their dates."""
    for path in twin.folder.rglob("*"):
        if not {"results", ".snakemake"} & set(path.parts):
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


JOINED = jobs_after("select_features") | {"plot_qc"} | REPORT


def with_third_sample(twin: WorkflowCopy) -> None:
    small_counts(40, seed=3).write_h5ad(twin.folder / "data" / "third.h5ad")
    twin.write_samples(*SAMPLES, "third data/third.h5ad query")


def test_a_new_sample_reruns_only_itself_and_what_is_joined(twin):
    with_third_sample(twin)
    assert planned(twin) == {"import_counts third", "filter_cells third"} | JOINED


def test_a_sample_that_went_reruns_only_what_is_joined(twin):
    with_third_sample(twin)
    code, output = twin.run("results/small/preprocess/third.h5ad")
    assert code == 0, output
    assert twin.run("--touch")[0] == 0  # all results are now recorded as made of three samples
    assert planned(twin) == set()
    twin.write_samples(*SAMPLES)
    assert planned(twin) == JOINED


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
    (folder / "genes.tsv").write_text("".join(f"ID{g}\tGENE{g}\n" for g in range(5)))
    (folder / "barcodes.tsv").write_text("A\nB\n")
    head = "%%MatrixMarket matrix coordinate integer general\n5 2 2\n"
    (folder / "matrix.mtx").write_text(head + "1 1 5\n2 2 5\n")
    twin.write_samples(*SAMPLES, "third data/third query")
    target = "results/small/import/third.h5ad"
    code, output = twin.run(target)
    assert code == 0, output
    assert planned(twin, target) == set()
    (folder / "matrix.mtx").write_text(head + "1 1 5\n2 2 7\n")
    assert planned(twin, target) == {"import_counts third"}


# ---- what Snakemake has recorded of the results


def records(twin: WorkflowCopy) -> list[Path]:
    found = [path for path in (twin.folder / ".snakemake/metadata").rglob("*") if path.is_file()]
    assert found
    return found


def test_a_record_knows_its_own_form_but_no_version_of_snakemake(finished):
    """So an upgrade reruns nothing, as long as it writes records of the same form."""
    for path in records(finished):
        record = json.loads(path.read_text())
        assert [key for key in record if "version" in key] == ["record_format_version"]
        assert importlib.metadata.version("snakemake") not in path.read_text()


@pytest.mark.parametrize(("newer", "is_seen"), [(-1, False), (1, True)])
def test_records_of_another_form_rerun_nothing(newer, is_seen, twin):
    """Of an older form, as after an upgrade, they show no changed setting either."""
    for path in records(twin):
        record = json.loads(path.read_text())
        record["record_format_version"] += newer
        path.write_text(json.dumps(record | ({"unheard_of": 1} if is_seen else {})))
    assert planned(twin) == set()
    twin.write_config(anomaly={"alpha": 0.05, "program_genes": 10})
    assert planned(twin) == (jobs_after(DETECTION) if is_seen else set())


def test_results_copied_without_their_records_are_judged_by_dates(twin):
    """A changed setting is not seen, and an input that is newer counts as changed."""
    shutil.rmtree(twin.folder / ".snakemake")
    assert planned(twin) == set()
    twin.write_config(anomaly={"alpha": 0.05, "program_genes": 10})
    assert planned(twin) == set()
    (twin.folder / "data" / "patient.h5ad").touch()
    assert planned(twin) == {"import_counts patient", "filter_cells patient"} | JOINED


# ---- the environment file


CONDA = """#!/bin/sh
case "$*" in
    info*) echo '{"platform": "linux-64", "conda_prefix": "/conda"}' ;;
    config*) echo '{"get": {"channel_priority": "strict"}}' ;;
    --version) echo "conda 24.7.1" ;;
esac
"""


@pytest.fixture
def conda(tmp_path, monkeypatch) -> None:
    """A command that answers what Snakemake asks before it would make an environment."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "conda").write_text(CONDA)
    (tmp_path / "bin" / "conda").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_an_edited_environment_reruns_all_with_conda_and_nothing_without(twin, conda):
    assert planned(twin, "--sdm", "conda") == jobs_after(ALL)  # made in another environment
    assert twin.run("--touch", "--sdm", "conda")[0] == 0  # kept nevertheless
    assert planned(twin, "--sdm", "conda") == set()
    with edited(twin.folder / "envs" / "anomics.yaml"):
        assert planned(twin, "--sdm", "conda") == jobs_after(ALL)
    assert planned(twin) == jobs_after(ALL)  # and back
