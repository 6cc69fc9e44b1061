"""The methods say what was done, with which sources."""

import json
import re
from pathlib import Path

import bibtexparser
import pytest
import yaml

from fake_reasons import write_check
from fake_run import CONFIG, SCHEMA, config_with, write_fake_run, write_optional_stages
from methods import write_methods
from references import REFERENCES, cited_in, is_cited
from write_report import read_summaries
from written_report import as_shown


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = write_fake_run(tmp_path_factory.mktemp("full"), n_cells=60)
    return write_check(write_optional_stages(folder))


def changed_summary(run: Path, path: str, **content) -> Path:
    file = run / path
    file.write_text(json.dumps(json.loads(file.read_text()) | content))
    return run


HOSTILE_COLUMNS = (
    *(
        "<img src=x onerror=alert(1)>",
        "</b>",
        "<!x>",
        "<?x?>",
        "<https://example.org/>",
        "&lt;b&gt;",
    ),
    *("[mark](javascript:alert(1))", "![image](x.png)", "`code`", "*so* **so**", "_so_ __so__"),
    *("~~so~~", "$x$", "\\", "\\<b>", "a_b_c", "a < b & c"),
)


# ---- methods


def methods_of(run: Path, **sections) -> str:
    """The methods of a fake run, made with these sections of the config."""
    config = config_with(**sections)
    likelihood = config["train"]["likelihood"]
    summaries = read_summaries(run.rglob("*summary.json"))
    train = next(s for s in summaries if s["stage"] == "train")
    if likelihood != "auto":
        train["architecture"] = train["architecture"] | {"likelihood": likelihood}
    return write_methods(config, summaries)[0]


def test_methods_name_the_settings_of_the_run(tmp_path):
    run = write_fake_run(tmp_path)
    text, _ = write_methods(CONFIG, read_summaries(run.rglob("*summary.json")))
    for said in ("min_counts = 321", " 4 scaled", "1234", "at least 9 cells", "0.35", "median of"):
        assert said in text, said
    for said in ("17 latent", "min_kl = 0.1", "800 optimiser", "seed was 7", "rate of 0.1"):
        assert said in text, said
    for said in ("which left 4", "5 singular values", "50 importance samples", "30 gradient"):
        assert said in text, said
    assert "the channel enrichment used query cells like calibration cells" in text
    assert "against 2 groups of reference cells (cell_type)" in text
    assert "278 training and validation cells (556, half" in text and "a rate of 0.07" in text
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
    del choices["precision"]  # how it was computed, not what
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


def said_of_anomalies(run: Path, **changed) -> str:
    """The methods after the anomaly stage said other things of itself."""
    return methods_of(changed_summary(run, "anomaly/summary.json", **changed))


def test_what_the_p_values_promise_is_said(tmp_path):
    run = write_fake_run(tmp_path, n_cells=60)
    n = json.loads((run / "anomaly/summary.json").read_text())["n_calibration"]
    marginal = methods_of(run)
    assert f"conformal p-value against {n} calibration cells that the model had" in marginal
    assert "valid given these cells" not in marginal
    changed_summary(run, "anomaly/summary.json", guarantee="conditional")
    conditional = methods_of(run, anomaly={"guarantee": "conditional", "conditional_delta": 0.25})
    assert f"against {n} calibration cells" in conditional
    assert "valid given these cells with probability 0.75 (generalized Simes" in conditional


def test_trimmed_cells_and_batches_are_said_where_there_are_any(tmp_path):
    run = write_fake_run(tmp_path, n_cells=60)
    assert "contamination" not in methods_of(run) and "batches" not in methods_of(run)
    assert "7 calibration cells were left out" in said_of_anomalies(run, n_trimmed=7)
    text = said_of_anomalies(run, calibrated_by_batch=["b1", "b2"])
    assert "Cells of the batches b1, b2 were ranked among their own calibration cells." in text


def test_methods_of_a_ranking_promise_no_error_rate(tmp_path):
    run = write_fake_run(tmp_path, is_ranking=True)
    marked = json.loads((run / "anomaly/summary.json").read_text())["n_anomalies"]
    text = methods_of(run, anomaly={"folds": 4})
    for said in (
        "There was no separate reference. Each cell got 3 scores (program, latent density, unseen "
        "genes)",
        "All cells were dealt to 4 folds by cells drawn at random",
        f"adjusted p-value up to 0.1 were marked: {marked} of 900.",
        "This is a ranking without a guarantee of its error rate.",
    ):
        assert said in text, said
    for absent in ("conformal", "flagged at a false discovery", "calibration cells", "query cells"):
        assert absent not in text, absent


