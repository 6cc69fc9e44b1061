"""The report tells all, loads nothing, runs nothing, and is the same each time."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from fake_reasons import write_check
from fake_run import CONFIG, HOSTILE, write_fake_run, write_optional_stages
from finding_columns import FLAGGED, GENES, OUTLIERS
from report_findings import (
    DOUBTFUL,
    SOUND,
    UNTOLD,
    collect_warnings,
    first_warnings,
    how_sure,
    judge,
    what_was_found,
)
from report_page import FOLDER, inlined
from report_tables import (
    MAX_GENES,
    MAX_HITS,
    MAX_ROWS,
    ROWS_A_PAGE,
    digits,
    flagged_table,
    make_long_table,
    most,
    percent,
    surest,
)
from test_packed import unpacked
from write_report import (
    MAX_CARDS,
    MAX_MARKERS,
    pattern_cards,
    read_sample_table,
    read_summaries,
    read_texts,
)
from written_report import FIGURES, OF_NAMES, TABLES, make_report, write_files


def words(page: str) -> str:
    return " ".join(Page(page).text.split())


def section(page: str, name: str) -> str:
    """The markup of one section of the page."""
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.within = [], [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.within = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        self.text += " " if tag == "td" else ""
        self.within = ""

    def handle_data(self, data):
        self.text += "" if self.within in ("script", "style") else data


HOSTILE_GROUP = '"><img src=x onerror=alert(2)>'
WARNINGS = ("few calibration cells; add reference cells", f"gene {HOSTILE} is odd; rename it")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a run whose genes and groups bear hostile names."""
    folder = tmp_path_factory.mktemp("run")
    run = write_fake_run(folder, warnings=WARNINGS, gene=HOSTILE, group=HOSTILE_GROUP)
    return make_report(run)


@pytest.fixture(scope="module")
def page(written):
    return Page(written)


def test_markup_in_the_data_is_shown_and_not_run(page, written):
    # The long tables, the map, BokehJS in two files, and the page's own.
    assert page.tags.count("script") == 3 + 1 + 2 + 1
    # In the warning, in lists of genes, in labels of patterns, in tables of their markers.
    for where, times in (("warnings", 1), ("anomalies", 20), ("why", 6), ("genes", 20)):
        assert Page(section(written, where)).text.count(HOSTILE) >= times, where
    assert Page(section(written, "why")).text.count(HOSTILE_GROUP) == 2
    assert page.tags.count("img") == len(FIGURES)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_loads_nothing_from_anywhere(page):
    sources = [v for _, name, v in page.attributes if name in ("src", "srcset", "action")]
    assert sources and all(v.startswith("data:image/") for v in sources)
    # A link is followed by who clicks it.
    links = {(tag, v) for tag, name, v in page.attributes if name == "href"}
    found_at = ("#", "https://doi.org/", "https://arxiv.org/abs/")
    assert all(tag == "a" and v.startswith(found_at) for tag, v in links)
    for file in FOLDER.glob("*.[hcj]*"):
        assert not re.search(r"https?://|@import|url\(", file.read_text(encoding="utf-8")), file


def test_only_the_scripts_of_the_page_may_run(written, page):
    policy = next(v for tag, _, v in page.attributes if v.startswith("default-src 'none'"))
    assert "unsafe-eval" not in policy
    allowed = re.search(r"script-src ([^;]*);", policy)[1].split()
    scripts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", written, re.DOTALL)
    assert [inlined([script])[1] for script in scripts] == allowed and len(allowed) == 3


@pytest.mark.parametrize("text", ["a = '</script>'", "// </SCRIPT >", "a <!-- b"])
def test_a_script_that_would_end_its_element_is_refused(text):
    with pytest.raises(ValueError, match="markup"):
        inlined(["fine", text])


