"""discard: order, batches and interruptions change nothing; what networks share in function they share in CID."""

import pytest
import torch
from safetensors.torch import load_file

from channelscope.discarding.cid import CalibrationStatistics, CIDOptions, MapCache, discard
from channelscope.discarding.jacobian import SensitivityEstimator
from channelscope.errors import InputError, NumericError, SampleError
from discarding import small


def still():
    pass


def answered(view=None, given=None, rule=None, kept=None, layers=("block", "down"), data=None):
    """Maps and numbers by layer, all batches together."""
    view = view or small.view()
    found = view.layers(layers)
    backdrop = CalibrationStatistics.over(view, data or small.batches(40, 20, 7), found, still)
    parts = list(discard(view, given or small.batches(), backdrop, found, rule or CIDOptions(), kept))
    return {
        layer.name: (
            torch.cat([part.numbers["cid"] for part in parts if part.layer == layer]),
            torch.cat([part.noise_std for part in parts if part.layer == layer]),
        )
        for layer in found
    }


def test_maps_and_numbers_of_every_image_and_layer():
    found = answered()
    assert list(found) == ["block", "down"]
    for cid, sigma in found.values():
        assert cid.shape == (6,)
        assert sigma.shape == (6, 64)
        assert cid.isfinite().all()


def test_batches_and_order_change_nothing():
    whole = answered(given=small.batches(6, 6))
    parts = answered(given=list(reversed(small.batches(6, 2))))
    for layer in whole:
        order = torch.tensor([4, 5, 2, 3, 0, 1])
        torch.testing.assert_close(parts[layer][0], whole[layer][0][order], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(parts[layer][1], whole[layer][1][order], rtol=1e-3, atol=1e-5)


def test_the_backdrop_adds_up_over_batches():
    view = small.view()
    layers = view.layers(["down"])
    one, many = (CalibrationStatistics.over(view, small.batches(40, size, 7), layers, still) for size in (40, 3))
    torch.testing.assert_close(one.pixels.each, many.pixels.each)
    assert one.features[0].total == pytest.approx(many.features[0].total, rel=1e-5)


def test_finished_parts_are_not_computed_again(tmp_path, monkeypatch):
    kept = MapCache(tmp_path, {"run": 1})
    before = answered(kept=kept)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    shown = load_file(tmp_path / "down" / "0000.safetensors")["pixels"]
    assert torch.equal(shown, (small.pixels(len(shown)) * 255).round().byte()), "the pictures that the page shows beside the maps"
    (tmp_path / "down" / "0001.safetensors").unlink()
    scenes = []
    monkeypatch.setattr("channelscope.discarding.cid.SensitivityEstimator", _counting(scenes))
    after = answered(kept=kept)
    assert len(scenes) == 1
    for layer in before:
        torch.testing.assert_close(before[layer][0], after[layer][0])


def _counting(scenes):
    return lambda *arguments: scenes.append(1) or SensitivityEstimator(*arguments)


def test_the_normalization_is_part_of_the_network():
    """The same function of pixels, fed with images normalized in another way: the same CID, in pixels."""
    model, twice = small.network(), small.network()
    for before, after in ((small.STD, [2 * s for s in small.STD]),):
        scale = torch.tensor(after) / torch.tensor(before)
        twice.stem.weight *= scale.view(1, 3, 1, 1)
    other = small.view(twice, std=[2 * s for s in small.STD])
    here = answered(small.view(model))
    there = answered(
        other, small.batches(std=[2 * s for s in small.STD]), data=small.batches(40, 20, 7, std=[2 * s for s in small.STD])
    )  # fmt: skip
    for layer in here:
        torch.testing.assert_close(here[layer][0], there[layer][0], rtol=1e-3, atol=1e-3)


def test_a_rescaled_layer_keeps_its_cid():
    model, scaled = small.network(), small.network()
    scaled.down.weight *= 8
    scaled.down.bias *= 8
    plain, after = answered(small.view(model), layers=("down",)), answered(small.view(scaled), layers=("down",))
    assert (plain["down"][0] - after["down"][0]).abs().max() < 1e-4


def test_no_variance_over_the_data_is_said_at_the_layer():
    model = small.network()
    model.down.weight.zero_()
    with pytest.raises(InputError, match="at down: the feature is the same for all 40 images"):
        answered(small.view(model))


def test_one_image_has_no_variance():
    view = small.view()
    with pytest.raises(SampleError, match="at least 2 images, received 1"):
        CalibrationStatistics.over(view, small.batches(1, 1), view.layers(["down"]), still)


def test_without_caps_unseen_pixels_are_refused():
    model = small.network()
    model.stem.weight[:, :, :, :] = 0
    model.stem.weight[:, 0, 1, 1] = 1.0
    model.down.weight[:, :, :, :] = 0
    model.down.weight[:, :, 1, 1] = 0.3  # sees every other pixel
    with pytest.raises(NumericError, match="does not see"):
        answered(small.view(model), rule=CIDOptions(cap=False), layers=("down",))


def test_a_network_with_infinite_weights_is_refused():
    model = small.network()
    model.stem.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises((NumericError, InputError)):
        answered(small.view(model), layers=("down",))


def test_a_result_shows_its_layer_and_mean():
    view = small.view()
    layers = view.layers(["down"])
    statistics = CalibrationStatistics.over(view, small.batches(40, 20, 7), layers)
    (result,) = discard(view, small.batches(3), statistics, layers, CIDOptions())
    assert repr(result) == f"CIDResult(down, images=3, mean cid={float(result.numbers['cid'].mean()):.3f} nats)"
