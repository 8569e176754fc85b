"""Residual blocks that are left out: what is found, what the network without them computes, and how it is saved and repaired."""

import numpy as np
import pytest
import torch
from torch import nn

from channelscope import zoo
from channelscope.errors import InputError
from channelscope.network.removal.groups import groups
from channelscope.pruning.blocks import blocks_of, left_out, vanished_blocks, without_blocks
from channelscope.pruning.budget import Budget
from channelscope.pruning.cut import cuts, shrink
from channelscope.pruning.folder import load_pruned, save_pruned
from channelscope.pruning.prune import prune
from channelscope.pruning.repair import repair
from channelscope.ranking import Ranking


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = zoo.build("resnet20", classes=10, channels=1, image_size=8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.uniform_(-0.3, 0.3)
    return groups(model, torch.zeros(1, 1, 8, 8))


def without(found, *names):
    """The subset that keeps everything but what is inside these blocks."""
    kept = np.ones(len(found), dtype=bool)
    for block in blocks_of(found):
        if block.name in names:
            kept[list(block.groups)] = False
    return found.to_subset(kept)


def test_blocks_with_an_identity_shortcut_are_found(resnet):
    blocks = blocks_of(resnet)
    assert [block.name for block in blocks] == [f"layer{s}.{b}" for s, b in ((1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2))]
    assert [len(block.groups) for block in blocks] == [16, 16, 16, 32, 32, 64, 64]
    assert blocks[1].steps == ("layer1_1_conv1", "layer1_1_bn1", "layer1_1_act1", "layer1_1_conv2", "layer1_1_bn2", "add_1")


def test_the_network_without_blocks_computes_their_shortcuts(resnet):
    blocks = {block.name: block for block in blocks_of(resnet)}
    small = without_blocks(resnet, [blocks["layer1.1"], blocks["layer3.2"]])
    model = resnet.graph.model
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        x = model.act1(model.bn1(model.conv1(images)))
        x = model.layer1[2](model.layer1[1].act2(model.layer1[0](x)))
        x = model.layer3[1](model.layer3[0](model.layer2(x)))
        expected = model.fc(model.layer3[2].act2(x).mean((2, 3)))
        torch.testing.assert_close(small(images), expected)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters()) == sum(
        p.numel() for block in (model.layer1[1], model.layer3[2]) for p in block.parameters()
    )


def test_a_block_without_channels_is_left_out_by_shrink(resnet):
    kept = without(resnet, "layer1.2", "layer2.1")
    assert [block.name for block in vanished_blocks(resnet, resnet.kept(kept))] == ["layer1.2", "layer2.1"]
    small = shrink(resnet, kept, blocks=True)
    expected = without_blocks(resnet, vanished_blocks(resnet, resnet.kept(kept)))
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(small(images), expected(images))
    assert left_out(small) == {"add_2": "layer1_2_shortcut", "add_4": "layer2_1_shortcut"}
    assert [each["layer1.2.conv1"].any().item() for each in cuts(small)] == [False]


def test_a_layer_without_channels_is_refused_where_blocks_were_not_asked_for(resnet):
    with pytest.raises(InputError, match=r"keep at least one; with blocks=True the residual block layer1\.2 becomes its shortcut"):
        shrink(resnet, without(resnet, "layer1.2"))


def test_it_is_saved_and_loaded(resnet, tmp_path):
    kept = without(resnet, "layer3.1")
    small = shrink(resnet, kept, blocks=True)
    again = load_pruned(save_pruned(small, resnet.graph.model, kept, tmp_path / "small"))
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(images), small(images))
    assert "layer3.1.conv1" not in dict(again.named_modules())


def test_the_layers_behind_make_up_for_it(resnet):
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = without(resnet, "layer1.1")
    small = shrink(resnet, kept, blocks=True)
    with torch.no_grad():
        expected = resnet.graph.model(images)
        before = (small(images) - expected).square().mean()
        report = repair(small, resnet, kept, [images])
        after = (small(images) - expected).square().mean()
    assert after < 0.2 * before
    assert report.skipped["layer1.1.conv2"] == "it was left out with its block"
    assert "layer1.2.conv2" in report.relative_errors


def test_peers_pass_over_what_was_left_out(resnet):
    kept = without(resnet, "layer1.1")
    small = shrink(resnet, kept, blocks=True)
    assert repair(small, resnet, kept, [torch.randn(20, 1, 8, 8)], method="peers").method == "peers + batchnorm"


def test_a_sum_in_the_forward_pass_of_the_network_itself_is_no_block():
    toy = zoo.toys.residual_pair()
    assert blocks_of(groups(toy.model, toy.batches[0][0][:1])) == []


def test_each_network_without_blocks_is_labeled_once(resnet, monkeypatch):
    """Two rankings are cut from the network without the chosen blocks, each fitted twice; the network without them is traced once."""
    traced, fitted = [], []

    def counted(model, *rest):
        traced.append(model)
        return groups(model, *rest)

    def repaired(small, *rest, **options):
        fitted.append(sum(each.numel() for each in small.parameters()))
        return repair(small, *rest, **options)

    monkeypatch.setattr("channelscope.pruning.prune.groups", counted)
    monkeypatch.setattr("channelscope.pruning.cut.groups", counted)
    monkeypatch.setattr("channelscope.pruning.prune.repair", repaired)
    widths = {site.name: site.channels for site in resnet.sites}
    rankings = [
        Ranking("up", "", "high", {name: np.arange(float(width)) for name, width in widths.items()}, resnet.sites, (1, 8, 8)),
        Ranking("down", "", "high", {name: -np.arange(float(width)) for name, width in widths.items()}, resnet.sites, (1, 8, 8)),
    ]
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    result = prune(rankings, resnet, [images], budget=Budget(0.6, blocks=True))
    assert len(traced) == 2  # without some blocks, and without more of them
    assert len(fitted) == 3 + 1 + 1  # three sets of blocks, the other ranking with the best of them, and the choice with all images
    unblocked = groups(resnet.graph.model, resnet.example)
    expected = shrink(unblocked, result.kept, blocks=True)
    assert sum(each.numel() for each in expected.parameters()) == sum(each.numel() for each in result.model.parameters())
