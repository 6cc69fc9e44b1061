"""The report tells all, loads nothing, runs nothing, and is the same each time."""

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml

from configuration import check_config
from conftest import ROOT
from fake_run import HOSTILE, write_fake_run, write_optional_stages
from report_tables import flagged_table
from run_record import checksum, describe_run, package_versions, write_methods
from run_script import run_script
from write_report import (
    flatten,
    judge,
    read_sample_table,
    read_summaries,
    render,
    report_content,
)

TEMPLATE = ROOT / "workflow" / "report" / "report.html"
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
PNG = bytes.fromhex("89504e470d0a1a0a")
FIGURES = ("qc", "library_size", "training", "pruning", "latent", "anomalies")


def config_with(**sections) -> dict:
    return check_config({"run": "first-look", "samples": "s.tsv"} | sections, SCHEMA)


CONFIG = config_with(
    seed=7,
    preprocess={
        "filter_cells": {"min_counts": 321, "max_counts": None, "n_mads": 4},
        "select_features": {"n_features": 1234, "min_cells": 9},
        "split": {"validation": 0.15, "calibration": 0.35},
    },
    library_size={"method": "median_of_ratios"},
    train={"n_latent": 17},
)


TABLES = {
    "cells": "anomaly/cells.parquet",
    "genes": "anomaly/genes.parquet",
    "evidence": "prune/seed1/evidence.parquet",
    "elbo": "prune/seed1/elbo.tsv",
    "gaps": "evidence/groups.tsv",
    "channels": "anomaly/channels.tsv",
    "splits": "preprocess/splits.tsv",
    "samples_library": "library_size/samples.tsv",
}
OPTIONAL = {
    "comparison": "likelihood/comparison.tsv",
    "curve": "rate_distortion/curve.tsv",
    "pairs": "stability/pairs.tsv",
}


def read_tables(run: Path) -> dict[str, pd.DataFrame]:
    paths = TABLES | {name: path for name, path in OPTIONAL.items() if (run / path).exists()}
    return {
        name: pd.read_parquet(run / path)
        if path.endswith("parquet")
        else pd.read_csv(run / path, sep="\t")
        for name, path in paths.items()
    }


def draw_figures(run: Path) -> list[Path]:
    """Files in the place of the figures."""
    names = [*FIGURES, "rate_distortion"] if (run / "rate_distortion").exists() else FIGURES
    (run / "figures").mkdir(exist_ok=True)
    for name in names:
        (run / "figures" / f"{name}.png").write_bytes(PNG)
    return [run / "figures" / f"{name}.png" for name in names]


def make_report(run: Path) -> str:
    content = report_content(
        read_tables(run), read_summaries(run.rglob("*summary.json")), draw_figures(run)
    )
    content |= {"run": CONFIG["run"], "settings": flatten(CONFIG), "versions": {"numpy": "2"}}
    return render(TEMPLATE.read_text(encoding="utf-8"), content)


def words(page: str) -> str:
    return " ".join(Page(page).text.split())


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        self.text += " " if tag == "td" else ""

    def handle_data(self, data):
        self.text += data


WARNINGS = ("few calibration cells; add reference cells", f"gene {HOSTILE} is odd; rename it")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_fake_run(tmp_path_factory.mktemp("run"), warnings=WARNINGS, gene=HOSTILE)
    return Page(make_report(run))


def test_markup_in_the_data_is_shown_and_not_run(page):
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 1  # in the warning and in the list of genes
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_loads_nothing_from_anywhere(page):
    sources = [v for _, name, v in page.attributes if name in ("src", "href", "srcset", "action")]
    assert sources and all(v.startswith(("data:image/", "#")) for v in sources)
    text = TEMPLATE.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)
    policy = [v for tag, name, v in page.attributes if (tag, name) == ("meta", "content")]
    assert any("default-src 'none'" in value for value in policy)


