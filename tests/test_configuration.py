"""What a user may get wrong in the config and the sample table, and the line each fault gets."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import configuration
from configuration import (
    ConfigurationError,
    check_config,
    check_covariates,
    check_cross_fitting,
    check_files,
    check_run,
    files_inside,
    is_cross_fitted,
    read_config,
    read_samples,
    repeated_keys,
    storage_plugin,
)
from messages import is_said

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
EXAMPLE = "results/example_input/pbmc68k.h5ad"


def faults_of_config(text: str) -> list[str]:
    """The lines about a user's YAML, merged into nothing but what the schema requires."""
    config = {"run": "mine", "samples": "samples.tsv"} | (yaml.safe_load(text) or {})
    with pytest.raises(ConfigurationError) as caught:
        check_config(config, SCHEMA)
    return str(caught.value).split("\n")


CONFIG_FAULTS = {
    "unknown key at the top": (
        "sead: 2",
        "config: sead: unknown key; did you mean seed?",
    ),
    "unknown key two levels down": (
        "preprocess: {filter_cells: {min_count: 5}}",
        "config: preprocess.filter_cells.min_count: unknown key; did you mean min_counts?",
    ),
    "unknown key like no other": (
        "zzz: 1",
        "config: zzz: unknown key",
    ),
    "a key outside its section": (
        "n_latent: 8",
        "config: n_latent: unknown key here; it belongs under train",
    ),
    "a key of the top inside a section": (
        "train: {seed: 8}",
        "config: train.seed: unknown key here; it belongs at the top, not indented",
    ),
    "a key that is a number": (
        "train: {5: 8}",
        "config: train.5: unknown key",
    ),
    "text for a number": (
        "train: {n_latent: many}",
        "config: train.n_latent: must be a whole number, not 'many'",
    ),
    "true for a number": (
        "train: {n_latent: true}",
        "config: train.n_latent: must be a whole number, not True",
    ),
    "a fraction for a whole number": (
        "train: {n_latent: 8.5}",
        "config: train.n_latent: must be a whole number, not 8.5",
    ),
    "text for true": (
        'preprocess: {select_features: {batch_aware: "true"}}',
        "config: preprocess.select_features.batch_aware: must be true or false, not 'true'",
    ),
    "a number YAML takes for text": (
        "train: {learning_rate: 1e-3}",
        "config: train.learning_rate: must be a number, not '1e-3'; YAML reads 1e-3 as text, "
        "write 1.0e-3",
    ),
    "none for null": (
        "preprocess: {filter_cells: {max_counts: None}}",
        "config: preprocess.filter_cells.max_counts: must be a whole number or null, not 'None'; "
        "write null",
    ),
    "null where there is no off": (
        "anomaly: {alpha: null}",
        "config: anomaly.alpha: must be a number, not null",
    ),
    "a number for text": (
        "run: 2024",
        "config: run: must be text, not 2024; put it in quotes",
    ),
    "a section whose keys are commented out": (
        "train:",
        "config: train: must be a section with keys under it, not null; indent its keys, or remove "
        "the line",
    ),
    "below a minimum": (
        "train: {n_latent: 0}",
        "config: train.n_latent: must be at least 1, not 0",
    ),
    "above a maximum": (
        "preprocess: {filter_cells: {max_pct_mito: 120}}",
        "config: preprocess.filter_cells.max_pct_mito: must be at most 100, not 120",
    ),
    "at an open lower bound": (
        "anomaly: {alpha: 0}",
        "config: anomaly.alpha: must be larger than 0, not 0",
    ),
    "at an open upper bound": (
        "train: {dropout: 1}",
        "config: train.dropout: must be smaller than 1, not 1",
    ),
    "not a number": (
        "preprocess: {filter_cells: {max_pct_mito: .nan}}",
        "config: preprocess.filter_cells.max_pct_mito: must be a finite number, not nan; null "
        "switches a limit off",
    ),
    "infinite": (
        "train: {weight_decay: .inf}",
        "config: train.weight_decay: must be a finite number, not inf; null switches a limit off",
    ),
    "not one of the choices": (
        "device: gpu",
        "config: device: must be one of auto, cpu, cuda, not 'gpu'; did you mean cpu?",
    ),
    "a run that leaves its folder": (
        "run: ../elsewhere",
        "config: run: may hold letters, digits, _ . - and must not start with a sign, not "
        "'../elsewhere'",
    ),
    "a run whose name is no name of a folder": (
        f"run: {'r' * 201}",
        f"config: run: must not be longer than 200 characters, not '{'r' * 79}",
    ),
    "a whole number without end": (
        f"train: {{max_steps: 0x{'f' * 5000}}}",
        f"config: holds a whole number beyond {2**63 - 1}; correct it",
    ),
    "empty text": (
        'import: {feature_type: ""}',
        "config: import.feature_type: must not be empty, not ''",
    ),
    "a warm-up longer than the training": (
        "train: {kl_warmup_steps: 500, max_steps: 500}",
        "config: train.kl_warmup_steps: the warm-up (500 steps) would end after training (500); "
        "lower it or raise train.max_steps",
    ),
    "nothing left to train on": (
        "preprocess: {split: {validation: 0.2, calibration: 0.75}}",
        "config: preprocess.split: validation and calibration leave less than 10 % of the "
        "reference to train on; lower one of them",
    ),
    "more latent dimensions than genes": (
        "{train: {n_latent: 16}, preprocess: {select_features: {n_features: 12}}}",
        "config: train.n_latent: 16 latent dimensions for 12 genes "
        "(preprocess.select_features.n_features); lower it or raise the other",
    ),
    "a method without its column": (
        "library_size: {method: column}",
        "config: library_size.column: goes with method: column, and the other way round; set both "
        "or neither",
    ),
    "a column without its method": (
        "library_size: {column: depth}",
        "config: library_size.column: goes with method: column, and the other way round; set both "
        "or neither",
    ),
    "limits that cross": (
        "preprocess: {filter_cells: {min_counts: 500, max_counts: 400}}",
        "config: preprocess.filter_cells: min_counts 500 exceeds max_counts 400; no cell could "
        "pass",
    ),
    "limits on genes that cross": (
        "preprocess: {filter_cells: {min_genes: 500, max_genes: 400}}",
        "config: preprocess.filter_cells: min_genes 500 exceeds max_genes 400; no cell could pass",
    ),
    "text for a list": (
        "train: {covariates: batch}",
        "config: train.covariates: must be a list, as [a, b], not 'batch'",
    ),
    "a number for a list": (
        "rate_distortion: {betas: 0.5}",
        "config: rate_distortion.betas: must be a list, as [a, b], not 0.5",
    ),
    "null for a list": (
        "train: {continuous_covariates: null}",
        "config: train.continuous_covariates: must be a list, as [a, b], not null",
    ),
    "a section for a list": (
        "train: {covariates: {batch: true}}",
        "config: train.covariates: must be a list, as [a, b], not {'batch': True}",
    ),
    "a number for text in a list": (
        "train: {covariates: [batch, 5]}",
        "config: train.covariates.1: must be text, not 5; put it in quotes",
    ),
    "a list in a list": (
        "train: {covariates: [[batch]]}",
        "config: train.covariates.0: must be text, not ['batch']",
    ),
    "empty text in a list": (
        'train: {covariates: [""]}',
        "config: train.covariates.0: must not be empty, not ''",
    ),
    "an entry twice": (
        "train: {covariates: [batch, donor, batch]}",
        "config: train.covariates: must not name a thing twice, not ['batch', 'donor', 'batch']",
    ),
    "a number twice, written two ways": (
        "rate_distortion: {betas: [2, 0.5, 2.0]}",
        "config: rate_distortion.betas: must not name a thing twice, not [2, 0.5, 2.0]",
    ),
    "text for a number in a list": (
        "rate_distortion: {betas: [0.5, 1e-3]}",
        "config: rate_distortion.betas.1: must be a number, not '1e-3'; YAML reads 1e-3 as text, "
        "write 1.0e-3",
    ),
    "a beta of 0": (
        "rate_distortion: {betas: [0, 0.5]}",
        "config: rate_distortion.betas.0: must be larger than 0, not 0",
    ),
    "more betas than anyone can train": (
        f"rate_distortion: {{betas: {list(range(1, 1002))}}}",
        "config: rate_distortion.betas: must not list more than 1000, not "
        f"{str([*range(1, 99)])[:80]}",
    ),
    "no seed": (
        "stability: {n_seeds: 0}",
        "config: stability.n_seeds: must be at least 1, not 0",
    ),
    "an unknown likelihood": (
        "train: {likelihood: znb}",
        "config: train.likelihood: must be one of nb, zinb, poisson, gaussian, auto, not 'znb'; "
        "did you mean zinb?",
    ),
    "YAML's no for none": (
        "train: {skip: no}",
        "config: train.skip: must be one of none, plain, film, not False",
    ),
    # What each choice of the model does not go with.
    **{
        f"a dispersion of {likelihood}": (
            f"train: {{likelihood: {likelihood}, dispersion: gene_batch}}",
            "config: train.dispersion: gene_batch: only nb and zinb have a dispersion; set it to "
            f"gene or change train.likelihood ({likelihood})",
        )
        for likelihood in ("poisson", "gaussian")
    },
    "a variance of counts": (
        "train: {gaussian_variance: 0.5}",
        "config: train.gaussian_variance: only likelihood: gaussian has one; set it to null",
    ),
    "a library size of log counts": (
        "train: {likelihood: gaussian, library_size: latent}",
        "config: train.library_size: latent: a Gaussian models counts at a common depth and has no "
        "library size; set it to observed",
    ),
    "a free decoder of log counts": (
        "train: {likelihood: gaussian, decoder: free}",
        "config: train.decoder: free: a Gaussian's mean is free by itself; set it to softmax, the "
        "default",
    ),
    **{
        f"{skip} without hidden units": (
            f"train: {{skip: {skip}, n_layers: 0}}",
            f"config: train.skip: {skip}: needs hidden units to skip from; raise train.n_layers",
        )
        for skip in ("plain", "film")
    },
    "covariates for the encoder that are not there": (
        "train: {encode_covariates: true}",
        "config: train.encode_covariates: there are none; list them under train.covariates",
    ),
    "a share of calibration cells that is too large": (
        "anomaly: {contamination: 0.6}",
        "config: anomaly.contamination: must be at most 0.5, not 0.6",
    ),
    "a contamination below zero": (
        "anomaly: {contamination: -0.1}",
        "config: anomaly.contamination: must be at least 0, not -0.1",
    ),
    "auto for a share that null finds": (
        "anomaly: {contamination: auto}",
        "config: anomaly.contamination: must be a number or null, not 'auto'",
    ),
    "YAML's yes for always": (
        "anomaly: {by_batch: yes}",
        "config: anomaly.by_batch: must be one of auto, always, never, not True",
    ),
    "an unknown guarantee": (
        "anomaly: {guarantee: conditionally}",
        "config: anomaly.guarantee: must be one of marginal, conditional, not 'conditionally'; did "
        "you mean conditional?",
    ),
    **{
        f"a confidence of {value}": (
            f"anomaly: {{conditional_delta: {value}}}",
            f"config: anomaly.conditional_delta: must be {expected}, not {value}",
        )
        for value, expected in ((0, "larger than 0"), (1, "smaller than 1"))
    },
    "one fold": (
        "anomaly: {folds: 1}",
        "config: anomaly.folds: must be at least 2, not 1",
    ),
    "too many folds": (
        "anomaly: {folds: 51}",
        "config: anomaly.folds: must be at most 50, not 51",
    ),
    "text for a check": (
        'check: {injected: "no"}',
        "config: check.injected: must be true or false, not 'no'",
    ),
    "a group by its name": (
        "check: {held_out_group: B cells}",
        "config: check.held_out_group: must be true or false, not 'B cells'",
    ),
    "too few held-out cells to look at": (
        "train: {validation_cells: 99}",
        "config: train.validation_cells: must be at least 100, not 99",
    ),
    **{
        f"a memory of {value}": (
            f"memory: {value}",
            f"config: memory: must be auto or a number larger than 0, not {shown}",
        )
        for value, shown in {
            **{"0": "0", "-1": "-1", "lots": "'lots'", "4 GB": "'4 GB'", "true": "True"},
            "null": "null",
        }.items()
    },
    **{
        f"{value} in a list": (
            f"rate_distortion: {{betas: [0.5, {value}]}}",
            f"config: rate_distortion.betas.1: must be a finite number, not {value[1:]}; null "
            "switches a limit off",
        )
        for value in (".inf", ".nan")
    },
    # Fits are named by six digits of their beta; one would silently stand for both.
    "betas that would share a name": (
        "rate_distortion: {betas: [0.1, 0.10000001]}",
        "config: rate_distortion.betas: two of them are the same to six digits; remove one",
    ),
    # scikit-learn takes no larger seed.
    "a seed that leaves no room for the others": (
        "{seed: 4294967290, stability: {n_seeds: 7}}",
        "config: stability.n_seeds: the last of 7 seeds from 4294967290 on would exceed "
        "4294967295; lower seed",
    ),
    "a covariate of both kinds": (
        "train: {covariates: [batch, age], continuous_covariates: [age]}",
        "config: train.covariates: age: stands under both kinds; remove one",
    ),
    "a control character in a setting": (
        'preprocess: {select_features: {gene_list: "a\\e[31m.txt"}}',
        "config: preprocess.select_features.gene_list: holds a control character; remove it",
    ),
}


