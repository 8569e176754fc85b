"""Image classifiers of Hugging Face's transformers, built from small configurations: measured, cut, repaired and evaluated."""

import copy
import json
from operator import attrgetter

import pytest
import torch
import transformers
from safetensors.torch import save_file

import channelscope
from channelscope import zoo
from channelscope.data.decoding import ResizeCrop
from channelscope.data.torchvision_cpu import models  # noqa: F401  # transformers imports torchvision
from channelscope.errors import InputError
from channelscope.network.tracing.recording import distance
from channelscope.zoo.models import InputSpec, comes_trained

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


def saved(tmp_path, weights: bool = True) -> torch.nn.Module:
    model, _ = made("ViT")
    model.save_pretrained(tmp_path)
    rules = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(rules))
    if not weights:
        (tmp_path / "model.safetensors").unlink()
    return model


def test_a_folder_of_transformers_is_loaded_with_its_weights(tmp_path):
    model, images = saved(tmp_path), torch.randn(2, 3, 32, 32)
    name = f"hf:{tmp_path}"
    assert comes_trained(name)
    built = zoo.build(name, classes=5)
    with torch.no_grad():
        assert torch.equal(built(images).logits, model(images).logits)
        with pytest.warns(UserWarning, match=r"are for 5 classes, the images have 7: the last layer's are random"):
            assert zoo.build(name, classes=7)(images).logits.shape == (2, 7)
    assert zoo.model_info(built).intake == InputSpec(ResizeCrop((32, 32)), True, ((0.5,) * 3, (0.25,) * 3))
    with pytest.raises(InputError, match="expected images of 3 channels, received 1"):
        zoo.build(name, classes=5, channels=1)


def test_a_folder_without_weights_gives_seeded_ones(tmp_path):
    saved(tmp_path, weights=False)
    name = f"hf:{tmp_path}"
    assert not comes_trained(name)
    one, two, other = (zoo.build(name, classes=5, seed=seed).classifier.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_folder_that_is_none_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"expected a folder with config\.json, or a network of the hub"):
        zoo.build(f"hf:{tmp_path}/none")


def test_published_weights_of_torchvision_and_timm(tmp_path, monkeypatch):
    import torchvision.models._api

    like = zoo.build("torchvision:squeezenet1_1", classes=1000, seed=7)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_args, **_options: like.state_dict())
    loaded = zoo.build("torchvision:squeezenet1_1(pretrained=True)", classes=1000)
    assert torch.equal(loaded.features[0].weight, like.features[0].weight)
    with pytest.warns(UserWarning, match=r"are for 1,000 classes, the images have 10: the last layer's are random"):
        loaded = zoo.build("torchvision:squeezenet1_1(pretrained=True)", classes=10)
    assert torch.equal(loaded.features[0].weight, like.features[0].weight)
    like = zoo.build("timm:test_resnet", classes=1000, seed=7)
    save_file(like.state_dict(), tmp_path / "test_resnet.safetensors")
    overlay = f"pretrained_cfg_overlay={{'file': '{tmp_path}/test_resnet.safetensors'}}"
    with pytest.warns(UserWarning, match=r"are for 1,000 classes, the images have 10: the last layer's are random"):
        loaded = zoo.build(f"timm:test_resnet(pretrained=True, {overlay})", classes=10)
    assert torch.equal(loaded.conv1[0].weight, like.conv1[0].weight)
    assert loaded.fc.out_features == 10
