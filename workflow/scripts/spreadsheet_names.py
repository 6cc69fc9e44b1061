"""Gene symbols that a spreadsheet took for dates: MARCH1 is saved as 1-Mar, SEPT2 as 44441."""

import re
from datetime import date, timedelta

import pandas as pd

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
NAMES = {name: number for number, name in enumerate(MONTHS, start=1)}
# As a spreadsheet writes them: in C. elegans sep-1 and dec-1 are genes.
DAY_MONTH = re.compile(rf"(\d{{1,2}})-({'|'.join(MONTHS)})")
MONTH_DAY = re.compile(rf"({'|'.join(MONTHS)})-(\d{{1,2}})")
ISO = re.compile(r"\d{4}-(\d{2})-(\d{2})( 00:00:00)?")
SERIAL = re.compile(r"\d{5}")
FIRST_DAY = date(1899, 12, 30)  # of spreadsheets, which took 1900 for a leap year
YEARS = range(1990, 2051)
# More numbers than this are ids of another kind (Entrez), not a few spoilt symbols.
MOST_NUMBERS = 0.05
# What the symbols of a month were, and are since 2020, when they were renamed because of this.
SYMBOLS = {
    3: ("MARCH{}", "MARCHF{}"),
    9: ("SEPT{}", "SEPTIN{}"),
    12: ("DEC{}", "DELEC{}"),
}
MARC = "MARC{0} or MARCH{0}, now MTARC{0} or MARCHF{0}"  # 1-Mar and 2-Mar may be either


def spoilt_symbols(genes: pd.Index) -> dict[str, str]:
    """The names that are dates, each with the gene that it most likely was."""
    named = [gene for gene in genes if "-" in gene or gene[:1].isdigit()]
    numbers = [gene for gene in named if SERIAL.fullmatch(gene)]
    if len(numbers) > MOST_NUMBERS * len(genes):
        named = [gene for gene in named if not SERIAL.fullmatch(gene)]
    found = {gene: _month_and_day(gene) for gene in named}
    return {gene: _symbol(*of) for gene, of in found.items() if of is not None}


def warn_of_dates(genes: pd.Index, path: str, most: int = 5) -> list[str]:
    """A warning that names the first of the spoilt symbols, if there are any."""
    found = spoilt_symbols(genes)
    if not found:
        return []
    shown = ", ".join(f"{name} ({gene})" for name, gene in list(found.items())[:most])
    more = ", ..." if len(found) > most else ""
    return [
        f"{path}: {len(found)} gene names are dates, which a spreadsheet makes of symbols: {shown}"
        f"{more}; export the table anew without a spreadsheet, or restore the names"
    ]


def _month_and_day(gene: str) -> tuple[int, int] | None:
    if match := DAY_MONTH.fullmatch(gene):
        return NAMES[match[2]], int(match[1])
    if match := MONTH_DAY.fullmatch(gene):
        return NAMES[match[1]], int(match[2])
    if match := ISO.fullmatch(gene):
        return int(match[1]), int(match[2])
    if SERIAL.fullmatch(gene):
        day = FIRST_DAY + timedelta(days=int(gene))
        # Other days of other months are more likely a number than a gene.
        return (day.month, day.day) if day.year in YEARS and day.month in SYMBOLS else None
    return None


def _symbol(month: int, day: int) -> str:
    if month == 3 and day <= 2:
        return MARC.format(day)
    before, now = SYMBOLS.get(month, (f"{MONTHS[month - 1].upper()}{{}}", ""))
    return before.format(day) + (f", now {now.format(day)}" if now else "")