@pytest.mark.parametrize("value", ["auto", 0.5, 64])
def test_memory_that_is_one_is_taken_as_it_is(value):
    config = check_config({"run": "mine", "samples": "s.tsv", "memory": value}, SCHEMA)
    assert config["memory"] == value


@pytest.mark.parametrize(
    ("text", "home"),
    [
        ("learning_rate: 0.01", "train"),
        ("train: {samples: 50}", "evidence"),
        ("preprocess: {library_size: {method: total}}", "at the top"),
    ],
)
def test_a_key_that_two_sections_have_is_sent_to_both(text, home):
    (line,) = faults_of_config(text)
    assert "unknown key here; it belongs" in line
    assert home in line


def test_the_last_of_several_seeds_may_be_the_largest():
    given = "{run: r, samples: s, seed: 4294967290, stability: {n_seeds: 6}}"
    check_config(yaml.safe_load(given), SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        *("{contamination: 0}", "{contamination: 0.5}", "{contamination: null}"),
        *("{by_batch: always}", "{by_batch: never}", "{folds: 2}", "{folds: 50}"),
        "{guarantee: conditional, conditional_delta: 0.001}",
    ],
)
def test_settings_of_the_detection_at_their_limits_are_taken(text):
    check_config(yaml.safe_load(f"{{run: r, samples: s, anomaly: {text}}}"), SCHEMA)


