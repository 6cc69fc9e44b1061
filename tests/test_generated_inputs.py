"""Whatever counts, sample table and config may be given, what is read is what was written."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import malformed
from configuration import ConfigurationError, check_config, read_config, read_samples
from conftest import ROOT
from count_files import CELLS, GENES, WRITERS, write_h5ad, write_loom, write_zarr
from count_formats import open_counts
from fuzzing import give
from generated import table_text, tables, words
from workflow_copy import WorkflowCopy

PLANS = 6
FEW = settings(max_examples=15, deadline=None)


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
    path = WRITERS[name](tmp_path_factory.mktemp("counts") / name, counts)
    file = open_counts(path)
    np.testing.assert_array_equal(file.read().toarray(), counts)
    assert (list(file.obs.index), list(file.var.index)) == (CELLS, GENES)


@pytest.mark.parametrize(
    ("name", "write"), [("a.h5ad", write_h5ad), ("a.zarr", write_zarr), ("a.loom", write_loom)]
)
@FEW
@given(names=st.lists(words(), min_size=3, max_size=3, unique=True))
def test_any_names_of_cells_survive(name, write, names, tmp_path_factory):
    assume(all("\0" not in cell for cell in names))
    path = write(tmp_path_factory.mktemp("names") / name, cells=names)
    assert list(open_counts(path).obs.index) == names


@settings(max_examples=60, deadline=None)
@given(samples=tables("counts.h5ad"))
def test_any_sample_table_is_read_as_written(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    (folder / "samples.tsv").write_text(table_text(samples), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = read_samples("samples.tsv", {"counts.h5ad"}, {})
    assert found == samples


def kept(given_: dict, complete: dict) -> bool:
    return all(
        kept(value, complete[key]) if isinstance(value, dict) else complete[key] == value
        for key, value in given_.items()
    )


@settings(max_examples=60, deadline=None)
@given(config=malformed.CONFIGS)
def test_any_settings_are_kept_or_refused_for_a_contradiction(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    read = read_config(str(path))
    assert kept(config, copy.deepcopy(read))
    try:
        complete = check_config(read, str(malformed.SCHEMA))
    except ConfigurationError as error:
        assert "must be" not in str(error), "each value by itself is allowed"
        return
    assert kept(config, complete)


def accepted(folder: Path) -> Iterator[Path]:
    """Of the configs that are generated those that are taken, each in a folder with its table."""
    for number in count():
        path = malformed.mutate("config", number, folder, folder / str(number))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(path.parent)
            if give("config", path, directly=True) == "read":
                yield path


def test_what_is_accepted_leads_to_a_plan(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "copy")
    paths = list(islice(accepted(tmp_path), PLANS))
    asked = [["-n", "--directory", str(p.parent), "--configfile", str(p)] for p in paths]
    finished = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "dry_runs.py")],
        input="".join(f"{json.dumps(arguments)}\n" for arguments in asked),
        cwd=copy.folder,
        env=copy.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for path, answer in zip(paths, finished.stdout.splitlines(), strict=True):
        code, output = json.loads(answer)
        assert code == 0 and "write_report" in output, f"{path.read_text()}\n{output}"
