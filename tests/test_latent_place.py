"""How odd a place in latent space is."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr

import latent_place
from latent_place import RIDGE, fit_mixture, neighbour_distance


def mixture_surprise(train, validation, cells, seed):
    return -fit_mixture(train, validation, seed).score_samples(cells)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_one_gaussian_gives_its_own_density(rng):
    train, cells = (rng.standard_normal((n, 2)) for n in (30, 50))
    # 30 cells are enough for one component only, even where more would seem to fit better.
    surprise = mixture_surprise(train, train, cells, seed=1)
    fitted = multivariate_normal(train.mean(0), np.cov(train.T, bias=True) + RIDGE * np.eye(2))
    np.testing.assert_allclose(surprise, -fitted.logpdf(cells), rtol=1e-6)


def test_the_gap_between_two_clusters_is_odder_than_either(rng):
    side = np.repeat([-4.0, 4.0], 200)
    train = rng.standard_normal((400, 2)) + np.column_stack([side, np.zeros(400)])
    validation = train + 0.1
    places = np.array([[0.0, 0.0], [4.0, 0.0], [-4.0, 0.0], [30.0, 30.0]])
    between, right, left, far = mixture_surprise(train, validation, places, seed=1)
    assert between > max(right, left) + 3
    assert far > between
    distance = neighbour_distance(train, places)
    assert distance[0] > max(distance[1:3]) + 1
    assert distance[3] > distance[0]


def test_the_same_seed_gives_the_same_numbers(rng):
    train, validation, cells = (rng.standard_normal((n, 3)) for n in (400, 50, 20))
    first = mixture_surprise(train, validation, cells, seed=7)
    np.testing.assert_array_equal(first, mixture_surprise(train, validation, cells, seed=7))


def test_distance_is_the_mean_to_the_ten_nearest():
    train = np.arange(1.0, 101.0)[:, None]
    found = neighbour_distance(train, np.array([[0.0], [1000.0]]))
    np.testing.assert_allclose(found, np.log([5.5, 904.5]), rtol=1e-6)


@pytest.mark.parametrize("n_train", [1, 4])
def test_fewer_training_cells_than_neighbours_are_enough(n_train):
    train = np.zeros((n_train, 2))
    found = neighbour_distance(train, np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert found[0] == pytest.approx(np.log(5.0), abs=1e-5)
    assert np.isfinite(found).all()


def test_the_two_measures_agree_on_a_simple_cloud(rng):
    train, cells = rng.standard_normal((800, 2)), 1.5 * rng.standard_normal((200, 2))
    surprise = mixture_surprise(train, train[:100], cells, seed=1)
    assert spearmanr(surprise, neighbour_distance(train, cells)).statistic > 0.9


def test_of_very_many_training_cells_some_are_sought_among(rng, monkeypatch):
    train, cells = rng.standard_normal((4000, 2)), rng.standard_normal((300, 2))
    of_all = neighbour_distance(train, cells)
    monkeypatch.setattr(latent_place, "NEIGHBOUR_CELLS", 1000)
    of_some = neighbour_distance(train, cells, seed=1)
    np.testing.assert_array_equal(of_some, neighbour_distance(train, cells, seed=1))
    # In two dimensions a quarter of the cells are twice as far apart.
    assert np.median(of_some - of_all) == pytest.approx(np.log(2.0), abs=0.1)
    assert spearmanr(of_some, of_all).statistic > 0.8
