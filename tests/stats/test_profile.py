"""Records and profiles add and survive packing; what follows from other parts is not kept twice."""

import re
from dataclasses import replace

import pytest
import torch

import measured
from channelscope.errors import MismatchError, SampleError, ShapeError, SiteError
from channelscope.stats.channel_sums import ClassMeans, FeatureMapSums, Sensitivity
from channelscope.stats.moments import Moments
from channelscope.stats.profile import SiteRecord, pack_symmetric, unpack_symmetric

CHANNELS, TARGETS, CLASSES = 4, 3, 5


def moments(n, d, seed):
    return Moments.of(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2)


def record(seed=0, read=True, affine=False, labels=True, extras=True, images=12):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(images, CHANNELS, generator=generator, dtype=torch.float64)
    return SiteRecord(
        pooled=moments(images, CHANNELS + TARGETS, seed),
        stored_preactivation=moments(4 * images, CHANNELS + TARGETS, seed + 1) if read else None,
        stored_activation=None if affine else moments(4 * images, CHANNELS, seed + 2),
        affine=torch.tensor([[1.0, 2, 3, -4], [0, 1, 0, 5]], dtype=torch.float64) if affine else None,
        classes=ClassMeans.of(rows, torch.randint(CLASSES, (images,), generator=generator), CLASSES) if labels else None,
        sensitivity=Sensitivity.of(rows, rows + 1) if extras else None,
        maps=FeatureMapSums.of(rows.view(images, CHANNELS, 1, 1)) if extras else None,
    )


KINDS = [
    {},
    {"read": False},
    {"affine": True},
    {"read": False, "affine": True},
    {"labels": False},
    {"extras": False},
    {"labels": False, "extras": False, "read": False, "affine": True},
]


def close(a, b, tolerance=1e-12):
    for name in ("pooled", "preactivation", "activation"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.count == other.count
        torch.testing.assert_close(one.mean, other.mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(one.scatter, other.scatter, rtol=tolerance, atol=tolerance * float(other.scatter.abs().max()))
    assert (a.classes is None) == (b.classes is None)
    if a.classes is not None:
        assert torch.equal(a.classes.counts, b.classes.counts)
        torch.testing.assert_close(a.classes.means, b.classes.means, rtol=tolerance, atol=tolerance)
    for name in ("sensitivity", "maps"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None)
        if one is not None:
            for field in vars(one):
                torch.testing.assert_close(torch.as_tensor(getattr(one, field)), torch.as_tensor(getattr(other, field)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_packing_keeps_float32_scatters_and_everything_else_exactly(kind):
    one = record(**kind)
    packed = dict(one.pack("total/a/"))
    again = SiteRecord.unpack(packed, "total/a/")
    close(again, one, 1e-6)
    assert torch.equal(again.pooled.mean, one.pooled.mean)
    assert again.channels == one.channels == CHANNELS
    assert again.images == one.images == 12


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_packing_what_was_unpacked_changes_nothing(kind):
    packed = dict(record(**kind).pack("x/"))
    again = dict(SiteRecord.unpack(packed, "x/").pack("x/"))
    assert set(again) == set(packed)
    for name, value in packed.items():
        assert torch.equal(again[name], value), name
        assert again[name].dtype == value.dtype


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_packed_tensors_share_no_memory_with_each_other_or_the_record(kind):
    one = record(**kind)
    tensors = list(dict(one.pack("x/")).values())
    assert len({value.data_ptr() for value in tensors}) == len(tensors)
    before = one.pooled.mean.clone()
    for value in tensors:
        value.zero_()
    assert torch.equal(one.pooled.mean, before)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_addition_is_associative_and_commutative(kind):
    a, b, c = (record(seed, **kind) for seed in (0, 10, 20))
    close((a + b) + c, a + (b + c), 1e-10)
    close(a + b, b + a, 1e-10)
    assert (a + b).images == 24


def test_the_parts_that_follow_are_derived_not_stored():
    shared = record(read=False, affine=True)
    names = set(dict(shared.pack("")))
    assert not [name for name in names if name.startswith(("read.", "cut."))]
    assert shared.preactivation is shared.pooled
    factor, shift = shared.affine
    expected = shared.preactivation[:CHANNELS].scaled(factor, shift)
    torch.testing.assert_close(shared.activation.scatter, expected.scatter)
    torch.testing.assert_close(shared.activation.mean, expected.mean)


def test_derived_moments_add_like_measured_ones():
    a, b = record(0, affine=True), record(1, affine=True)
    torch.testing.assert_close((a + b).activation.scatter, (a.activation + b.activation).scatter)


def test_parts_that_only_one_side_has_are_dropped():
    assert (record(labels=False) + record()).classes is None
    assert (record(extras=False) + record()).maps is None


def test_a_record_without_a_cut_point_says_so():
    with pytest.raises(ShapeError, match="cut point"):
        _ = SiteRecord(moments(3, 4, 0), None, None).activation


@pytest.mark.parametrize("d", [1, 2, 7, 130])
def test_a_triangle_holds_a_symmetric_matrix(d):
    x = torch.randn(d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    matrix = x + x.T
    packed = pack_symmetric(matrix)
    assert packed.dtype == torch.float32
    assert packed.shape == (d * (d + 1) // 2,)
    torch.testing.assert_close(unpack_symmetric(packed), matrix.float().double(), rtol=0, atol=0)
    assert torch.equal(pack_symmetric(unpack_symmetric(packed)), packed)


def test_a_triangle_is_written_row_by_row():
    matrix = torch.tensor([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    assert pack_symmetric(matrix).tolist() == [1, 2, 3, 4, 5, 6]


def test_classes_without_samples_stay_zero_through_packing():
    one = record(images=2)
    seen = one.classes.counts > 0
    again = SiteRecord.unpack(dict(one.pack("x/")), "x/")
    assert not again.classes.means[~seen].any()
    assert bool((again.classes.means[seen] != 0).any())


def test_a_misspelled_site_is_refused_with_the_nearest():
    profile = measured.profile()
    first = profile.sites[0].name
    assert profile.site(first) is profile.sites[0]
    for read in (profile.site, profile.record):
        with pytest.raises(SiteError, match=re.escape(f"no site is called {first}0; near matches: {first}; there are: {first}, ")):
            read(f"{first}0")


def test_printed_it_says_what_was_measured():
    lines = repr(measured.profile()).splitlines()
    assert lines[0] == "Profile(Sequential: 90 images, 11 channels at 2 sites)"
    assert lines[1] == f"  weights: {measured.profile().weights_hash[:12]}, input 2 × 5 × 5, 3 classes, 1 layers skipped"
    assert lines[2] == "  readout: positions(all), at the cut point positions(16), seed 0, 6 shards"
    assert lines[3].startswith("  targets: margin, ")
    assert lines[3].endswith("; " + str(measured.profile().tally))
    assert len(lines) == 4


def test_a_shard_that_was_not_kept_is_refused():
    with pytest.raises(SampleError, match="no shard 6: it was collected with shards=6"):
        measured.profile().record(measured.profile().sites[0], 6)


def test_images_in_common_are_counted_in_the_first_profile():
    one, other = (replace(measured.profile(), fingerprints=torch.tensor(each)) for each in ([1, 2, 2, 3], [2, 9]))
    with pytest.raises(MismatchError, match="no image in common: 2 of the 90 images of one"):
        one + other
    with pytest.raises(MismatchError, match="no image in common: 1 of the 90 images of one"):
        other + one
