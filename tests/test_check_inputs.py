"""What is wrong with the files of a run is told before its first job, all at once, a line each."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import check_inputs
from check_inputs import check
from configuration import check_config
from conftest import ROOT
from messages import is_said
from workflow_copy import SETTINGS, small_counts

SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"


class Study:
    """Files in the working folder: 160 reference cells (healthy), 60 query cells (patient)."""

    def __init__(self):
        Path("data").mkdir()
        self.patient = small_counts(60, seed=2, first=160)
        self.healthy = small_counts(160, seed=1)
        self.rows = {
            "healthy": {"sample": "healthy", "path": "data/healthy.h5ad", "role": "reference"},
            "patient": {"sample": "patient", "path": "data/patient.h5ad", "role": "query"},
        }
        self.sections = dict(SETTINGS)
        self.n_folds = 0

    def patient_in(self, name: str, text: str = "") -> Path:
        """The patient's file is another one, with ``text`` in it."""
        path = Path("data", name)
        self.rows["patient"]["path"] = str(path)
        path.write_text(text)
        return path

    def table(self) -> pd.DataFrame:
        """The patient's counts, a row a cell."""
        cells, genes = self.patient.obs_names, self.patient.var_names
        return pd.DataFrame(self.patient.X.toarray().astype(int), cells, genes)

    def config(self) -> dict:
        return check_config({**self.sections, "samples": "samples.tsv"}, SCHEMA)

    def found(self) -> dict[str, list[str]]:
        for name in ("healthy", "patient"):
            path = Path("data", f"{name}.h5ad")
            if not path.exists():
                getattr(self, name).write_h5ad(path)
        return check(list(self.rows.values()), self.config(), self.n_folds, True)


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return Study()


def together(*changes: Callable[[Study], None]) -> Callable[[Study], None]:
    def apply(study: Study) -> None:
        for change in changes:
            change(study)

    return apply


def with_sections(**sections) -> Callable[[Study], None]:
    return lambda study: study.sections.update(sections)


def asking(**train) -> Callable[[Study], None]:
    """Of the model."""
    return with_sections(train=SETTINGS["train"] | train)


def with_values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Study], None]:
    """The patient's counts changed, as a dense matrix of float32."""

    def apply(study: Study) -> None:
        study.patient.X = change(study.patient.X.toarray().astype(float)).astype(np.float32)

    return apply


def per_cell(x: np.ndarray, total: float) -> np.ndarray:
    return x / x.sum(axis=1, keepdims=True) * total


def scaled(x: np.ndarray) -> np.ndarray:
    logs = np.log1p(per_cell(x, 1e4))
    return (logs - logs.mean(axis=0)) / (logs.std(axis=0) + 1e-9)


def one_value(value: float) -> Callable[[Study], None]:
    def change(x: np.ndarray) -> np.ndarray:
        x[3, 7] = value
        return x

    return with_values(change)


def log_beside_counts(study: Study) -> None:
    study.patient.layers["raw_counts"] = study.patient.X.copy()
    study.patient.X = study.patient.X.log1p()


def with_row(**columns: str) -> Callable[[Study], None]:
    """Columns of the sample table, the patient's."""
    return lambda study: study.rows["patient"].update(columns)


def with_columns(healthy: dict, patient: dict) -> Callable[[Study], None]:
    """Columns of the sample table, of both."""

    def apply(study: Study) -> None:
        study.rows["healthy"] |= healthy
        study.rows["patient"] |= patient

    return apply


def in_file(**columns) -> Callable[[Study], None]:
    """Columns of the patient's file."""

    def apply(study: Study) -> None:
        for name, values in columns.items():
            study.patient.obs[name] = values

    return apply


def as_table(
    name: str, change=lambda text: text, turned: bool = False, **to_csv
) -> Callable[[Study], None]:
    """The patient as a table, ``turned``: with a row a gene."""

    def apply(study: Study) -> None:
        table = study.table().T if turned else study.table()
        study.patient_in(name, change(table.to_csv(**to_csv)))

    return apply


