"""The map of the report holds every cell's place and facts, some genes, and not too many bytes."""

import base64
import json
import zlib

import numpy as np
import pandas as pd
from scipy import sparse

import report_map
from fake_run import write_fake_run
from figure_style import ANOMALY, CATEGORIES, SPLITS
from omics_vae.counts import Counts
from report_map import (
    GENE_STEPS,
    MAX_LABELS,
    choose_cells,
    choose_genes,
    gene_levels,
    make_map,
    pack_category,
    pack_genes,
)
from test_packed import floats, unpacked
from written_report import MAP, make_report, read_tables


def map_of(run, unit: str = "cells") -> dict:
    paths = {name: str(run / path) for name, path in MAP.items()}
    return make_map(paths, read_tables(run), unit)


def category(made: dict, name: str) -> pd.Series:
    """A column of names as the page reads it."""
    found = next(entry for entry in made["categories"] if entry["name"] == name)
    codes = np.frombuffer(unpacked(found["data"]), dtype=np.uint8)
    return pd.Series(np.array(found["labels"], dtype=object)[codes])


def number(made: dict, name: str) -> np.ndarray:
    return floats(next(entry for entry in made["numbers"] if entry["name"] == name)["data"])


def test_every_cell_has_its_place_and_its_facts(tmp_path):
    run = write_fake_run(tmp_path)
    made, tables = map_of(run), read_tables(run)
    names = json.loads(unpacked(made["names"]))
    umap = pd.read_parquet(run / MAP["umap"]).set_index("cell_id").loc[names]
    assert made["n"] == made["of"] == len(names) == 900
    width = (umap.max() - umap.min()).max()
    for axis in ("x", "y"):
        steps = np.frombuffer(unpacked(made[axis]), dtype=np.uint16)
        place = umap[f"umap_{1 + (axis == 'y')}"].to_numpy()
        assert np.abs(steps / 65535 * width + place.min() - place).max() < width / 60_000
    cells = tables["cells"].set_index("cell_id").reindex(names)
    is_query = (cells["split"] == "query").to_numpy()
    finding = category(made, "finding")
    assert (finding == "flagged").sum() == cells["is_anomaly"].sum()
    assert ((finding == "reference").to_numpy() == ~is_query).all()
    assert np.allclose(number(made, "score"), cells["score"], rtol=1e-4, equal_nan=True)
    # A q-value is of judged cells, a p-value of calibration cells too.
    assert (np.isnan(number(made, "q_value")) == ~is_query).all()
    assert not np.isnan(number(made, "library_size")).any()
    reasons = tables["reasons"].set_index("cell_id").reindex(names)
    pattern = category(made, "pattern")
    assert (pattern[(finding == "flagged").to_numpy()] != "none").sum() == (
        reasons["pattern"].isin(["P1", "P2"]).sum()
    )


def test_colours_are_those_of_the_figures_and_what_is_not_told_is_grey(tmp_path):
    made = map_of(write_fake_run(tmp_path))
    of = {
        entry["name"]: dict(zip(entry["labels"], entry["colours"], strict=True))
        for entry in made["categories"]
    }
    assert of["finding"]["flagged"] == ANOMALY and of["finding"]["reference"] is None
    assert of["split"] == {name: SPLITS[name] for name in of["split"]}
    assert [of["sample"][f"donor{i}"] for i in (1, 2, 3)] == list(CATEGORIES[:3])
    assert of["pattern"]["none"] is None


def test_a_run_on_samples_has_no_doublets(tmp_path):
    made = map_of(write_fake_run(tmp_path, n_cells=60, is_bulk=True), "samples")
    assert "doublet_probability" not in {entry["name"] for entry in made["numbers"]}
    assert made["unit"] == "samples"


def test_of_very_many_cells_all_flagged_ones_are_drawn_and_some_of_the_rest():
    is_flagged = np.arange(1000) % 10 == 3
    drawn = choose_cells(is_flagged, most=300)
    assert len(drawn) == 300 and (np.diff(drawn) > 0).all()
    assert is_flagged[drawn].sum() == 100
    # The rest from everywhere.
    assert drawn[~is_flagged[drawn]].mean() == np.clip(drawn[~is_flagged[drawn]].mean(), 400, 600)
    assert np.array_equal(choose_cells(is_flagged, most=300), drawn)
    assert np.array_equal(choose_cells(is_flagged, most=1000), np.arange(1000))


def test_genes_are_taken_in_turn_from_patterns_groups_and_hits():
    markers = pd.DataFrame({"pattern": ["P1", "P1", "P2"], "gene": ["B", "A", "C"]})
    markers["q_value"] = [0.2, 0.1, 0.3]
    groups = pd.DataFrame({"genes": ["D, A", "E (of two), F"]})
    hits = pd.DataFrame({"gene": ["G", "F", "F", "H"]})
    known = [*"ABCDFG", "E (of two)"]
    assert choose_genes(known, markers, groups, hits) == ["A", "C", "D", "E (of two)", *"FBG"]
    many = pd.DataFrame({"gene": [f"G{i}" for i in range(999)]})
    found = choose_genes(many["gene"], markers, groups, many)
    assert len(found) == report_map.MAX_GENES


def test_steps_are_of_the_logarithm_at_median_depth_whatever_the_blocks(small_blocks):
    counts = np.random.default_rng(0).poisson(0.7, (40, 5))
    counts[:, 2] = 0
    cells, genes = np.arange(3, 33), np.array([4, 2, 1])
    sizes = np.linspace(50, 150, 30)
    levels, top = gene_levels(Counts(sparse.csr_matrix(counts)), cells, genes, sizes)
    wanted = np.log1p(counts[3:33][:, genes] * 100 / sizes[:, None]).T
    assert np.allclose(top, wanted.max(axis=1)) and top[1] == 0
    step = np.where(top > 0, top, 1)[:, None] / GENE_STEPS
    assert (np.abs(levels * step - wanted) <= step).all()
    # A single count is never as none.
    assert ((levels > 0) == (wanted > 0)).all() and levels.max() == GENE_STEPS


def test_genes_end_where_they_would_take_too_much(monkeypatch):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, GENE_STEPS, (6, 1000)).astype(np.uint8)
    all_of_them = pack_genes(list("ABCDEF"), levels, np.ones(6))
    sizes = [len(gene["data"]) for gene in all_of_them]
    assert len(sizes) == 6
    assert zlib.decompress(base64.b64decode(all_of_them[3]["data"])) == levels[3].tobytes()
    monkeypatch.setattr(report_map, "GENE_BYTES", sum(sizes[:4]))
    assert [gene["name"] for gene in pack_genes(list("ABCDEF"), levels, np.ones(6))] == list("ABCD")


def test_the_smallest_of_very_many_labels_are_one():
    values = pd.Series([f"s{i:03d}" for i in range(300)] + ["s000"] * 5)
    made = pack_category("sample", values)
    assert len(made["labels"]) == MAX_LABELS
    read = np.array(made["labels"])[np.frombuffer(unpacked(made["data"]), dtype=np.uint8)]
    assert (read == "s000").sum() == 6 and (read == "other").sum() == 300 - MAX_LABELS + 1


def test_a_report_of_100_000_cells_is_below_10_megabytes(tmp_path):
    """Names and numbers without a regularity; figures took 1.5 MB where they were measured."""
    run = write_fake_run(tmp_path, n_cells=100_000, share_odd=0.3)
    assert len(make_report(run).encode()) < 8e6
