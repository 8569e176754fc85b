"""RU of a network's layers: deeper gives back less, and noise the feature survives costs little."""

import pytest

from channelscope.discarding.cid import CalibrationStatistics, CIDOptions, discard
from channelscope.discarding.reconstruction import reconstruction_table
from channelscope.errors import ShapeError
from discarding import small


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
