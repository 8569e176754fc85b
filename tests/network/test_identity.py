"""The fingerprint of the weights: equal exactly when names, types, shapes and bytes are."""

import copy

import pytest
import torch
from torch import nn

import pencil_zoo as pencil
from channelscope.network.module_state import fingerprints, weights_hash


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_it_is_sha256_over_name_dtype_shape_and_bytes():
    model = net()
    state = {name: (value.numpy(), str(value.dtype)) for name, value in model.state_dict().items()}
    assert weights_hash(model) == pencil.fingerprint(state)
    assert len(weights_hash(model)) == 64


def test_a_copy_has_the_same_and_another_draw_has_not():
    model = net()
    assert weights_hash(copy.deepcopy(model)) == weights_hash(model) == weights_hash(net())
    assert weights_hash(net(1)) != weights_hash(model)


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "1.num_batches_tracked", "3.bias"])
def test_any_changed_number_changes_it(name):
    model, changed = net(), net()
    with torch.no_grad():
        value = changed.state_dict()[name]
        value.view(-1)[0:1].add_(1)
    assert weights_hash(changed) != weights_hash(model)


def test_the_smallest_change_of_one_weight_changes_it():
    model, changed = net(), net()
    with torch.no_grad():
        first = changed[0].weight.view(-1)
        first[0] = torch.nextafter(first[0], torch.tensor(10.0))
    assert weights_hash(changed) != weights_hash(model)


def test_a_changed_type_or_shape_or_name_changes_it():
    model = nn.Linear(4, 2)
    assert weights_hash(copy.deepcopy(model).double()) != weights_hash(model)
    turned = nn.Linear(2, 4)
    with torch.no_grad():
        turned.weight.copy_(model.weight.reshape(4, 2))
    assert weights_hash(turned) != weights_hash(model)
    assert weights_hash(nn.Sequential(model)) != weights_hash(model)


def test_registration_order_and_memory_layout_and_mode_do_not_matter():
    one, two = nn.Module(), nn.Module()
    a, b = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)
    one.a, one.b = a, b
    two.b, two.a = b, a
    assert weights_hash(one) == weights_hash(two)
    model = net()
    before = weights_hash(model)
    assert weights_hash(model.to(memory_format=torch.channels_last).train()) == before


def test_hooks_and_buffers_outside_the_state_do_not_matter_and_nothing_is_changed():
    model = net()
    before = weights_hash(model)
    model[0].register_forward_hook(lambda *_: None)
    model[0].register_buffer("scratch", torch.zeros(3), persistent=False)
    assert weights_hash(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_scalars_half_precision_and_empty_networks_have_one():
    model = nn.Module()
    assert len(weights_hash(model)) == 64
    model.register_buffer("scalar", torch.tensor(3))
    model.register_buffer("halves", torch.ones(2, dtype=torch.bfloat16))
    assert weights_hash(model) != weights_hash(nn.Module())


def test_fingerprints_are_of_one_image_each_and_tell_every_change():
    images = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    index = torch.arange(6)
    whole = fingerprints(images, index)
    assert whole.dtype == torch.int64
    assert len(whole.unique()) == 6
    assert torch.equal(whole, torch.cat([fingerprints(images[part], index[part]) for part in index.split(4)]))
    assert torch.equal(whole.flip(0), fingerprints(images.flip(0), index.flip(0)))
    assert torch.equal(whole, fingerprints(images.contiguous(memory_format=torch.channels_last), index))
    changed = images.clone()
    changed[2, 1, 3, 0] = changed[2, 1, 3, 0].nextafter(torch.tensor(9.0))
    assert (fingerprints(changed, index) != whole).tolist() == [False, False, True, False, False, False]
    assert (fingerprints(images, index + 1) != whole).all()
    moved = images.roll(1, 3)
    assert (fingerprints(moved, index) != whole).all()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert len(fingerprints(images.to(dtype), index).unique()) == 6


def test_a_fingerprint_is_the_multilinear_sum_by_hand():
    def odd(place):
        z = (place * 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31) | 1

    one = 0x3F800000  # the bits of 1.0
    expected = (odd(1) * (7 + 1) + odd(2) * one + odd(3) * 0) % 2**64
    found = fingerprints(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([7]))
    assert int(found) % 2**64 == expected
