"""The tables of the report: their rows, what each column is called, how its values read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from bulk_words import of_unit
from packed import packed_json, plain

NONE = "–"
ALL_SAMPLES = "all samples"
MAX_ROWS = 20_000  # flagged cells in the report; anomaly/cells.tsv has them all
MAX_HITS = 5_000  # rows of the tables of genes
MAX_GENES = 6  # genes named for a flagged cell
ROWS_A_PAGE = 50  # of a long table that stand in the page; its script shows the others


@dataclass(frozen=True)
class Column:
    """A column of a table in the report: its heading, how its values are printed and to be read."""

    name: str
    heading: str
    show: Callable[[object], str]
    is_number: bool = True
    says: str = ""
    has_menu: bool = False  # a long table can be filtered by its values
    is_long: bool = False  # its texts need room

    @property
    def style(self) -> str:
        """The class of its cells in the page."""
        return "number" if self.is_number else "long" if self.is_long else ""


def whole(value: object) -> str:
    return NONE if pd.isna(value) else f"{int(value):,}"


def counted(n: int, one: str) -> str:
    """``1 pattern``, ``1,234 patterns``."""
    return f"{whole(n)} {one}{'' if n == 1 else 's'}"


def digits(value: object) -> str:
    """Three significant digits; large numbers in full."""
    if pd.isna(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def percent(value: object) -> str:
    return NONE if pd.isna(value) else f"{digits(100 * value)} %"


def text(value: object) -> str:
    return NONE if value is None or pd.isna(value) or value == "" else str(value)


def yes_no(value: object) -> str:
    return "yes" if value else "no"


def two_places(value: float) -> str:
    return f"{value:,.2f}"


def words(value: object) -> str:
    return text(value).replace("_", " ")


def make_table(rows: pd.DataFrame, columns: Iterable[Column], unit: str = "cells") -> dict:
    """Headings and printed cells, for the columns that the rows have, and how to read these."""
    present = [column for column in columns if column.name in rows]
    cells = [[column.show(value) for value in rows[column.name]] for column in present]
    headings = [of_unit(column.heading, unit) for column in present]
    says = [of_unit(column.says, unit) for column in present]
    return {
        "headings": list(zip(headings, [column.style for column in present], strict=True)),
        "rows": [list(row) for row in zip(*cells, strict=True)],
        "says": [pair for pair in zip(headings, says, strict=True) if pair[1]],
    }


def make_long_table(rows: pd.DataFrame, columns: Iterable[Column], unit: str = "cells") -> dict:
    """As :func:`make_table` the first page, and all rows for the script that sorts and filters."""
    present = [column for column in columns if column.name in rows]
    about = [
        {
            "name": column.name,
            "heading": of_unit(column.heading, unit),
            "kind": column.show.__name__,
            "style": column.style,
            "menu": column.has_menu,
        }
        for column in present
    ]
    content = [plain(rows[column.name]) for column in present]
    everything = {"n": len(rows), "columns": about, "data": packed_json(content)}
    return make_table(rows.head(ROWS_A_PAGE), present, unit) | {"all": everything}


def dropped_table(summaries: list[dict]) -> pd.DataFrame:
    """What each limit of the quality control dropped, in each sample."""
    rows = [
        {"sample": summary["sample"], **limit}
        for summary in summaries
        if summary["stage"] == "preprocess" and summary["sample"]
        for limit in summary.get("dropped_by", [])
    ]
    table = pd.DataFrame(
        rows, columns=["sample", "quantity", "side", "limit", "origin", "n_dropped"]
    )
    table["side"] = table["side"].map({"lower": "below", "upper": "above"})
    return table


def flagged_table(query: pd.DataFrame, reasons: pd.DataFrame) -> pd.DataFrame:
    """The flagged cells, the oddest first, each with its reasons.

    ``reasons``: anomaly/cells.tsv; ``query``: rows of anomaly/cells.parquet. Of the genes the first
    ``MAX_GENES``; a cell without any has the channel that leads instead.
    """
    flagged = query[query["is_anomaly"]].sort_values(
        ["p_value", "score", "cell_id"], ascending=[True, False, True]
    )
    columns = ["pattern", "nearest_reference", "technical_cause", "doublet_probability", "genes"]
    flagged = flagged.head(MAX_ROWS).merge(reasons[["cell_id", *columns]], how="left", on="cell_id")
    named = flagged["genes"].fillna("").str.split(", ")
    more = named.str.len() - MAX_GENES
    flagged["genes"] = named.str[:MAX_GENES].str.join(", ") + [
        f" and {n} more" if n > 0 else "" for n in more
    ]
    channel = "no single gene; " + flagged["leading_channel"].str.replace("_", " ")
    flagged["genes"] = flagged["genes"].where(flagged["genes"] != "", channel)
    return flagged


def of_stage(summaries: list[dict], stage: str) -> dict:
    """The summary of a whole stage; empty if there is none."""
    found = [s for s in summaries if s["stage"] == stage and not s["sample"]]
    return found[0] if found else {}


def samples_table(summaries: list[dict], query: pd.DataFrame) -> pd.DataFrame:
    """One row a sample: format, genes, cells in the file, kept, query, flagged."""
    rows: dict[str, dict] = {}
    for summary in summaries:
        if summary["sample"] and summary["stage"] == "import":
            keys = ("format", "n_genes", "n_cells")
            rows[summary["sample"]] = {"sample": summary["sample"]}
            rows[summary["sample"]] |= {key: summary.get(key) for key in keys}
        elif summary["sample"] and summary["stage"] == "preprocess":
            rows.setdefault(summary["sample"], {"sample": summary["sample"]})
            rows[summary["sample"]]["n_kept"] = summary.get("n_kept")
    columns = ["sample", "format", "n_genes", "n_cells", "n_kept"]
    table = pd.DataFrame(list(rows.values()), columns=columns)
    counts = query.groupby(query["sample"].astype(str))["is_anomaly"].agg(["size", "sum"])
    table["n_query"] = table["sample"].map(counts["size"])
    table["n_flagged"] = table["sample"].map(counts["sum"])
    table["share"] = table["n_flagged"] / table["n_query"]
    return table


def losses_table(summaries: list[dict]) -> pd.DataFrame:
    """What was left out between the files and the matrix: cells and genes, not by quality."""
    rows = []
    for summary in summaries:
        if summary["stage"] == "import":
            found = {f"features: {k}": n for k, n in summary.get("dropped_features", {}).items()}
            found["cells without a role"] = summary.get("n_cells_without_role", 0)
            rows += [(summary["sample"], what, n) for what, n in found.items()]
    joined = of_stage(summaries, "preprocess")
    for sample, n in joined.get("n_genes_lost_in_join", {}).items():
        rows.append((sample, "genes that another sample lacks", n))
    rows += [
        (ALL_SAMPLES, "genes in too few cells", joined.get("n_genes_in_too_few_cells", 0)),
        (
            ALL_SAMPLES,
            "cells without a count in the genes left",
            joined.get("n_empty_cells_dropped", 0),
        ),
    ]
    return pd.DataFrame([row for row in rows if row[2]], columns=["sample", "what", "n"])


def surest(hits: pd.DataFrame, by: str) -> pd.DataFrame:
    """The hits with the smallest p-values, at most ``MAX_HITS``."""
    return hits.sort_values([by, "cell_id", "gene"], kind="stable").head(MAX_HITS)


def most(cells: pd.DataFrame, by: str) -> pd.DataFrame:
    """The cells or samples with the most outlier genes, at most ``MAX_HITS``."""
    some = cells[cells[by] > 0]
    return some.sort_values([by, "cell_id"], ascending=[False, True]).head(MAX_HITS)
