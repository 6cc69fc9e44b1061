"""Files that must agree with each other, and what no file of the repository may hold."""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from workflow_copy import PARTS

SCHEMA = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())
SCRIPTS = sorted((ROOT / "workflow" / "scripts").rglob("*.py"))
# A rule at the top of a file, or one that exists only with some settings, in an "if".
RULE = re.compile(
    r"^(?P<dent> *)rule (?P<name>\w+):\n(?P<body>(?:(?:(?P=dent) .*)?\n)+)", re.MULTILINE
)
RULES = {
    match["name"]: textwrap.dedent(match["body"])
    for file in sorted((ROOT / "workflow" / "rules").glob("*.smk"))
    for match in RULE.finditer(file.read_text())
}
# What a checkout holds, as far as it can be told without git.
NOT_OURS = {".git", ".snakemake", ".venv", "results", "reproduced", "shared", "__pycache__"}
NOT_OURS |= {".pytest_cache", ".ruff_cache", ".hypothesis"}


def own_files() -> list[Path]:
    found = (path for path in ROOT.rglob("*") if not NOT_OURS & set(path.relative_to(ROOT).parts))
    return sorted(path for path in found if path.is_file())


# ---- pins

CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
# Snakemake makes the conda environments, so it is in none of them.
OUTSIDE_CONDA = {"snakemake"}


def pip_pins(name: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("-"))


def test_conda_and_pip_install_the_same_versions():
    *entries, by_pip = yaml.safe_load((ROOT / "envs" / "anomics.yaml").read_text())["dependencies"]
    pins = [re.split(r"(>?=)", entry, maxsplit=1) for entry in entries if entry != "pip"]
    conda = {name: version for name, sign, version in pins if name != "python" and sign == "="}
    assert len(conda) == len(pins) - 1, "every package but python has a pin"
    conda |= dict(entry.split("==") for entry in by_pip["pip"])
    pip = pip_pins("requirements.txt")
    expected = {CONDA_NAMES.get(k, k): v for k, v in pip.items() if k not in OUTSIDE_CONDA}
    assert conda == expected


def test_no_version_is_pinned_twice():
    everything = [
        set(map(str.lower, pip_pins(f"{name}.txt")))
        for name in ("requirements", "requirements-remote", "requirements-dev", "constraints")
    ]
    for i, one in enumerate(everything):
        for other in everything[i + 1 :]:
            assert one & other == set()


# ---- the container

CONTAINER = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", CONTAINER, re.MULTILINE)


def test_the_container_installs_the_pins_and_no_others():
    installed = re.findall(r"pip install (.*?)(?:&&|$)", " && ".join(instructions("RUN")))
    assert [line.split() for line in installed] == [
        ["--no-cache-dir", "-r", "torch.txt"],
        ["--no-cache-dir", "-r", "requirements.txt", "-c", "constraints.txt"],
    ]
    assert "grep '^torch==' requirements.txt > torch.txt" in CONTAINER
    assert "==" not in CONTAINER.replace("^torch==", "")


