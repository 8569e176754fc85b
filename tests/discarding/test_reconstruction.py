"""Decoders: linear features come back, errors split into variance and bias, and the table by layer."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelscope.discarding.cid import CalibrationStatistics, CIDOptions, discard
from channelscope.discarding.noise import GAUSSIAN_ENTROPY
from channelscope.discarding.reconstruction import RidgeDecoder, reconstruction_table, reconstruction_uncertainty, train_decoder
from channelscope.errors import SampleError, ShapeError
from discarding import small


def images(count=24, side=8, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def pairs(feature, batches=3):
    return [(feature(part), part) for part in images().split(24 // batches)]


def invertible(x):
    """All that is in each 2 × 2 block, in another basis."""
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0]
    return torch.einsum("oc,bchw->bohw", turn, F.pixel_unshuffle(x, 2)) + 0.3


def test_what_a_linear_map_keeps_comes_back():
    decode = RidgeDecoder(pairs(invertible))
    fresh = images(4, seed=9)
    assert (decode(invertible(fresh)) - fresh).square().mean() < 1e-4 * fresh.var()


def test_the_fit_is_ridge_regression():
    """Against one least-squares problem with the penalty as further rows, in units of the centered squares."""
    feature = lambda x: torch.tanh(F.avg_pool2d(x, 4))  # noqa: E731
    decode = RidgeDecoder(pairs(feature))
    maps = F.unfold(feature(images()), 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    rows = torch.cat([maps, torch.ones(len(maps), 1).double()], 1)
    target = F.pixel_unshuffle(images(), 4).flatten(2).transpose(1, 2).flatten(0, 1).double()
    penalty = (1e-3 * (maps - maps.mean(0)).square().sum(0).mean()).sqrt()
    wider = torch.cat([rows, penalty * torch.eye(rows.shape[1])[:-1].double()])
    expected = torch.linalg.lstsq(wider, torch.cat([target, torch.zeros(rows.shape[1] - 1, 48).double()])).solution
    torch.testing.assert_close(decode.weights.double(), expected[:-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(decode.intercept.double(), expected[-1], rtol=1e-3, atol=1e-3)


def test_a_feature_far_from_zero_is_decoded_as_well_as_one_around_it(monkeypatch):
    """A mean of a million scatters is taken off before squares are summed, and is no part of the penalty's unit."""
    monkeypatch.setattr(
        "channelscope.discarding.reconstruction.NEIGHBORHOOD_UP_TO", 0
    )  # no neighbors: their padding with zeros is no constant
    far = lambda x: invertible(x).double() + 3e5  # noqa: E731
    near, off = RidgeDecoder(pairs(invertible)), RidgeDecoder(pairs(far))
    torch.testing.assert_close(off.weights, near.weights, rtol=1e-4, atol=1e-5)


def test_a_feature_that_says_nothing_gives_the_mean_image_and_no_images_are_refused(monkeypatch):
    monkeypatch.setattr("channelscope.discarding.reconstruction.NEIGHBORHOOD_UP_TO", 0)
    decode = RidgeDecoder(pairs(lambda x: torch.ones(len(x), 2, 4, 4)))
    mean = F.pixel_unshuffle(images(), 2).mean((0, 2, 3))
    torch.testing.assert_close(decode(torch.ones(1, 2, 4, 4)), F.pixel_shuffle(mean.view(1, 12, 1, 1).expand(1, 12, 4, 4), 2))
    with pytest.raises(SampleError, match="received none"):
        RidgeDecoder([])


def test_batches_change_nothing():
    one, many = RidgeDecoder(pairs(invertible, 1)), RidgeDecoder(pairs(invertible, 4))
    torch.testing.assert_close(one.weights, many.weights, rtol=1e-4, atol=1e-4)


