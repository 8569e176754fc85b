"""CID: order, batches and interruptions change nothing; options, stored parts, and the tables by image and layer."""

import math

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from channelscope import tables
from channelscope.discarding import cid as cid_module
from channelscope.discarding.cid import NUMBERS, CalibrationStatistics, CIDOptions, CIDResult, MapCache, discard, fingerprint
from channelscope.discarding.jacobian import LayerOutput, SensitivityEstimator
from channelscope.discarding.noise import Cells
from channelscope.errors import FormatError, InputError, MismatchError, NumericError, SampleError
from channelscope.formulas import intervals
from channelscope.stats.moments import Variance
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
    assert repr(result).splitlines()[0] == f"CIDResult(down: 3 images, mean CID {float(result.numbers['cid'].mean()):.3f} nats)"


def found(layer="a", depth=1, images=(3, 1, 2), reached=None, **numbers):
    """Hand-made numbers of one layer."""
    count = len(images)
    given = {"cid": -2.0, "error": 0.01, "gap": 0.005, "uniform": -2.5, "ratio": 1.0, "ratio_error": 0.01, "capped": 0.1, "unseen": 0.0}
    values = {name: torch.as_tensor({**given, **numbers}[name]).expand(count).clone() for name in NUMBERS}
    flags = torch.ones(count, dtype=torch.bool) if reached is None else torch.tensor(reached)
    return CIDResult(LayerOutput(layer, layer, depth), torch.tensor(images), torch.rand(count, 4), values, flags, 20, 6, 0.5)


def test_a_row_per_image_and_layer_in_order():
    frame = cid_module.image_table([found("b", 2), found("a", 1)], CIDOptions(), "net")
    assert frame.layer.tolist() == ["a"] * 3 + ["b"] * 3
    assert frame.image.tolist() == [1, 2, 3] * 2
    assert frame.attrs["provenance"]["convention"]["normalizer"] == "data"
    reach = stats.t.isf(0.025, 6) * 0.01
    assert frame.cid_high[0] - frame.cid[0] == pytest.approx(reach, rel=1e-5)
    assert frame.gain[0] == pytest.approx(0.5)
    assert frame.converged.all()


@pytest.mark.parametrize(("numbers", "mode", "said"), [
    ({"ratio": 1.06}, "fast", "constraint at 1.060 ± 0.010"),
    ({"ratio": 0.9}, "fast", "constraint at 0.900"),
    ({"ratio": 1.045}, "fast", "constraint at 1.045"),
    ({"error": 0.03}, "fast", "level known to ± 0.030 nats"),
    ({"gap": 0.05}, "exact", "0.050 nats from the optimum"),
    ({"gap": 0.05, "error": 0.05}, "exact", "; "),
])  # fmt: skip
def test_what_has_not_converged_says_so(numbers, mode, said):
    frame = cid_module.image_table([found(**numbers)], CIDOptions(mode=mode), "net")
    assert not frame.converged.any()
    assert said in frame.note[0]


def test_a_gap_that_fast_mode_has_put_into_the_cid_is_no_failure():
    assert cid_module.image_table([found(gap=0.05)], CIDOptions(), "net").converged.all()


def test_what_is_out_of_reach_is_a_bound_and_left_out_of_means():
    frame = cid_module.image_table([found(reached=[True, True, False], cid=torch.tensor([-2.0, -1.0, 5.0]))], CIDOptions(), "net")
    assert "with all noise at its cap" in frame[~frame.reached].note.item()
    layer = cid_module.layer_table(frame).iloc[0]
    assert layer.cid == pytest.approx(-1.5)
    assert (layer.n, layer.unreached) == (2, 1)
    assert layer.converged == pytest.approx(2 / 3)


def test_layer_means_have_t_intervals_over_images():
    frame = cid_module.image_table([found(cid=torch.tensor([-1.0, -2.0, -3.0]))], CIDOptions(), "net")
    layer = cid_module.layer_table(frame).iloc[0]
    assert (layer.cid, layer.n) == (pytest.approx(-2), 3)
    assert layer.cid_high - layer.cid == pytest.approx(stats.t.isf(0.025, 2) / math.sqrt(3))


def test_the_error_of_a_layer_is_the_root_mean_square():
    frame = cid_module.image_table([found(images=(0, 1), error=torch.tensor([0.0, 0.02]))], CIDOptions(), "net")
    assert cid_module.layer_table(frame).error[0] == pytest.approx(0.02 / math.sqrt(2), rel=1e-5)


def test_one_image_has_no_interval():
    mean, low, high = intervals.t_interval(pd.Series([1.0]))
    assert mean == 1.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert math.isnan(intervals.t_interval(pd.Series([], dtype=float))[0])


def test_differences_are_paired_over_images():
    here = cid_module.image_table([found(cid=torch.tensor([-1.0, -2.0, -3.0]))], CIDOptions(), "big")
    there = cid_module.image_table([found("z", 9, (1, 2, 3), cid=torch.tensor([-1.5, -2.5, -0.5]))], CIDOptions(mode="exact"), "small")
    row = cid_module.difference_table(here, there).iloc[0]
    assert (row.layer, row.other_layer, row.network, row.other) == ("a", "z", "big", "small")
    assert row.difference == pytest.approx(0.5)
    assert row.difference_high == pytest.approx(0.5)


@pytest.mark.parametrize(("rule", "said"), [
    (CIDOptions(normalizer="local"), r"differ in normalizer \(data and local\)"),
    (CIDOptions(kappa=0.2), r"kappa \(0.1 and 0.2\)"),
    (CIDOptions(cap=False), "cap"),
    (CIDOptions(side=7), "side"),
])  # fmt: skip
def test_other_scales_are_not_compared(rule, said):
    with pytest.raises(MismatchError, match=said):
        cid_module.difference_table(cid_module.image_table([found()], CIDOptions(), "a"), cid_module.image_table([found()], rule, "b"))