def test_the_container_holds_what_a_run_needs_and_its_context_no_more():
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    assert copied == {*PARTS, "requirements.txt", "constraints.txt"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


def test_the_container_runs_snakemake_and_not_as_root():
    assert json.loads(instructions("ENTRYPOINT")[-1])[0] == "snakemake"
    assert int(instructions("USER")[-1]) > 0
    major, minor = re.fullmatch(r"python:(\d+)\.(\d+)-slim", *instructions("FROM")).groups()
    least = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert (int(major), int(minor)) >= (3, int(least[1]))


# ---- config.yaml and its schema


def leaves(config: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in config.items():
        is_section = isinstance(value, dict)
        found |= leaves(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return found


def schema_leaves(schema: dict, prefix: str = "") -> dict[str, dict]:
    found = {}
    for key, rule in schema["properties"].items():
        is_section = rule.get("type") == "object"
        found |= schema_leaves(rule, f"{prefix}{key}.") if is_section else {prefix + key: rule}
    return found


def test_config_and_schema_have_the_same_keys_and_defaults_in_the_same_order():
    config = leaves(yaml.safe_load((ROOT / "config.yaml").read_text()))
    defaults = {key: rule["default"] for key, rule in schema_leaves(SCHEMA).items()}
    assert list(config.items()) == list(defaults.items())
    # 1 and 1.0 are equal, and so are 1 and true.
    assert [type(value) for value in config.values()] == [type(v) for v in defaults.values()]


def sections(schema: dict, name: str = "top") -> dict[str, dict]:
    """The schema of every section of the config, by its name."""
    found = {name: schema}
    for key, rule in schema["properties"].items():
        if rule.get("type") == "object":
            found |= sections(rule, key)
    return found


@pytest.mark.parametrize("name", sections(SCHEMA))
def test_no_section_takes_unknown_keys_and_each_may_be_left_out(name):
    section = sections(SCHEMA)[name]
    assert section["additionalProperties"] is False
    assert name == "top" or section["default"] == {}


def test_every_setting_is_explained_in_its_line():
    text = (ROOT / "config.yaml").read_text()
    without = [
        line
        for line in text.splitlines()
        if re.match(r"\s*\w+:\s*[^\s#]", line) and not re.search(r"#\s*\S.{5,}", line)
    ]
    assert without == []


def test_no_key_stands_twice_in_the_config():
    """YAML would take the last, silently."""
    keys = yaml.compose((ROOT / "config.yaml").read_text())

    def check(node) -> None:
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value]
            assert len(names) == len(set(names)), names
            for _, value in node.value:
                check(value)

    check(keys)


# ---- rules and scripts


def test_the_rules_are_found():
    assert len(RULES) >= 23


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_logs_measures_and_hashes_its_code(rule):
    body = RULES[rule]
    directives = re.findall(r"^(\w+):$", body, re.MULTILINE)
    assert {"output", "log", "benchmark", "conda", "params", "script"} <= set(directives)
    assert f'code=code("{rule}.py"' in body
    assert f'"../scripts/{rule}.py"' in body
    assert f'"{rule}"' in body.split("log:")[1].split("benchmark:")[0] or rule.startswith("make_")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_asks_for_memory_and_time_by_the_size_of_its_inputs(rule):
    """No profile does, so one that did not would get what a cluster gives unasked."""
    asked = RULES[rule].split("resources:\n")[1].split("params:")[0].split()
    assert {"mem_mb=memory,", "runtime=minutes,"} <= set(asked)


def test_a_rule_used_again_writes_elsewhere_with_the_same_code():
    text = "".join(file.read_text() for file in (ROOT / "workflow" / "rules").glob("*.smk"))
    used = re.findall(r"^ *use rule (\w+) as (\w+) with:\n((?:(?: .*)?\n)+)", text, re.MULTILINE)
    assert used
    for rule, name, body in used:
        own = re.split(r"^ *rule ", body, maxsplit=1, flags=re.MULTILINE)[0]
        assert {"output", "log", "benchmark"} <= set(re.findall(r"^ +(\w+):$", own, re.MULTILINE))
        assert f'logs("{name}"' in own and f'times("{name}"' in own
        assert f'code=code("{rule}.py")' in own


def test_every_rule_file_opens_with_what_it_reads_and_writes():
    for file in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        if file.name != "common.smk":
            opening = file.read_text().split('"""')[1]
            assert "INPUTS" in opening, file.name
            assert "OUTPUTS" in opening, file.name


def test_no_script_reads_the_config_behind_the_params():
    """Snakemake reruns nothing for it; ``memory`` alone is so read, as it changes no result."""
    read = [
        (path.name, setting)
        for path in SCRIPTS
        for setting in re.findall(r"snakemake\.config(.*)", path.read_text())
    ]
    assert read == [("stored_counts.py", '["memory"]')]


def test_no_script_looks_for_files_beside_itself():
    """It runs as a copy, and in a module on GitHub its folder is a URL; modules lie in a folder.

    The record asks git of that folder, and does without where git knows nothing of it.
    """
    texts = {path.name: path.read_text() for path in SCRIPTS}
    looking = {
        name
        for name, text in texts.items()
        if "snakemake." in text and "__main__" in text and re.search("scriptdir|__file__", text)
    }
    assert looking == {"record_run.py"}


TESTED_TOGETHER = {
    "cell_ranger": "test_count_formats",
    "dense_formats": "test_count_formats",
    "embed_cells": "test_whole_run",
    "figure_style": "test_publication",
    "obs_columns": "test_figures",
    **{f"report_{name}": "test_write_report" for name in ("tables", "findings", "page")},
    **{f"{name}_columns": "test_write_report" for name in ("finding", "stage")},
    "references": "test_methods",
    "model_inputs": "test_bad_input",
    "evidence_channels": "test_detect_anomalies",
    "gene_sets": "test_filter_cells",
    **{name: "test_score_doublets" for name in ("doublets", "doublet_model")},
    **{name: "test_explain_anomalies" for name in ("patterns", "pattern_tables")},
    **{name: "test_explain_anomalies" for name in ("reference_groups", "reference_profile")},
    "technical_causes": "test_explain_anomalies",
    "kernels": "test_fused",
    "plot_check": "test_figures",
    "make_bulk_example": "test_bulk_example",
    "__init__": "test_import_closure",
    **{f"plot_{name}": "test_figures" for name in ("qc", "library_size", "training", "pruning")},
    **{f"plot_{name}": "test_figures" for name in ("latent", "anomalies", "rate_distortion")},
}


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_every_script_has_a_test_file(script):
    assert (ROOT / "tests" / f"{TESTED_TOGETHER.get(script, f'test_{script}')}.py").exists()


def test_tables_are_written_and_read_in_one_place():
    """So that none has formulas for a spreadsheet, and none is read with the apostrophes."""
    by_pandas = {path.stem for path in SCRIPTS if re.search(r"\.(to|read)_csv\(", path.read_text())}
    assert by_pandas == {"job", "cell_ranger", "dense_formats"}, "these two read users' files"


def test_no_rule_has_a_shell_command():
    for name, body in RULES.items():
        assert not re.search(r"^\s*shell:", body, re.MULTILINE), name


def test_the_model_imports_numbers_only():
    allowed = {"numpy", "numba", "scipy", "h5py", "torch", "safetensors", "omics_vae"}
    allowed |= sys.stdlib_module_names
    for path in sorted((ROOT / "workflow" / "scripts" / "omics_vae").glob("*.py")):
        imported = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert set(imported) <= allowed, path.name


# ---- what no file may hold

# Put together, so that this file does not hold them.
PLACES = ["/" + "work/", "/" + "root/", "/" + "home/", "/" + "tmp/dev", "/" + "Users/"]
HOSTS = [rf"{name}\.{end}" for name, end in (("pypi", "org"), ("anaconda", "org"))]
HOSTS += [r"pythonhosted\.", r"download\.pytorch\.", "index-" + "url"]


@pytest.mark.parametrize("path", own_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_names_a_machine_or_a_package_registry(path):
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    for place in PLACES:
        assert not re.search(rf"(?<![\w.]){place}", text), place
    for host in HOSTS:
        assert not re.search(host, text), host