def test_training_starts_at_the_linear_decoder_and_gets_better_where_the_feature_bends():
    feature = lambda x: F.pixel_unshuffle(x - 0.5, 2) ** 3 * 8  # noqa: E731
    linear = RidgeDecoder(pairs(feature))
    better = train_decoder(linear, lambda: pairs(feature, 6))
    maps, truth = feature(images()), images()
    assert (better(maps) - truth).square().mean() < 0.9 * (linear(maps) - truth).square().mean()
    again = train_decoder(linear, lambda: pairs(feature, 6))
    torch.testing.assert_close(again(maps), better(maps))


def test_error_is_variance_and_squared_bias():
    """The identity decoded by itself plus 0.1: the variance is the noise's, the bias 0.1."""
    noise = [0.2 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    found = reconstruction_uncertainty(lambda f: f + 0.1, lambda x: x, images(2), noise)
    assert float(found.variance.mean()) == pytest.approx(0.04, rel=0.02)
    assert float(found.bias.mean()) == pytest.approx(0.01, rel=0.05)
    assert float(found.ru.mean()) == pytest.approx(0.5 * math.log(0.05) + GAUSSIAN_ENTROPY, abs=0.02)


def test_few_draws_split_the_error_without_bias():
    """Eight draws of the identity: the mean over many images is the noise's variance, and no bias."""
    noise = [torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    found = reconstruction_uncertainty(lambda f: f, lambda x: x, torch.zeros(4000, 1, 2, 2), noise)
    assert float(found.variance.mean()) == pytest.approx(1, abs=0.02)
    assert float(found.bias.mean()) == pytest.approx(0, abs=0.01)
    squares = torch.stack(noise).square().mean(0)
    torch.testing.assert_close(found.variance + found.bias, squares, rtol=1e-3, atol=1e-3)


def test_without_noise_there_is_no_variance():
    found = reconstruction_uncertainty(lambda f: 0 * f, lambda x: x, images(2), [torch.zeros(1)])
    assert found.variance.eq(0).all()
    torch.testing.assert_close(found.bias, images(2).square())


@pytest.mark.parametrize(("feature", "said"), [
    (lambda x: x.flatten(1), "needs maps"),
    (nn.AdaptiveAvgPool2d(3), "received 3×3 of 8×8"),
])  # fmt: skip
def test_features_that_are_no_maps_of_the_image(feature, said):
    with pytest.raises(ShapeError, match=said):
        RidgeDecoder(pairs(feature))


def found(layers, train=False, side=56, seed=0, mode="fast"):
    view, rule = small.view(), CIDOptions(mode, side=side)
    chosen = view.layers(layers)
    calibration, batches = small.batches(120, 40, 7), small.batches(6, 3)
    backdrop = CalibrationStatistics.over(view, calibration, chosen, lambda: None)
    parts = list(discard(view, batches, backdrop, chosen, rule))
    steps = []
    frame = reconstruction_table(view, calibration, batches, parts, rule, train, lambda: steps.append(1), seed)
    assert len(steps) == len(chosen)
    return frame


def test_a_strided_layer_gives_back_less_than_the_first():
    frame = found(["stem", "down"]).set_index("layer")
    assert frame.n.tolist() == [6, 6]
    assert frame.ru["stem"] < frame.ru["down"]
    assert (frame.ru_clean < frame.ru).all()
    assert (frame.ru_low < frame.ru).all()
    assert (frame.variance > 0).all()


def test_a_trained_decoder_stands_beside_the_linear_one_and_cells_may_be_coarse():
    frame = found(["down"], train=True, side=2)
    assert frame.decoder.tolist() == ["ridge", "trained"]
    assert frame.ru.notna().all()


def test_the_table_names_its_rule_and_the_noise_belongs_to_the_seed_of_the_run():
    frames = [found(["stem"], seed=seed) for seed in (0, 0, 1)]
    assert frames[0].attrs["provenance"]["convention"] == CIDOptions().convention()
    assert frames[0].ru[0] == frames[1].ru[0] != frames[2].ru[0]
    assert frames[0].ru[0] == pytest.approx(frames[2].ru[0], abs=0.1)


def test_a_vector_is_no_map():
    with pytest.raises(ShapeError, match="at head: a decoder needs maps"):
        found(["head"], mode="exact")
