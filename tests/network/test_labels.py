"""Labels: tensors of channel numbers are compared without being unfolded."""

import torch

from channelscope.network.removal.channels import (
    ANY,
    UNPRUNABLE,
    drop_broadcast_axes,
    has_tensor,
    min_max_ids,
    unique_ids,
    unprunable_like,
    varies,
)

MAPS = torch.tensor([4, 7, 7]).view(1, 3, 1, 1).expand(1, 3, 50, 60)


def test_repetition_by_stride_costs_nothing():
    (short,) = drop_broadcast_axes(MAPS)
    assert short.shape == (1, 3, 1, 1)
    assert drop_broadcast_axes(MAPS, MAPS.clone())[0].shape == MAPS.shape
    assert drop_broadcast_axes(MAPS.movedim(3, 0), first=1)[0].shape == (60, 1, 3, 1)


def test_numbers_along_an_axis():
    assert varies(MAPS, 1)
    assert not varies(MAPS, 2)
    padded = torch.nn.functional.pad(MAPS, (1, 1, 0, 0), value=ANY)
    assert not varies(padded, 3)
    low, high = min_max_ids(torch.tensor([[ANY, 3], [UNPRUNABLE, 2], [ANY, ANY]]), 1)
    assert low.tolist() == [3, UNPRUNABLE, ANY]
    assert high.tolist() == [3, 2, ANY]


def test_what_occurs():
    assert unique_ids([MAPS, 3, (torch.tensor([9, UNPRUNABLE, ANY]), "x")]).tolist() == [4, 7, 9]
    assert unique_ids([5]).tolist() == []
    assert unprunable_like(MAPS[..., 0]).unique().tolist() == [UNPRUNABLE]
    assert unprunable_like(3) == 3
    assert has_tensor((1, MAPS))
    assert not has_tensor([1, 2])