def test_choices_of_the_model_that_go_together_are_taken():
    for text in (
        "{likelihood: auto, dispersion: gene_cell, library_size: latent, decoder: free}",
        "{likelihood: zinb, dispersion: gene_batch}",
        "{likelihood: gaussian, gaussian_variance: 0.5}",
        "{likelihood: poisson, library_size: latent, decoder: free}",
        "{skip: film, n_layers: 1}",
        "{skip: none, n_layers: 0}",
        "{prior: vamp, normalization: batch}",
        "{prior: mixture, normalization: batch}",
        "{continuous_covariates: [age], encode_covariates: true}",
        "{kl_warmup: constant, kl_warmup_steps: 500, max_steps: 100}",
    ):
        config = yaml.safe_load(f"{{run: r, samples: s, train: {text}}}")
        check_config(config, SCHEMA)


@pytest.mark.parametrize("warm_up", ["linear", "cosine", "cyclical"])
def test_no_warm_up_may_end_after_training(warm_up):
    (line,) = faults_of_config(
        f"train: {{kl_warmup: {warm_up}, kl_warmup_steps: 300, max_steps: 200}}"
    )
    assert line.startswith("config: train.kl_warmup_steps: the warm-up (300 steps) would end")


def test_all_contradictions_are_told_at_once():
    text = "train: {likelihood: gaussian, library_size: latent, decoder: free, skip: film, "
    found = faults_of_config(text + "n_layers: 0}")
    assert [line.split(":")[1] for line in found] == [
        *(" train.library_size", " train.decoder", " train.skip"),
    ]


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_a_fault_of_the_config_gives_one_line(name):
    text, expected = CONFIG_FAULTS[name]
    assert faults_of_config(text) == [expected]


def test_all_faults_of_the_config_are_told_at_once():
    found = faults_of_config("sead: 1\ndevice: gpu\ntrain: {n_latent: 0, foo: 1, bar: 2}")
    assert [line.split(":")[1] for line in found] == [
        *(" device", " sead", " train.bar", " train.foo", " train.n_latent"),
    ]


NEEDED = {
    "a config without a name for the run": (
        {"samples": "samples.tsv"},
        "config: run: missing; add it",
    ),
    "a config without a sample table": (
        {"run": "mine"},
        "config: samples: missing; add it",
    ),
}


@pytest.mark.parametrize("name", NEEDED)
def test_run_and_samples_are_needed(name):
    config, expected = NEEDED[name]
    with pytest.raises(ConfigurationError) as caught:
        check_config(config, SCHEMA)
    assert caught.value.faults == [expected]


def test_defaults_fill_what_is_not_given_and_nothing_else():
    given = {"run": "mine", "samples": "s.tsv", "train": {"n_latent": 3}}
    complete = check_config(given, SCHEMA)
    assert complete["train"]["n_latent"] == 3
    assert complete["train"]["n_hidden"] == 128
    assert complete["preprocess"]["filter_cells"]["max_counts"] is None
    assert given == {"run": "mine", "samples": "s.tsv", "train": {"n_latent": 3}}
    assert check_config(complete, SCHEMA) == complete


def test_null_switches_a_limit_off_though_it_has_a_default():
    given = {"run": "r", "samples": "s", "preprocess": {"filter_cells": {"max_pct_mito": None}}}
    assert check_config(given, SCHEMA)["preprocess"]["filter_cells"]["max_pct_mito"] is None


