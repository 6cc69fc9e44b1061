"""The cells of a run: read, taken, joined, given other counts, held out."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from design import Design
from held_cells import join_cells, read_cells
from job import InputError, read_json, write_json
from messages import is_said
from model_inputs import hold_out, read_fit, read_model, read_model_inputs
from model_jobs import of_model, read_inputs, with_obs, write_fit
from omics_vae.counts import StoredMatrix
from omics_vae.inference import Embedding, embed
from run_script import Named
from simulated_counts import CPU, NO_DESIGN, SPLITS, small_model, small_run

SPLIT = np.repeat(list(SPLITS), list(SPLITS.values()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Files of a run whose cells have a batch and a fold, and its model."""
    folder = tmp_path_factory.mktemp("run")
    batch, fold = np.array(["a", "b"] * 210), np.arange(420) % 3 + 1
    paths = with_obs(small_run(folder), folder / "in", batch=batch, fold=fold)
    inputs = read_inputs(paths)
    design = Design({"batch": ["a", "b"]}, {}, [])
    inputs = inputs.with_design(design)
    model = small_model(inputs.split("train"), n_covariates=2)
    paths |= write_fit(folder, model, inputs, design)
    return model, paths


@pytest.fixture(scope="module")
def cells(run):
    return read(run[1])


def read(paths, description=None, memory=np.inf, **held):
    description = description or read_json(paths["description"])
    names = ("counts", "library_size", "latent")
    return read_cells(*(paths[name] for name in names), description, memory, **held)


def same(found, expected):
    """Two sets of cells are alike in everything."""
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert (found.counts[:] != expected.counts[:]).nnz == 0
    np.testing.assert_array_equal(found.size, expected.size)
    for name in Embedding.__dataclass_fields__:
        np.testing.assert_array_equal(
            getattr(found.posterior, name), getattr(expected.posterior, name)
        )


def test_cells_are_those_of_the_files(run, cells):
    adata, sizes = ad.read_h5ad(run[1]["counts"]), pd.read_parquet(run[1]["library_size"])
    assert len(cells) == 420
    assert list(cells.obs.index) == list(adata.obs_names)
    assert (cells.counts[:] != adata.X).nnz == 0
    np.testing.assert_array_equal(cells.size, sizes["library_size"])
    np.testing.assert_allclose(cells.log_depth, sizes["log_offset"])
    assert list(cells.genes[cells.in_model]) == [f"G{g}" for g in range(40)]
    np.testing.assert_array_equal(cells.split, SPLIT)
    data = read_inputs(run[1]).data
    assert (cells.data.counts[:] != data.counts[:]).nnz == 0
    np.testing.assert_array_equal(cells.data.covariates[:, 1], np.arange(420) % 2)


def test_genes_stand_in_the_order_of_the_model(run, tmp_path):
    description = read_json(run[1]["description"])
    description["genes"] = description["genes"][::-1]
    found = read(run[1], description)
    assert list(found.genes[found.in_model]) == description["genes"]


def test_taking_cells_takes_them_in_all_that_has_a_row_a_cell(run, cells):
    place = np.array([5, 300, 5, 0])
    taken = cells.take(place)
    assert list(taken.obs.index) == ["cell5", "cell300", "cell5", "cell0"]
    assert (taken.counts[:] != cells.counts[place]).nnz == 0
    np.testing.assert_array_equal(taken.size, cells.size[place])
    np.testing.assert_array_equal(taken.latent, cells.latent[place])
    same(cells.take(SPLIT == "query"), cells.of("query"))
    assert list(cells.of("validation", "query").split) == ["validation"] * 60 + ["query"] * 60


def test_cells_whose_counts_stay_in_their_file_are_the_same(run, cells):
    model, paths = run
    stored = read(paths, memory=0.0)
    assert isinstance(stored.counts.matrix, StoredMatrix)
    assert not isinstance(cells.counts.matrix, StoredMatrix)
    same(stored, cells)
    place = np.array([400, 7, 7, 311, 20])
    same(stored.take(place).in_memory(), cells.take(place))
    assert not isinstance(stored.take(place).in_memory().counts.matrix, StoredMatrix)
    same(join_cells([stored.of("query"), stored.of("train")]), cells.take(np.r_[360:420, :200]))
    of_stored, of_read = (embed(model, those.data, CPU) for those in (stored, cells))
    np.testing.assert_array_equal(of_stored.mean, of_read.mean)


def test_parts_join_to_the_whole(cells):
    same(join_cells([cells.take(np.arange(100)), cells.take(np.arange(100, 420))]), cells)


