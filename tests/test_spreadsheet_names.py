"""Symbols that a spreadsheet saved as dates are known again."""

import pandas as pd
import pytest

from spreadsheet_names import spoilt_symbols, warn_of_dates

SOUND = [f"GENE{i}" for i in range(200)]


def spoilt(*names: str) -> dict[str, str]:
    return spoilt_symbols(pd.Index([*SOUND, *names]))


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("3-Mar", "MARCH3, now MARCHF3"),
        ("Mar-03", "MARCH3, now MARCHF3"),
        ("2021-03-03", "MARCH3, now MARCHF3"),
        ("2021-03-03 00:00:00", "MARCH3, now MARCHF3"),
        ("44258", "MARCH3, now MARCHF3"),
        ("1-Mar", "MARC1 or MARCH1, now MTARC1 or MARCHF1"),
        ("9-Sep", "SEPT9, now SEPTIN9"),
        ("1-Dec", "DEC1, now DELEC1"),
        ("4-Oct", "OCT4"),
    ],
)
def test_a_date_in_any_form_is_the_gene_it_was(name, gene):
    assert spoilt(name) == {name: gene}


# Of C. elegans, of HLA, of long non-coding RNA; ids; a number of another month; a year long gone.
@pytest.mark.parametrize(
    "name", ["sep-1", "HLA-A", "MIR1-1HG", "SEPT9", "7SK", "44300", "29281", "99999", "100", "5-FU"]
)
def test_names_of_genes_are_none(name):
    assert spoilt(name) == {}


def test_ids_that_are_numbers_are_no_dates():
    """Entrez ids lie in the same range."""
    assert spoilt_symbols(pd.Index([str(n) for n in range(40000, 45000)])) == {}


def test_the_warning_names_five_and_the_mend():
    names = [f"{day}-Sep" for day in range(1, 8)]
    (line,) = warn_of_dates(pd.Index([*SOUND, *names]), "a.csv")
    assert line.startswith("a.csv: 7 gene names are dates, which a spreadsheet makes of symbols: ")
    assert line.count("SEPTIN") == 5 and ", ...; export the table anew" in line
    assert warn_of_dates(pd.Index(SOUND), "a.csv") == []
