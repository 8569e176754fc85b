"""The null from moments is the null of shuffled images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pencil
from channelscope import scores
from channelscope.errors import InputError
from channelscope.profiling.collect import collect
from channelscope.scores.score import LayerStatistics, ScoreOptions
from channelscope.scores.score_table import _shuffled
from channelscope.stats.readout import draw_positions
from measured import CHANNELS, IMAGES, images, maps, network, pooled, profile

SHUFFLES = 400


TARGET = {"target": "top_margin"}
"""a target that the channels say little about, so that p-values differ"""


def gaps() -> np.ndarray:
    """Largest logit minus the second largest, of each image."""
    with torch.no_grad():
        ordered = np.sort(network()(images()[0]).numpy(), 1)
    return ordered[:, -1] - ordered[:, -2]


def drawn_positions(count: int, seed: int = 0) -> np.ndarray:
    """Images × positions × channels: the samples of positions(count)."""
    where = draw_positions(torch.arange(IMAGES), 25, count, seed)
    return np.take_along_axis(maps().transpose(0, 2, 1), where.numpy()[:, :, None], 1)


def shuffled(score, samples: np.ndarray, shrink) -> np.ndarray:
    """The score of every channel when the top margins are really shuffled over images (shuffles × channels); samples of each image."""
    source, rows = np.random.default_rng(0), []
    flat = samples.reshape(-1, CHANNELS)
    for _ in range(SHUFFLES):
        target = source.permutation(gaps()).repeat(samples.shape[1])
        joint = np.corrcoef(np.column_stack([flat, target]).T)
        strength = shrink(joint)
        joint = joint * (1 - strength) + np.eye(CHANNELS + 1) * strength
        rows.append(score(joint[-1, :-1], joint[:-1, :-1]))
    return np.array(rows)


def relevance(target, rho):
    return np.array([pencil.correlation_information(r) for r in target]) - 1 / (2 * IMAGES)


def excess(target, rho):
    return pencil.excess(target, rho).sum(1) / (CHANNELS - 1)


def oas(joint):
    return pencil.oas(joint, IMAGES)


MEASURED = [
    ("pooled", None, lambda joint: 0.0),
    ("pooled", 0.5, lambda joint: 0.5),
    ("pooled", "oas", oas),
    ("positions", None, lambda joint: 0.0),
    ("positions", "oas", oas),
]


def agrees(score, found, samples, shrink, **options):
    real = shuffled(score, samples, shrink)
    drawn = scores.permutation_null(found, score.__name__, SHUFFLES, **TARGET, **options)["0"]
    error = real.std(0) * (2 / SHUFFLES) ** 0.5
    assert (np.abs(drawn.mean - real.mean(0)) < 4 * error).all()
    value = scores.REGISTRY[score.__name__](found, **TARGET, **options).values["0"]
    p = np.array([pencil.permutation_p(value[i], real[:, i]) for i in range(CHANNELS)])
    assert np.abs(drawn.p - p).max() < 4 * (2 * 0.25 / SHUFFLES) ** 0.5
    assert drawn.permutations == SHUFFLES


@pytest.mark.parametrize("score", [relevance, excess], ids=lambda score: score.__name__)
@pytest.mark.parametrize(("readout", "shrinkage", "shrink"), MEASURED)
def test_means_and_p_values_agree_with_real_permutations(score, readout, shrinkage, shrink):
    samples = pooled()[:, None] if readout == "pooled" else drawn_positions(25)
    agrees(score, profile(), samples, shrink, target_readout=readout, shrinkage=shrinkage)


def test_two_hundred_shuffles_are_drawn_where_nothing_else_is_said():
    assert scores.permutation_null(profile(), "relevance", **TARGET)["0"].permutations == 200


def test_with_some_positions_of_each_image_the_null_is_that_of_their_means():
    """Mean information of shuffles is half the mean squared correlation, here of the images' mean samples; over 20 seeds of positions."""
    drawn, real = [], []
    for seed in range(20):
        samples = drawn_positions(4, seed)
        real.append(samples.mean(1).var(0) / samples.reshape(-1, CHANNELS).var(0) / (2 * (IMAGES - 1)))
        found = collect(network(), [images()], "positions(4)", shards=0, seed=seed)
        drawn.append(scores.permutation_null(found, "relevance", 200, seed, corrected=False, target_readout="positions")["0"].mean)
    np.testing.assert_allclose(np.mean(drawn, 0), np.mean(real, 0), rtol=0.1)


def test_shrinkage_by_a_number_changes_no_p_value_of_the_information():
    """The information grows with |ρ|, and (1 − s)|ρ| orders the shuffles as |ρ| does."""
    plain, *others = (
        scores.permutation_null(profile(), "relevance", SHUFFLES, shrinkage=strength, **TARGET)["0"].p for strength in (None, 0.5, 0.9)
    )
    assert len(set(plain)) > 3
    for other in others:
        np.testing.assert_array_equal(other, plain)


def test_a_shuffle_that_gives_the_same_up_to_rounding_is_a_hit(monkeypatch):
    values = iter([0.1 + 0.2, 0.3, 0.3, 0.2])

    def formula(layer):
        return torch.full((layer.channels,), next(values), dtype=torch.float64)

    monkeypatch.setitem(scores.REGISTRY, "flat", scores.Score("flat", "target", "", "high", "", formula))
    one = replace(profile(), sites=profile().sites[:1])
    np.testing.assert_array_equal(scores.permutation_null(one, "flat", 3)["0"].p, np.full(CHANNELS, 3 / 4))


def test_p_values_are_in_double_precision():
    p = scores.permutation_null(profile(), "relevance", 200, **TARGET)["0"].p
    assert p.dtype == np.float64
    np.testing.assert_array_equal(p, np.round(p * 201) / 201)


def test_the_corrected_information_has_mean_zero_under_the_null():
    drawn = scores.permutation_null(profile(), "relevance", 1000)["0"]
    assert np.abs(drawn.mean).max() < 3 * (1 / (2 * IMAGES)) * (2 / 1000) ** 0.5


def test_the_mean_of_the_largest_is_biased_and_the_null_says_by_how_much():
    plain, largest = (scores.permutation_null(profile(), "excess", 200, **options)["0"] for options in ({}, {"top": 3, "of": 6}))
    assert (largest.mean > plain.mean + 1e-4).all()


def test_seeds():
    one, same, other = (scores.permutation_null(profile(), "relevance", 50, seed=seed)["3"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.mean, same.mean)
    assert (one.mean != other.mean).any()


@pytest.mark.parametrize(("name", "options"), [("overlap", {}), ("l2", {}), ("relevance", {"target": "label"})])
def test_where_there_is_no_permutation_null(name, options):
    with pytest.raises(InputError, match="a permutation null is there for target scores"):
        scores.permutation_null(profile(), name, **options)


def test_shuffled_targets_are_shrunk_by_the_strength_of_channels_and_target_together():
    found = profile()
    plain, shrunk = (LayerStatistics(found, found.sites[0], found.record(found.sites[0]), ScoreOptions(shrinkage=s)) for s in (None, "oas"))
    for one, other in zip(_shuffled(plain, 5, 0), _shuffled(shrunk, 5, 0), strict=True):
        joint = np.eye(CHANNELS + 1)
        joint[:-1, :-1], joint[-1, :-1], joint[:-1, -1] = one.target_readout_correlation, one.target_correlation, one.target_correlation
        np.testing.assert_allclose(other.target_correlation, one.target_correlation * (1 - oas(joint)), rtol=1e-6)
