"""What the section on discarding says, from tables with known numbers, and that maps share one scale."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from channelscope import tables
from channelscope.discarding.cid import COLUMNS
from channelscope.report.sections import discarding
from channelscope.tables.run_folder import RunFolder


def run(folder, **frames):
    for name, rows in frames.items():
        tables.write(tables.table(rows, name, COLUMNS), folder / f"{name}.csv")
    tables.write_json({"title": "t"}, folder / "run.json")
    return RunFolder.read(folder)


def layers(converged=1.0, unreached=0, unseen=0.0):
    rows = []
    for depth, name in enumerate(("first", "last")):
        row = {
            "network": "net",
            "layer": name,
            "depth": depth,
            "n": 8,
            "cid": -3.0 + depth,
            "cid_low": -3.2 + depth,
            "cid_high": -2.8 + depth,
        }
        rows.append(row | {"converged": converged if depth else 1.0, "unreached": unreached * depth, "unseen": unseen * depth})
    return rows


def test_the_ends_are_said_with_intervals(tmp_path):
    (sentence,) = discarding.discarding_sentences(run(tmp_path, discarded_layers=layers()))
    assert "first −3.00 [−3.20, −2.80] (n = 8 images), last −2.00" in sentence


def test_what_has_not_converged_or_is_out_of_reach_is_said(tmp_path):
    sentences = discarding.discarding_sentences(run(tmp_path, discarded_layers=layers(0.25, 2)))
    assert "in 1 of 2 layers (least in last: 25 % of the images)" in sentences[1]
    assert "For 2 pairs" in sentences[2]


def test_what_a_layer_cannot_see_is_said(tmp_path):
    sentences = discarding.discarding_sentences(run(tmp_path, discarded_layers=layers(unseen=0.25)))
    assert sentences[1].startswith("25 % of the image does not reach last: outside its receptive field")


def test_differences_and_the_object(tmp_path):
    difference = [{"network": "a", "other": "b", "layer": "x", "other_layer": "x", "depth": 1, "n": 8, "cid": -3.0, "cid_other": -2.5,
                   "difference": 0.5, "difference_low": 0.4, "difference_high": 0.6}]  # fmt: skip
    kept = [{"layer": "x", "depth": 1, "n": 7, "concentration": 0.2, "concentration_low": 0.1, "concentration_high": 0.3}]
    sentences = discarding.discarding_sentences(
        run(tmp_path, discarded_layers=layers(), discarded_difference=difference, concentration_layers=kept)
    )
    assert "b against a: the largest difference is 0.50 [0.40, 0.60] (n = 8 images)" in sentences[1]
    assert "in 1 of 1 layers the interval excludes zero" in sentences[1]
    assert "0.20 [0.10, 0.30] (n = 7 images)" in sentences[2]


@pytest.mark.parametrize(("low", "said"), [(0.05, "clearly better: gradcam"), (-0.05, "no other map is clearly better")])
def test_losing_is_said(tmp_path, low, said):
    known = {"n": 9, "iou_low": 0.3, "iou_high": 0.5}
    rows = [
        {"method": "cid", "iou": 0.4, "converged": 0.5, "less_cid_low": np.nan} | known,
        {"method": "gradcam", "iou": 0.5, "converged": np.nan, "less_cid_low": low} | known,
        {"method": "random", "iou": 0.25, "converged": np.nan, "less_cid_low": -1.0} | known,
    ]
    curves = [{"method": "cid", "baseline": "zero", "n": 9, "area": 0.3, "area_low": 0.2, "area_high": 0.4, "less_cid_high": np.nan}]
    sentences = discarding.faithfulness_sentences(run(tmp_path, localization=rows, descriptive_accuracy=curves))
    assert said in sentences[0]
    assert "(n = 9 images) (a random map: 0.25); " in sentences[0]
    assert sentences[1] == "cid has converged for 50 % of the images."
    assert "0.300 [0.200, 0.400] (n = 9 images) for cid; no other map is clearly lower" in sentences[2]


def maps(folder, level):
    for place, layer in enumerate(("deep", "shallow")):
        values = torch.full((2, 16), level - place)
        values[0, 0] = -torch.inf
        (folder / layer).mkdir(parents=True)
        part = {"entropy": values, "pixels": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "index": torch.tensor([4, 7])}
        save_file(part, folder / layer / "0000.safetensors", {"facts": '{"rule": {"side": 4}}'})


def drawn(drawing):
    panels = [axes for axes in drawing.figure.axes if axes.images]
    scales = {axes.images[0].get_clim() for axes in panels if axes.images[0].get_array().shape == (4, 4)}
    return scales, [axes.get_title() for axes in panels]


def rows(network, converged):
    pairs = [(depth, name, image) for depth, name in ((1, "shallow"), (2, "deep")) for image in (4, 7)]
    return [
        {"network": network, "layer": name, "depth": depth, "image": image, "converged": image in converged} for depth, name, image in pairs
    ]


def test_all_maps_share_one_scale_and_doubtful_ones_have_a_star(tmp_path):
    maps(tmp_path / "maps", -3.0)
    (drawing,) = discarding.map_drawings(run(tmp_path, discarded=rows("net", [4])))
    scales, titles = drawn(drawing)
    assert scales == {(-4.0, -3.0)}
    assert titles[:3] == ["image 4", "shallow", "deep"]
    assert titles[4:6] == [" *", " *"]


def test_an_empty_border_does_not_take_up_the_scale(tmp_path):
    maps(tmp_path / "maps", -3.0)
    path = tmp_path / "maps" / "deep" / "0000.safetensors"
    values = torch.linspace(-2.0, -1.0, 32).reshape(2, 16)
    values[1, 3] = -40.0
    part = {"entropy": values, "pixels": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "index": torch.tensor([4, 7])}
    save_file(part, path, {"facts": '{"rule": {"side": 4}}'})
    (drawing,) = discarding.map_drawings(run(tmp_path, discarded=rows("net", [4, 7])))
    ((low, high),), _ = drawn(drawing)
    assert -10 < low < -4.0
    assert high == -1.0
    assert {axes.images[0].colorbar.extend for axes in drawing.figure.axes if axes.images and axes.images[0].colorbar} == {"min"}


def test_two_networks_share_the_scale_and_not_the_stars(tmp_path):
    maps(tmp_path / "maps", -3.0)
    maps(tmp_path / "maps_compared", -1.0)
    found = discarding.map_drawings(run(tmp_path, discarded=[*rows("net", [4, 7]), *rows("small", [7])]))
    (scales, titles), (other_scales, other_titles) = (drawn(drawing) for drawing in found)
    assert scales == other_scales == {(-4.0, -1.0)}
    assert not any("*" in title for title in titles)
    assert other_titles[:3] == ["image 4", "shallow *", "deep *"]
    assert other_titles[4:6] == ["", ""]


def test_nothing_to_say_without_tables(tmp_path):
    found = run(tmp_path)
    assert discarding.discarding_sentences(found) == []
    assert discarding.faithfulness_sentences(found) == []
    assert discarding.map_drawings(found) == []