def test_every_link_inside_leads_somewhere(page):
    ids = {v for _, name, v in page.attributes if name == "id"}
    links = {v[1:] for _, name, v in page.attributes if name == "href"}
    assert links and links <= ids


def test_every_warning_is_there_with_its_mend(page):
    for warning in WARNINGS:
        what, mend = warning.split("; ")
        assert what in page.text and f"What to do: {mend}" in page.text


def test_every_figure_is_there_with_words_for_it(page):
    images = [v for tag, name, v in page.attributes if tag == "img" and name == "src"]
    texts = [v for tag, name, v in page.attributes if tag == "img" and name == "alt"]
    assert len(images) == 6 and all(texts)


def test_says_how_many_were_found(tmp_path):
    run = write_fake_run(tmp_path)
    cells = pd.read_parquet(run / "anomaly/cells.parquet")
    query = cells[cells["split"] == "query"]
    text = words(make_report(run))
    assert f"{query['is_anomaly'].sum()} of {len(query)} query cells" in text
    for sample, part in query.groupby("sample"):
        assert sample in text and str(part["is_anomaly"].sum()) in text


@pytest.mark.parametrize(("n_samples", "n_cells"), [(1, 60), (1, 4), (40, 300)])
def test_without_anomalies_no_section_is_missing(tmp_path, page, n_samples, n_cells):
    found_none = Page(make_report(write_fake_run(tmp_path, n_samples, n_cells, share_odd=0)))
    assert found_none.tags.count("section") == page.tags.count("section")
    assert found_none.tags.count("img") == 6
    assert "None of" in found_none.text and "No cell is flagged" in found_none.text


def test_same_bytes_when_made_again(tmp_path):
    run = write_fake_run(tmp_path)
    assert make_report(run) == make_report(run)


def test_the_oddest_cells_and_their_surest_genes_come_first():
    query = pd.DataFrame({"cell_id": ["a", "b", "c"], "p_value": [0.2, 0.01, 0.9]})
    query["score"], query["is_anomaly"] = [1.0, 5.0, 0.0], [True, True, False]
    query["leading_channel"] = ["latent_density", "program", ""]
    genes = pd.DataFrame({"cell_id": "b", "gene": [f"G{i}" for i in range(8)]})
    genes["p_value"] = [1e-3] * 7 + [1e-9]
    genes["direction"] = ["up"] * 7 + ["down"]
    table = flagged_table(query, genes)
    assert list(table["cell_id"]) == ["b", "a"]
    assert table["genes"].iloc[0] == "G7↓, G0↑, G1↑, G2↑, G3↑, G4↑ and 2 more"
    assert table["genes"].iloc[1] == "no single gene; latent density"
    without = flagged_table(query, genes.iloc[:0])["genes"]
    assert list(without) == ["no single gene; program", "no single gene; latent density"]


ANOMALY = {
    **{"alpha": 0.1, "smallest_p": 1e-3, "needed_together": 1, "n_query": 100, "n_anomalies": 0},
    **{"spearman_depth": 0.02, "spearman_depth_query": -0.03, "fpr_by_depth_fifth": [0.05] * 5},
    "bands": {"spearman_depth": 0.1, "fpr": [0.02, 0.09], "needed_together": 5},
}


def soundness(**changed) -> list[bool]:
    return [check["is_sound"] for check in judge(ANOMALY | changed)]


def test_depth_that_leaks_into_the_score_is_said_of_calibration_and_query_cells():
    assert soundness() == [True, True, True, True]
    assert soundness(spearman_depth=0.4) == [True, False, True, True]
    assert soundness(spearman_depth_query=-0.4) == [True, True, False, True]
    assert soundness(fpr_by_depth_fifth=[0.2, 0.05, 0.05, 0.05, 0.05]) == [True, True, True, False]
    assert "ρ = 0.02" in [check["value"] for check in judge(ANOMALY)]
    assert "ρ = -0.03" in [check["value"] for check in judge(ANOMALY)]