def test_a_whole_number_written_as_a_float_becomes_one():
    """2.0e+4 is how YAML wants large numbers, and 16.0 units would crash the model."""
    given = yaml.safe_load("{run: r, samples: s, train: {max_steps: 2.0e+4, n_latent: 16.0}}")
    train = check_config(given, SCHEMA)["train"]
    assert repr(train["max_steps"]) == "20000"
    assert repr(train["n_latent"]) == "16"
    assert repr(train["weight_decay"]) == "8000"


REPEATED = {
    "a section that stands twice, as after pasting an example": (
        "run: mine\ntrain:\n  beta: 1\ntrain: {n_latent: 3}\n",
        "my.yaml: train stands more than once (lines 2, 4), of which only the last would count; "
        "make one of them",
    ),
    "a setting that stands three times": (
        "train:\n  beta: 1\n  beta: 2\n\n  'beta': 1\n",
        "my.yaml: train.beta stands more than once (lines 2, 3, 5), of which only the last would "
        "count; make one of them",
    ),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_key_that_stands_twice_in_a_section_is_told(name, here):
    text, expected = REPEATED[name]
    Path("my.yaml").write_text(text)
    config = {"run": "mine", "samples": "t.tsv", "sead": 1}
    with pytest.raises(ConfigurationError) as caught:
        check_run(config, SCHEMA, set(), {}, files={"my.yaml": "my.yaml"})
    assert caught.value.faults[:2] == [expected, "config: sead: unknown key; did you mean seed?"]


@pytest.mark.parametrize(
    "text",
    [
        "run: a\ntrain: {run: b}\nx: &x {beta: 1}\ny: [*x, *x, {beta: 2}]\n",
        "run: a\nx: &x {beta: 1}\ny: {<<: *x, beta: 2}\n",
        "",
        "{?:",
    ],
    ids=["the same key in several sections", "a merged section", "nothing", "no YAML"],
)
def test_no_other_key_is_taken_for_one_that_stands_twice(text, here):
    Path("my.yaml").write_text(text)
    assert repeated_keys("my.yaml", "my.yaml") == []


def test_the_own_config_has_no_key_twice():
    assert repeated_keys(str(ROOT / "config.yaml"), "config.yaml") == []


LIST = "config: preprocess.select_features.gene_list:"
GENE_LISTS = {
    "a gene list that is not there": (
        None,
        f"{LIST} there is no file genes.txt; correct the path or set null",
    ),
    "an empty gene list": (
        b"",
        f"{LIST} genes.txt names no gene; write one a line, or set null",
    ),
    "a gene list of comments": (
        b"# genes\n\n  # of mine\n",
        f"{LIST} genes.txt names no gene; write one a line, or set null",
    ),
    "a spreadsheet for a gene list": (
        b"PK\x03\x04\xff",
        f"{LIST} genes.txt cannot be read as text (…); save it as UTF-8, a gene a line",
    ),
}


def check_gene_list(content: bytes | None) -> None:
    """Check the config with a gene list of this content; None: without the file."""
    config = check_config({"run": "r", "samples": "s"}, SCHEMA)
    config["preprocess"]["select_features"]["gene_list"] = "genes.txt"
    if content is not None:
        Path("genes.txt").write_bytes(content)
    check_files(config)


@pytest.mark.parametrize("name", GENE_LISTS)
def test_a_gene_list_without_genes_is_said(name, here):
    content, expected = GENE_LISTS[name]
    with pytest.raises(ConfigurationError) as caught:
        check_gene_list(content)
    assert is_said(expected, str(caught.value)), str(caught.value)


def test_a_gene_list_is_taken_and_none_is_needed(here):
    check_gene_list(b"CD3E\n")
    check_files(check_config({"run": "r", "samples": "s"}, SCHEMA))


# ---- the sample table


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder with the files a.h5ad and b.h5ad, and the test in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5ad", "b.h5ad"):
        (tmp_path / name).touch()
    return tmp_path


def read(content: str | bytes) -> dict[str, dict[str, str]]:
    """Read ``content`` as t.tsv, with blanks for tabs."""
    if isinstance(content, str):
        content = content.replace(" ", "\t").encode()
    Path("t.tsv").write_bytes(content)
    return read_samples("t.tsv", made_here={EXAMPLE}, bundled={})


def faults_of_table(content: str | bytes) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(content)
    return str(caught.value).split("\n")


GOOD = "sample path role\nA a.h5ad reference\nB b.h5ad query\n"
NAME_RULE = (
    "a name may hold letters, digits, _ . - and must start with a letter or digit; rename it"
)
NO_FOLDER = (
    "a folder (zarr, 10x_mtx) cannot be fetched; give the URL of one file and its format, or a "
    "local copy"
)
TABLE_FAULTS = {
    "no column role": (
        "sample path\nA a.h5ad\n",
        "t.tsv: column role is missing; add it",
    ),
    "a required column with a typo": (
        "sampel path role\nA a.h5ad reference\n",
        "t.tsv: column sampel: did you mean sample? rename it",
    ),
    "a required column in capitals": (
        "sample PATH role\nA a.h5ad reference\n",
        "t.tsv: column PATH: did you mean path? rename it",
    ),
    "an optional column with a typo": (
        "sample path role dono\nA a.h5ad reference x\nB b.h5ad query y\n",
        "t.tsv: column dono: did you mean donor? rename it",
    ),
    "a column twice": (
        "sample path role batch batch\nA a.h5ad reference 1 2\nB b.h5ad query 1 2\n",
        "t.tsv: column batch stands twice; remove one",
    ),
    "a slash in a column's name": (
        "sample path role dose/mg\nA a.h5ad reference 1\nB b.h5ad query 2\n",
        "t.tsv: column dose/mg: a slash in a name would make a group of it in HDF5; rename it",
    ),
    "a column without a name": (
        "sample path role  batch\nA a.h5ad reference 1 2\nB b.h5ad query 1 2\n",
        "t.tsv: a column has no name; name it or remove it",
    ),
    "commas": (
        "sample,path,role\nA,a.h5ad,reference\n",
        "t.tsv: has one column, 'sample,path,role'; separate the columns by tabs",
    ),
    "nothing": (
        "",
        "t.tsv: the table is empty; its first row names the columns",
    ),
    "blank lines only": (
        "\n  \n",
        "t.tsv: the table is empty; its first row names the columns",
    ),
    "a header only": (
        "sample path role\n",
        "t.tsv: no sample in it; add a row for each sample",
    ),
    "a sample twice": (
        GOOD + "A b.h5ad query\n",
        "t.tsv: row 4: sample A stands twice; names must differ",
    ),
    "a sample in another case": (
        GOOD + "a b.h5ad query\n",
        "t.tsv: row 4: sample a differs only in case from another; rename one (some file systems "
        "cannot hold both)",
    ),
    "a sample whose name is no name of a file": (
        GOOD + f"{'s' * 201} b.h5ad query\n",
        f"t.tsv: row 4: sample '{'s' * 80}': a name may have at most 200 characters; shorten it",
    ),
    "a sample that leaves its folder": (
        GOOD + "../../x b.h5ad query\n",
        f"t.tsv: row 4: sample '../../x': {NAME_RULE}",
    ),
    "a sample for the shell": (
        GOOD + "x;$(rm) b.h5ad query\n",
        f"t.tsv: row 4: sample 'x;$(rm)': {NAME_RULE}",
    ),
    "a sample of a wildcard": (
        GOOD + "{sample} b.h5ad query\n",
        f"t.tsv: row 4: sample '{{sample}}': {NAME_RULE}",
    ),
    "a sample that is an option": (
        GOOD + "-rf b.h5ad query\n",
        f"t.tsv: row 4: sample '-rf': {NAME_RULE}",
    ),
    "no name, twice": (
        GOOD + " b.h5ad query\n",
        f"t.tsv: row 4: sample '': {NAME_RULE}",
    ),
    "the name of the joined matrix": (
        GOOD + "Counts b.h5ad query\n",
        "t.tsv: row 4: sample 'Counts' would shadow the joined matrix; rename it",
    ),
    "no path": (
        GOOD + "C  query\n",
        "t.tsv: row 4: path is empty; give the sample's file",
    ),
    "a file that is not there": (
        GOOD + "C c.h5ad query\n",
        "t.tsv: row 4: sample C: there is no file c.h5ad; correct the path",
    ),
    "a path with what Snakemake replaces": (
        GOOD + "C <results>/c.h5ad query\n",
        "t.tsv: row 4: path <results>/c.h5ad holds a brace or <, which Snakemake cannot take; "
        "rename it",
    ),
    "a path with braces": (
        GOOD + "C {c}.h5ad query\n",
        "t.tsv: row 4: path {c}.h5ad holds a brace or <, which Snakemake cannot take; rename it",
    ),
    "an unknown role": (
        GOOD + "C a.h5ad refrence\n",
        "t.tsv: row 4: sample C: role 'refrence' must be reference, query or obs:COLUMN; did you "
        "mean reference?",
    ),
    "a role without its column": (
        GOOD + "C a.h5ad obs:\n",
        "t.tsv: row 4: sample C: role 'obs:' must be reference, query or obs:COLUMN",
    ),
    "no role": (
        GOOD + "C a.h5ad\n",
        "t.tsv: row 4: sample C: role '' must be reference, query or obs:COLUMN",
    ),
    "an unknown format": (
        "sample path role format\nA a.h5ad reference h5da\nB b.h5ad query \n",
        "t.tsv: row 2: sample A: format 'h5da' must be one of 10x_h5, 10x_mtx, h5ad, zarr, loom, "
        "csv, tsv; did you mean h5ad?",
    ),
    "a checksum of another kind": (
        "sample path role sha256\nA a.h5ad reference d41d8cd98f00b204e9800998ecf8427e\n",
        "t.tsv: row 2: sample A: sha256 'd41d8cd98f00b204e9800998ecf8427e' is not 64 hex digits; "
        "paste what sha256sum prints, or leave it empty",
    ),
    "a scheme that is not fetched": (
        GOOD + "C ftp://x.org/c.h5ad query\n",
        "t.tsv: row 4: sample C: ftp://x.org/c.h5ad: only https://, http:// and s3:// can be "
        "fetched; give a local copy",
    ),
    "a bucket without a file": (
        GOOD + "C s3://bucket/ query\n",
        "t.tsv: row 4: sample C: s3://bucket/: is no address of a file; correct the path",
    ),
    "a folder at a URL by its name": (
        GOOD + "C https://x.org/c.zarr query\n",
        f"t.tsv: row 4: sample C: https://x.org/c.zarr: {NO_FOLDER}",
    ),
    "a folder at a URL by its format": (
        "sample path role format\nA s3://bucket/a reference 10x_mtx\n",
        f"t.tsv: row 2: sample A: s3://bucket/a: {NO_FOLDER}",
    ),
    "a password": (
        GOOD + "C https://me:secret@x.org/c.h5ad query\n",
        "t.tsv: row 4: sample C: the URL on x.org holds a password, which the report would print; "
        "remove it and set SNAKEMAKE_STORAGE_HTTP_AUTH",
    ),
    "URLs that differ in their query only": (
        GOOD + "C https://x.org/get?c.h5 query\nD https://x.org/get?d.h5 query\n",
        "t.tsv: row 5: sample D: https://x.org/get?d.h5: would be kept in the same place as the "
        "file of sample C: what follows a ? does not count; give a local copy of one of them",
    ),
    "too many fields": (
        GOOD + "C a.h5ad query x\n",
        "t.tsv: row 4: 4 fields under 3 column names; check the tabs",
    ),
    "a control character in a value": (
        "sample path role note\nA a.h5ad reference x\nB b.h5ad query a\x1b[31m\n",
        "t.tsv: row 3: column note: holds a control character; remove it",
    ),
    "a control character in a column's name": (
        "sample path role no\x07te\nA a.h5ad reference x\nB b.h5ad query y\n",
        "t.tsv: column 'no\\x07te': a name holds a control character; rename it",
    ),
    "a device for a file": (
        "sample path role\nA a.h5ad reference\nB /dev/zero query\n",
        "t.tsv: row 3: sample B: /dev/zero is a pipe or a device; give a file",
    ),
    "shell in a sample's name": (
        "sample path role\nA a.h5ad reference\n$(touch_x) b.h5ad query\n",
        f"t.tsv: row 3: sample '$(touch_x)': {NAME_RULE}",
    ),
    "markup in a path": (
        "sample path role\nA a.h5ad reference\nB </script>a.h5ad query\n",
        "t.tsv: row 3: path </script>a.h5ad holds a brace or <, which Snakemake cannot take; "
        "rename it",
    ),
    "a format of Python in a path": (
        "sample path role\nA a.h5ad reference\nB {config.run} query\n",
        "t.tsv: row 3: path {config.run} holds a brace or <, which Snakemake cannot take; rename "
        "it",
    ),
    **{
        f"{what} for a table": (
            content,
            "t.tsv: cannot be read as a text table (…); save it as UTF-8 TSV",
        )
        for what, content in {
            "a spreadsheet": b"PK\x03\x04\x14\xff\xfe",
            "a text of another encoding": GOOD.encode("utf-16"),
        }.items()
    },
    "a field of a megabyte": (
        GOOD + "x" * 2**20,
        "t.tsv: cannot be read as a table (…); save it as UTF-8 TSV",
    ),
    "counts for a sample table": (
        GOOD.replace("role", " ".join(f"GENE{i}" for i in range(2000)), 1),
        "t.tsv: has 2002 columns, and a sample table at most 1000; is it the table?",
    ),
    "more samples than a run takes": (
        GOOD + "".join(f"C{i} b.h5ad query\n" for i in range(10_000)),
        "t.tsv: has 10003 rows, and a sample table at most 10000; is it the table?",
    ),
    "a URL of another kind": (
        "sample path role\nA a.h5ad reference\nB file:///etc/passwd query\n",
        "t.tsv: row 3: sample B: file:///etc/passwd: only https://, http:// and s3:// can be "
        "fetched; give a local copy",
    ),
}


@pytest.mark.parametrize("name", TABLE_FAULTS)
def test_a_fault_of_the_sample_table_gives_one_line(name, here):
    content, expected = TABLE_FAULTS[name]
    (line,) = faults_of_table(content)
    assert is_said(expected, line), line


TABLE_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a table that is not there": (
        lambda path: None,
        "config: samples: there is no file t.tsv; give the path of the sample table",
    ),
    "a folder for a table": (
        Path.mkdir,
        "t.tsv: is a folder, a pipe or a device; save it as UTF-8 TSV",
    ),
    "a pipe for a table": (
        os.mkfifo,
        "t.tsv: is a folder, a pipe or a device; save it as UTF-8 TSV",
    ),
    "a table of gigabytes": (
        lambda path: (path.touch(), os.truncate(path, 2**31)),
        "t.tsv: is larger than 67108864 bytes; give the right file",
    ),
}


