"""Published families: some of the groups of each network are removed at random, and the rest computes what the silenced network does."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from channelscope.data.torchvision_cpu import models
from channelscope.network.removal.finishing import outputs
from channelscope.network.removal.narrowing import narrow, silenced
from channelscope.network.removal.trial import labeled_graph
from removals import drawn, lively

TIMM = {
    "convnextv2_atto": 64, "resnetv2_50x1_bit": 64, "skresnet18": 64, "repvgg_a0": 64, "ghostnet_050": 64, "res2net50_26w_4s": 64,
    "mixnet_s": 64, "fastvit_t8": 64, "edgenext_xx_small": 64, "mobilevit_xxs": 64, "poolformer_s12": 64, "mobilenetv4_conv_small": 64,
    "hrnet_w18_small": 64, "rexnet_100": 64, "vovnet39a": 64, "cspresnet50": 64, "resnest14d": 64, "efficientvit_b0": 64,
    "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "cait_xxs24_224": 224, "xcit_nano_12_p16_224": 224,
    "pit_ti_224": 224, "levit_128s": 224, "convit_tiny": 224, "efficientvit_m0": 224,
}  # fmt: skip
"""Name → size of its images."""
TORCHVISION = {
    "shufflenet_v2_x0_5": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "mnasnet0_5": 64,
    "regnet_y_400mf": 64,
    "swin_t": 64,
    "vit_b_32": 224,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TIMM, *TORCHVISION])
def test_removal_is_silencing(name):
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10) if name in TIMM else models.get_model(name, weights=None, num_classes=10)
        model = lively(model)
    size = {**TIMM, **TORCHVISION}[name]
    graph = labeled_graph(model, torch.zeros(1, 3, size, size))
    gone = drawn(graph)
    small = narrow(graph, gone)
    assert type(small) is type(model)
    assert graph.opaque == {}
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        received, expected, full = (outputs(value)[0] for value in (small(images), silenced(graph, gone, images), model(images)))
    scale = float(expected.abs().max())
    assert float((received - expected).abs().max()) <= 1e-5 * scale
    assert float((full - expected).abs().max()) > 0.01 * scale
    assert sum(part.numel() for part in small.parameters()) < 0.85 * sum(part.numel() for part in model.parameters())


ROOT = Path(__file__).parents[3]
CHOSEN = json.loads((ROOT / "tools" / "architectures.json").read_text(encoding="utf-8"))


def test_every_classification_network_of_torchvision_stands_in_the_list():
    named = {name.partition("(")[0] for name in (*CHOSEN["others"], *CHOSEN["torchvision"])}
    assert not {f"torchvision:{name}" for name in models.list_models(module=models)} - named


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CHOSEN["torchvision"])
def test_every_width_of_torchvision_is_cut_saved_loaded_and_repaired(name):
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "tools" / "architectures.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    row = tool.parent(name, CHOSEN["torchvision"][name], limit=7000)
    assert row["outcome"] == "equal", row["note"]
    assert row["macs"] <= 0.62
