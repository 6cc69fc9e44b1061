"""The same counts, names and metadata come out of every format."""

import gzip
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

import count_formats
import dense_formats
from count_files import (
    CELLS,
    COUNTS,
    GENES,
    IDS,
    WRITERS,
    annotated,
    write_10x_h5_v2,
    write_10x_h5_v3,
    write_10x_mtx,
    write_h5ad,
    write_loom,
    write_table,
    write_zarr,
)
from count_formats import open_counts, tell_format
from job import InputError
from omics_vae.counts import StoredMatrix


def counts_in(path: Path, **asked: str) -> np.ndarray:
    """All counts of a file, dense."""
    return open_counts(path, **asked).read().toarray()


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_counts_names_and_ids(name, tmp_path):
    file = open_counts(WRITERS[name](tmp_path / name, COUNTS))
    X = file.read()
    np.testing.assert_array_equal(X.toarray(), COUNTS)
    assert (X.format, X.dtype, X.nnz) == ("csr", np.int32, 4)
    assert (list(file.obs.index), list(file.var.index)) == (CELLS, GENES)
    if "table" not in name and "from_r" not in name:
        assert list(file.var["gene_id"]) == IDS
    assert (file.dropped_features, file.warnings) == ({}, [])


# The first two are read whole, the others stay in the file and are read block by block.
MANY = np.random.default_rng(0).poisson(1.0, (11, 4))
MANY[[3, 10]] = 0
MANY_CELLS = [f"c{i}" for i in range(11)]
IN_BLOCKS = {
    "a.csv": lambda path, x: write_table(path, x, cells=MANY_CELLS),
    "csc.h5ad": lambda path, x: write_h5ad(path, X=sparse.csc_matrix(x), cells=MANY_CELLS),
    "a.h5": lambda path, x: write_10x_h5_v3(path, cells=MANY_CELLS, counts=x),
    "csr.h5ad": lambda path, x: write_h5ad(path, X=sparse.csr_matrix(x), cells=MANY_CELLS),
    "dense.h5ad": lambda path, x: write_h5ad(path, X=x, cells=MANY_CELLS),
    "csr.zarr": lambda path, x: write_zarr(path, X=sparse.csr_matrix(x), cells=MANY_CELLS),
    "dense.zarr": lambda path, x: write_zarr(path, X=x, cells=MANY_CELLS),
    "a.loom": lambda path, x: write_loom(path, x, MANY_CELLS),
}


@pytest.fixture(params=[1, 2, 3, 11, 100])
def cells_a_block(request, monkeypatch) -> int:
    monkeypatch.setattr(count_formats, "BLOCK_ROWS", request.param)
    # Of four genes; and a little more, which is not enough for another cell.
    monkeypatch.setattr(count_formats, "BLOCK_VALUES", 4 * request.param + 3)
    monkeypatch.setattr(dense_formats, "BLOCK_VALUES", 5 * request.param)
    return request.param


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_blocks_of_any_size_give_the_same_counts(name, cells_a_block, tmp_path):
    file = open_counts(IN_BLOCKS[name](tmp_path / name, MANY))
    np.testing.assert_array_equal(file.read().toarray(), MANY)
    rows, blocks = zip(*file.blocks(), strict=True)
    assert [r.start for r in rows] == list(range(0, 11, cells_a_block))
    assert [r.stop for r in rows] == [*range(cells_a_block, 11, cells_a_block), 11]
    for of_block, block in zip(rows, blocks, strict=True):
        assert (block.format, block.dtype) == ("csr", np.int32)
        np.testing.assert_array_equal(block.toarray(), MANY[of_block])