def test_the_bands_are_those_of_the_anomaly_stage():
    wide = {"spearman_depth": 0.5, "fpr": [0.0, 0.3], "needed_together": 5}
    leaky = {"spearman_depth": 0.4, "fpr_by_depth_fifth": [0.2, 0.0]}
    assert soundness(**leaky) == [True, False, True, False]
    assert soundness(**leaky, bands=wide) == [True] * 4
    checks = judge(ANOMALY | leaky | {"bands": wide})
    assert "±0.5" in checks[1]["reading"] and "from 0 % to 30 %" in checks[3]["reading"]


def test_the_smallest_p_is_sound_where_a_few_cells_could_be_flagged():
    assert soundness(needed_together=5)[0] is True
    assert soundness(needed_together=50)[0] is False
    assert "at least 50 of the 100" in judge(ANOMALY | {"needed_together": 50})[0]["reading"]
    check = judge(ANOMALY | {"needed_together": 101})[0]
    assert "none can be flagged" in check["reading"] and not check["is_sound"]


def test_input_says_what_was_left_out_and_how_genes_were_selected(tmp_path):
    text = words(make_report(write_fake_run(tmp_path)))
    for said in (
        *("donor1 features: Antibody Capture 17", "donor3 genes that another sample lacks 46"),
        *("all samples genes in too few cells 9", "without a count in the genes left 6"),
        "40 of 60 genes were selected for the model: 33 by variability (all: seurat_v3, span 0.3), "
        "5 by the gene list, 2 by both.",
        "-0.0789",
        "the shared-program channel use them like reference cells",
    ):
        assert said in text, said
    assert "donor1 genes that another" not in text and "cells without a role" not in text


def test_a_sample_may_be_called_na(tmp_path):
    table = pd.DataFrame({"sample": ["NA", "null", "01"], "n_cells": [1, 2, 3]})
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(read_sample_table(tmp_path / "t.tsv"), table)


def test_summaries_know_their_stage_and_sample(tmp_path):
    run = write_fake_run(tmp_path / "prune" / "results")  # a folder above bears a stage's name
    found = {(s["stage"], s["sample"]) for s in read_summaries(run.rglob("*summary.json"))}
    assert {("import", "donor1"), ("preprocess", ""), ("train", ""), ("anomaly", "")} <= found


# ---- what only some runs have


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write_optional_stages(write_fake_run(tmp_path_factory.mktemp("full")))


def test_evidence_and_the_gap_are_shown_group_by_group(full):
    text = words(make_report(full))
    for said in (
        "importance-weighted estimate (50 draws)",
        "what 30 gradient steps on a cell's own posterior win",
        "cell type B cell",
        "Amortization gap",
        "0.87 0.031 17.5",
    ):
        assert said in text, said
    assert "All scores of this run come from refined posteriors" not in text


def test_the_choice_of_the_likelihood_the_curve_and_the_seeds_have_their_place(full, page):
    told = Page(make_report(full))
    text = " ".join(told.text.split())
    for said in (
        "Choice of the likelihood",
        "on 77 validation cells",
        "Zero inflation is not supported by the data (+0.1 ± 0.07 nats a cell",
        "zinb -603.10 1.1 0.1 0.07 no",
        "nb -603.20 1.1 0 0 yes",
        "Rate and distortion",
        "0.5 14 594.00 -608.00 -1.9 0.4 5 3.97 yes no",
        "What to do: consider train.beta: 0.5.",
        "16 cells are flagged by all 3 seeds, 24 by at least one",
        "1 2 4 5 0.97 0.91 61 % 0.93 18 21",
    ):
        assert said in text, said
    assert "This run has one seed" not in text
    images = [v for tag, name, v in told.attributes if tag == "img" and name == "alt"]
    assert len(images) == 7 and "Rate and distortion" in " ".join(images)
    # They are headed in sections that every run has.
    assert told.tags.count("section") == page.tags.count("section")