def test_the_check_is_in_the_methods_of_a_run_that_made_it(tmp_path):
    run = write_fake_run(tmp_path, n_cells=60)
    assert "As a check" not in methods_of(run)
    text = methods_of(write_check(run))
    assert (
        "mean power 0.46, mean realised false discovery proportion 0.08 at a nominal 0.1." in text
    )
    assert "a group of cells held out of a second training) were put" in text
    for group in (None, {"group": None, "n_cells": 0}):
        changed_summary(run, "check/summary.json", held_out_group=group)
        assert "As a check" in methods_of(run) and "held out of a second" not in methods_of(run)
    # Too few cells to put anything into.
    none = dict.fromkeys(("mean_power", "mean_fdp", "mean_fpr"))
    assert "As a check" not in methods_of(changed_summary(run, "check/summary.json", **none))


def test_how_genes_were_tested_is_said_of_cells_and_of_bulk_samples(tmp_path):
    cells = methods_of(write_fake_run(tmp_path / "cells", n_cells=60))
    bulk = methods_of(write_fake_run(tmp_path / "bulk", n_cells=60, is_bulk=True))
    for text, one in ((cells, "cell"), (bulk, "sample")):
        assert f"Yekutieli (2001) within the {one}, at 0.05" in text
        assert f"normal {one}s, p <= 0.001 occurred 1.4 times as often as nominal" in text
    assert "averaged over its posterior" in bulk and "averaged over its post" not in cells
    assert "doublet probability" in cells and "oublet" not in bulk
    # Without calibration cells there is nothing to hold the p-values against.
    run = write_fake_run(tmp_path / "ranking", n_cells=60, is_ranking=True)
    text = methods_of(changed_summary(run, "genes/summary.json", null_ratio={}))
    assert "times as often as nominal" not in text and "z-scores are normal quantiles" in text


# ---- the sources


WORKS = [str(reference) for reference in REFERENCES]


def listed(text: str) -> list[str]:
    return [line.removeprefix("- ") for line in text.split("## References")[1].split("\n") if line]


def test_every_source_named_in_the_methods_is_in_its_references(full):
    text = methods_of(full, train={"prior": "mixture", "skip": "film", "kl_warmup": "cyclical"})
    body, references = text.split("## References")
    named = re.findall(r"([A-Z][\wö]+)(?: (?:et al\.|& \w+))? \(?(20\d\d|19\d\d)\b", body)
    assert len(named) >= 15
    for author, year in named:
        assert re.search(rf"- [^\n]*{author}[^\n]* {year}", references), (author, year)


def test_every_reference_is_cited_by_some_run_and_none_by_all(full, tmp_path):
    runs = [
        methods_of(full, train={"prior": "mixture", "skip": "film", "kl_warmup": "cyclical"}),
        methods_of(full, train={"prior": "vamp"}, library_size={"method": "median_of_ratios"}),
        methods_of(write_fake_run(tmp_path / "ranking", n_cells=60, is_ranking=True)),
        methods_of(write_fake_run(tmp_path / "bulk", n_cells=60, is_bulk=True)),
    ]
    assert {reference for text in runs for reference in listed(text)} == set(WORKS)
    assert all(set(listed(text)) != set(WORKS) for text in runs)
    assert all(listed(text) == [work for work in WORKS if work in listed(text)] for text in runs)


def test_only_what_a_run_used_is_listed(tmp_path):
    plain = " ".join(listed(methods_of(write_fake_run(tmp_path / "plain", n_cells=60))))
    for used in ("Bates et al. 2023", "Benjamini & Hochberg 1995", "Marandon et al. 2024"):
        assert used in plain, used
    for other in ("Alemi", "Anders", "Dilokthanakul", "Fu et al.", "Perez", "Tomczak"):
        assert other not in plain, other
    ranking = methods_of(write_fake_run(tmp_path / "ranking", n_cells=60, is_ranking=True))
    for other in ("Bates", "Marandon", "Hochberg 1995"):
        assert other not in " ".join(listed(ranking)), other


