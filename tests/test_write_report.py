"""The report tells all, loads nothing, runs nothing, and is the same each time."""

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from fake_run import HOSTILE, write_fake_run
from report_tables import flagged_table
from run_record import checksum, describe_run, package_versions, write_methods
from write_report import (
    flatten,
    judge,
    read_sample_table,
    read_summaries,
    render,
    report_content,
)

TEMPLATE = Path(__file__).resolve().parent.parent / "workflow" / "report" / "report.html"
PNG = bytes.fromhex("89504e470d0a1a0a")
CONFIG = {
    "run": "first look",
    "seed": 7,
    "preprocess": {
        "filter_cells": {"min_counts": 321, "max_counts": None, "n_mads": 4},
        "select_features": {"n_features": 1234, "min_cells": 9},
        "split": {"validation": 0.15, "calibration": 0.35},
    },
    "library_size": {"method": "median_of_ratios"},
    "train": {"n_latent": 17},
    "prune": {"min_kl": 0.033},
}


def read_tables(run: Path) -> dict[str, pd.DataFrame]:
    tables = {
        "cells": "anomaly/cells.parquet",
        "genes": "anomaly/genes.parquet",
        "evidence": "prune/seed1/evidence.parquet",
        "elbo": "prune/seed1/elbo.tsv",
        "channels": "anomaly/channels.tsv",
        "splits": "preprocess/splits.tsv",
        "samples_library": "library_size/samples.tsv",
    }
    return {
        name: pd.read_parquet(run / path)
        if path.endswith("parquet")
        else pd.read_csv(run / path, sep="\t")
        for name, path in tables.items()
    }


def make_report(run: Path) -> str:
    figures = run / "figures"
    figures.mkdir(exist_ok=True)
    for name in ("qc", "library_size", "training", "pruning", "latent", "anomalies"):
        (figures / f"{name}.png").write_bytes(PNG)
    content = report_content(
        read_tables(run), read_summaries(run.rglob("*summary.json")), sorted(figures.iterdir())
    )
    content |= {"run": CONFIG["run"], "settings": flatten(CONFIG), "versions": {"numpy": "2"}}
    return render(TEMPLATE.read_text(encoding="utf-8"), content)


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
    words = [v for tag, name, v in page.attributes if tag == "img" and name == "alt"]
    assert len(images) == 6 and all(words)


def test_says_how_many_were_found(tmp_path):
    run = write_fake_run(tmp_path)
    cells = pd.read_parquet(run / "anomaly/cells.parquet")
    query = cells[cells["split"] == "query"]
    text = " ".join(Page(make_report(run)).text.split())
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
    text = " ".join(Page(make_report(write_fake_run(tmp_path))).text.split())
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


def test_methods_name_the_settings_of_the_run(tmp_path):
    run = write_fake_run(tmp_path)
    text = write_methods(CONFIG, read_summaries(run.rglob("*summary.json")))
    for said in ("min_counts = 321", " 4 scaled", "1234", "at least 9 cells", "0.35", "median of"):
        assert said in text, said
    for said in ("17 latent", "min_kl = 0.033", "800 optimiser", "seed was 7", "rate of 0.1"):
        assert said in text, said
    assert "shared-program channel used query cells" in text
    assert "None" not in text and "max_counts" not in text


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