def barcodes_above(study: Study) -> None:
    table = study.table().T
    table.columns = [f"{''.join('ACGT'[k // 4**d % 4] for d in range(12))}-1" for k in range(60)]
    study.patient_in("patient.csv", table.to_csv())


def genes_in(names: list[str]) -> Callable[[Study], None]:
    """The first genes of both samples."""

    def apply(study: Study) -> None:
        for cells in (study.healthy, study.patient):
            cells.var_names = [*names, *cells.var_names[len(names) :]]

    return apply


def cut_short(study: Study) -> None:
    path = study.patient_in("patient.h5ad")
    study.patient.write_h5ad(path)
    path.write_bytes(path.read_bytes()[:5000])


def matrix_market_without_barcodes(study: Study) -> None:
    folder = Path("data", "mtx")
    folder.mkdir()
    (folder / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n1 1 0\n")
    study.rows["patient"]["path"] = str(folder)


def copied(study: Study) -> None:
    study.healthy.write_h5ad("data/healthy.h5ad")
    shutil.copy("data/healthy.h5ad", "data/patient.h5ad")


def of_genes(healthy: slice, patient: slice) -> Callable[[Study], None]:
    def apply(study: Study) -> None:
        study.healthy = study.healthy[:, healthy].copy()
        study.patient = study.patient[:, patient].copy()

    return apply


def listing(*genes: str) -> Callable[[Study], None]:
    def apply(study: Study) -> None:
        Path("genes.txt").write_text("\n".join(genes))
        settings = {"n_features": 40, "gene_list": "genes.txt"}
        study.sections["preprocess"] = SETTINGS["preprocess"] | {"select_features": settings}

    return apply


def split_by(donors: list[str], **split) -> Callable[[Study], None]:
    def apply(study: Study) -> None:
        study.healthy.obs["donor"] = np.resize(donors, 160)
        study.rows["healthy"]["donor"] = "obs:donor"
        settings = {"validation": 0.15, "calibration": 0.3} | split
        study.sections["preprocess"] = SETTINGS["preprocess"] | {"split": settings}

    return apply


def all_of_role(role: str) -> Callable[[Study], None]:
    """Both files say that all their cells have this role."""

    def apply(study: Study) -> None:
        for name in ("healthy", "patient"):
            getattr(study, name).obs["role"] = role
            study.rows[name]["role"] = "obs:role"

    return apply


def six_samples(study: Study) -> None:
    study.sections["observations"] = "samples"
    study.healthy, study.patient = study.healthy[:6].copy(), study.patient[:1].copy()


RAW = "… such values); give the raw counts"
FRACTION = "data/patient.h5ad: cell 'CELL…', gene 'GENE…' is …: not a whole number; this looks like"
TRANSPOSE = "write transposed into the column matrix of the sample table"
FAULTS: dict[str, tuple[Callable[[Study], None], str]] = {
    "a file cut short": (
        cut_short,
        "data/patient.h5ad: cannot be read (…); it is damaged, cut short or of another format: "
        "fetch it again, or set the column format",
    ),
    "a file of another format": (
        with_row(format="loom"),
        "data/patient.h5ad: is not a loom file; set the column format",
    ),
    "a 10x folder with a missing file": (
        matrix_market_without_barcodes,
        "data/mtx: has no barcodes.tsv; the folder must hold matrix.mtx, barcodes.tsv and "
        "features.tsv (version 2: genes.tsv), each plain or .gz",
    ),
    "a layer that is not there": (
        with_row(matrix="counts"),
        "data/patient.h5ad: has no layer 'counts'; set the column matrix to one of: X",
    ),
    "a negative count": (
        one_value(-2),
        "data/patient.h5ad: cell 'CELL163', gene 'GENE7' is -2.0, but a count cannot be negative "
        "(1 such values); give the raw counts, not scaled or corrected values",
    ),
    "not a number (NaN)": (
        one_value(np.nan),
        "data/patient.h5ad: cell 'CELL163', gene 'GENE7' is nan (1 such values); fill or drop it",
    ),
    "infinity": (
        one_value(np.inf),
        "data/patient.h5ad: cell 'CELL163', gene 'GENE7' is inf (1 such values); fill or drop it",
    ),
    "log counts": (
        with_values(np.log1p),
        f"{FRACTION} log1p of the raw counts ({RAW}",
    ),
    "log2 counts": (
        with_values(lambda x: np.log2(x + 1)),
        f"{FRACTION} log2(x + 1) of the raw counts ({RAW}",
    ),
    "counts per million": (
        with_values(lambda x: per_cell(x, 1e6)),
        f"{FRACTION} counts per million ({RAW}",
    ),
    "log counts per 10,000, scanpy's usual": (
        with_values(lambda x: np.log1p(per_cell(x, 1e4))),
        f"{FRACTION} log1p of counts normalised to 10,000 a cell ({RAW}",
    ),
    "scaled data": (
        with_values(scaled),
        f"{FRACTION} scaled data (z-scores) ({RAW}",
    ),
    "fractions of no known kind": (
        one_value(0.5),
        "data/patient.h5ad: cell 'CELL163', gene 'GENE7' is 0.5: not a whole number; this looks "
        "like normalised or log-transformed data (1 such values); give the raw counts",
    ),
    "log counts, with the counts in a layer": (
        log_beside_counts,
        f"{FRACTION} log1p of the raw counts (… such values); set the column matrix to what holds "
        "whole numbers: raw_counts",
    ),
    "a table parted by tabs as csv": (
        as_table("patient.csv", sep="\t"),
        "data/patient.csv: the header has no comma, so no genes; is the format tsv? set the column "
        "format",
    ),
    "decimal commas": (
        as_table("patient.csv", lambda text: text.replace(";5;", ";5,5;", 1), sep=";"),
        "data/patient.csv: row 'CELL…', column 'GENE…' is '5,5', not a number; save it with "
        "decimal points, not decimal commas",
    ),
    "text among the counts": (
        as_table("patient.csv", lambda text: text.replace(",5,", ",n/a,", 1)),
        "data/patient.csv: row 'CELL…', column 'GENE…' is 'n/a', not a number; every value is a "
        "count, cells are rows and genes columns",
    ),
    "a gene without a name": (
        as_table("patient.csv", lambda text: text.replace("GENE7", " ", 1)),
        "data/patient.csv: gene number 8 has no name (1 without one in all); give every gene a "
        "name",
    ),
    "a table with genes as rows": (
        together(genes_in(["GAPDH"]), as_table("patient.csv", turned=True)),
        f"data/patient.csv: its rows are genes and its columns cells (a row is called 'GAPDH'); "
        f"{TRANSPOSE}",
    ),
    "a table with barcodes as columns": (
        barcodes_above,
        "data/patient.csv: its rows are genes and its columns cells (its first column is called "
        f"'AAAAAAAAAAAA-1'); {TRANSPOSE}",
    ),
    "an obs column that is not there": (
        with_row(role="obs:rolle"),
        "data/patient.h5ad: obs has no column 'rolle', asked for by the sample table's column "
        "role; it has: lane",
    ),
    "an obs column that is nearly there": (
        with_row(donor="obs:lan"),
        "data/patient.h5ad: obs has no column 'lan', asked for by the sample table's column donor; "
        "did you mean lane?",
    ),
    "roles that are none": (
        with_row(role="obs:lane"),
        "data/patient.h5ad: obs column 'lane' has the values 'L1', 'L2'; a role is reference, "
        "query or empty",
    ),
    "a role that every cell lacks": (
        together(in_file(role=""), with_row(role="obs:role")),
        "data/patient.h5ad: the role of every cell is empty; write reference or query into the "
        "column 'role' or into the sample table",
    ),
    "a donor that some cells lack": (
        together(in_file(donor=["D1"] * 30 + [""] * 30), with_row(donor="obs:donor")),
        "data/patient.h5ad: obs column 'donor', asked for as donor, is empty for 30 of 60 cells; "
        "fill it in, or leave these cells out by an empty role",
    ),
    "a column of the table that is called like a result": (
        with_row(p_value="0.01"),
        "sample table: column 'p_value' has a name that the pipeline uses; rename it",
    ),
    "a query that is the reference": (
        with_row(path="data/healthy.h5ad"),
        "data/healthy.h5ad: sample patient has the cells and counts of sample healthy "
        "(data/healthy.h5ad), so a cell would be compared with itself; correct the path of one, or "
        "remove it",
    ),
    "a query that is a copy of the reference": (
        copied,
        "data/patient.h5ad: sample patient has the cells and counts of sample healthy "
        "(data/healthy.h5ad), so a cell would be compared with itself; correct the path of one, or "
        "remove it",
    ),
    "symbols in one sample, Ensembl ids in the other": (
        lambda study: setattr(study.patient, "var_names", [f"ENSG{g:011d}" for g in range(60)]),
        "the samples share only 0 genes, fewer than half of the 60 of sample healthy: healthy has "
        "GENE0 GENE1 GENE2, patient has ENSG00000000000 ENSG00000000001 ENSG00000000002; one "
        "sample has Ensembl ids and the other symbols; name the genes alike in both",
    ),
    "other genes in each sample": (
        of_genes(slice(30), slice(28, None)),
        "the samples share only 2 genes, fewer than half of the 30 of sample healthy: healthy has "
        "GENE0 GENE1 GENE2, patient has GENE30 GENE31 GENE32; they seem to be of different "
        "species, annotations or assays; analyse them apart",
    ),
    "fewer genes than latent dimensions": (
        together(of_genes(slice(12), slice(12)), asking(n_latent=16)),
        "train.n_latent: 16 latent dimensions for 12 genes; lower it, or bring counts of more "
        "genes",
    ),
    "a gene list of other genes": (
        listing("gene7x", "ACTB"),
        "genes.txt: none of its 2 names is a gene of the counts: gene7x (near: GENE7), ACTB; name "
        "the genes as the counts do (GENE0)",
    ),
    "no query inside the files": (
        all_of_role("reference"),
        "sample table: no query cells are left; give role query to the cells to be scored (role "
        "may be obs:COLUMN where one file holds both), or role reference to every sample to rank "
        "all cells among themselves",
    ),
    "no reference inside the files": (
        all_of_role("query"),
        "sample table: no reference cells are left; give role reference to trusted normal cells, "
        "or role query to every sample to rank all cells among themselves",
    ),
    "too few calibration cells": (
        together(
            lambda study: setattr(study, "healthy", study.healthy[:20].copy()),
            with_sections(
                preprocess=SETTINGS["preprocess"]
                | {"split": {"validation": 0.15, "calibration": 0.05}}
            ),
        ),
        "preprocess.split: only 1 calibration cells and 2 are needed; give more reference cells, "
        "change preprocess.split.validation and preprocess.split.calibration",
    ),
    "too few donors to split by": (
        split_by(["D1", "D2"], by="donor"),
        "preprocess.split.by is donor, but the reference has 2 donor(s) and each of train, "
        "validation and calibration needs one; set by: cell",
    ),
    "no donors to split by": (
        with_sections(preprocess=SETTINGS["preprocess"] | {"split": {"by": "donor"}}),
        "preprocess.split.by is donor, but 160 of 160 reference cells have no donor; fill the "
        "column donor of the sample table or set by: cell",
    ),
    "a bulk cohort that is too small": (
        six_samples,
        "sample table: 6 reference samples (and 1 query) are too few to tell normal variation from "
        "outliers, at least 10 are needed; add controls of the same tissue and protocol",
    ),
    "no column of library sizes": (
        together(
            in_file(depth=1.0), with_sections(library_size={"method": "column", "column": "depth"})
        ),
        "sample healthy: library_size.column is depth, but its cells have no such column (they "
        "have sample, role, lane); correct it or set library_size.method: total",
    ),
    "a covariate that is not there": (
        asking(covariates=["sex"]),
        "train.covariates: sex: no such column in the metadata; add it to the sample table, or "
        "take one of lane, n_genes, pct_hb, pct_mito, pct_ribo, role, sample, total_counts",
    ),
    "a covariate that a sample lacks": (
        together(with_row(sex="f"), asking(covariates=["sex"])),
        "train.covariates: sex: sample healthy has no value of it; fill the column or leave it out",
    ),
    "a covariate of one value": (
        together(with_columns({"sex": "f"}, {"sex": "f"}), asking(covariates=["sex"])),
        "train.covariates: sex: all cells have the value f, so it says nothing; remove it",
    ),
    "a covariate whose values only the query has, inside the files": (
        together(in_file(lane="L3"), asking(covariates=["lane"])),
        "train.covariates: lane: L3 occurs in query cells and in no training cell, so the model "
        "cannot know its effect; bring reference cells of it, leave out those samples, or remove "
        "lane from the model",
    ),
    "a dispersion by a batch that is not told": (
        asking(dispersion="gene_batch"),
        "train.dispersion: gene_batch: batch: no such column in the metadata; add it to the sample "
        "table, or take one of lane, n_genes, pct_hb, pct_mito, pct_ribo, role, sample, "
        "total_counts",
    ),
    "text for a covariate that is a number": (
        together(
            with_columns({"age": "old"}, {"age": "30"}), asking(continuous_covariates=["age"])
        ),
        "train.continuous_covariates: age: old is no finite number; correct the column or list it "
        "under train.covariates",
    ),
}
CONFOUNDED = (
    "no batch holds both reference and query (query: two), so effects of the batch and anomalies "
    "cannot be told apart, and the false discovery rate does not hold; bring reference cells of "
    "the query's batches"
)


def query_alone(study: Study) -> None:
    study.rows["healthy"]["role"] = "query"
    study.n_folds = 2


def small_cohort(study: Study) -> None:
    study.sections["observations"] = "samples"
    study.healthy, study.patient = study.healthy[:12].copy(), study.patient[:2].copy()


WARNINGS: dict[str, tuple[Callable[[Study], None], str]] = {
    "gene symbols that a spreadsheet made dates of": (
        genes_in(["1-Mar", "2-Sep", "44531", "Dec-01"]),
        "data/…: 4 gene names are dates, which a spreadsheet makes of symbols: 1-Mar (MARC1 or "
        "MARCH1, now MTARC1 or MARCHF1), 2-Sep (SEPT2, now SEPTIN2), 44531 (DEC1, now DELEC1), "
        "Dec-01 (DEC1, now DELEC1); export the table anew without a spreadsheet, or restore the "
        "names",
    ),
    "gene names that occur twice": (
        genes_in(["GENE9"]),
        "data/…: 1 gene names occur more than once (such as 'GENE9') and got a suffix (-1, -2, "
        "...); rename them if they should match other samples",
    ),
    "batches that only the query or only the reference has": (
        with_columns({"batch": "one"}, {"batch": "two"}),
        CONFOUNDED,
    ),
    "donors that only the query has, split by cell": (
        with_columns({"donor": "D1"}, {"donor": "D2"}),
        "1 donor(s) of the query are not in the reference, which was split by cell, so differences "
        "between donors may look like anomalies; give reference cells of more donors and split by "
        "donor",
    ),
    "few reference cells": (
        lambda study: setattr(study, "healthy", study.healthy[:40].copy()),
        "preprocess.split: only 22 train, 6 validation, 12 calibration cells (advised: 50, 10, "
        "20), so only gross anomalies are found, and another seed may find others; bring more "
        "reference cells",
    ),
    "samples of the query alone": (
        query_alone,
        "sample table: no sample has the role reference, so all cells are ranked among themselves, "
        "without an FDR guarantee; for one bring trusted normal cells as the reference",
    ),
    "a bulk cohort that is small": (
        small_cohort,
        "12 reference samples (and 2 query): below 30 the expected counts are uncertain and only "
        "gross outliers are found; add controls of the same tissue and protocol",
    ),
    "counts that were normalised and rounded": (
        with_values(lambda x: np.round(per_cell(x, 1e6))),
        "data/patient.h5ad: the values are whole, but look like counts per million, rounded; these "
        "do not scatter as counts do, so p-values would be wrong: give the raw counts",
    ),
    "a column of the file that the table does not use": (
        in_file(batch="one"),
        "patient: the file has an obs column 'batch' that the sample table does not use; write "
        "obs:batch into its column batch if it should",
    ),
}


def test_a_sound_study_has_no_fault(study):
    assert study.found() == {"faults": [], "warnings": []}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_input_gives_its_line_and_no_other(name, study):
    break_it, message = FAULTS[name]
    break_it(study)
    (line,) = study.found()["faults"]
    assert is_said(message, line), line


@pytest.mark.parametrize("name", WARNINGS)
def test_a_doubtful_input_is_warned_of_and_taken(name, study):
    change, message = WARNINGS[name]
    change(study)
    found = study.found()
    assert found["faults"] == []
    assert any(is_said(message, line) for line in found["warnings"]), found


def test_all_faults_of_all_samples_are_told_at_once(study):
    study.patient_in("patient.csv", ",GENE0,GENE1\nc1,1,x\n")
    study.rows["third"] = {
        **{"sample": "third", "path": "data/third.h5ad", "role": "obs:rolle"},
        **{"donor": "obs:who", "score": "1"},
    }
    third = small_counts(50, seed=3, first=300)
    third.X = third.X.log1p()
    third.write_h5ad("data/third.h5ad")
    asking(covariates=["sex", "age"])(study)
    listing("ACTB")(study)
    said = [line.split(";")[0] for line in study.found()["faults"]]
    assert [line[:46] for line in said] == [
        "data/patient.csv: row 'c1', column 'GENE1' is ",
        "data/third.h5ad: cell 'CELL300', gene 'GENE0' ",
        "data/third.h5ad: obs has no column 'rolle', as",
        "data/third.h5ad: obs has no column 'who', aske",
        "sample table: column 'score' has a name that t",
        "genes.txt: none of its 1 names is a gene of th",
        "train.covariates: sex: no such column in the m",
        "train.covariates: age: no such column in the m",
    ]


def test_what_is_not_here_yet_is_not_judged(study):
    """Too few reference cells, say: the file at a URL may hold more."""
    study.rows["healthy"]["path"] = "https://x.org/healthy.h5ad"
    asking(covariates=["lane"])(study)
    assert study.found() == {"faults": [], "warnings": []}


@pytest.mark.parametrize("to", ["csc", "csv"])
def test_of_what_takes_long_to_read_only_names_are_read(to, study, monkeypatch):
    """A value that no count can be is found by the import."""
    monkeypatch.setattr("count_formats.HEAD_ROWS", 40)
    monkeypatch.setattr("dense_formats.HEAD_ROWS", 40)
    if to == "csc":
        study.patient.X = sparse.csc_matrix(study.patient.X)
        study.patient.X.data[-1] = 0.5
    else:
        text = study.table().to_csv()
        study.patient_in("patient.csv", text[: text.rindex(",")] + ",0.5\n")
    assert study.found()["faults"] == []


def test_of_a_long_table_the_cells_are_not_counted(study, monkeypatch):
    """Else the rest of them would be missed."""
    monkeypatch.setattr("count_formats.HEAD_ROWS", 40)
    monkeypatch.setattr("dense_formats.HEAD_ROWS", 40)
    study.healthy = study.healthy[:90].copy()
    path = Path("data", "healthy.csv")
    cells = study.healthy
    counts = pd.DataFrame(cells.X.toarray().astype(int), cells.obs_names, cells.var_names)
    counts.to_csv(path)
    study.rows["healthy"]["path"] = str(path)
    assert study.found()["faults"] == []


def test_other_cells_of_the_same_file_are_no_copy(study):
    study.healthy.obs["role"] = ["reference"] * 100 + [""] * 60
    study.healthy.obs["other"] = [""] * 100 + ["query"] * 60
    study.rows["healthy"]["role"] = "obs:role"
    study.rows["patient"] |= {"path": "data/healthy.h5ad", "role": "obs:other"}
    assert study.found()["faults"] == []


def test_other_counts_of_the_same_cells_are_no_copy(study):
    study.patient = study.healthy.copy()
    study.patient.X[0, 0] += 1
    assert study.found()["faults"] == []


def test_filters_may_drop_the_cells_without_a_value(study):
    study.healthy.obs["age"] = [np.nan, *np.arange(159.0)]
    study.patient.obs["age"] = [*np.arange(59.0), np.nan]
    asking(continuous_covariates=["age"])(study)
    assert study.found()["faults"] == []


@pytest.mark.parametrize("kind", ["covariates", "continuous_covariates"])
def test_what_is_made_of_the_counts_is_not_judged(kind, study):
    asking(**{kind: ["total_counts"]})(study)
    assert study.found() == {"faults": [], "warnings": []}


def test_whole_donors_are_not_judged_by_the_number_of_their_cells(study):
    """Which donors calibrate hangs on the cells that are left."""
    split_by([f"D{i}" for i in range(6)], calibration=0.05)(study)
    assert study.found()["faults"] == []


def test_without_a_query_the_folds_are_judged(study):
    study.rows["patient"]["role"] = "reference"
    study.n_folds = 2
    assert study.found()["faults"] == []
    study.healthy, study.patient = study.healthy[:4].copy(), study.patient[:6].copy()
    for name in ("healthy", "patient"):
        Path("data", f"{name}.h5ad").unlink()
    (line,) = study.found()["faults"]
    assert line.startswith("preprocess.split: only 4 train cells and 6 are needed")


def test_several_processes_find_the_same(study, monkeypatch):
    monkeypatch.setattr(check_inputs, "ROWS_A_PROCESS", 1)
    with_row(role="obs:rolle")(study)
    alone = study.found()
    together = check(list(study.rows.values()), study.config(), 0, True, cores=2)
    assert together == alone and together["faults"]


def test_the_script_answers_what_it_is_asked(study):
    with_row(role="obs:rolle")(study)
    expected = study.found()
    rows = list(study.rows.values())
    asked = {"rows": rows, "config": study.config(), "n_folds": 0, "are_all": True}
    script = ROOT / "workflow" / "scripts" / "check_inputs.py"
    answer = subprocess.run(
        [sys.executable, script], input=json.dumps(asked), capture_output=True, text=True
    )
    assert json.loads(answer.stdout) == expected, answer.stderr


def test_names_of_any_language_are_taken(study):
    study.patient.var_names = study.healthy.var_names = [f"基因{g}" for g in range(60)]
    study.patient.obs_names = [f"zellé{i}" for i in range(60)]
    with_columns({"donor": "Łukasz"}, {"donor": "Łukasz"})(study)
    path = Path("data", "größe 1.h5ad")
    study.patient.write_h5ad(path)
    study.rows["patient"]["path"] = str(path)
    assert study.found() == {"faults": [], "warnings": []}
