"""Which files a script's hash covers: all it imports from the scripts folder, and nothing else."""

from pathlib import Path

import pytest

from import_closure import import_closure, imported_modules

SCRIPTS = Path(__file__).resolve().parent.parent / "workflow" / "scripts"


def closure(script: str, **files: str) -> set[str]:
    """The closure of ``script`` among the given files, name=text."""
    return import_closure(script, {f"{name}.py": text for name, text in files.items()}.get)


@pytest.mark.parametrize(
    "statement",
    [
        "import x",
        "import numpy, x as y",
        "from x import f",
        "from x import f as g, h",
        "def f():\n    import x",
        "try:\n    import x\nexcept ImportError:\n    x = None",
        "if __name__ == '__main__':\n    from x import f",
        "class C:\n    def f(self):\n        from x import f",
    ],
)
def test_every_form_of_import_is_followed(statement):
    assert closure("a.py", a=statement, x="") == {"a.py", "x.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "import pkg.mod",
        "from pkg import mod",
        "from pkg.mod import f",
        "import pkg.mod as m",
    ],
)
def test_a_module_of_a_package_comes_with_the_package(statement):
    texts = {
        "a.py": statement,
        "pkg/__init__.py": "",
        "pkg/mod.py": "",
        "pkg/other.py": "",
    }
    assert import_closure("a.py", texts.get) == {"a.py", "pkg/__init__.py", "pkg/mod.py"}


def test_a_package_alone_gives_its_init_and_what_that_imports():
    texts = {
        "a.py": "import pkg",
        "pkg/__init__.py": "from pkg.one import f",
        "pkg/one.py": "from . import two",
        "pkg/two.py": "from .three import f",
        "pkg/three.py": "",
        "pkg/four.py": "",
    }
    assert import_closure("a.py", texts.get) == set(texts) - {"pkg/four.py"}


def test_imports_of_imports_are_followed_and_a_circle_ends():
    assert closure("a.py", a="import b", b="import c", c="import a", d="") == {
        *("a.py", "b.py", "c.py")
    }


def test_standard_library_and_third_party_are_left_out():
    text = "import os, json.decoder\nimport numpy as np\nfrom scipy import sparse\nimport x"
    # The standard library is found first, so a file of its name would never run.
    assert closure("a.py", a=text, x="", json="") == {"a.py", "x.py"}


def test_a_name_in_a_text_or_comment_is_no_import():
    assert closure("a.py", a='# import x\ns = "import x"', x="") == {"a.py"}


def test_an_import_from_a_package_may_name_a_module():
    assert imported_modules("from a.b import c") == {"a.b", "a.b.c"}


