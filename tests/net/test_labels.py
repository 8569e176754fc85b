"""Labels: tensors of channel numbers are compared without being unfolded."""

import torch

from channelscope.net.labels import FIXED, FREE, compact, extent, fixed, has_tensor, numbers_in, varies

MAPS = torch.tensor([4, 7, 7]).view(1, 3, 1, 1).expand(1, 3, 50, 60)


def test_repetition_by_stride_costs_nothing():
    (short,) = compact(MAPS)
    assert short.shape == (1, 3, 1, 1)
    assert compact(MAPS, MAPS.clone())[0].shape == MAPS.shape
    assert compact(MAPS.movedim(3, 0), first=1)[0].shape == (60, 1, 3, 1)


def test_numbers_along_an_axis():
    assert varies(MAPS, 1)
    assert not varies(MAPS, 2)
    padded = torch.nn.functional.pad(MAPS, (1, 1, 0, 0), value=FREE)
    assert not varies(padded, 3)
    low, high = extent(torch.tensor([[FREE, 3], [FIXED, 2], [FREE, FREE]]), 1)
    assert low.tolist() == [3, FIXED, FREE]
    assert high.tolist() == [3, 2, FREE]


def test_what_occurs():
    assert numbers_in([MAPS, 3, (torch.tensor([9, FIXED, FREE]), "x")]).tolist() == [4, 7, 9]
    assert numbers_in([5]).tolist() == []
    assert fixed(MAPS[..., 0]).unique().tolist() == [FIXED]
    assert fixed(3) == 3
    assert has_tensor((1, MAPS))
    assert not has_tensor([1, 2])