def test_every_link_inside_leads_somewhere(page):
    ids = {v for _, name, v in page.attributes if name == "id"}
    links = {v[1:] for _, name, v in page.attributes if name == "href" and v[0] == "#"}
    assert links and links <= ids


def test_every_warning_is_there_with_its_mend(page):
    for warning in WARNINGS:
        what, mend = warning.split("; ")
        assert what in page.text and f"What to do: {mend}" in page.text


def test_every_figure_is_there_with_words_for_it(page):
    images = [v for tag, name, v in page.attributes if tag == "img" and name == "src"]
    texts = [v for tag, name, v in page.attributes if tag == "img" and name == "alt"]
    assert len(images) == len(FIGURES)
    assert sorted(texts) == sorted(f"What {name} shows, in words." for name in FIGURES)
    sizes = {v for tag, name, v in page.attributes if tag == "img" and name in ("width", "height")}
    assert sizes == {"2", "1"}  # half of the pixels, as at 300 dpi


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
    assert found_none.tags.count("img") == len(FIGURES) - 1  # all but the patterns
    assert "None of" in found_none.text and "No cell is flagged" in found_none.text
    assert "No pattern" in found_none.text


def test_same_bytes_when_made_again(tmp_path):
    run = write_fake_run(tmp_path)
    assert make_report(run) == make_report(run)