VAE = [
    "__init__",
    "adam",
    "compiled",
    "counts",
    "data",
    "fused",
    "inference",
    "kernels",
    "likelihoods",
    "model",
    "priors",
]
# What every script imports.
JOB = {"job.py", "damaged_files.py"}
COUNTS = JOB | {"stored_counts.py", "new_hdf5.py", "omics_vae/__init__.py", "omics_vae/counts.py"}
MODEL = COUNTS | {"model_inputs.py", "design.py", *(f"omics_vae/{name}.py" for name in VAE)}
STEPS = ["checkpoint", "collapse", "initialisation", "pruning", "training"]
TRAINING = MODEL | {f"omics_vae/{name}.py" for name in STEPS}
HELD = MODEL | {"held_cells.py"}
EVIDENCE = ["evidence_channels", "latent_place", "enrichment", "gene_sets", "omics_vae/anomaly"]
DETECTION = HELD | {"detection.py", *(f"{name}.py" for name in EVIDENCE)}
REASONS = ["pattern_tables", "patterns", "reference_groups", "reference_profile"]
READERS = {
    "checksums.py",
    "cell_ranger.py",
    "count_checks.py",
    "count_formats.py",
    "dense_formats.py",
    "own_process.py",
    "untrusted_files.py",
    "spreadsheet_names.py",
    "transformed_counts.py",
}
FIGURES = ["anomalies", "latent", "library_size", "pruning", "qc", "rate_distortion", "training"]
FIGURES += ["check", "correlation", "genes", "patterns"]
# Written out, so that a new import, which makes a rule rerun with one more file, is a decision.
FILES = {
    "annotate_counts": COUNTS | {"compute_umap.py"},
    "choose_likelihood": MODEL,
    "compute_library_size": COUNTS,
    "compute_umap": JOB,
    "correlate_samples": HELD,
    "check_injected": DETECTION | {"injection.py", "doublets.py"},
    "choose_held_group": HELD | {"reference_groups.py"},
    "detect_anomalies": DETECTION | {"bulk_words.py"},
    "embed_cells": MODEL,
    "explain_anomalies": HELD
    | {"technical_causes.py", "omics_vae/anomaly.py", *(f"{name}.py" for name in REASONS)},
    "filter_cells": COUNTS | {"gene_sets.py"},
    "import_counts": COUNTS | READERS,
    "make_bulk_example": JOB,
    "make_example": JOB,
    "measure_evidence": MODEL,
    "measure_stability": JOB,
    **{f"plot_{name}": JOB | {"figure_style.py"} for name in FIGURES},
    **{
        f"plot_{name}": JOB | {"figure_style.py", "obs_columns.py"}
        for name in ("anomalies", "latent")
    },
    "prune_latent": TRAINING | {"train_vae.py"},
    "record_run": JOB | {"checksums.py", "provenance.py"},
    "reproduce": JOB | {"checksums.py", "provenance.py"},
    "score_doublets": HELD
    | {"doublets.py", "doublet_model.py", "reference_groups.py", "omics_vae/anomaly.py"},
    "score_genes": HELD | {"gene_tests.py", "gene_panels.py", "omics_vae/anomaly.py"},
    "select_features": COUNTS | {"join_samples.py", "variable_genes.py", "splits.py", "cohort.py"},
    "trace_rate_distortion": JOB,
    "train_vae": TRAINING,
    "write_report": JOB
    | {
        "bulk_words.py",
        "methods.py",
        "references.py",
        "provenance.py",
        "packed.py",
        "figure_style.py",
        "obs_columns.py",
    }
    | {"omics_vae/__init__.py", "omics_vae/counts.py"}
    | {f"report_{name}.py" for name in ("findings", "map", "page", "tables")}
    | {f"{name}_columns.py" for name in ("finding", "stage")},
}


def read(path: str) -> str | None:
    file = SCRIPTS / path
    return file.read_text(encoding="utf-8") if file.is_file() else None


@pytest.mark.parametrize("rule", FILES)
def test_the_files_of_each_rule(rule):
    assert import_closure(f"{rule}.py", read) == FILES[rule] | {f"{rule}.py"}


def test_files_that_are_not_there_are_hardly_asked_for():
    asked = set()

    def noting(path: str) -> str | None:
        asked.add(path)
        return read(path)

    for rule in FILES:
        import_closure(f"{rule}.py", noting)
    assert {path for path in asked if read(path) is None} == {"omics_vae.py"}


def test_every_rule_script_is_in_the_table():
    scripts = {path.stem for path in SCRIPTS.glob("*.py") if "__main__" in path.read_text()}
    # Two are for people (make why, make run), one is run by the Snakefile.
    assert scripts - {"why", "configuration", "check_inputs"} == set(FILES)


def test_every_file_is_used_by_a_rule_or_by_the_snakefile():
    used = set.union(*FILES.values()) | {f"{rule}.py" for rule in FILES}
    files = {path.relative_to(SCRIPTS).as_posix() for path in SCRIPTS.rglob("*.py")}
    of_the_snakefile = {"configuration.py", "import_closure.py", "slurm_limits.py", "terminal.py"}
    of_the_snakefile.add("check_inputs.py")
    assert files - used == of_the_snakefile | {"why.py"}