def test_what_a_run_did_not_make_is_not_headed(page):
    for heading in ("Choice of the likelihood", "Rate and distortion", "Pairs of seeds"):
        assert heading not in page.text
    assert "set stability.n_seeds to 3 or more" in page.text


def test_single_dimensions_are_warned_of_in_every_run(page):
    assert "single dimensions have no meaning of their own" in page.text


def changed_summary(run: Path, path: str, **content) -> Path:
    file = run / path
    file.write_text(json.dumps(json.loads(file.read_text()) | content))
    return run


def test_a_collapse_is_said_with_its_cause_and_mend(tmp_path, page):
    assert "The posterior has not collapsed" in page.text
    found = {"cause": "objective", "shown_by": "beta is 300", "mend": "lower train.beta"}
    run = changed_summary(write_fake_run(tmp_path), "train/seed1/summary.json", collapse=found)
    text = words(make_report(run))
    assert "Probable cause, the objective: beta is 300. What to do: lower train.beta." in text
    assert "has not collapsed" not in text


def test_how_sure_the_number_of_dimensions_is_and_a_second_opinion(tmp_path):
    text = words(make_report(write_fake_run(tmp_path)))
    assert "4 of 6 dimensions were kept" in text
    assert "4 to 5 dimensions are compatible with these cells" in text
    assert "5 singular values of the training cells stand above" in text
    assert "4 0.02 0.002 0.004 0.03 0.3 no no unused by every test" in text


def test_refined_scores_are_said(tmp_path):
    run = changed_summary(write_fake_run(tmp_path), "evidence/summary.json", for_scores=True)
    assert "All scores of this run come from refined posteriors." in words(make_report(run))


# ---- the rule


def write_files(run: Path, folder: Path, config: dict) -> dict:
    """The rule write_report on the files of a run."""
    folder.mkdir(exist_ok=True)
    inputs = {name: str(run / path) for name, path in TABLES.items()}
    for name, path in OPTIONAL.items():
        inputs[name] = [str(run / path)] if (run / path).exists() else []
    (folder / "in.tsv").write_text("counts")
    inputs |= {
        "sources": [str(folder / "in.tsv")],
        "gene_list": [],
        "figures": [str(path) for path in draw_figures(run)],
        "summaries": [str(path) for path in sorted(run.rglob("*summary.json"))],
    }
    output = {"report": "report.html", "methods": "methods.md", "run": "run.json"}
    params = {"config": config, "samples": {}, "versions": ["numpy"]}
    return run_script("write_report", folder, inputs, output, params)


@pytest.mark.parametrize("is_full", [False, True])
def test_the_rule_writes_report_methods_and_record(tmp_path, is_full):
    run = write_fake_run(tmp_path / "run")
    if is_full:
        write_optional_stages(run)
    written = write_files(run, tmp_path / "out", CONFIG)
    text = words(written["report"].read_text())
    assert ("Pairs of seeds compared" in text) == is_full
    assert ("chosen among negative binomial" in written["methods"].read_text()) == is_full
    assert json.loads(written["run"].read_text())["seed"] == 7


def test_a_group_of_one_cell_has_no_standard_error_and_any_name(tmp_path):
    run = write_fake_run(tmp_path / "run")
    groups = pd.read_csv(run / "evidence/groups.tsv", sep="\t").head(4)
    groups["group"], groups["n_cells"] = ["NA", "01", "null", "T cell"], [1, 7, 1, 8]
    groups["gap_se"] = [None, 0.25, None, 0.5]
    groups.to_csv(run / "evidence/groups.tsv", sep="\t", index=False, na_rep="NA")
    text = words(write_files(run, tmp_path / "out", CONFIG)["report"].read_text())
    for name, se in (("NA", "–"), ("01", "0.25"), ("null", "–"), ("T cell", "0.5")):
        assert re.search(rf" {name} [178] -605.50 -603.20 0.87 {se} 17.5", text), name