def test_a_file_of_very_many_genes_is_read_a_cell_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(count_formats, "BLOCK_VALUES", 3)
    path = IN_BLOCKS["dense.h5ad"](tmp_path / "a.h5ad", MANY)
    assert len(list(open_counts(path).blocks())) == 11
    np.testing.assert_array_equal(counts_in(path), MANY)


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_a_bad_value_in_a_late_block_is_named_with_its_cell(name, cells_a_block, tmp_path):
    wrong = MANY.astype(float)
    wrong[9, 2] = 0.5
    file = open_counts(IN_BLOCKS[name](tmp_path / name, wrong))
    with pytest.raises(InputError, match=r"cell 'c9', gene 'LYZ' is 0\.5: not a whole number"):
        file.read()


@pytest.mark.parametrize("name", ["csr.h5ad", "dense.zarr"])
def test_a_matrix_with_fractions_in_late_cells_is_not_what_to_take_instead(
    name, cells_a_block, tmp_path
):
    wrong = MANY.astype(float)
    wrong[9, 2] = 0.5
    with pytest.raises(InputError, match=r"; give the raw counts$"):
        open_counts(IN_BLOCKS[name](tmp_path / name, wrong)).read()


def test_blocks_keep_only_the_features_asked_for(cells_a_block, tmp_path):
    types = ["Gene Expression", "Antibody Capture", "Gene Expression", "Gene Expression"]
    path = write_10x_h5_v3(tmp_path / "a.h5", types, cells=MANY_CELLS, counts=MANY)
    np.testing.assert_array_equal(counts_in(path), MANY[:, [0, 2, 3]])


@pytest.mark.parametrize("name", ["a.h5", "csr.h5ad", "dense.h5ad", "csr.zarr", "a.loom"])
def test_opening_a_file_reads_none_of_its_counts(name, tmp_path, monkeypatch):
    path = IN_BLOCKS[name](tmp_path / name, MANY)
    monkeypatch.setattr(StoredMatrix, "__getitem__", lambda *given: 1 / 0)
    real = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, at: 1 / 0 if self.ndim == 2 else real(self, at)
    )
    file = open_counts(path)
    assert list(file.obs.index) == MANY_CELLS
    with pytest.raises(InputError, match="ZeroDivisionError"):
        file.read()


def test_the_same_loom_file_as_loompy_writes(tmp_path):
    loompy = pytest.importorskip("loompy")
    path = tmp_path / "a.loom"
    rows, columns = {"Gene": np.array(GENES)}, {"CellID": np.array(CELLS)}
    loompy.create(str(path), sparse.coo_matrix(COUNTS.T), rows, columns)
    np.testing.assert_array_equal(counts_in(path), COUNTS)


def test_obs_of_the_file_is_kept(tmp_path):
    assert list(open_counts(write_h5ad(tmp_path / "a.h5ad")).obs["cell_type"]) == ["T", "B", "T"]
    loom = open_counts(write_loom(tmp_path / "a.loom"))
    assert dict(loom.obs) and list(loom.obs.columns) == ["depth"]


@settings(max_examples=25, deadline=None)
@given(
    counts=arrays(
        np.int64,
        st.tuples(st.integers(1, 6), st.just(4)),
        elements=st.one_of(st.integers(0, 3), st.integers(0, 2**31 - 1)),
    )
)
def test_any_counts_survive_a_table(counts, tmp_path_factory):
    path = tmp_path_factory.mktemp("round_trip") / "a.csv"
    write_table(path, counts, cells=[f"c{i}" for i in range(len(counts))])
    np.testing.assert_array_equal(counts_in(path), counts)


@pytest.mark.parametrize("write", [write_h5ad, write_zarr])
def test_the_chosen_matrix_is_read(write, tmp_path):
    suffix = write.__name__.removeprefix("write_")
    source = annotated(X=np.log1p(COUNTS))
    raw = anndata.AnnData(sparse.csr_matrix(COUNTS * 2), var=pd.DataFrame(index=GENES))
    raw.obs_names = CELLS
    path = write(
        tmp_path / f"a.{suffix}", X=source.X, layers={"counts": COUNTS, "X": 3 * COUNTS}, raw=raw
    )
    np.testing.assert_array_equal(counts_in(path, matrix="counts"), COUNTS)
    np.testing.assert_array_equal(counts_in(path, matrix="raw"), 2 * COUNTS)
    with pytest.raises(InputError, match=r"log-transformed data .*whole numbers: raw or counts$"):
        open_counts(path).read()


