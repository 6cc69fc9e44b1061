"""The pipeline used from elsewhere: as a module on GitHub, and in another working directory."""

import ast
import re
import shutil
import subprocess

import pytest
import yaml

from workflow_copy import HEADER, PARTS, ROOT, RUN, SETTINGS, WorkflowCopy

HEALTHY, PATIENT = (f"results/{RUN}/preprocess/{name}.h5ad" for name in ("healthy", "patient"))
# The namespace of the module shows what its rules were made of.
MODULE = """
configfile: "my.yaml"

module anomics:
    snakefile: github("owner/anomics", path="Snakefile", tag="v1")
    config: config["anomics"]

use rule * from anomics{}

print("HASHES", [anomics.code(f"{{name}}.py") for name in ("train_vae", "write_report")])
print("STORAGE", list(workflow.storage_registry._storages))
"""
LOCAL = """
include: "Snakefile"

print("HASHES", [code(f"{name}.py") for name in ("train_vae", "write_report")])
"""


def git(*arguments: str, folder) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> tuple[WorkflowCopy, list[str]]:
    """A study whose healthy sample a local run has filtered; the hashes of that run's code.

    The workflow has moved to a repository; only its profile stays, as the README advises.
    """
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    top = tmp_path_factory.mktemp("module")
    study = WorkflowCopy.make(top / "study")
    (study.folder / "local.smk").write_text(LOCAL)
    code, output = study.run("--snakefile", "local.smk", HEALTHY)
    assert code == 0, output

    repository = top / "hosted" / "owner" / "anomics"
    repository.mkdir(parents=True)
    for part in set(PARTS) - {"profiles"}:
        (study.folder / part).rename(repository / part)
    git("init", "--quiet", folder=repository)
    git("add", ".", folder=repository)
    git("commit", "--quiet", "--message", "all", folder=repository)
    git("tag", "v1", folder=repository)
    (top / "gitconfig").write_text(
        f'[url "file://{top}/hosted/"]\n\tinsteadOf = https://github.com/\n'
    )
    (study.folder / "my.yaml").write_text(yaml.safe_dump({"anomics": SETTINGS, "other": 1}))
    return study, hashes(output)


@pytest.fixture
def study(imported, monkeypatch) -> WorkflowCopy:
    top = imported[0].folder.parent
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(top / "gitconfig"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(top / "cache"))
    return imported[0]


def hashes(output: str) -> list[str]:
    return ast.literal_eval(re.search(r"^HASHES (.*)$", output, re.MULTILINE)[1])


def test_a_module_on_github_has_all_rules_and_the_hashes_of_a_local_run(study, imported):
    (study.folder / "Snakefile").write_text(MODULE.format(" as anomics_*"))
    code, output = study.run("-n")
    assert code == 0, output
    rules = set(re.findall(r"^(?:local)?rule (\w+):", output, re.MULTILINE))
    assert {"anomics_import_counts", "anomics_write_report", "anomics_all"} <= rules
    assert all(rule.startswith("anomics_") for rule in rules)
    assert hashes(output) == imported[1]
    assert "STORAGE []" in output, "a plugin was loaded that no sample needs"


def test_a_module_takes_up_the_results_of_a_local_run_and_runs_its_own(study):
    (study.folder / "Snakefile").write_text(MODULE.format(""))
    code, output = study.run(HEALTHY, PATIENT)
    assert code == 0, output
    assert re.findall(r"^(?:local)?rule (\w+):", output, re.MULTILINE) == [
        "import_counts",
        "filter_cells",
    ]
    assert (study.folder / PATIENT).exists()


def documented() -> str:
    """What docs/running.md says that a study's own Snakefile has."""
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]


def test_a_module_as_documented_looks_into_the_inputs_before_the_first_job(study, tmp_path):
    study = study.twin(tmp_path / "twin")
    text = documented().replace('"config.yaml"', '"my.yaml"').replace("v0.1.0", "v1")
    (study.folder / "Snakefile").write_text(
        text + "\nrule all:\n    input: rules.anomics_all.input\n"
    )
    row = "patient data/patient.h5ad query"
    study.write_samples(
        "healthy data/healthy.h5ad reference", f"{row} obs:no_such", header=f"{HEADER} batch"
    )
    code, output = study.run("all")
    assert code == 1
    assert "data/patient.h5ad: obs has no column 'no_such'" in output
    assert "rule anomics_" not in output


def test_paths_count_from_the_working_directory_wherever_the_config_lies(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "checkout")
    study, settings = tmp_path / "study", tmp_path / "settings"
    study.mkdir()
    settings.mkdir()
    (copy.folder / "my.yaml").rename(settings / "my.yaml")
    for name in ("data", "samples.tsv"):
        (copy.folder / name).rename(study / name)
    code, output = copy.run(HEALTHY, "-d", "../study", "--configfile", "../settings/my.yaml")
    assert code == 0, output
    assert (study / HEALTHY).exists() and not (copy.folder / "results").exists()
    # The profile is that of the checkout.
    assert "Using workflow specific profile" in output


def test_the_example_runs_in_another_folder(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "checkout")
    copy.write_config(run="example", samples="workflow/example/samples.tsv")
    code, output = copy.run("-n", "-d", "../empty")
    assert code == 0, output
    assert "rule make_example:" in output