# ---- methods


def methods_of(run: Path, **sections) -> str:
    """The methods of a fake run, made with these sections of the config."""
    config = config_with(**sections)
    likelihood = config["train"]["likelihood"]
    summaries = read_summaries(run.rglob("*summary.json"))
    train = next(s for s in summaries if s["stage"] == "train")
    if likelihood != "auto":
        train["architecture"] = train["architecture"] | {"likelihood": likelihood}
    return write_methods(config, summaries)


def test_methods_name_the_settings_of_the_run(tmp_path):
    run = write_fake_run(tmp_path)
    text = write_methods(CONFIG, read_summaries(run.rglob("*summary.json")))
    for said in ("min_counts = 321", " 4 scaled", "1234", "at least 9 cells", "0.35", "median of"):
        assert said in text, said
    for said in ("17 latent", "min_kl = 0.1", "800 optimiser", "seed was 7", "rate of 0.1"):
        assert said in text, said
    for said in ("which left 4", "5 singular values", "50 importance samples", "30 gradient"):
        assert said in text, said
    assert "shared-program channel used query cells" in text
    assert "None" not in text and "max_counts" not in text
    for absent in ("covariates", "free", "repeated with", "traced over", "chosen among"):
        assert absent not in text, absent


# The words that only this value of a setting brings, and the rest of the settings it needs.
WORDS = {
    "likelihood": {
        "nb": "with a negative binomial likelihood (variance mu + mu^2/theta, theta a gene)",
        "zinb": "zero-inflated negative binomial likelihood",
        "poisson": "a Poisson likelihood",
        "gaussian": "a Gaussian likelihood of log(1 + counts at a common depth)",
        "auto": "chosen among negative binomial, zero-inflated negative binomial and Poisson",
    },
    "dispersion": {
        "gene": "theta a gene)",
        "gene_batch": "theta a gene and batch)",
        "gene_cell": "theta a gene times a function of the latent position)",
    },
    "decoder": {
        "softmax": "shares of the library by a softmax",
        "free": "a free rate of each gene",
    },
    "library_size": {
        "observed": "a log offset of the library size",
        "latent": "a latent library size, log-normal in each batch",
    },
    "skip": {
        "none": "",
        "plain": "a plain skip connection",
        "film": "FiLM, Perez et al. 2018",
    },
    "prior": {
        "normal": "a standard normal prior",
        "mixture": "a prior of 10 learned Gaussians (Dilokthanakul et al. 2016)",
        "vamp": "a VampPrior of 10 pseudo-cells",
    },
    "normalization": {
        "layer": "normalization: layer",
        "batch": "normalization: batch",
        "none": "normalization: none",
    },
    "kl_warmup": {
        "linear": "rose linearly to 1 over 800 optimiser steps",
        "cosine": "rose along a cosine to 1 over 800 optimiser steps",
        "cyclical": "rose to 1 in 4 cycles over 800 optimiser steps (Fu et al. 2019)",
        "constant": "was 1 from the start",
    },
}


def test_every_choice_of_the_model_is_in_the_table_of_words():
    train = yaml.safe_load(SCHEMA.read_text())["properties"]["train"]["properties"]
    choices = {key: rule["enum"] for key, rule in train.items() if "enum" in rule}
    assert {key: sorted(said) for key, said in WORDS.items()} == {
        key: sorted(values) for key, values in choices.items()
    }


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, said in WORDS.items() for v in said])
def test_each_value_of_a_choice_has_words_of_its_own(key, value, full, tmp_path):
    run = full if value == "auto" else write_fake_run(tmp_path, n_cells=60)
    text = methods_of(run, train={key: value}).split("## References")[0]
    for other, said in WORDS[key].items():
        # With auto the chosen likelihood is named as well.
        if said and not (key == "likelihood" and value == "auto"):
            assert (said in text) == (other == value), said
    assert WORDS[key][value] in text


