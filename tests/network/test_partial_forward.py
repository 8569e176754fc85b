"""A pass entered midway gives the logits of the whole pass, whatever the network's shape."""

import pytest
import torch

import networks
import pencil_experiments as pencil
from channelscope.network.edits import edit, silence, zero_channels
from channelscope.network.graph import live_nodes, partial_forwards
from channelscope.network.sites import sites
from channelscope.subset import Subset

QUICK = ("resnet18", "vgg16_bn", "mobilenet_v2", "convnext_tiny", "densenet121")
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in sorted(networks.NARROW)]


@pytest.fixture(scope="module", params=NAMES)
def entered(request):
    model, shape = networks.built(request.param)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    return model, images, sites(model, images)


def test_unchanged_maps_give_the_networks_logits(entered):
    model, images, found = entered
    expected = model(images)
    for stop in partial_forwards(found.graph, found, images):
        torch.testing.assert_close(stop.finish(stop.maps), expected, rtol=1e-5, atol=1e-5)


def test_a_silenced_channel_gives_the_logits_of_the_whole_pass(entered):
    model, images, found = entered
    for stop in list(partial_forwards(found.graph, found, images))[:: max(1, len(found) // 6)]:
        site = stop.site
        marks = {each.name: torch.zeros(each.channels, dtype=torch.bool) for each in found}
        marks[site.name][site.channels // 2] = True
        with silence(found.graph, Subset(marks, found.found, tuple(images.shape[1:]))):
            expected = model(images)
        changed = zero_channels(marks[site.name], site.channel_axis)(stop.maps)
        torch.testing.assert_close(stop.finish(changed), expected, rtol=1e-5, atol=1e-5)


def test_the_frontier_holds_what_enters_later_and_nothing_else(entered):
    _, _, found = entered
    steps = [(node.name, [parent.name for parent in node.all_input_nodes]) for node in found.graph.steps.nodes]
    reads = dict(steps)
    weights = {node.name for node in found.graph.steps.nodes if node.op == "get_attr"}
    for site in found:
        after = pencil.later(steps, site.activation)
        needed = {parent for name in after for parent in reads[name]} - after - weights
        assert set(live_nodes(found.graph, site.activation)) == needed | {site.activation}


def test_finishing_leaves_the_kept_maps_as_they_were():
    model, shape = networks.built("resnet18")
    images = torch.randn(2, *shape)
    found = sites(model, images)
    for stop in partial_forwards(found.graph, found, images):
        before = {name: value.clone() for name, value in stop.values.items()}
        stop.finish(torch.zeros_like(stop.maps))
        for name, value in stop.values.items():
            assert torch.equal(value, before[name])


def test_each_layer_runs_once_on_the_way_through_all_sites():
    model, shape = networks.built("resnet18")
    images = torch.randn(1, *shape)
    found = sites(model, images)
    runs = {site.name: 0 for site in found}
    modules = dict(model.named_modules())

    def count(name):
        def hook(*_):
            runs[name] += 1

        return hook

    handles = [modules[name].register_forward_hook(count(name)) for name in runs]
    for _ in partial_forwards(found.graph, found, images):
        pass
    for handle in handles:
        handle.remove()
    assert set(runs.values()) == {1}


def test_hooks_that_zero_a_module_agree():
    model, shape = networks.built("vgg16_bn")
    images = torch.randn(3, *shape)
    found = sites(model, images)
    modules = dict(model.named_modules())
    for stop in partial_forwards(found.graph, found, images):
        module = modules[str(found.graph.nodes[stop.site.activation].target)]
        maps = stop.maps.clone()
        maps[:, 1] = 0
        torch.testing.assert_close(stop.finish(maps), pencil.silenced(model, module, 1, images), rtol=1e-5, atol=1e-5)


def test_some_sites_may_be_passed_over():
    model, shape = networks.built("resnet18")
    images = torch.randn(2, *shape)
    found = sites(model, images)
    chosen = [found.found[1], found.found[-1]]
    with edit(found.graph, {}), torch.no_grad():
        expected = model(images)
    for stop in partial_forwards(found.graph, chosen, images):
        torch.testing.assert_close(stop.finish(stop.maps), expected, rtol=1e-5, atol=1e-5)