@pytest.mark.parametrize("name", TABLE_FILES)
def test_what_is_no_file_of_a_table_is_not_read(name, here):
    make, expected = TABLE_FILES[name]
    make(Path("t.tsv"))
    with pytest.raises(ConfigurationError) as caught:
        read_samples("t.tsv", made_here=set(), bundled={"other.tsv": "bundled.tsv"})
    assert caught.value.faults == [expected]


def test_all_faults_of_the_sample_table_are_told_at_once(here):
    content = "sample path role format\nA c.h5ad referrence\n\nA a.h5ad query xlsx\n../B b.h5ad q\n"
    assert [line.split(": ", 3)[1:3] for line in faults_of_table(content)] == [
        ["row 2", "sample A"],
        ["row 2", "sample A"],
        ["row 4", "sample A stands twice; names must differ"],
        ["row 4", "sample A"],
        ["row 5", "sample '../B'"],
        ["row 5", "sample ../B"],
    ]


def test_a_long_value_is_cut_in_the_message(here):
    (line,) = faults_of_table(GOOD + f"{'é' * 500} a.h5ad query\n")
    assert len(line) < 250


LOCKED = {
    "a file that you may not read": (
        GOOD,
        "t.tsv: row 3: sample B: b.h5ad cannot be read; check its permissions",
    ),
}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", LOCKED)
def test_a_file_without_permission(name, here):
    content, expected = LOCKED[name]
    Path("b.h5ad").chmod(0)
    assert faults_of_table(content) == [expected]


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        "\n" + GOOD.replace("\nB", "\n\n\nB"),
        GOOD.rstrip("\n"),
        '"sample" path role\n"A" "a.h5ad" reference\nB b.h5ad query\n',
    ],
    ids=["plain", "CRLF", "BOM", "blank lines", "no final newline", "quotes"],
)
def test_tables_as_spreadsheets_save_them(here, content):
    assert read(content) == {
        "A": {"sample": "A", "path": "a.h5ad", "role": "reference"},
        "B": {"sample": "B", "path": "b.h5ad", "role": "query"},
    }