def test_loom_layers_are_read_and_listed(tmp_path):
    path = write_loom(tmp_path / "a.loom")
    np.testing.assert_array_equal(counts_in(path, matrix="doubled"), 2 * COUNTS)


def test_only_features_of_the_asked_type_are_kept_and_the_others_counted(tmp_path):
    types = ["Gene Expression", "Antibody Capture", "Gene Expression", "CRISPR Guide Capture"]
    h5ad = annotated()
    h5ad.var["feature_types"] = types
    h5ad.write_h5ad(tmp_path / "a.h5ad")
    write_10x_mtx(tmp_path / "mtx", types=types)
    for path in (write_10x_h5_v3(tmp_path / "a.h5", types), tmp_path / "mtx", tmp_path / "a.h5ad"):
        file = open_counts(path)
        assert list(file.var.index) == ["CD3E", "LYZ"]
        assert list(file.var["gene_id"]) == [IDS[0], IDS[2]]
        np.testing.assert_array_equal(file.read().toarray(), COUNTS[:, [0, 2]])
        assert file.dropped_features == {"Antibody Capture": 1, "CRISPR Guide Capture": 1}
        antibodies = open_counts(path, feature_type="Antibody Capture")
        assert list(antibodies.var.index) == ["MS4A1"]


def test_one_of_several_genomes_can_be_chosen(tmp_path):
    path = write_10x_h5_v2(tmp_path / "a.h5", {"mm10": 2 * COUNTS, "hg19": COUNTS})
    folder = tmp_path / "mtx"
    write_10x_mtx(folder / "mm10", version=2, counts=2 * COUNTS)
    write_10x_mtx(folder / "hg19", version=2)
    for source in (path, folder):
        np.testing.assert_array_equal(counts_in(source, genome="mm10"), 2 * COUNTS)


def test_genomes_of_version_3_are_told_by_feature(tmp_path):
    path = write_10x_h5_v3(tmp_path / "a.h5", genomes=["hg38", "mm10", "hg38", "hg38"])
    file = open_counts(path, genome="hg38")
    assert list(file.var.index) == ["CD3E", "LYZ", "NKG7"]
    assert file.dropped_features == {"genome mm10": 1}


def with_layers(*without: str) -> Path:
    """An AnnData file with X and a layer, ``without`` some of it."""
    path = write_h5ad(Path("a.h5ad"), layers={"counts": COUNTS})
    with h5py.File(path, "a") as file:
        for name in without:
            del file[name]
    return path


def with_guides() -> Path:
    types = [*["Gene Expression"] * 2, "Antibody Capture", "CRISPR Guide Capture"]
    return write_10x_h5_v3(Path("a.h5"), types)


def of_two_species() -> Path:
    """Of mouse there are no genes, as a file of guides may have it."""
    types = [*["Gene Expression"] * 3, "Antibody Capture"]
    return write_10x_h5_v3(Path("a.h5"), types, genomes=["hg38"] * 3 + ["mm10"])


def of_two_folders() -> Path:
    for genome in ("hg19", "mm10"):
        write_10x_mtx(Path("mtx", genome), version=2)
    return Path("mtx")


