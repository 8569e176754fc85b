"""Every result of the library is shown in at most fifteen lines, as text and as a table."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import channelscope
from channelscope import circuits, data, discarding, zoo
from channelscope.circuits.subfeatures import top_images
from channelscope.display import LINES, Shown, shortened, spread
from channelscope.formulas.gaussian import Gaussian
from channelscope.formulas.intervals import jackknife
from channelscope.formulas.regression import hulls
from channelscope.network.sites import sites
from channelscope.pruning.latency import LatencyTable
from channelscope.pruning.repair import RepairReport
from channelscope.site import Site
from channelscope.stats.moments import Moments
from channelscope.stats.tally import Tally

PACKAGES = ["channelscope", *(each.name for each in pkgutil.walk_packages(channelscope.__path__, "channelscope.") if each.ispkg)]

DEFINITIONS = {"Operation", "Call", "WeightedLayer", "Score", "Schedule", "ModelInfo"}
"""what functions return, but settings and entries of tables, which show their fields"""

NOT_SHOWN = {"StandaloneCircuit", "TrialStore"}
"""a module, which PyTorch shows; an open file"""


def deep() -> nn.Module:
    """Twenty convolutions, more than a text has lines."""
    return nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(20)], nn.Flatten(), nn.Linear(4 * 9, 3)).eval()


@pytest.fixture(scope="module")
def results() -> dict[str, object]:
    torch.manual_seed(0)
    model, batch = deep(), (torch.rand(24, 4, 3, 3), torch.arange(24) % 3)
    profile = channelscope.collect(model, [batch], readout="positions(all)")
    found = channelscope.groups(model, batch[0])
    ranking = channelscope.scores.l2(profile)
    kept = channelscope.cut(ranking, found, macs=0.9)
    images = data.read_images(data.ImageSource("digits", images=40))
    digits = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(72, 10)).eval()
    analysis = discarding.DiscardingAnalysis(digits, images.test.take(20), images.calibration, ["0"], discarding.CIDOptions(side=4))
    epochs = tuple(zoo.Epoch(epoch, 0.1, 2.0, 0.5, 2.0, 0.5, 1.0) for epoch in range(21))
    target = circuits.locate_feature(model, "18:0", batch[0])
    saliency = circuits.score_kernels(target, batch[0])
    circuit = circuits.top_k(saliency, 0.5)
    held_out = circuits.HeldOutImages.of(target, batch[0])
    moments = Moments.of(torch.rand(50, 30))
    made = [
        profile,
        profile.record("0"),
        found,
        ranking,
        kept,
        circuit,
        saliency,
        held_out,
        held_out.fidelity(circuit),
        top_images(target, batch[0], 4),
        target,
        target.channel_graph,
        moments,
        Gaussian.fit(moments),
        hulls(torch.eye(5, dtype=torch.float64)),
        jackknife(torch.tensor(1.0), torch.rand(10)),
        profile.tally,
        sites(model, batch[0]),
        channelscope.prune(ranking, found, [batch[0]], macs=0.9),
        LatencyTable("f" * 12, "cpu", 1, 1, "float32", 0.01, 0.02, 8, {f"layer{place}": ((1.0, 0.0005),) for place in range(20)}),
        images,
        images.test,
        zoo.History(Path("runs"), "deep", "ab" * 32, {}, epochs, 0.1, 0.9, 359),
        analysis,
        analysis.results[0],
        analysis.statistics,
        discarding.MapComparison(("0",), {"localization": pd.DataFrame({"iou": [0.5]})}),
        channelscope.scores.permutation_null(profile, "relevance", 20)["0"],
        channelscope.Group((("0", 1), ("1", 1))),
        RepairReport("least_squares", 10, {f"layer{place}": (0.5, 0.25) for place in range(20)}),
    ]
    return {type(each).__name__: each for each in made}


def shown(kind: type) -> set[type]:
    """Classes of the library that say how they are shown."""
    below = {each for other in kind.__subclasses__() for each in {other} | shown(other)}
    return {each for each in below if each.__module__.startswith("channelscope.")}


def returned() -> set[str]:
    """Names of the classes of the library that its public functions return, alone or in a container."""
    found = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in vars(module).get("__all__", ()):
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                found |= set(re.findall(r"channelscope\.[\w.]*\.(\w+)", str(inspect.signature(thing).return_annotation)))
    return found


def test_every_class_that_is_shown_is_tried(results):
    for package in PACKAGES:
        importlib.import_module(package)
    assert {kind.__name__ for kind in shown(Shown)} <= set(results)


def test_every_public_function_returns_what_is_shown(results):
    assert {"Profile", "Ranking", "CIDResult", "ImageSplits"} <= returned()
    assert returned() - DEFINITIONS - NOT_SHOWN <= set(results)


def test_definitions_are_short():
    model = zoo.build("resnet20", classes=10, channels=1, image_size=8)
    for each in (zoo.model_info(model), zoo.Schedule(epochs=1), channelscope.scores.REGISTRY["overlap"]):
        assert len(repr(each).splitlines()) == 1
        assert len(repr(each)) < 1000


def test_texts_have_at_most_fifteen_lines(results):
    for name, each in results.items():
        assert isinstance(each, Shown)
        lines = repr(each).splitlines()
        assert 1 <= len(lines) <= LINES, name
        assert all(len(line) <= 180 for line in lines), name
        assert lines[0].startswith(f"{name}("), name
        assert "tensor(" not in repr(each), name


def test_tables_have_the_lines_of_the_facts(results):
    for name, each in results.items():
        table = each._repr_html_()
        assert table.startswith(f"<table><caption>{name}("), name
        assert table.count("<tr>") <= LINES - 1, name
    assert results["Ranking"]._repr_html_().count("<tr>") == LINES - 1
    assert "… 7 more" in repr(results["Ranking"])


def test_as_many_facts_as_fit_are_all_shown():
    rows = [(str(number), "said") for number in range(15)]
    assert shortened(("fourteen", rows[:14])) == ("fourteen", rows[:14])
    assert shortened(("fifteen", rows)) == ("fifteen", [*rows[:13], ("… 2 more", "")])
    assert (spread([0.25, np.nan, 2.0]), spread([np.nan])) == ("0.25 … 2", "all undefined")


def test_markup_in_a_name_is_text():
    class Odd(Shown):
        def facts(self):
            return "Odd(<b>)", [("a & b", "<script>")]

    assert Odd()._repr_html_() == "<table><caption>Odd(&lt;b&gt;)</caption><tr><th>a &amp; b</th><td>&lt;script&gt;</td></tr></table>"


def test_a_tally_without_images_says_so():
    assert repr(Tally()) == "Tally(no images)"


def test_a_ranking_is_a_frame_and_has_best_channels():
    places = tuple(Site(name, "conv", 2, (2, 8, 8), 0, name, "relu", depth, 3, (3, 3)) for depth, name in enumerate("ab"))
    values = {"a": np.array([0.5, np.nan]), "b": np.array([2.0, np.inf])}
    ranking = channelscope.Ranking("overlap", "nats", "high", values, places, (3, 8, 8), {"a": {1: "silent"}})
    assert ranking.top(2) == [("b", 1, np.inf), ("b", 0, 2.0)]
    assert ranking.top(5, "a") == [("a", 0, 0.5)]
    frame = ranking.to_frame()
    assert frame["overlap"].tolist()[2:] == [2.0, np.inf]
    assert frame["note"].tolist() == ["", "silent", "", ""]
    assert frame["depth"].tolist() == [0, 0, 1, 1]
    with pytest.raises(importlib.import_module("channelscope.errors").SiteError, match="no site is called aa"):
        ranking.top(1, "aa")
