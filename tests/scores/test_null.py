"""The null from moments is the null of shuffled images."""

import numpy as np
import pytest

import pencil
from channelscope import scores
from channelscope.errors import InputError
from measured import CHANNELS, IMAGES, margins, pooled, profile

SHUFFLES = 400


def shuffled(score) -> np.ndarray:
    """The score of every channel when the margins are really shuffled over images: shuffles × channels."""
    source, rho = np.random.default_rng(0), np.corrcoef(pooled().T)
    rows = []
    for _ in range(SHUFFLES):
        target = source.permutation(margins())
        rows.append(score(np.array([np.corrcoef(column, target)[0, 1] for column in pooled().T]), rho))
    return np.array(rows)


def relevance(target, rho):
    return np.array([pencil.correlation_information(r) for r in target]) - 1 / (2 * IMAGES)


def excess(target, rho):
    return pencil.excess(target, rho).sum(1) / (CHANNELS - 1)


@pytest.mark.parametrize("score", [relevance, excess], ids=lambda score: score.__name__)
def test_means_and_p_values_agree_with_real_permutations(score):
    real = shuffled(score)
    drawn = scores.null(profile(), score.__name__, SHUFFLES)["0"]
    error = real.std(0) * (2 / SHUFFLES) ** 0.5
    assert (np.abs(drawn.mean - real.mean(0)) < 4 * error).all()
    value = scores.REGISTRY[score.__name__](profile()).values["0"]
    p = np.array([pencil.permutation_p(value[i], real[:, i]) for i in range(CHANNELS)])
    assert np.abs(drawn.p - p).max() < 4 * (2 * 0.25 / SHUFFLES) ** 0.5
    assert drawn.permutations == SHUFFLES


def test_the_corrected_information_has_mean_zero_under_the_null():
    drawn = scores.null(profile(), "relevance", 1000)["0"]
    assert np.abs(drawn.mean).max() < 3 * (1 / (2 * IMAGES)) * (2 / 1000) ** 0.5


def test_the_mean_of_the_largest_is_biased_and_the_null_says_by_how_much():
    plain, largest = (scores.null(profile(), "excess", 200, **options)["0"] for options in ({}, {"top": 3, "of": 6}))
    assert (largest.mean > plain.mean + 1e-4).all()


def test_seeds():
    one, same, other = (scores.null(profile(), "relevance", 50, seed=seed)["3"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.mean, same.mean)
    assert (one.mean != other.mean).any()


@pytest.mark.parametrize(("name", "options"), [("overlap", {}), ("l2", {}), ("relevance", {"target": "label"})])
def test_where_there_is_no_permutation_null(name, options):
    with pytest.raises(InputError, match="a permutation null is there for target scores"):
        scores.null(profile(), name, **options)
