"""Whatever counts, sample table and config may be given, what is read is what was written."""

import copy

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from configuration import (
    FORMATS,
    ConfigurationError,
    check_config,
    read_config,
    read_samples,
)
from conftest import ROOT
from count_checks import CONTROL
from count_files import (
    GENES,
    write_10x_h5_v2,
    write_10x_h5_v3,
    write_10x_mtx,
    write_h5ad,
    write_loom,
    write_table,
    write_zarr,
)
from count_formats import open_counts

FEW = settings(max_examples=15, deadline=None)
# The writers of these name four genes and, some of them, three cells.
WRITERS = {
    "a.h5ad": lambda path, x, cells: write_h5ad(path, X=sparse.csr_matrix(x), cells=cells),
    "csc.h5ad": lambda path, x, cells: write_h5ad(path, X=sparse.csc_matrix(x), cells=cells),
    "dense.h5ad": lambda path, x, cells: write_h5ad(path, X=x, cells=cells),
    "a.zarr": lambda path, x, cells: write_zarr(path, X=sparse.csr_matrix(x), cells=cells),
    "a.loom": lambda path, x, cells: write_loom(path, x, cells),
    "v3.h5": lambda path, x, cells: write_10x_h5_v3(path, counts=x, cells=cells),
    "v2.h5": lambda path, x, cells: write_10x_h5_v2(path, {"hg19": x}),
    "mtx": lambda path, x, cells: write_10x_mtx(path, counts=x),
    "a.csv": lambda path, x, cells: write_table(path, x, cells=cells),
    "a.tsv.gz": lambda path, x, cells: write_table(path, x, separator="\t", cells=cells),
}


@pytest.mark.parametrize("name", WRITERS)
@FEW
@given(
    counts=arrays(
        np.int64,
        (3, 4),
        elements=st.one_of(st.integers(0, 3), st.integers(0, 2**31 - 1), st.just(0)),
    )
)
def test_any_counts_survive_every_format(name, counts, tmp_path_factory):
    cells = ["AAAC-1", "AAAG-1", "AAAT-1"]
    path = WRITERS[name](tmp_path_factory.mktemp("counts") / name, counts, cells)
    file = open_counts(path)
    np.testing.assert_array_equal(file.read().toarray(), counts)
    assert (list(file.obs.index), list(file.var.index)) == (cells, GENES)


def words(**limits) -> st.SearchStrategy[str]:
    """Text of one line without blanks around it, as a person may type it."""
    characters = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"))
    text = st.text(characters, min_size=1, max_size=12, **limits)
    return text.filter(lambda t: t == t.strip() and not CONTROL.search(t))


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr", "a.loom"])
@FEW
@given(names=st.lists(words(), min_size=3, max_size=3, unique=True))
def test_any_names_of_cells_survive(name, names, tmp_path_factory):
    assume(all("\0" not in cell for cell in names))
    path = WRITERS[name](tmp_path_factory.mktemp("names") / name, np.ones((3, 4), int), names)
    assert list(open_counts(path).obs.index) == names


ROWS = st.fixed_dictionaries(
    {
        "path": st.just("counts.h5ad"),
        "role": st.one_of(st.sampled_from(["reference", "query"]), words().map("obs:{}".format)),
        "format": st.sampled_from(["", *FORMATS]),
        "batch": st.one_of(st.just(""), words()),
        "note": st.one_of(st.just(""), words()),
    }
)
SAMPLES = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True).filter(
        lambda name: name.lower() != "counts"
    ),
    ROWS,
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES)
def test_any_sample_table_is_read_as_written(samples, tmp_path_factory):
    assume(len({name.lower() for name in samples}) == len(samples))
    assume({row["role"] for row in samples.values()} != {"query"})
    folder = tmp_path_factory.mktemp("table")
    columns = ["sample", *next(iter(samples.values()))]
    rows = [columns, *([name, *map(row.get, columns[1:])] for name, row in samples.items())]
    # As a spreadsheet writes it: quoted where a field holds a quote.
    lines = [
        "\t".join('"' + cell.replace('"', '""') + '"' if '"' in cell else cell for cell in row)
        for row in rows
    ]
    (folder / "samples.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = read_samples("samples.tsv", {"counts.h5ad"}, {})
    assert found == {name: {"sample": name, **row} for name, row in samples.items()}


SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"


def values_of(rule: dict) -> st.SearchStrategy:
    """Values that a rule of the schema allows."""
    if "enum" in rule:
        return st.sampled_from(rule["enum"])
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    low = rule.get("minimum", rule.get("exclusiveMinimum", 0))
    high = rule.get("maximum", rule.get("exclusiveMaximum", max(low, 1) * 1000))
    numbers = {
        "integer": st.integers(int(low) + ("exclusiveMinimum" in rule), int(high)),
        "number": st.floats(
            low,
            high,
            exclude_min="exclusiveMinimum" in rule,
            exclude_max="exclusiveMaximum" in rule,
        ),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    known = [numbers[kind] for kind in kinds if kind in numbers]
    return st.one_of(*known) if known else st.just(rule.get("default"))


def configs(schema: dict) -> st.SearchStrategy[dict]:
    """Settings that are each allowed; together they may contradict each other."""
    rules = schema["properties"]
    return st.fixed_dictionaries(
        {},
        optional={
            key: configs(rule) if rule.get("type") == "object" else values_of(rule)
            for key, rule in rules.items()
            if key not in ("run", "samples")
        },
    )


def kept(given_: dict, complete: dict) -> bool:
    return all(
        kept(value, complete[key]) if isinstance(value, dict) else complete[key] == value
        for key, value in given_.items()
    )


@settings(max_examples=60, deadline=None)
@given(config=configs(yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))))
def test_any_settings_are_kept_or_refused_for_a_contradiction(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump({"run": "a", "samples": "b"} | config), encoding="utf-8")
    read = read_config(str(path))
    assert kept(config, copy.deepcopy(read))
    try:
        complete = check_config(read, str(SCHEMA))
    except ConfigurationError as error:
        assert "must be" not in str(error), "each value by itself is allowed"
        return
    assert kept(config, complete)
