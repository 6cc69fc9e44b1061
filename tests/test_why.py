"""``make why`` names the cause of each job that would run, and nothing where none would."""

import re
import subprocess
import sys
from base64 import urlsafe_b64encode

import pytest
import yaml

import why
from conftest import ROOT
from workflow_copy import SAMPLES, SETTINGS, WorkflowCopy, small_counts

pytest_plugins = ["workflow_copy"]

NOTHING = "Nothing to be done: no change is seen in what results depend on."


def asked(copy: WorkflowCopy, *arguments: str) -> str:
    call = [sys.executable, "workflow/scripts/why.py", *arguments, "--configfile", "my.yaml"]
    done = subprocess.run(
        call, cwd=copy.folder, env=copy.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def causes(copy: WorkflowCopy, *arguments: str) -> dict[str, str]:
    """The jobs of each cause, in one line."""
    parts = re.findall(r"^(\S.*):\n((?:    .*\n)+)", asked(copy, *arguments), re.MULTILINE)
    return {cause: " ".join(jobs.split()) for cause, jobs in parts}


@pytest.fixture
def twin(finished, tmp_path) -> WorkflowCopy:
    return finished.twin(tmp_path / "twin")


def test_after_a_run_there_is_nothing_to_be_done(finished):
    assert asked(finished).strip() == NOTHING


def test_before_a_run_all_jobs_are_not_made_yet(tmp_path):
    found = asked(WorkflowCopy.make(tmp_path / "new"))
    assert found.splitlines()[0] == "32 of 32 jobs would run."
    assert re.findall(r"^\S.*:$", found, re.MULTILINE) == ["not made yet:"]


def test_an_edited_module_is_named_with_the_rules_that_import_it(twin):
    with open(twin.folder / "workflow/scripts/omics_vae/training.py", "a") as module:
        module.write("# a comment\n")
    assert asked(twin).splitlines()[0] == "24 of 32 jobs would run."
    assert causes(twin) == {
        "workflow/scripts/omics_vae/training.py was edited": "train_vae (seed1, seed1-group), "
        "prune_latent (seed1, seed1-group)",
        "an earlier stage runs again": "plot_training, embed_cells (seed1, seed1-group), "
        "measure_evidence, plot_pruning, choose_held_group, compute_umap (seed1), "
        "detect_anomalies, score_doublets, plot_anomalies, plot_latent, score_genes, "
        "explain_anomalies, plot_genes, annotate_counts, plot_patterns, check_injected, "
        "plot_check, write_report, record_run",
    }


def test_a_file_that_the_script_reads_is_named_too(twin):
    with open(twin.folder / "workflow/report/report.html", "a") as template:
        template.write("<!-- a comment -->\n")
    assert causes(twin) == {
        "workflow/report/report.html was edited": "write_report",
        "an earlier stage runs again": "record_run",
    }


def test_a_new_import_is_named(twin):
    script = twin.folder / "workflow/scripts/plot_qc.py"
    script.write_text(script.read_text() + "import cohort\n")
    assert causes(twin) == {
        "workflow/scripts/plot_qc.py was edited": "plot_qc",
        "workflow/scripts/cohort.py is used now": "plot_qc",
        "an earlier stage runs again": "write_report, record_run",
    }


def test_a_changed_setting_is_named_with_both_values(twin):
    twin.write_config(train=SETTINGS["train"] | {"n_latent": 5})
    found = causes(twin)
    assert list(found) == [
        "the setting train.n_latent was changed from 4 to 5",
        "an earlier stage runs again",
    ]
    assert found["the setting train.n_latent was changed from 4 to 5"] == (
        "train_vae (seed1, seed1-group), prune_latent (seed1, seed1-group), write_report, "
        "record_run"
    )


CHANGED = {
    "device": "auto",
    "memory": 2,
    "import": {"feature_type": "Peaks"},
    "preprocess": {
        "filter_cells": {"min_counts": 21, "min_genes": 6},
        "select_features": {"n_features": 41, "gene_list": "samples.tsv"},
        "split": {"validation": 0.16, "calibration": 0.3},
    },
    "library_size": {"method": "median_of_ratios"},
    "train": SETTINGS["train"] | {"n_latent": 3, "skip": "film", "kl_warmup": "cosine"},
    "prune": {"fine_tune_steps": 50, "min_kl": 0.1},
    "refine": {"steps": 29},
    "evidence": {"samples": 40},
    "anomaly": {"alpha": 0.1, "program_genes": 9},
    "genes": {"full_table": "none"},
    "doublets": {"rate": 0.1},
    "report": {"umap_neighbors": 9},
}


def leaves(config: dict) -> dict[str, object]:
    return {
        ".".join([*path, key]): value
        for path, held in why.sections(config)
        for key, value in held.items()
        if not isinstance(value, dict)
    }


def test_every_setting_is_called_by_its_name_in_the_config(twin):
    twin.write_config(**CHANGED)
    found = causes(twin)
    assert "its parameter" not in str(found)
    named = {match[1] for cause in found if (match := re.match(r"the setting (\S+) was", cause))}
    before = leaves(SETTINGS)
    assert named == {name for name, value in leaves(CHANGED).items() if value != before.get(name)}


def test_another_seed_is_the_cause_and_not_the_files_that_it_takes_the_place_of(twin):
    twin.write_config(seed=2)
    assert set(causes(twin)) == {
        "the setting seed was changed from 1 to 2",
        "not made yet",
        "an earlier stage runs again",
    }


def test_a_new_sample_is_not_made_yet(twin):
    small_counts(40, seed=3).write_h5ad(twin.folder / "data" / "third.h5ad")
    twin.write_samples(*SAMPLES, "third data/third.h5ad query")
    found = causes(twin)
    assert found.pop("an earlier stage runs again").startswith("plot_qc, select_features, ")
    assert found == {
        "not made yet": "import_counts (third), filter_cells (third)",
        "the sample table was changed: third is new": "record_run",
    }


def test_a_sample_that_went_is_told_by_the_files_that_are_missed(twin):
    small_counts(40, seed=3).write_h5ad(twin.folder / "data" / "third.h5ad")
    twin.write_samples(*SAMPLES, "third data/third.h5ad query")
    target = "results/small/preprocess/counts.h5ad"
    assert twin.run(target)[0] == 0
    twin.write_samples(*SAMPLES)
    assert causes(twin, target) == {
        "the set of input files changed (- results/small/preprocess/third.h5ad)": "select_features"
    }


def test_a_changed_role_is_a_change_of_the_sample_table(twin):
    twin.write_samples(SAMPLES[0], "patient data/patient.h5ad obs:role")
    change = "the sample table was changed: role of patient, changed from query to obs:role"
    assert causes(twin)[change] == "import_counts (patient), record_run"


def test_new_counts_are_other_content_and_a_touched_file_is_nothing(twin):
    for path in [*twin.folder.rglob("workflow/**/*"), *twin.folder.glob("data/*")]:
        path.touch()
    assert asked(twin).strip() == NOTHING
    small_counts(60, seed=4).write_h5ad(twin.folder / "data" / "patient.h5ad")
    assert causes(twin)["the file data/patient.h5ad has other content"] == "import_counts (patient)"


def test_a_cause_of_its_own_is_told_of_a_job_after_another(twin):
    """Snakemake's reason is then the other job alone."""
    twin.write_config(anomaly={"alpha": 0.1, "program_genes": 10})
    small_counts(60, seed=4).write_h5ad(twin.folder / "data" / "patient.h5ad")
    found = causes(twin)
    assert found["the file data/patient.h5ad has other content"]
    assert found["the setting anomaly.alpha was changed from 0.2 to 0.1"] == (
        "detect_anomalies, check_injected, write_report, record_run"
    )


def test_a_deleted_result_is_missing(twin):
    (twin.folder / "results/small/report.html").unlink()
    assert causes(twin) == {
        "results/small/report.html is missing": "write_report",
        "an earlier stage runs again": "record_run",
    }


def test_a_result_that_was_being_written_when_the_run_was_killed(twin):
    name = "results/small/figures/qc.pdf"
    marker = twin.folder / ".snakemake" / "incomplete" / urlsafe_b64encode(name.encode()).decode()
    marker.write_text("{}")
    assert causes(twin) == {
        f"the last run was stopped while it wrote {name}": "plot_qc",
        "an earlier stage runs again": "write_report, record_run",
    }


def test_results_without_their_records_are_told(twin):
    """The records say how a result was made; without them, no change of that is seen."""
    for record in (twin.folder / ".snakemake" / "metadata").rglob("*"):
        record.unlink()
    twin.write_config(train=SETTINGS["train"] | {"n_latent": 5})
    found = asked(twin)
    assert found.startswith(NOTHING)
    assert "a changed setting, script or set of files is not seen:\n    import_counts (" in found


def test_a_mistake_in_the_config_is_one_error(twin):
    (twin.folder / "my.yaml").write_text(yaml.safe_dump({**SETTINGS, "nonsense": 1}))
    call = [sys.executable, "workflow/scripts/why.py", "--configfile", "my.yaml"]
    done = subprocess.run(call, cwd=twin.folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "config: nonsense: unknown key" in done.stderr


def test_make_why_asks_with_the_config_as_make_run_does():
    command = subprocess.run(
        ["make", "-n", "why", "CONFIG=my.yaml", "VENV=/nowhere"],
        **{"cwd": ROOT, "capture_output": True, "text": True},
    )
    assert "python workflow/scripts/why.py --configfile my.yaml" in command.stdout


# ---- values without names


def test_values_are_paired_by_their_keys_then_by_their_type():
    before = ["cpu", {"a": 1, "b": 2}, 1, {"c.py": "0"}]
    after = {"files": {"c.py": "1"}, "seed": 2, "settings": {"a": 1, "b": 3}, "device": "auto"}
    assert set(map(repr, why.paired(before, after))) == {
        repr(("settings", before[1], after["settings"])),
        repr(("files", before[3], after["files"])),
        repr(("seed", 1, 2)),
        repr(("device", "cpu", "auto")),
    }


def test_what_has_no_partner_came_or_went():
    assert list(why.paired([], {"x": 1})) == [("x", why.ABSENT, 1)]
    assert list(why.paired([1], {})) == [("", 1, why.ABSENT)]


def test_differences_are_found_at_any_depth():
    before, after = {"a": {"b": 1, "c": [2]}, "d": 0}, {"a": {"b": 1, "c": [3]}, "e": 0}
    assert list(why.differences(before, after)) == [
        (("a", "c"), [2], [3]),
        (("d",), 0, why.ABSENT),
        (("e",), why.ABSENT, 0),
    ]


CONFIG = {"seed": 1, "train": {"beta": 1, "n": 2}, "anomaly": {"alpha": 0.1, "folds": 5}, "m": {}}


@pytest.mark.parametrize(
    ("name", "value", "keys"),
    [
        ("settings", {"alpha": 0.1}, ("anomaly",)),
        ("config", CONFIG, ()),
        ("seed", 1, ("seed",)),
        ("beta", 1, ("train", "beta")),
        ("beta", 0.5, None),
        ("fold", None, None),
        ("other", {"x": 1}, None),
    ],
)
def test_a_parameter_is_a_setting_where_the_config_holds_it(name, value, keys):
    assert why.place(name, value, CONFIG) == keys


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (None, {"steps": 5}, "the settings of refine count now"),
        ({"steps": 5}, None, "the settings of refine count no more"),
        ({"steps": 5}, {"steps": 6}, "the setting refine.steps was changed from 5 to 6"),
    ],
)
def test_a_section_may_come_and_go(before, after, words):
    config = {"refine": {"steps": 6, "rate": 1}}
    assert list(why.parameter_causes([before], {"refine": after}, None, config)) == [words]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (True, None, "changed from true to null"),
        ("a", 0.5, "changed from a to 0.5"),
        (why.ABSENT, [1], "added: [1]"),
        (1, why.ABSENT, "removed: 1"),
    ],
)
def test_values_are_shown_as_in_the_config(before, after, words):
    assert why.moved(before, after) == words


def test_an_older_hash_of_all_files_is_an_edit_of_some():
    causes = why.parameter_causes(["0123"], {"code": {"workflow/a.py": "1"}}, None, {})
    assert list(causes) == ["a script or module was edited"]


def test_a_long_list_of_files_is_cut():
    assert why.listed(["b", "a"]) == "a, b"
    assert why.listed("fedcba") == "a, b, c, d and 2 more"
