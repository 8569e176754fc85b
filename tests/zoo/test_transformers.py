"""Image classifiers of Hugging Face's transformers, built from small configurations: measured, cut, repaired and evaluated."""

import copy
from operator import attrgetter

import pytest
import torch
import transformers

import channelscope
from channelscope.data.torchvision_cpu import models  # noqa: F401  # transformers imports torchvision
from channelscope.network.tracing.comparison import distance

FOUR = {"depths": [1, 1, 1, 1], "num_labels": 5}
NETWORKS = {
    "ResNet": (64, {**FOUR, "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32]}),
    "ConvNextV2": (64, {**FOUR, "hidden_sizes": [8, 12, 16, 24], "image_size": 64}),
    "ViT": (
        32,
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "num_labels": 5},
    ),
    "Swin": (32, {"image_size": 32, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "num_labels": 5}),
    "Segformer": (64, {**FOUR, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 16}),
}


def made(kind: str) -> tuple[torch.nn.Module, torch.Tensor]:
    pixels, options = NETWORKS[kind]
    torch.manual_seed(0)
    config = attrgetter(f"{kind}Config")(transformers)(**options, patch_size=8 if kind == "ViT" else 4)
    model = attrgetter(f"{kind}ForImageClassification")(transformers)(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model, torch.randn(4, 3, pixels, pixels)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_of_transformers_is_cut_and_repaired(kind):
    model, images = made(kind)
    found = channelscope.groups(model, images[:1])
    profile = channelscope.collect(model, [(images, torch.tensor([0, 1, 2, 3]))])
    kept = channelscope.cut(channelscope.scores.l2(profile), found, macs=0.6)
    small = channelscope.shrink(found, kept)
    assert type(small) is type(model)
    exact, whole = copy.deepcopy(small).double(), copy.deepcopy(model).double()
    with torch.no_grad(), channelscope.silence(whole, ~kept):
        expected = whole(images.double())
    with torch.no_grad():
        received = exact(images.double())
    assert type(received) is type(expected)
    assert distance(received, expected)[0] <= 1e-12
    assert len(channelscope.repair(small, found, kept, [images]).relative_errors) > 10
    tally = channelscope.evaluate(model, [(images, torch.tensor([0, 1, 2, 3]))])
    with torch.no_grad():
        assert tally.accuracy == float((model(images).logits.argmax(1) == torch.arange(4)).double().mean())
    assert profile.tally.correct == tally.correct