def flagged(n: int = 2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``n`` flagged cells, the last the oddest, and one that is not; all with reasons."""
    names = [f"c{i:03d}" for i in range(n)]
    query = pd.DataFrame({"cell_id": [*names, "normal"], "is_anomaly": [True] * n + [False]})
    query["p_value"], query["score"] = 1 / (2 + query.index), 0.0
    query["leading_channel"] = ["latent_density"] * n + [""]
    columns = ["nearest_reference", "technical_cause", "doublet_probability"]
    reasons = query[["cell_id"]].assign(pattern="P1", genes="").assign(**dict.fromkeys(columns))
    return query, reasons.sample(frac=1, random_state=0)


def genes_of(reasons: pd.DataFrame, cell: str, genes: str) -> pd.DataFrame:
    return reasons.assign(genes=reasons["genes"].where(reasons["cell_id"] != cell, genes))


def test_the_oddest_flagged_cells_come_first_with_their_reasons():
    query, reasons = flagged()
    reasons = genes_of(reasons, "c001", "LYZ+, CD3E-")
    table = flagged_table(query.sample(frac=1, random_state=1), reasons)
    assert list(table["cell_id"]) == ["c001", "c000"]
    assert list(table["genes"]) == ["LYZ+, CD3E-", "no single gene; latent density"]
    # The same p-value: the higher score is the odder.
    query["p_value"], query["score"] = 0.1, [5.0, 1.0, 0.0]
    assert list(flagged_table(query, reasons)["cell_id"]) == ["c000", "c001"]


def test_of_many_genes_the_first_are_named_and_the_rest_counted():
    query, reasons = flagged()
    names = [f"G{i}+" for i in range(MAX_GENES + 2)]
    for n in (MAX_GENES, MAX_GENES + 2):
        table = flagged_table(query, genes_of(reasons, "c001", ", ".join(names[:n])))
        more = f" and {n - MAX_GENES} more" if n > MAX_GENES else ""
        assert table["genes"].iloc[0] == ", ".join(names[:MAX_GENES]) + more


def test_a_flagged_cell_without_a_row_of_reasons_is_still_listed():
    query, reasons = flagged()
    table = flagged_table(query, reasons[reasons["cell_id"] != "c001"])
    assert list(table["genes"]) == ["no single gene; latent density"] * 2


def test_no_more_flagged_cells_are_listed_than_a_reader_reads():
    table = flagged_table(*flagged(MAX_ROWS + 5))
    assert len(table) == MAX_ROWS and "c004" not in set(table["cell_id"])


ANOMALY = {
    **{
        "is_ranking": False,
        "alpha": 0.1,
        "smallest_p": 1e-3,
        "needed_together": 1,
        "n_query": 100,
        "n_anomalies": 0,
    },
    **{"spearman_depth": 0.02, "spearman_depth_query": -0.03, "fpr_by_depth_fifth": [0.05] * 5},
    "bands": {"spearman_depth": 0.1, "fpr": [0.02, 0.09], "needed_together": 5},
}


def soundness(**changed) -> list[bool]:
    return [check["verdict"] == SOUND for check in judge(ANOMALY | changed)]


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


def test_a_band_that_no_fault_could_leave_tells_nothing():
    bands = {"spearman_depth": 1.1, "fpr": [0.0, 1.0], "needed_together": 5}
    few = judge(ANOMALY | {"bands": bands})
    assert [check["verdict"] for check in few] == [SOUND, UNTOLD, UNTOLD, UNTOLD]
    text = sure_lines({}, bands=bands)
    assert "1 of 4 checks sound: too few cells to tell of 3." in text
    text = sure_lines({}, bands=bands, needed_together=6)
    assert "0 of 4 checks sound: look closer at smallest possible p-value; too few cells" in text
    assert judge(ANOMALY | {"bands": bands}, "samples")[1]["verdict"] == "too few samples"


def test_the_smallest_p_is_sound_where_a_few_cells_could_be_flagged():
    assert soundness(needed_together=5)[0] is True
    assert soundness(needed_together=50)[0] is False
    assert "at least 50 of the 100" in judge(ANOMALY | {"needed_together": 50})[0]["reading"]
    check = judge(ANOMALY | {"needed_together": 101})[0]
    assert "none can be flagged" in check["reading"] and check["verdict"] == DOUBTFUL


# ---- the first screen

FOUND = {"n_hits": 0, "n_with_outliers": 0, "observations": "cells"}
NO_REASONS = {"n_flagged": 0, "n_without_cause": 0}
NO_SAMPLES = pd.DataFrame({"sample": [], "n_query": [], "share": []})


def found_lines(patterns=(), samples=NO_SAMPLES, reasons=NO_REASONS, genes=FOUND) -> list[str]:
    columns = ["pattern", "n_cells", "label", "nearest_reference"]
    table = pd.DataFrame(patterns, columns=columns)
    return [line["text"] for line in what_was_found(table, samples, reasons, genes)]


def test_what_was_found_names_the_largest_patterns_and_counts_the_rest():
    assert found_lines() == []
    patterns = [("P1", 1234, "A+ B-", "T cell"), ("P2", 1, "", ""), *[("P3", 3, "C+", "")] * 3]
    assert found_lines(patterns) == [
        "P1: 1,234 cells, marked by A+ B-, nearest to T cell.",
        "P2: 1 cell.",
        "P3: 3 cells, marked by C+.",
        "2 further patterns.",
    ]


def test_what_was_found_tells_of_causes_genes_and_the_sample_with_most():
    samples = pd.DataFrame({"sample": list("abc"), "n_query": [10, 10, None]})
    samples["share"] = [0.1, 0.25, None]
    reasons = {"n_flagged": 9, "n_without_cause": 4}
    genes = {"n_hits": 1, "n_with_outliers": 1, "observations": "samples"}
    assert found_lines(samples=samples, reasons=reasons, genes=genes) == [
        "4 of 9 flagged samples show no technical cause: the candidates for new biology.",
        "1 outlier gene in 1 sample.",
        "Most in b: 25 % of it.",
    ]
    assert found_lines(samples=samples.head(1)) == []


def sure_lines(check: dict, **changed) -> str:
    anomaly = ANOMALY | {"n_calibration": 999} | changed
    return " ".join(line["text"] for line in how_sure(anomaly, judge(anomaly), check, "cells"))


def test_how_sure_it_is_rests_on_calibration_check_and_checks():
    check = {"mean_power": 0.46, "mean_fdp": 0.08, "alpha": 0.1}
    text = sure_lines(check, spearman_depth=0.4)
    for said in (
        "p-values rest on 999 calibration cells; the smallest there can be is 0.001",
        "46 % were found",
        "8 % of what was flagged there was normal (at most 10 % should be)",
        "3 of 4 checks sound: look closer at score against depth, calibration cells.",
    ):
        assert said in text, said
    assert "4 of 4 checks sound: nothing to look into." in sure_lines({})
    assert "were found" not in sure_lines({})
    assert "Too few normal cells" in sure_lines({"mean_power": None})
    assert sure_lines({}, is_ranking=True) == (
        "No cell is known to be normal, so there is no error rate."
    )


def test_first_come_the_warnings_of_the_finding_and_each_mend_once():
    of = [("train", "a", "x"), ("anomaly", "b", "y"), ("anomaly", "c", "y"), ("check", "d", "")]
    warnings = [{"where": where, "what": what, "mend": mend} for where, what, mend in of]
    assert [warning["what"] for warning in first_warnings(warnings)] == ["b", "d", "a"]
    assert [warning["what"] for warning in first_warnings(warnings[:1])] == ["a"]
    many = [{"where": "train", "what": str(i), "mend": ""} for i in range(9)]
    assert [warning["what"] for warning in first_warnings(many)] == ["0", "1", "2"]


def test_what_is_said_of_several_samples_is_one_warning():
    def of(sample: str, *lines: str) -> dict:
        return {"stage": "preprocess", "sample": sample, "warnings": list(lines)}

    odd = "pct_mito is unknown; name genes by symbols"
    summaries = [of(f"s{i}", f"sample s{i}: {odd}") for i in range(5)]
    summaries += [of("t", "sample t: 9 of 10 cells were dropped; look"), of("", "few cells; bring")]
    assert collect_warnings(summaries) == [
        {
            "where": "preprocess · 5 samples",
            "what": "s0, s1, s2, ...: pct_mito is unknown",
            "mend": "name genes by symbols",
        },
        {
            "where": "preprocess · t",
            "what": "sample t: 9 of 10 cells were dropped",
            "mend": "look",
        },
        {"where": "preprocess", "what": "few cells", "mend": "bring"},
    ]


# ---- tables


def test_numbers_have_three_digits_and_large_ones_all():
    values = (0.00012345, 1.5e-7, 12.345, 999.4, 999.6, 12345.6, 0.0, -2.0, float("nan"))
    shown = ["0.000123", "1.5e-07", "12.3", "999", "1,000", "12,346", "0", "-2", "–"]
    assert [digits(value) for value in values] == shown
    assert [percent(value) for value in (0.0756, 1.0, 10.0)] == ["7.56 %", "100 %", "1,000 %"]


def test_a_long_table_has_its_first_page_and_all_rows(tmp_path):
    rows = flagged_table(*flagged(ROWS_A_PAGE + 5))
    made = make_long_table(rows, FLAGGED)
    assert len(made["rows"]) == ROWS_A_PAGE and made["all"]["n"] == ROWS_A_PAGE + 5
    columns = json.loads(unpacked(made["all"]["data"]))
    assert made["all"]["columns"][0]["name"] == "cell_id"
    assert [len(column) for column in columns] == [ROWS_A_PAGE + 5] * len(columns)
    assert columns[0][:ROWS_A_PAGE] == [row[0] for row in made["rows"]]


def test_every_number_of_the_tables_of_findings_says_how_it_is_read():
    for table in (FLAGGED, GENES, OUTLIERS):
        unsaid = [c.name for c in table if c.is_number and not c.says]
        assert set(unsaid) <= {"n_up", "n_down"}, unsaid


def test_input_says_what_was_left_out_and_how_genes_were_selected(tmp_path):
    text = words(make_report(write_fake_run(tmp_path)))
    for said in (
        *("donor1 features: Antibody Capture 17", "donor3 genes that another sample lacks 46"),
        *("all samples genes in too few cells 9", "without a count in the genes left 6"),
        "40 of 60 genes were selected for the model: 33 by variability (all: seurat_v3, span 0.3), "
        "5 by the gene list, 2 by both.",
        "-0.0789",
        'the channel "enrichment" use them like calibration cells, without their role',
    ):
        assert said in text, said
    assert "donor1 genes that another" not in text and "cells without a role" not in text


def test_a_sample_may_be_called_na(tmp_path):
    table = pd.DataFrame({"sample": ["NA", "null", "01"], "n_cells": [1, 2, 3]})
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(read_sample_table(tmp_path / "t.tsv"), table)


NAMES = ["NA", "nan", "null", "7", "None", "", "-1e5"]


def test_names_stay_names_and_only_numbers_can_be_missing(tmp_path):
    table = pd.DataFrame({"gene": NAMES, "pattern": NAMES, "nearest_reference": NAMES})
    table["q_value"] = [0.5, None, 7, 1e-300, 0, 1, 2]
    table["n_cells"] = range(7)
    table["mito_z"] = None
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False, na_rep="NA")
    read = read_texts(tmp_path / "t.tsv")
    for name in ("gene", "pattern", "nearest_reference"):
        assert read[name].tolist() == NAMES
    assert read["q_value"].isna().tolist() == [False, True, *[False] * 5]
    assert read["q_value"].dropna().tolist() == [0.5, 7, 1e-300, 0, 1, 2]
    assert read["n_cells"].tolist() == list(range(7)) and read["mito_z"].isna().all()


def test_every_text_of_the_tables_of_reasons_is_read_as_text(tmp_path):
    """A column that is not known to hold text would lose a cell group, or a gene, called NA."""
    run = write_fake_run(tmp_path)
    for name in OF_NAMES:
        path = run / TABLES[name]
        read = read_texts(path)
        texts = [
            c for c in read if not pd.api.types.is_numeric_dtype(read[c]) and c != "is_anomaly"
        ]
        read[texts] = "NA"
        read.to_csv(path, sep="\t", index=False)
        assert (read_texts(path)[texts] == "NA").all().all(), name


def test_summaries_know_their_stage_and_sample(tmp_path):
    run = write_fake_run(tmp_path / "prune" / "results")  # a folder above bears a stage's name
    found = {(s["stage"], s["sample"]) for s in read_summaries(run.rglob("*summary.json"))}
    assert {("import", "donor1"), ("preprocess", ""), ("train", ""), ("anomaly", "")} <= found
    assert {("genes", ""), ("doublets", ""), ("patterns", "")} <= found


# ---- why, doublets, check


def test_why_tells_patterns_causes_and_evidence(tmp_path):
    run = write_fake_run(tmp_path)
    text = words(section(make_report(run), "why"))
    n = len(pd.read_parquet(run / "patterns/cells.parquet"))
    patterns = read_texts(run / "patterns/patterns.tsv")
    assert f"{n - 1} of {n} flagged cells fall into 2 patterns" in text
    assert f"{(n + 1) // 2} flagged cells show no technical cause" in text
    for row in patterns.itertuples():
        assert (
            f"{row.pattern} GENE0+ GENE1+ GENE9- {row.n_cells} {row.n_samples} {row.n_donors} "
            "T cell 75 % 3.5 none found 0 %"
        ) in text
        assert f"{row.pattern} 0.25 0.25 0.25 0.25 0.25" in text
    assert "reference has no labels" not in text


def test_one_pattern_is_no_plural(tmp_path):
    run = write_fake_run(tmp_path)
    changed_summary(run, "patterns/summary.json", n_patterns=1)
    page = make_report(run)
    assert "fall into 1 pattern:" in page


def test_each_pattern_has_a_card_with_its_surest_markers(written):
    why = section(written, "why")
    cards = [
        Page(card)
        for card in re.findall(r"<details(?: open)?><summary>P.*?</table>", why, re.DOTALL)
    ]
    assert [" ".join(card.text.split())[:4] for card in cards] == ["P1: ", "P2: "]
    assert why.count("<details open>") == 1
    for card in cards:
        assert f"{HOSTILE}+ GENE1+ GENE9-" in card.text
        # Of 14 markers the first, up and down, by q-value.
        assert card.tags.count("tr") == 1 + MAX_MARKERS
        assert "GENE11 up" in card.text and "GENE12" not in card.text and "GENE4 down" in card.text


def test_cards_are_of_the_largest_patterns_and_a_pattern_may_have_no_marker(tmp_path):
    names = [f"P{i}" for i in range(1, MAX_CARDS + 3)]
    patterns = pd.DataFrame({"pattern": names, "label": ["", *["X+"] * (MAX_CARDS + 1)]})
    markers = pd.DataFrame({"pattern": ["P2", "P2", "P12"], "gene": ["B", "A", "C"], "q_value": 0})
    cards = pattern_cards(patterns, markers)
    assert [card["pattern"] for card in cards] == names[:MAX_CARDS]
    assert cards[0]["markers"]["rows"] == []
    assert [row[0] for row in cards[1]["markers"]["rows"]] == ["A", "B"]
    run = write_fake_run(tmp_path)
    for name in ("patterns", "markers"):
        table = read_texts(run / TABLES[name])
        table = table.assign(label="") if name == "patterns" else table[table["pattern"] == "P2"]
        table.to_csv(run / TABLES[name], sep="\t", index=False)
    text = words(section(make_report(run), "why"))
    assert "P1: no marker gene No gene marks this pattern beyond chance" in text


def test_reference_groups_without_labels_are_shown_by_their_genes(tmp_path):
    run = write_fake_run(tmp_path)
    changed_summary(run, "patterns/summary.json", groups_named_by="latent clusters")
    text = words(section(make_report(run), "why"))
    assert "reference has no labels" in text and "B cell 51 MS4A1, CD79A" in text


def test_outlier_genes_come_the_surest_first():
    hits = pd.DataFrame({"cell_id": list("babc"), "gene": ["X", "Y", "A", "Z"]})
    hits["log10_p"] = [-5.0, -400.0, -5.0, -9.0]
    assert surest(hits, "log10_p")["gene"].tolist() == ["Y", "Z", "A", "X"]
    many = pd.concat([hits] * MAX_HITS)
    assert len(surest(many, "log10_p")) == MAX_HITS
    cells = pd.DataFrame({"cell_id": list("dcba"), "n_outlier_genes": [3, 0, 3, 70]})
    assert most(cells, "n_outlier_genes")["cell_id"].tolist() == ["a", "b", "d"]
    assert len(most(pd.concat([cells] * MAX_HITS), "n_outlier_genes")) == MAX_HITS


def test_outlier_genes_are_told_of_cells_and_of_bulk_samples(tmp_path):
    run = write_fake_run(tmp_path / "cells", gene="NA")
    text = words(section(make_report(run), "genes"))
    name = read_texts(run / "genes/genes.tsv")["cell_id"].min()
    sample_of = read_texts(run / "genes/outliers.tsv").set_index("cell_id")["sample"]
    for said in (
        "Each gene of each flagged cell is held against",
        "(Benjamini-Yekutieli, as genes depend on each other), at 5 %",
        "p ≤ 0.001 occurred 1.43 times as often as nominal",
        f"{name} NA 12 1.5 3 6.1 -17 1e-06 model",
        f"{name} {sample_of[name]} yes 9 9 0 0.15 % NA -17",
    ):
        assert said in text, said
    assert "aberrant" not in text
    bulk = words(section(make_report(write_fake_run(tmp_path / "bulk", is_bulk=True)), "genes"))
    assert "each query sample" in bulk and "2 samples are aberrant" in bulk


def test_a_run_without_outlier_genes_says_so(tmp_path):
    run = write_fake_run(tmp_path, share_odd=0)
    changed_summary(run, "genes/summary.json", null_ratio={})
    text = words(section(make_report(run), "genes"))
    assert "No gene is an outlier." in text and "No cell has an outlier gene." in text
    assert "as often as nominal" not in text


def test_doublets_are_told_with_how_sure_they_are(tmp_path):
    run = write_fake_run(tmp_path)
    found = json.loads((run / "doublets/summary.json").read_text())
    text = words(section(make_report(run), "doublets"))
    for said in (
        f"{found['n_likely']} of {found['n_query']} query cells are more probably doublets",
        "(3.27 % expected in all, at a rate of 7 %)",
        "with AUROC 0.882, at full depth 0.913",
        "24.3 % of random pairs, cannot be seen",
        "2 % 50 % 11 26 % 12.3 %",
    ):
        assert said in text, said
    # One group of reference cells: no doublet of two groups was made.
    changed_summary(run, "doublets/summary.json", auroc_matched=None, auroc_full=None)
    text = words(section(make_report(run), "doublets"))
    assert "AUROC" not in text and "24.3 % of random pairs" in text


def test_bulk_samples_are_no_doublets(tmp_path, page):
    text = make_report(write_fake_run(tmp_path, is_bulk=True))
    assert "so there are none" in section(text, "doublets")
    assert "simulated" not in section(text, "doublets")
    assert Page(text).tags.count("section") == page.tags.count("section")


def test_a_bulk_run_speaks_of_samples_and_of_their_outlier_genes(tmp_path):
    run = write_fake_run(tmp_path, is_bulk=True)
    head = words(make_report(run).split("<main id=")[0])
    assert re.search(r"\d+ of \d+ query samples do not fit the reference", head)
    assert re.search(r"\d+ outlier genes in \d+ samples", head)
    assert "query cells" not in head and "flagged cells" not in head
    # A sample can have outlier genes without being flagged as a whole.
    cells = pd.read_parquet(run / "anomaly/cells.parquet")
    cells.assign(is_anomaly=False).to_parquet(run / "anomaly/cells.parquet")
    head = words(make_report(run).split("<main id=")[0])
    assert "query samples is flagged" in head
    assert re.search(r"Single genes do stand out: \d+ outlier genes in \d+ samples", head)


def test_the_check_tells_what_would_be_found(tmp_path):
    run = write_check(write_fake_run(tmp_path))
    page = make_report(run)
    text = words(section(page, "check"))
    for said in (
        "3 draws each",
        "With 137 unseen normal cells",
        "held out of a second training was B cell (38 cells)",
        "single gene z = 2 anomics 15 0.5 0 0 % 8 % 5 % 0.04",
    ):
        assert said in text, said
    assert section(page, "check").count("<img") == 1 and "Switched off" not in page
    assert section(page, "check").count("<tr>") == 1 + 4 * 3
    for group in (None, {"group": None, "source": "", "n_cells": 0, "warnings": []}):
        changed_summary(run, "check/summary.json", held_out_group=group)
        assert "second training" not in section(make_report(run), "check")


def test_a_check_that_is_off_is_said_to_be(written):
    check = section(written, "check")
    assert "Switched off in the config (check.injected)" in check
    assert "<img" not in check and "<table" not in check and "Power" not in check


def test_a_check_that_too_few_cells_forbade_is_told_from_one_that_is_off(tmp_path):
    run = write_check(write_fake_run(tmp_path), kinds={})
    none = dict.fromkeys(("mean_power", "mean_fdp", "mean_fpr", "held_out_group"))
    check = section(make_report(changed_summary(run, "check/summary.json", **none)), "check")
    assert "Switched off" not in check
    assert "Too few cells" in check and "Nothing to list" not in check


# ---- a run without a query


@pytest.fixture(scope="module")
def ranking(tmp_path_factory):
    return make_report(write_fake_run(tmp_path_factory.mktemp("ranking"), is_ranking=True))


def test_a_ranking_says_so_and_promises_no_error_rate(ranking, page):
    head = words(ranking.split("<main id=")[0])
    assert re.search(r"\d+ of 900 cells stand out from the others", head)
    assert "This is a ranking, no FDR guarantee" in head
    assert "do not fit the reference" not in head
    assert "They are flagged at a false discovery rate" not in head
    assert "calibration" not in head and "query cells" not in head
    assert Page(ranking).tags.count("section") == page.tags.count("section")


def test_a_ranking_has_no_calibration_to_check(ranking):
    assert judge(ANOMALY | {"is_ranking": True, "smallest_p": None}) == []
    assert '<ul class="checks">' not in ranking
    sure = words(section(ranking, "sure"))
    assert "no calibration set to check" in sure
    assert "The false discovery rate holds if" not in sure


def test_a_ranking_does_not_speak_of_cells_that_it_has_not(ranking):
    for name in ("found", "anomalies", "doublets", "input", "channels", "depth"):
        text = words(section(ranking, name)).replace("There is no separate reference", "")
        assert "query cells" not in text and "calibration cell" not in text.lower(), name


def test_a_ranking_that_marks_nobody_is_no_query_that_fits(tmp_path):
    run = write_fake_run(tmp_path, share_odd=0, is_ranking=True)
    text = words(make_report(run))
    assert "0 of 900 cells stand out" in text and "None of" not in text


# ---- what only some runs have


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write_check(write_optional_stages(write_fake_run(tmp_path_factory.mktemp("full"))))


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
    assert len(images) == len(FIGURES) + 2 and "What rate_distortion shows, in words." in images
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


@pytest.mark.parametrize("is_full", [False, True])
def test_the_rule_writes_report_and_methods(tmp_path, is_full):
    run = write_fake_run(tmp_path / "run")
    if is_full:
        write_check(write_optional_stages(run))
    written = write_files(run, tmp_path / "out", CONFIG)
    text = words(written["report"].read_text())
    assert ("Pairs of seeds compared" in text) == is_full
    assert ("Injected anomalies, means over the draws" in text) == is_full
    assert ("chosen among negative binomial" in written["methods"].read_text()) == is_full


def test_a_group_of_one_cell_has_no_standard_error_and_any_name(tmp_path):
    run = write_fake_run(tmp_path / "run")
    groups = pd.read_csv(run / "evidence/groups.tsv", sep="\t").head(4)
    groups["group"], groups["n_cells"] = ["NA", "01", "null", "T cell"], [1, 7, 1, 8]
    groups["gap_se"] = [None, 0.25, None, 0.5]
    groups.to_csv(run / "evidence/groups.tsv", sep="\t", index=False, na_rep="NA")
    text = words(write_files(run, tmp_path / "out", CONFIG)["report"].read_text())
    for name, se in (("NA", "–"), ("01", "0.25"), ("null", "–"), ("T cell", "0.5")):
        assert re.search(rf" {name} [178] -605.50 -603.20 0.87 {se} 17.5", text), name


def test_genes_samples_and_groups_may_be_called_na(tmp_path):
    run = write_fake_run(tmp_path / "run", gene="NA", group="null")
    markers = read_texts(run / "patterns/markers.tsv")
    markers.assign(mean_reference=None).to_csv(
        run / "patterns/markers.tsv", sep="\t", index=False, na_rep="NA"
    )
    page = write_files(run, tmp_path / "out", CONFIG)["report"].read_text()
    why = words(section(page, "why"))
    assert "NA up 3.61 – 0.194 7.49" in why and " null 75 %" in why
    assert "NA+, GENE1+, GENE2+, GENE3+, GENE4+, GENE5+ and 3 more null" in words(
        section(page, "anomalies")
    )