def test_references_are_in_the_order_of_their_authors():
    plain = [work.replace("ö", "o").casefold() for work in WORKS]
    assert plain == sorted(plain)


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("Wolf et al. 2018, SCANPY", "as in Scanpy, Wolf et al. 2018, and", True),
        ("Wolf et al. 2018, SCANPY", "(Wolf et al. 2018)", True),
        ("Wolf et al. 2018, SCANPY", "as Wolf et al. (2018) did", True),
        ("Wolf et al. 2018, SCANPY", "Wolf et al. 2017", False),
        ("Wolf et al. 2018, SCANPY", "Wolfram et al. 2018; McWolf et al. 2018", False),
        ("Platt 1999, Outputs", "scores (Platt 1999), gave", True),
        ("Liu & Xie 2020, Cauchy", "combined (Liu & Xie 2020).", True),
        ("Cremer, Li & Duvenaud 2018, Inference", "gap (Cremer et al. 2018) with", True),
        ("Mölder et al. 2021, Snakemake", "Snakemake (Mölder et al. 2021);", True),
        ("van den Brink et al. 2017, Genes", "genes (van den Brink et al. 2017), and", True),
        # Another author with the same particle, another sentence, another work's year.
        ("van den Brink et al. 2017, Genes", "(van der Maaten et al. 2017)", False),
        ("Kim et al. 2018, Amortized", "as Kim did. Lopez et al. 2018 say", False),
        ("Kim et al. 2018, Amortized", "(Kim et al. 2016; Lopez et al. 2018)", False),
        ("Kim et al. 2018, Amortized", "Kim et al. 2016 and Lopez et al. 2018", False),
        ("Kim et al. 2018, Amortized", "", False),
    ],
)
def test_a_reference_is_cited_by_its_first_author_and_year(reference, text, expected):
    assert is_cited(reference, text) == expected


# ---- as BibTeX


def entries(bibtex: str) -> list[dict[str, str]]:
    """The entries of a .bib file as a parser that is not ours reads them."""
    library = bibtexparser.parse_string(bibtex)
    assert not library.failed_blocks
    return [
        {"key": entry.key, "kind": entry.entry_type}
        | {field.key: field.value for field in entry.fields}
        for entry in library.entries
    ]


def test_names_are_text_in_the_methods(full):
    named = ", ".join(HOSTILE_COLUMNS)
    text = methods_of(full, train={"covariates": list(HOSTILE_COLUMNS)})
    assert f"given covariates: {named}." in as_shown(text)


def test_each_work_that_the_methods_list_has_an_entry_and_no_other(full):
    config = config_with(train={"prior": "vamp"})
    page, bibtex = write_methods(config, read_summaries(full.rglob("*summary.json")))
    found = {entry["key"] for entry in entries(bibtex)}
    assert found == {reference.key for reference in REFERENCES if str(reference) in listed(page)}
    assert found == {reference.key for reference in cited_in(page.split("## References")[0])}
    assert {"tomczak2018", "wolf2018"} <= found and "perez2018" not in found


def test_every_entry_has_what_its_kind_needs_and_a_key_of_its_own():
    needed = {"article": {"journal", "volume", "pages"}, "inproceedings": {"booktitle"}}
    needed |= {"incollection": {"booktitle", "publisher", "pages"}, "misc": set()}
    read = entries("\n".join(reference.bibtex() for reference in REFERENCES))
    assert len({entry["key"] for entry in read}) == len(REFERENCES)
    for entry, reference in zip(read, REFERENCES, strict=True):
        assert re.fullmatch(r"[a-z]+\d{4}", entry["key"])
        assert {"author", "title", "year"} | needed[entry["kind"]] <= set(entry)
        assert entry["title"] == f"{{{reference.title}}}" and entry["year"] == str(reference.year)
        authors = entry["author"].split(" and ")
        assert [name.split(", ")[0] for name in authors] == reference.families
        assert all(len(name.split(", ")) == 2 for name in authors)


def test_a_work_is_found_by_a_well_formed_doi_or_arxiv_number():
    for reference in REFERENCES:
        assert not (reference.doi and reference.arxiv)
        assert not reference.doi or re.fullmatch(r"10\.\d{4,5}/\S+", reference.doi)
        assert not reference.arxiv or re.fullmatch(r"\d{4}\.\d{4,5}", reference.arxiv)
        assert reference.where in str(reference)
    assert [reference.key for reference in REFERENCES if not reference.url] == ["platt1999"]