CHOICES: dict[str, tuple[tuple[Callable[[], Path], dict[str, str]], str]] = {
    "a layer by a wrong name": (
        (with_layers, {"matrix": "count"}),
        "a.h5ad: has no layer 'count'; set the column matrix to one of: X, counts",
    ),
    "raw where there is none": (
        (with_layers, {"matrix": "raw"}),
        "a.h5ad: has no raw; set the column matrix to one of: X, counts",
    ),
    "a file with layers alone": (
        (lambda: with_layers("X"), {}),
        "a.h5ad: has no X; set the column matrix to one of: counts",
    ),
    "a layer of loom by a wrong name": (
        (lambda: write_loom(Path("a.loom")), {"matrix": "raw"}),
        "a.loom: has no layer 'raw'; set the column matrix to one of: X, doubled",
    ),
    "a type of features that the file does not have": (
        (with_guides, {"feature_type": "Peaks"}),
        "a.h5: has no features of type 'Peaks'; set import.feature_type to one of: Antibody "
        "Capture, CRISPR Guide Capture, Gene Expression",
    ),
    "two genomes in a .h5 file, and none is chosen": (
        (lambda: write_10x_h5_v2(Path("a.h5"), {"mm10": COUNTS, "hg19": COUNTS}), {}),
        "a.h5: holds 2 genomes; set the column genome to one of: hg19, mm10",
    ),
    "two genomes in a folder, and none is chosen": (
        (of_two_folders, {}),
        "mtx: holds 2 genomes; set the column genome to one of: hg19, mm10",
    ),
    "a genome that the folder does not have": (
        (of_two_folders, {"genome": "hg38"}),
        "mtx: has no genome 'hg38'; set the column genome to one of: hg19, mm10",
    ),
    "a genome that no feature is of": (
        (of_two_species, {"genome": "hg19"}),
        "a.h5: has no genome 'hg19'; set the column genome to one of: hg38, mm10",
    ),
    "a genome without genes": (
        (of_two_species, {"genome": "mm10"}),
        "a.h5: genome 'mm10' has no features of type 'Gene Expression'; correct the column genome "
        "or import.feature_type",
    ),
    "a genome of a table": (
        (lambda: write_table(Path("a.csv")), {"genome": "hg38"}),
        "a.csv: does not tell genomes; leave the column genome empty",
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_the_file_does_not_have_gives_one_line(name, tmp_path, monkeypatch):
    (make, asked), expected = CHOICES[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        open_counts(make(), **asked)
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.h5", "10x_h5"),
        ("a.H5AD", "h5ad"),
        ("a.b.loom", "loom"),
        ("a.csv.gz", "csv"),
        ("a.tsv", "tsv"),
        ("a.txt.gz", "tsv"),
    ],
)
def test_the_format_is_told_from_the_name(name, format):
    assert tell_format(Path(name)) == format


def test_numbers_as_names_stay_as_written(tmp_path):
    path = tmp_path / "a.csv"
    for corner, cells in (("cell,", ["001", "002"]), ("", ["NA", "002"])):
        text = f"\ufeff{corner}0610007P14Rik,007\n{cells[0]},1,2\n{cells[1]},1,2\n"
        path.write_text(text, encoding="utf-8")
        file = open_counts(path)
        assert list(file.obs.index) == cells
        assert list(file.var.index) == ["0610007P14Rik", "007"]


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_tables_as_spreadsheets_save_them(name, tmp_path):
    """With a byte order mark, semicolons and quotes."""
    text = '\ufeff"";"CD3E";"MS4A1";"LYZ"\r\n"c;1";"1";"0";"2"\r\n"c2";"0";"3";"0"\r\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    file = open_counts(path)
    assert file.read().toarray().tolist() == [[1, 0, 2], [0, 3, 0]]
    assert (list(file.obs.index), list(file.var.index)) == (["c;1", "c2"], ["CD3E", "MS4A1", "LYZ"])


@pytest.mark.parametrize("corner", [("",), ()], ids=["with", "without"])
def test_a_table_turned_is_the_table(corner, tmp_path):
    """With and without the field above the names, which R leaves out."""
    path = tmp_path / "a.tsv"
    lines = ["\t".join([*corner, *CELLS])]
    lines += ["\t".join([g, *map(str, row)]) for g, row in zip(GENES, COUNTS.T, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    file = open_counts(path, matrix="transposed")
    np.testing.assert_array_equal(file.read().toarray(), COUNTS)
    head = open_counts(path, matrix="transposed", head=True)
    for part in (file, head):
        assert (list(part.obs.index), list(part.var.index)) == (CELLS, GENES)


@pytest.mark.parametrize("name", WRITERS)
def test_a_head_has_the_names_and_does_without_the_counts(name, tmp_path, monkeypatch):
    path = tmp_path / name
    WRITERS[name](path, COUNTS)
    form = "10x_h5" if name.endswith(".h5") else ""
    monkeypatch.setattr("count_formats.HEAD_ROWS", 2)
    monkeypatch.setattr("dense_formats.HEAD_ROWS", 2)
    genome = "hg19" if "genome" in name else ""
    head, file = (open_counts(path, form, "", genome, head=head) for head in (True, False))
    assert head.var.index.equals(file.var.index)
    n_cells = len(file.obs) if head.has_all_cells else 2
    assert head.obs.index.equals(file.obs.index[:n_cells])
    assert head.has_all_cells != ("table" in name or "from_r" in name)
    head.check_first_cells()


def test_duplicate_names_become_unique_and_are_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",LYZ,LYZ,CD3E,LYZ\nc1,1,2,3,4\nc1,5,6,7,8\n")
    file = open_counts(path)
    assert list(file.var.index) == ["LYZ", "LYZ-1", "CD3E", "LYZ-2"]
    assert list(file.obs.index) == ["c1", "c1-1"]
    assert "1 cell names occur more than once (such as 'c1')" in file.warnings[0]
    assert "2 gene names occur more than once (such as 'LYZ')" in file.warnings[1]


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_an_h5ad_file_from_before_anndata_0_7(tmp_path):
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = np.log1p(COUNTS.astype(np.float32))
        file["raw.X"] = COUNTS.astype(np.float32)
        for name, values in (("obs", CELLS), ("var", GENES), ("raw.var", GENES)):
            file[name] = np.array([(value,) for value in values], dtype=[("index", "S8")])
    file = open_counts(path, matrix="raw")
    np.testing.assert_array_equal(file.read().toarray(), np.float32(COUNTS))
    assert (list(file.obs.index), list(file.var.index)) == (CELLS, GENES)
    with pytest.raises(InputError, match=r"log-transformed data .*whole numbers: raw$"):
        open_counts(path).read()


def test_real_cell_ranger_output(shared_data):
    v2, v3 = (shared_data / "formats" / f"cellranger-{v}" for v in ("1.2.0", "3.0.0"))
    h5 = open_counts(v2 / "filtered_gene_bc_matrices_h5.h5")
    for other in (
        open_counts(v2 / "filtered_gene_bc_matrices"),
        open_counts(v2 / "filtered_gene_bc_matrices" / "hg19_chr21"),
        open_counts(v2 / "multiple_genomes.h5", genome="hg19_chr21"),
    ):
        assert (h5.read() != other.read()).nnz == 0
        assert list(h5.obs.index) == list(other.obs.index)
        assert list(h5.var.index) == list(other.var.index)
    with pytest.raises(InputError, match=r"genome to one of: another_genome, hg19_chr21$"):
        open_counts(v2 / "multiple_genomes.h5")
    h5 = open_counts(v3 / "filtered_feature_bc_matrix.h5")
    mtx = open_counts(v3 / "filtered_feature_bc_matrix")
    X = h5.read()
    assert X.shape == (1107, 507) and X.nnz == 23_866 and h5.warnings == []
    assert (mtx.read() != X).nnz == 0
    pd.testing.assert_frame_equal(h5.var, mtx.var)
    assert h5.var.loc["CH507-9B2.2", "gene_id"] == "ENSG00000279493"