def test_settings_that_are_on_have_a_sentence(full, tmp_path):
    plain = write_fake_run(tmp_path, n_cells=60)
    for sections, said in (
        (
            {"train": {"likelihood": "gaussian"}},
            "common depth) with a variance learned a gene, and a standard normal prior",
        ),
        (
            {"train": {"likelihood": "gaussian", "gaussian_variance": 0.25}},
            "with a variance fixed at 0.25",
        ),
        ({"train": {"prior": "vamp", "prior_components": 33}}, "VampPrior of 33 pseudo-cells"),
        ({"train": {"n_layers": 3, "n_hidden": 77}}, "3 hidden layers of 77 units"),
        ({"train": {"dropout": 0.25}}, "dropout 0.25"),
        ({"train": {"free_bits": 0.05}}, ", 0.05 nats a dimension free;"),
        ({"train": {"beta": 4}}, "The weight of the KL term rose linearly to 4 over"),
        (
            {"train": {"covariates": ["batch"], "continuous_covariates": ["age"]}},
            "The decoder was given covariates: batch, age.",
        ),
        (
            {"train": {"covariates": ["batch"], "encode_covariates": True}},
            "Encoder and decoder were given covariates: batch.",
        ),
    ):
        text = methods_of(plain, **sections)
        assert said in text, said
        assert said not in methods_of(plain), said
    told = methods_of(full)
    assert "were traced over models with beta = 0.5, 1, 2, 4." in told
    assert "were repeated with 3 seeds in all" in told
    assert "(50 samples, Burda et al. 2016) of 77 held-out cells. Zero inflation is not" in told
    refined = changed_summary(plain, "evidence/summary.json", for_scores=True)
    assert "scores stand on these refined posteriors." in methods_of(refined)


def test_every_source_named_in_the_methods_is_in_its_references(full):
    text = methods_of(full, train={"prior": "mixture", "skip": "film", "kl_warmup": "cyclical"})
    body, references = text.split("## References")
    named = re.findall(r"([A-Z][\wö]+)(?: (?:et al\.|& \w+))? \(?(20\d\d|19\d\d)\b", body)
    assert len(named) >= 15
    for author, year in named:
        assert re.search(rf"- [^\n]*{author}[^\n]* {year}", references), (author, year)


# ---- the record


def test_checksum_of_a_file_is_sha256_and_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"counts")
    assert checksum(tmp_path / "a") == hashlib.sha256(b"counts").hexdigest()
    first = checksum(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = checksum(tmp_path)
    (tmp_path / "b").write_bytes(b"count5")
    assert len({first, second, checksum(tmp_path)}) == 3


def test_record_holds_versions_seed_samples_and_checksums(tmp_path):
    (tmp_path / "in.tsv").write_bytes(b"x")
    (tmp_path / "genes.txt").write_bytes(b"LYZ")
    versions = package_versions(["numpy", "no-such-package"])
    samples = {"NA": {"sample": "NA", "path": "in.tsv", "role": "query"}}
    train, listed = {"device": "cuda", "threads": 2}, str(tmp_path / "genes.txt")
    config = CONFIG | {"preprocess": {"select_features": {"gene_list": listed}}}
    without = describe_run(CONFIG, samples, versions, [tmp_path / "in.tsv"], train)
    record = describe_run(config, samples, versions, [tmp_path / "in.tsv"], train)
    assert record["packages"]["no-such-package"] == "not installed"
    assert re.match(r"\d+\.\d+", record["packages"]["numpy"])
    assert record["seed"] == 7 and record["device"] == "cuda" and record["threads"] == 2
    assert record["samples"] == samples
    assert list(without["inputs"].values()) == [hashlib.sha256(b"x").hexdigest()]
    assert record["inputs"][listed] == hashlib.sha256(b"LYZ").hexdigest()