def test_other_counts_change_library_size_and_posterior(run, cells):
    model, _ = run
    few = cells.take(np.arange(30))
    double = few.with_counts(2 * few.counts[:], model, CPU)
    np.testing.assert_allclose(double.size, 2 * few.size)
    expected = embed(model, double.data, CPU)
    np.testing.assert_array_equal(double.posterior.mean, expected.mean)
    np.testing.assert_allclose(double.posterior.log_size, np.log(2 * few.size), rtol=1e-6)
    pd.testing.assert_frame_equal(double.obs, few.obs)
    one = few.counts[:].tolil()
    one[7, 3] = one[7, 3] + 900
    changed = few.with_counts(one.tocsr(), model, CPU)
    untouched = np.arange(30) != 7
    np.testing.assert_array_equal(changed.size[untouched], few.size[untouched])
    total = few.counts.sum(1)[7]
    assert changed.size[7] == pytest.approx(few.size[7] * (total + 900) / total)
    assert np.abs(changed.latent[7] - few.latent[7]).max() > 0.01


def model_of_another_run(paths: dict, folder: Path) -> None:
    description = read_json(paths["description"])
    read(paths, description | {"genes": [*description["genes"], "unheard of"]})


def weights_of_another_run(paths: dict, folder: Path) -> None:
    description = read_json(paths["description"])
    path = folder / "model.json"
    write_json(description | {"genes": description["genes"][::-1]}, path)
    inputs = read_model_inputs(paths["model_counts"], paths["library_size"], np.inf)
    read_model(paths["weights"], str(path), inputs)


def table_of_another_run(name: str) -> Callable[[dict, Path], None]:
    def give(paths: dict, folder: Path) -> None:
        path = folder / f"{name}.parquet"
        pd.read_parquet(paths[name]).iloc[::-1].to_parquet(path)
        read(paths | {name: str(path)})

    return give


NOT_OF_ONE_RUN = (
    "…latent…: model, latent and counts are not of one run; delete the folders train, prune "
    "and embed and run the same command"
)
FAULTS: dict[str, tuple[Callable[[dict, Path], None], str]] = {
    "a model.json of another run": (model_of_another_run, NOT_OF_ONE_RUN),
    "a latent space of another run": (table_of_another_run("latent"), NOT_OF_ONE_RUN),
    "library sizes of another run": (
        table_of_another_run("library_size"),
        "…library_size.parquet: its cells are not those of counts.h5ad; delete it and run the same "
        "command",
    ),
    "a model of other genes": (
        weights_of_another_run,
        "…model.json: the model's genes are not those of counts.h5ad; delete the train folder and "
        "run the same command",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_files_of_another_run_are_one_line_for_the_user(name, run, tmp_path):
    give, expected = FAULTS[name]
    with pytest.raises(InputError) as caught:
        give(run[1], tmp_path)
    assert is_said(expected, str(caught.value)), str(caught.value)


# ---- cells that a model has not seen


def test_the_cells_of_a_fold_become_the_query(run):
    fold = np.arange(420) % 3 + 1
    found = read(run[1], fold=2)
    np.testing.assert_array_equal(found.split, np.where(fold == 2, "query", SPLIT))
    inputs = read_inputs(run[1], fold=2)
    np.testing.assert_array_equal(inputs.cells["split"], found.split)
    assert len(inputs.split("train")) == ((SPLIT == "train") & (fold != 2)).sum()


def test_a_held_out_group_is_in_no_split_of_the_training(run, tmp_path):
    names = np.array([f"cell{i}" for i in (3, 205, 270, 400)])
    found = read(run[1], held=names)
    assert (found.split != SPLIT).sum() == 4
    assert set(found.of("held").obs.index) == set(names)
    pd.DataFrame({"cell_id": names}).to_parquet(tmp_path / "held.parquet")
    files = Named(of_model(run[1]) | {"held": str(tmp_path / "held.parquet")})
    model, inputs = read_fit(files, np.inf)
    np.testing.assert_array_equal(inputs.cells["split"], found.split)
    assert [len(inputs.split(name)) for name in SPLITS] == [199, 59, 99, 59]
    for given in (of_model(run[1]) | {"held": []}, of_model(run[1])):
        assert len(read_fit(Named(given), np.inf)[1].split("train")) == 200
    assert model.architecture.n_covariates == inputs.data.covariates.shape[1] == 2


def test_a_held_cell_of_a_fold_is_held():
    obs = pd.DataFrame({"split": list("tttv"), "fold": [1, 1, 2, 2]}, index=list("abcd"))
    assert list(hold_out(obs)["split"]) == list("tttv")
    assert list(hold_out(obs, fold=2)["split"]) == ["t", "t", "query", "query"]
    found = hold_out(obs, fold=2, held=np.array(["b", "c"]))
    assert list(found["split"]) == ["t", "held", "held", "query"]
    assert list(obs["split"]) == list("tttv"), "the obs that was given stays as it is"
    # A column read from a file is categorical, without these levels.
    categorical = obs.assign(split=pd.Categorical(obs["split"]))
    assert list(hold_out(categorical, fold=1)["split"]) == ["query", "query", "t", "v"]


def test_no_design_gives_no_covariates(run, cells):
    plain = type(cells)(**{**vars(cells), "design": NO_DESIGN})
    assert plain.data.covariates.shape == (420, 0)
    assert (plain.data.batch == 0).all()