def test_all_columns_are_carried_as_text_and_the_order_stays(here):
    samples = read("role age sample path donor\nquery 07 Z.1 b.h5ad\nobs:r  A-2 a.h5ad obs:who\n")
    assert list(samples) == ["Z.1", "A-2"]
    assert samples["Z.1"] == {
        **{"role": "query", "age": "07", "sample": "Z.1", "path": "b.h5ad", "donor": ""},
    }
    assert samples["A-2"]["donor"] == "obs:who"
    assert samples["A-2"]["age"] == ""


# ---- a table of one role

REFERENCE_ONLY = "sample path role\nA a.h5ad reference\nB b.h5ad reference\n"
QUERY_ONLY = REFERENCE_ONLY.replace("reference", "query")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (REFERENCE_ONLY, True),
        (QUERY_ONLY, True),
        (GOOD, False),
        # Which cells of the file are reference is not known yet; one of them may be a query cell.
        ("sample path role\nA a.h5ad reference\nB b.h5ad obs:role\n", False),
        ("sample path role\nA a.h5ad obs:role\n", False),
    ],
    ids=["reference only", "query only", "both", "one inside a file", "inside the file"],
)
def test_samples_of_one_role_are_scored_by_cross_fitting(here, table, expected):
    assert is_cross_fitted(read(table)) == expected


def test_one_seed_goes_with_cross_fitting_and_several_with_a_query(here):
    def config(n_seeds: int) -> dict:
        given = {"run": "r", "samples": "t.tsv", "stability": {"n_seeds": n_seeds}}
        return check_config(given, SCHEMA)

    check_cross_fitting(config(1), read(REFERENCE_ONLY))
    check_cross_fitting(config(2), read(GOOD))