def test_other_images_or_layer_counts_are_not_compared():
    here = cid_module.image_table([found()], CIDOptions(), "a")
    with pytest.raises(MismatchError, match="different images"):
        cid_module.difference_table(here, cid_module.image_table([found(images=(7, 8, 9))], CIDOptions(), "b"))
    with pytest.raises(MismatchError, match="as many layers of both networks, received 1 and 2"):
        cid_module.difference_table(here, cid_module.image_table([found(), found("b", 2)], CIDOptions(), "b"))


def test_tables_come_back_from_disk_with_their_convention(tmp_path):
    frame = cid_module.image_table([found()], CIDOptions(kappa=0.25), "net")
    for made in (frame, cid_module.layer_table(frame)):
        tables.write(made, tmp_path / f"{made.attrs['name']}.csv")
        again = tables.read(tmp_path / f"{made.attrs['name']}.csv")
        assert again.attrs["provenance"]["convention"]["kappa"] == 0.25
        assert list(again) == list(made)
    assert cid_module.difference_table(frame, tables.read(tmp_path / "discarded.csv")).difference.item() == 0


def test_kappa_follows_the_normalizer():
    assert CIDOptions().fraction == 0.1
    assert CIDOptions(normalizer="local").fraction == 1.5
    assert CIDOptions(kappa=0.3).fraction == 0.3


@pytest.mark.parametrize("bad", [{"kappa": 0.0}, {"kappa": math.nan}, {"noise": 0.0}, {"side": 0}])
def test_nonsense_is_refused(bad):
    with pytest.raises(InputError, match="expected"):
        CIDOptions(**bad)


@pytest.mark.parametrize(("bad", "near"), [({"mode": "exat"}, "exact"), ({"normalizer": "dta"}, "data")])
def test_misspelled_choices_are_refused_with_the_nearest(bad, near):
    with pytest.raises(InputError, match=f"near matches: {near}"):
        CIDOptions(**bad)


def test_a_constraint_takes_the_features_total_variance():
    feature = Variance.of(torch.rand(5, 4, 2))
    constraint = CIDOptions().constraint(feature)
    assert constraint.variance == feature.total
    assert constraint.kappa == 0.1


def test_a_feature_that_never_varies_has_no_cid():
    with pytest.raises(InputError, match="the same for all 5 images"):
        CIDOptions().constraint(Variance.of(torch.ones(5, 4)))


def test_caps_are_root_mean_variances_of_what_varies():
    pixels = small.pixels(20)
    pixels[:, 0, :4] = 0.5
    found = Variance.of(pixels)
    cap, varies = CIDOptions().caps(found, Cells.of((8, 8), 2))
    assert not varies[0, :4].any()
    assert varies[0, 4:].all()
    top = pixels.double().var(0, correction=0)[1:, :4, :4].mean()
    assert math.isclose(float(cap[0]), float(top.sqrt()), rel_tol=1e-6)
    assert CIDOptions(cap=False).caps(found, Cells.of((8, 8), 2))[0].isinf().all()


def test_the_convention_is_what_must_agree():
    assert CIDOptions(mode="exact").convention() == CIDOptions().convention()
    assert CIDOptions(noise=0.5).convention() == CIDOptions().convention()
    for other in (CIDOptions(normalizer="local"), CIDOptions(kappa=0.2), CIDOptions(cap=False), CIDOptions(side=4)):
        assert other.convention() != CIDOptions().convention()
    assert CIDOptions(normalizer="local", noise=0.02).convention() != CIDOptions(normalizer="local").convention()


VALUES = {"sigma": torch.rand(2, 3), "spent": torch.tensor([1.0, 2.0], dtype=torch.float64)}


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_what_was_written_comes_back(place, tmp_path):
    kept = MapCache(tmp_path if place == "disk" else None, {"rule": 1})
    assert kept.read("layer1/0000", "a") is None
    kept.write("layer1/0000", "a", VALUES)
    found = kept.read("layer1/0000", "a")
    assert all(torch.equal(found[name], VALUES[name]) for name in VALUES)
    assert kept.read("layer1/0001", "a") is None
    assert not list(tmp_path.rglob("*.partial"))


def test_another_run_is_refused_and_what_differs_is_said(tmp_path):
    MapCache(tmp_path, {"rule": {"kappa": 0.1}, "seed": 0}).write("a", "x", VALUES)
    with pytest.raises(MismatchError, match="another run: they differ in rule; give another --out"):
        MapCache(tmp_path, {"rule": {"kappa": 0.2}, "seed": 0}).read("a", "x")
    with pytest.raises(MismatchError, match="differ in images"):
        MapCache(tmp_path, {"rule": {"kappa": 0.1}, "seed": 0}).read("a", "y")


def test_damaged_files_are_refused(tmp_path):
    kept = MapCache(tmp_path, {})
    kept.write("a", "x", VALUES)
    whole = (tmp_path / "a.safetensors").read_bytes()
    for bad in (whole[: len(whole) // 2], b"", b"no tensors"):
        (tmp_path / "a.safetensors").write_bytes(bad)
        with pytest.raises(FormatError, match="damaged or not a map"):
            kept.read("a", "x")


def test_digests_see_every_byte():
    a = torch.rand(2, 3)
    assert fingerprint(a) == fingerprint(a.clone())
    assert fingerprint(a) != fingerprint(a + 1e-6)
    assert fingerprint(a, torch.tensor([])) == fingerprint(a)
