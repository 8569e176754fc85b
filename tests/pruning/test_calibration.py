"""Calibration images in any of the forms users have them in."""

import pytest
import torch
from torch import nn

from channelscope.errors import DataError, InputError, SampleError
from channelscope.network.removal.groups import groups
from channelscope.pruning import calibration
from channelscope.pruning.calibration import CHUNK_IMAGES, DrawnPositions, rechunked, zero_input
from channelscope.pruning.cut import shrink
from channelscope.pruning.repair import repair
from channelscope.stats.readout import draw_positions
from channelscope.subset import Subset

IMAGES = torch.arange(230.0)[:, None, None, None].expand(230, 3, 4, 4)
FOUND = groups(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1), nn.Flatten()), IMAGES[:1])


@pytest.mark.parametrize("size", [1, 7, 100, 230])
def test_chunks_are_equal_whatever_the_batches(size):
    for wrapped in (
        lambda batch: batch,
        lambda batch: (batch,),
        lambda batch: [batch, torch.zeros(len(batch))],
        lambda batch: (batch, None, torch.arange(len(batch))),
        lambda batch: {"pixel_values": batch.numpy(), "labels": torch.rand(len(batch), 5)},
    ):
        made = rechunked((wrapped(batch) for batch in IMAGES.split(size)), FOUND)
        assert [len(chunk[0]) for chunk in made] == [CHUNK_IMAGES, CHUNK_IMAGES, 30]
        assert torch.equal(torch.cat([chunk[0] for chunk in made]), IMAGES)


def test_what_is_in_chunks_already_is_not_copied():
    made = rechunked(IMAGES.split(CHUNK_IMAGES), FOUND)
    again = rechunked(made, FOUND)
    assert [chunk[0].data_ptr() for chunk in again] == [part.data_ptr() for part in IMAGES.split(CHUNK_IMAGES)]


def test_two_inputs_come_as_a_pair():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x, y):
            return self.c(self.a(x) + self.b(y)).mean((2, 3))

    found = groups(Two(), (IMAGES[:1], IMAGES[:1]))
    made = rechunked([((IMAGES[:120], -IMAGES[:120]), torch.zeros(120))], found)
    assert [tuple(len(part) for part in chunk) for chunk in made] == [(100, 100), (20, 20)]
    assert torch.equal(made[0][1], -made[0][0])
    with pytest.raises(DataError, match=r"takes 2 inputs, .*received Tensor$"):
        rechunked([IMAGES[:4]], found)


def test_what_is_no_batch_is_refused():
    with pytest.raises(DataError, match="received uint8"):
        rechunked([IMAGES[:4].byte()], FOUND)
    with pytest.raises(DataError, match="needs its images as"):
        zero_input(FOUND.graph.model, [{"picture": IMAGES[:4]}])


def test_halves_stay_halves():
    assert CHUNK_IMAGES % 2 == 0


def test_no_images():
    with pytest.raises(SampleError, match="no calibration images"):
        rechunked([], FOUND)
    with pytest.raises(SampleError, match="no calibration images"):
        zero_input(FOUND.graph.model, iter([]))


def test_examples_are_blank_and_of_the_right_shape():
    model = FOUND.graph.model
    assert zero_input(model, [(IMAGES[:3], None)]).shape == (1, 3, 4, 4)
    assert not zero_input(model, [IMAGES[:3]]).any()
    subset = Subset.everything(FOUND.sites, (3, 4, 4))
    assert zero_input(model, subset).shape == (1, 3, 4, 4)
    with pytest.raises(InputError, match="input shape"):
        zero_input(model, Subset({name: subset[name] for name in subset}))


def test_positions_are_those_of_the_images_index():
    draws = DrawnPositions(230, 5, seed=3)
    assert torch.equal(draws.of(49), draw_positions(torch.arange(230), 49, 5, seed=3))
    assert torch.equal(draws.of(6), draw_positions(torch.arange(230), 6, 5, seed=3))
    assert draws.of(5) is None
    assert draws.of(49) is draws.of(49)
    assert not torch.equal(draws.of(49), DrawnPositions(230, 5).of(49))


@pytest.mark.parametrize("method", ["least_squares", "peers"])
def test_positions_are_drawn_once_for_each_size_of_map(method, monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)), nn.Conv2d(4, 2, 3, stride=2))
    found = groups(model.eval(), torch.zeros(1, 3, 12, 12))
    kept = found.to_subset(torch.arange(len(found)).remainder(2).eq(0).numpy())
    sizes = []

    def counted(index, positions, count, seed):
        sizes.append((int(index[0]), positions))
        return draw_positions(index, positions, count, seed)

    monkeypatch.setattr(calibration, "draw_positions", counted)
    images = torch.randn(120, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    repair(shrink(found, kept), found, kept, [images], method=method, positions=10)
    expected = {"least_squares": [144, 25], "peers": [144]}[method]
    assert sizes == [(start, size) for size in expected for start in (0, 100)]


@pytest.mark.parametrize("method", ["least_squares", "peers"])
def test_the_positions_of_an_image_do_not_depend_on_its_chunk(method, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    found = groups(model, torch.zeros(1, 3, 12, 12))
    kept = found.to_subset(torch.arange(len(found)).remainder(2).eq(0).numpy())
    images = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    weights = []
    for size in (40, 10):
        monkeypatch.setattr(calibration, "CHUNK_IMAGES", size)
        small = shrink(found, kept)
        repair(small, found, kept, [images], method=method, positions=10)
        weights.append(small[2].weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