# ---- config and table together


def faults_of_run(text: str, table: str) -> ConfigurationError:
    Path("t.tsv").write_text(table.replace(" ", "\t"))
    config = {"run": "mine", "samples": "t.tsv"} | yaml.safe_load(text)
    with pytest.raises(ConfigurationError) as caught:
        check_run(config, SCHEMA, {EXAMPLE}, {})
    return caught.value


WITH_BATCH = "sample path role batch age\nA a.h5ad reference one 30\n{}\n"
NEW_BATCH = WITH_BATCH.format("B b.h5ad query two 40")
RUN_FAULTS = {
    "several seeds where all samples are reference": (
        ("stability: {n_seeds: 2}", REFERENCE_ONLY),
        "config: stability.n_seeds: all samples have one role, so each cell is scored by "
        "cross-fitting, which further seeds do not repeat; set it to 1 or give trusted normal "
        "samples the role reference and the others query",
    ),
    **{
        f"{what} that only the query has": (
            (f"train: {{{asked}}}", NEW_BATCH),
            f"config: train.{key}: batch two occurs in query samples only, so the model cannot "
            "know its effect; bring reference samples of it, leave out those query samples, or "
            "remove batch from the model",
        )
        for what, asked, key in (
            ("a value of a covariate", "covariates: [batch]", "covariates"),
            ("a batch", "dispersion: gene_batch", "dispersion: gene_batch"),
        )
    },
}


@pytest.mark.parametrize("name", RUN_FAULTS)
def test_what_config_and_table_say_together_gives_one_line(name, here):
    given, expected = RUN_FAULTS[name]
    assert faults_of_run(*given).faults == [expected]


def test_faults_of_config_and_table_are_told_at_once(here):
    error = faults_of_run("{sead: 1, train: {n_latent: 0}}", GOOD + "C c.h5ad query\n")
    assert [line.split(":")[1] for line in error.faults] == [" sead", " train.n_latent", " row 4"]


def test_what_is_right_is_left_to_look_at_the_files_by(here):
    text = "{sead: 1, device: 5, train: {n_latent: 0, n_hidden: 3, covariates: [lane, 7]}}"
    error = faults_of_run(text, GOOD + "C c.h5ad query\n")
    assert [row["sample"] for row in error.rows] == ["A", "B"]
    train = error.config["train"]
    assert (train["n_latent"], train["n_hidden"], train["covariates"]) == (16, 3, [])
    assert error.config["device"] == "auto" and error.config["run"] == "mine"
    assert faults_of_run("{train: 5}", GOOD).config["train"]["n_hidden"] == 128
    text = "{sead: 1, preprocess: {select_features: {gene_list: no.txt}}}"
    error = faults_of_run(text, GOOD)
    assert len(error.faults) == 2
    assert error.config["preprocess"]["select_features"]["gene_list"] is None


def test_contradictions_and_faults_that_need_both_are_told_at_once(here):
    text = "{train: {covariates: [batch]}, preprocess: {select_features: {gene_list: no.txt}}}"
    error = faults_of_run(text, NEW_BATCH)
    assert [line.split(": ")[1] for line in error.faults] == [
        *("preprocess.select_features.gene_list", "train.covariates"),
    ]


# ---- covariates that the table alone can judge


def faults_of_covariates(table: str, **train) -> list[str]:
    config = check_config({"run": "r", "samples": "t.tsv", "train": train}, SCHEMA)
    try:
        check_covariates(config, read(table))
    except ConfigurationError as error:
        return str(error).split("\n")
    return []


ASKED = {"covariates": ["batch"]}


@pytest.mark.parametrize(
    "row",
    [
        "B b.h5ad query one 40",
        # What stands inside a file is judged when the model is made.
        "B b.h5ad query obs:lane 40",
        "B b.h5ad query  40",
        "B b.h5ad obs:role two 40",
        "B b.h5ad query two 40\nC a.h5ad reference two 50",
        "B b.h5ad query one 40\nC a.h5ad reference three 50",
    ],
    ids=["shared", "in the file", "empty", "role in the file", "two references", "not in query"],
)
def test_batches_that_are_known_or_not_known_yet_pass(here, row):
    assert faults_of_covariates(WITH_BATCH.format(row), **ASKED) == []


def test_what_is_not_asked_for_may_be_of_the_query_alone(here):
    assert faults_of_covariates(NEW_BATCH) == []
    assert faults_of_covariates(NEW_BATCH, covariates=["donor"]) == []
    # A number that no reference has is no level: the model extends a line to it.
    assert faults_of_covariates(NEW_BATCH, continuous_covariates=["age"]) == []


def test_every_covariate_at_fault_is_told_and_three_of_its_levels(here):
    rows = "\n".join(f"{name} b.h5ad query {name} 40" for name in "UVWX")
    found = faults_of_covariates(WITH_BATCH.format(rows), covariates=["batch", "age"])
    assert [line.split(" occurs")[0] for line in found] == [
        "config: train.covariates: batch U, V, W",
        "config: train.covariates: age 40",
    ]


def test_roles_inside_a_file_may_hold_both(here):
    assert list(read("sample path role\nA a.h5ad obs:role\n")) == ["A"]


def test_a_file_that_the_pipeline_makes_need_not_be_there(here):
    assert list(read(f"sample path role\nA {EXAMPLE} obs:role\n")) == ["A"]


FROM_ELSEWHERE = """sample path role format
A https://x.org/a.h5ad?download=1 reference
B http://x.org/get/?acc=B query 10x_h5
C s3://bucket/deep/c.loom query
"""


def test_files_from_elsewhere_need_not_be_here(here):
    samples = read(FROM_ELSEWHERE)
    paths = [row["path"] for row in samples.values()]
    assert [storage_plugin(path) for path in paths] == ["http", "http", "s3"]
    assert [files_inside(path) for path in paths] == [[], [], []]


def test_two_samples_may_share_a_url(here):
    url = "https://x.org/a.h5ad?download=1"
    assert len(read(f"sample path role\nA {url} reference\nB {url} query\n")) == 2


PLUGINS = {
    "URLs, where what fetches them is not installed": (
        FROM_ELSEWHERE,
        "t.tsv: a URL as path needs snakemake-storage-plugin-http and snakemake-storage-plugin-s3, "
        "not installed here; pip install -r requirements-remote.txt",
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_that_are_absent_are_named_in_one_line_with_the_mend(name, here, monkeypatch):
    content, expected = PLUGINS[name]
    monkeypatch.setattr(configuration, "find_spec", lambda name: None)
    assert faults_of_table(content) == [expected]
    assert [storage_plugin(row["path"]) for row in read(GOOD).values()] == [None, None]


def test_the_bundled_table_is_found_from_any_folder(here):
    bundled = ROOT / "workflow" / "example" / "samples.tsv"
    name = "workflow/example/samples.tsv"
    samples = read_samples(name, {EXAMPLE}, {name: str(bundled)})
    assert [row["path"] for row in samples.values()] == [EXAMPLE]


def test_what_lies_inside_a_folder_counts_as_input(here):
    (here / "mtx" / "deep").mkdir(parents=True)
    # Snakemake would replace what is in brackets, so these two do not count.
    for name in ("matrix.mtx.gz", "deep/.zarray", "{x}", "<results>"):
        (here / "mtx" / name).touch()
    assert files_inside("mtx") == ["mtx/deep/.zarray", "mtx/matrix.mtx.gz"]
    assert files_inside("a.h5ad") == []


# ---- a config from a stranger

STRANGE = {
    "a template with code": (
        "__use_yte__: true\nrun: ?open('was_run', 'w') and 'x'\n",
        "c.yaml: __use_yte__ lets Snakemake run Python code that stands in this file; if you trust "
        "it, say so by snakemake --configfile, else remove the line and read the file before you "
        "use it",
    ),
    "an object of Python": (
        "run: !!python/object/apply:os.system ['touch was_run']\n",
        "c.yaml: is not YAML (could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'…); correct it there",
    ),
    "more text than settings can be": (
        f"run: {'[' * 200 * 200}{']' * 200 * 200}",
        "c.yaml: is larger than 65536 bytes; give the right file",
    ),
    "a tree of aliases": (
        "a0: &a0 [x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "config: holds more than 100000 values; write it without YAML aliases",
    ),
    "an alias of itself": (
        "train: &t {x: *t}\n",
        "config: holds more than 100000 values; write it without YAML aliases",
    ),
    "sections without end": (
        "a: " + "[" * 5000,
        "c.yaml: sections lie too deep in each other; write fewer levels",
    ),
    "a list for a config": (
        "- run\n",
        "c.yaml: holds no settings; write lines of the form key: value",
    ),
    "an empty config": (
        "",
        "c.yaml: holds no settings; write lines of the form key: value",
    ),
    "a config that is not there": (
        None,
        "c.yaml: there is no such file; correct the path",
    ),
    "a tab, which only JSON may have": (
        "run: a\ntrain:\n\tn_latent: 4\n",
        "c.yaml: is not YAML (while scanning for the next token found character '\\t'…); correct "
        "it there",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_config_is_refused_and_not_run(name, here):
    text, expected = STRANGE[name]
    if text is not None:
        Path("c.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_config("c.yaml")
    assert is_said(expected, str(caught.value)), str(caught.value)
    assert not Path("was_run").exists()


def test_make_run_asks_before_snakemake_is_given_a_config(here):
    """Which would run its code."""
    Path("c.yaml").write_text(STRANGE["a template with code"][0])
    script = Path(__file__).parents[1] / "workflow" / "scripts" / "configuration.py"
    asked = subprocess.run([sys.executable, script, "c.yaml"], capture_output=True, text=True)
    assert (asked.returncode, asked.stderr.strip()) == (1, STRANGE["a template with code"][1])
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in ("run", "why"):
        first = makefile.split(f"\n{target}: ")[1].splitlines()[1]
        assert first == (
            "\t@$(if $(CONFIG),$(BIN)/python workflow/scripts/configuration.py $(CONFIG))"
        )


def test_json_with_tabs_is_read(here):
    Path("c.json").write_text('{\n\t"run": "a",\n\t"train": {"n_latent": 4}\n}\n')
    assert read_config("c.json") == {"run": "a", "train": {"n_latent": 4}}


def test_a_config_that_is_no_text_is_said_once(here):
    Path("c.yaml").write_bytes(b"run: \xff\n")
    with pytest.raises(ConfigurationError) as caught:
        read_config("c.yaml")
    assert str(caught.value).startswith("c.yaml: cannot be read as text (")
    assert str(caught.value).endswith("; save it as UTF-8 YAML")


def test_of_a_tree_of_aliases_nothing_more_is_asked(here):
    """Given to Snakemake, which is not ``make run`` and has looked for none."""
    config = {"run": "a", "samples": "t.tsv", "x": [[[0] * 1000] * 1000]}
    with pytest.raises(ConfigurationError) as caught:
        check_run(config, SCHEMA, set(), {})
    assert caught.value.faults == [
        "config: holds more than 100000 values; write it without YAML aliases"
    ]


def test_a_long_list_with_one_odd_entry_is_refused_at_once():
    """Each entry compared with all others would take half a minute."""
    since = time.process_time()
    odd, long = faults_of_config(f"rate_distortion: {{betas: {[*range(1, 15_000), 'x']}}}")
    assert long.startswith("config: rate_distortion.betas: must not list more than 1000")
    assert odd == "config: rate_distortion.betas.14999: must be a number, not 'x'"
    assert time.process_time() - since < 15


def test_a_path_that_no_file_can_have_is_said(here):
    with pytest.raises(ConfigurationError, match=r"^x+.*: cannot be read as a text table \("):
        read_samples("x" * 300, set(), {})


def test_a_table_that_never_ends_is_not_read():
    with pytest.raises(ConfigurationError, match="/dev/zero: is a folder, a pipe or a device"):
        read_samples("/dev/zero", set(), {})


def test_a_message_holds_nothing_that_a_terminal_acts_on(here):
    (line,) = faults_of_config('"\\e[31mred": 1')
    assert line == "config: \\x1b[31mred: unknown key"
    (line,) = faults_of_config(f"? {'k' * 10**6}\n: 1")
    assert len(line) < 1000
