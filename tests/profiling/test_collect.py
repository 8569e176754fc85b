"""One pass: the laws of a profile, what it refuses, that it can stop and go on; and on disk, what is read is what was written."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pencil
import pencil_stats
from channelscope import zoo
from channelscope.errors import DataError, FormatError, InputError, MismatchError, NumericError, SiteError
from channelscope.network.edits import edit
from channelscope.network.sites import sites
from channelscope.profiling import collector
from channelscope.profiling.collect import FORMAT, CheckpointTimer, collect, load, save
from channelscope.profiling.collector import WAITING, MemoryPlan
from channelscope.stats.moments import products_bytes
from channelscope.stats.profile import Profile
from channelscope.stats.readout import Readout, draw_positions
from channelscope.zoo import toys

IMAGES, CLASSES = 45, 4


def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, stride=2, bias=False),
        nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 7),
        nn.ReLU(),
        nn.Linear(7, CLASSES),
    )
    for part in model:
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return model


MODEL = network().double()  # convolutions in float32 depend on the batch size in their last digits
SOURCE = torch.Generator().manual_seed(5)
PIXELS = torch.randn(IMAGES, 3, 9, 9, generator=SOURCE, dtype=torch.float64)
LABELS = torch.randint(CLASSES, (IMAGES,), generator=SOURCE)


def batches(order=None, size: int = 16) -> list:
    order = torch.arange(IMAGES) if order is None else torch.as_tensor(order)
    return [(PIXELS[part], LABELS[part], part) for part in order.split(size)]


def same(a: Profile, b: Profile, tolerance: float = 1e-6) -> None:
    """Equal to a tolerance relative to each tensor's largest entry; scatters are compared whole, as what they stand for."""
    assert a.images == b.images
    assert set(a.tensors) == set(b.tensors)
    for site in a.sites:
        for shard in (None, *range(a.shards)):
            mine, theirs = a.record(site, shard), b.record(site, shard)
            for point in ("preactivation", "pooled", "activation"):
                one, other = getattr(mine, point), getattr(theirs, point)
                assert one.count == other.count
                close(one.mean, other.mean, tolerance, one.variance.max().sqrt() if one.count else 1)
                close(one.scatter, other.scatter, tolerance)
            if mine.classes is not None:
                assert torch.equal(mine.classes.counts, theirs.classes.counts)
                close(mine.classes.means, theirs.classes.means, tolerance)


def close(a, b, tolerance, scale=None) -> None:
    scale = max(float(a.abs().max()), 1e-12) if scale is None else max(float(a.abs().max()), float(scale))
    assert float((a - b).abs().max()) <= tolerance * scale


WHOLE = collect(MODEL, batches(), shards=5)


@settings(max_examples=12, deadline=None)
@given(
    order=st.permutations(range(IMAGES)), size=st.integers(1, IMAGES), readout=st.sampled_from(["positions(4)", "positions(all)", "pooled"])
)
def test_order_and_batch_size_do_not_matter(order, size, readout):
    same(collect(MODEL, batches(), readout, shards=5), collect(MODEL, batches(order, size), readout, shards=5))


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(IMAGES)), cut=st.integers(1, IMAGES - 1))
def test_profiles_of_any_partition_add_up(order, cut):
    parts = [collect(MODEL, batches(part), shards=5) for part in (order[:cut], order[cut:])]
    same(WHOLE, parts[0] + parts[1])
    same(WHOLE, parts[1] + parts[0])


def values(at: str) -> np.ndarray:
    """What a site's module puts out, by a hook: images × channels × positions."""
    seen = []
    handle = MODEL[int(at)].register_forward_hook(lambda module, given, value: seen.append(value.detach().clone()))
    with torch.no_grad():
        MODEL.eval()(PIXELS)
    handle.remove()
    return seen[0].flatten(2).double().numpy() if seen[0].dim() > 2 else seen[0].double().numpy()[:, :, None]


def target() -> np.ndarray:
    with torch.no_grad():
        logits = MODEL.eval()(PIXELS).double()
    rows = logits.numpy()
    correct = logits.gather(1, LABELS[:, None])[:, 0].numpy()
    ordered = np.sort(rows, 1)
    return np.column_stack([pencil_stats.margin(rows, LABELS.tolist()), correct, ordered[:, -1] - ordered[:, -2]])


def test_pooled_moments_are_those_of_averaged_maps_joined_with_the_targets():
    joined = np.column_stack([values("3").mean(2), target()])
    count, mean, scatter = pencil.moments(joined)
    record = WHOLE.record("3")
    assert record.pooled.count == count
    np.testing.assert_allclose(record.pooled.mean, mean, atol=1e-6)
    np.testing.assert_allclose(record.pooled.scatter, scatter, rtol=1e-4, atol=1e-5 * np.abs(scatter).max())


@pytest.mark.parametrize("readout", ["positions(4)", "positions(all)"])
def test_read_moments_are_those_of_the_drawn_positions(readout):
    profile = collect(MODEL, batches(), readout, shards=0)
    maps, column = values("0"), target()
    where = [range(81)] * IMAGES if readout == "positions(all)" else draw_positions(torch.arange(IMAGES), 81, 4, 0).tolist()
    rows = [np.concatenate([maps[i][:, p], column[i]]) for i in range(IMAGES) for p in where[i]]
    count, mean, scatter = pencil.moments(np.array(rows))
    read = profile.record("0").preactivation
    assert read.count == count
    np.testing.assert_allclose(read.mean, mean, atol=1e-6)
    np.testing.assert_allclose(read.scatter, scatter, rtol=1e-4, atol=1e-5 * np.abs(scatter).max())


@pytest.mark.parametrize(("site", "after"), [("0", "2"), ("3", "4"), ("7", "8")])
def test_cut_moments_are_of_what_consumers_see(site, after):
    maps = values(after)
    positions = maps.shape[2]
    where = draw_positions(torch.arange(IMAGES), positions, 16, 0).tolist() if positions > 16 else [range(positions)] * IMAGES
    rows = np.array([maps[i][:, p] for i in range(IMAGES) for p in where[i]])
    count, mean, scatter = pencil.moments(rows)
    cut = WHOLE.record(site).activation
    assert cut.count == count
    np.testing.assert_allclose(cut.mean, mean, atol=1e-5)
    np.testing.assert_allclose(cut.scatter, scatter, rtol=1e-3, atol=1e-4 * np.abs(scatter).max())


def test_an_affine_cut_point_costs_nothing():
    assert [site.name for site in WHOLE.sites if site.activation_is_affine] == ["3"]
    assert WHOLE.record("3").stored_activation is None
    assert WHOLE.record("0").stored_activation is not None


def test_class_means_and_within_scatter():
    pooled, labels = values("3").mean(2), LABELS.numpy()
    counts, means = pencil_stats.class_means(pooled, labels, CLASSES)
    record = WHOLE.record("3")
    np.testing.assert_array_equal(record.classes.counts, counts)
    np.testing.assert_allclose(record.classes.means, means, atol=1e-5)
    within = record.classes.within_class_moments(record.pooled[:5]).scatter
    np.testing.assert_allclose(within, pencil_stats.within_scatter(pooled, labels), rtol=1e-4, atol=1e-4)


def test_shards_are_index_mod_shards_and_sum_to_the_whole():
    for shard in range(5):
        alone = collect(MODEL, batches(torch.arange(IMAGES)[torch.arange(IMAGES) % 5 == shard]), shards=0)
        close(WHOLE.record("3", shard).preactivation.scatter, alone.record("3").preactivation.scatter, 1e-5)
        assert WHOLE.record("3", shard).images == 9
    total = sum((WHOLE.record("0", shard) for shard in range(1, 5)), WHOLE.record("0", 0))
    close(total.preactivation.scatter, WHOLE.record("0").preactivation.scatter, 1e-6)


def test_fewer_shards_where_memory_would_not_suffice(monkeypatch):
    plan = MemoryPlan(3, True)
    sizes = [(6, 3), (5, 2), (7, 2)]
    assert collect(MODEL, batches()).shards == 10
    monkeypatch.setattr(collector, "MEMORY", plan.most(sizes, CLASSES))
    with pytest.warns(UserWarning, match=r"3 shards of the images instead of 10, because the statistics of 3 sites with up to 7 channels"):
        fewer = collect(MODEL, batches())
    assert fewer.shards == 3
    same(fewer, collect(MODEL, batches(), shards=3))
    monkeypatch.setattr(collector, "MEMORY", 10**9)
    whole = collect(MODEL, batches(), shards=3)
    assert {name for name in whole.tensors if name not in fewer.tensors} == {name for name in whole.tensors if name.startswith("total/")}
    for site in whole.sites:  # of all images: added up from the shards
        one, other = whole.record(site), fewer.record(site)
        for point in ("preactivation", "pooled", "activation"):
            close(getattr(one, point).scatter, getattr(other, point).scatter, 1e-6)
        close(one.classes.means, other.classes.means, 1e-6)
    monkeypatch.setattr(collector, "MEMORY", 0)
    with pytest.warns(UserWarning, match="2 shards of the images instead of 10"):
        assert collect(MODEL, batches()).shards == 2
    assert collect(MODEL, batches(), shards=4).shards == 4


def test_the_plan_counts_what_is_kept():
    one, ten = MemoryPlan(0, False), MemoryPlan(10, False)
    assert one.most([(512, 3)], 0) == WAITING + 3 * 8 * 512**2 * 3 / 4
    assert ten.most([(512, 3)], 0) == WAITING + 10 * 3 * 8 * 512**2 * 3 / 4
    assert MemoryPlan(0, True).most([(512, 3)], 0) == WAITING + 3 * 4 * 512**2 * 3 / 4
    assert ten.most([(512, 3)], 20) - ten.most([(512, 3)], 0) == 8 * 200 * 512  # a mean for each shard and class
    assert MemoryPlan(4, True).most([(3072, 3)] * 12, 0) == WAITING + 4 * 36 * products_bytes(3072, True)
    assert ten.most([(1, 1)], 10**6) - ten.most([(1, 1)], 0) == pytest.approx(8 * 5000, rel=1e-3)  # but no more than there are images
    assert MemoryPlan.within([(512, 1)], 0, shards=0) == MemoryPlan(0, False)


def test_the_last_profile_is_the_one_on_the_way():
    found = sites(MODEL, PIXELS[:1])
    with torch.no_grad():
        each = collector.ProfileCollector(found, PIXELS[:1], Readout.parse("positions(all)"), 3, 0, frozenset({"labels"}))
        for part in batches():
            each.batch(*part)
    on_the_way, last = each.profile(), each.profile(last=True)
    assert set(on_the_way.tensors) == set(last.tensors)
    assert all(torch.equal(value, last.tensors[name]) for name, value in on_the_way.tensors.items())


def test_without_shards_there_are_none():
    profile = collect(MODEL, batches(), shards=0)
    assert not [name for name in profile.tensors if not name.startswith("total/")]
    same(profile, collect(MODEL, batches(size=7), shards=0))


def test_index_defaults_to_the_running_count_and_labels_may_be_missing():
    plain = [(pixels, labels) for pixels, labels, _ in batches()]
    same(WHOLE, collect(MODEL, plain, shards=5), 0)
    unlabeled = collect(MODEL, [pixels for pixels, *_ in batches()], shards=5)
    assert unlabeled.targets == ("top_margin",)
    assert unlabeled.record("0").classes is None
    assert unlabeled.tally.images == 0
    close(unlabeled.record("0").preactivation.scatter[:6, :6], WHOLE.record("0").preactivation.scatter[:6, :6], 1e-6)
    marked = collect(MODEL, [(pixels, torch.full_like(labels, -1)) for pixels, labels, _ in batches()], shards=5)
    assert marked.targets == ("top_margin",)


def test_a_large_offset_loses_nothing():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, CLASSES))
    images = [(pixels.float(), labels) for pixels, labels, _ in batches()]
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted[0].bias += 2000.0
    plain, far = (collect(each, images, "positions(all)", shards=3).record("0").preactivation for each in (model, shifted))
    close(plain.scatter[:6, :6], far.scatter[:6, :6], 2e-3)
    np.testing.assert_allclose(far.mean[:6] - plain.mean[:6], 2000, rtol=1e-5)


def test_the_model_is_left_as_it_was():
    model = network().double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    collect(model, batches())
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(part._forward_hooks for part in model.modules())


def test_sensitivity_sums_first_order_effects():
    profile = collect(MODEL, batches(), sensitivity=True, shards=3)
    weight = MODEL[0].weight
    MODEL.eval()
    slope = torch.zeros_like(weight)
    for part in range(IMAGES):
        loss = nn.functional.cross_entropy(MODEL(PIXELS[part : part + 1]), LABELS[part : part + 1])
        slope += torch.autograd.grad(loss, weight)[0]
    expected = (weight * slope).sum((1, 2, 3)).detach()
    close(profile.record("0").sensitivity.read, expected, 1e-4)
    assert all(parameter.grad is None for parameter in MODEL.parameters())


def test_maps_are_summed_on_request():
    profile = collect(MODEL, batches(), maps=True, shards=0)
    with torch.no_grad():
        maps = MODEL.eval()[:3](PIXELS).double().numpy()
    np.testing.assert_allclose(profile.record("0").maps.rank, pencil_stats.rank(maps))
    np.testing.assert_allclose(profile.record("0").maps.independence, pencil_stats.independence(maps), rtol=1e-4)
    assert WHOLE.record("0").maps is None


class StoppedError(RuntimeError):
    pass


def broken_off(after: int):
    for number, batch in enumerate(batches(size=8)):
        if number == after:
            raise StoppedError
        yield batch


@pytest.mark.parametrize("after", [1, 3, 5])
def test_an_interrupted_pass_goes_on_and_gives_the_same(tmp_path, monkeypatch, after):
    monkeypatch.setattr("channelscope.profiling.collect.CheckpointTimer", lambda: CheckpointTimer(0.0))
    kept = tmp_path / "unfinished"
    with pytest.raises(StoppedError):
        collect(MODEL, broken_off(after), shards=5, checkpoint=kept)
    assert load(kept).images == 8 * after
    same(WHOLE, collect(MODEL, batches(size=8), shards=5, checkpoint=kept))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    save(collect(MODEL, batches()[:1], shards=5), tmp_path / "kept")
    with pytest.raises(MismatchError, match="readout agree"):
        collect(MODEL, batches(), "pooled", shards=5, checkpoint=tmp_path / "kept")
    with pytest.raises(MismatchError, match="ends inside a batch"):
        collect(MODEL, batches(size=12), shards=5, checkpoint=tmp_path / "kept")
    other = network().double()
    nn.init.normal_(other[0].weight)
    with pytest.raises(MismatchError, match="weights_hash"):
        collect(other, batches(), shards=5, checkpoint=tmp_path / "kept")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_site_and_the_image(poison):
    model = network().double()
    with torch.no_grad():
        model[3].weight[0, 0] = poison
    with pytest.raises(NumericError, match=r"at 3: activations are not finite .* 16 images of the batch: 0, 1, 2, 3, 4, …"):
        collect(model, batches())
    one = PIXELS.clone()
    one[20] = poison
    with pytest.raises(NumericError, match=r"at 0: .* 1 images of the batch: 20$"):
        collect(MODEL, [(one, LABELS)])


def test_bad_batches():
    with pytest.raises(DataError, match="no images to profile"):
        collect(MODEL, [])
    with pytest.raises(DataError, match=r"shape \(3, 9, 9\)"):
        collect(MODEL, [(PIXELS[0], LABELS[:1])])
    with pytest.raises(DataError, match="45 images need as many labels"):
        collect(MODEL, [(PIXELS, LABELS[:9])])
    with pytest.raises(DataError, match="shape of the first"):
        collect(MODEL, [(PIXELS, LABELS), (PIXELS[:, :, :8], LABELS)])
    with pytest.raises(InputError, match="cannot run on images of shape 1×9×9"):
        collect(MODEL, [(PIXELS[:, :1], LABELS)])
    with pytest.raises(DataError, match=r"labels must lie in 0 … 3 .* received 2 … 5"):
        collect(MODEL, [(PIXELS, LABELS + 2)])
    with pytest.raises(InputError, match="shards must be 0"):
        collect(MODEL, batches(), shards=-1)
    with pytest.raises(InputError, match=r"expected 'pooled'.*received 'all'"):
        collect(MODEL, batches(), "all")
    with pytest.raises(DataError, match="needs labels"):
        collect(MODEL, [PIXELS], sensitivity=True)


def test_networks_that_cannot_be_profiled():
    with pytest.raises(SiteError, match="no convolution or linear layer"):
        collect(nn.Sequential(nn.Flatten(), nn.Linear(243, CLASSES)).double(), batches())
    with pytest.raises(InputError, match="logits of shape images × classes"):
        collect(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).double(), batches())


def test_a_network_under_an_edit_is_refused_not_mismeasured():
    found = sites(MODEL, PIXELS[:1])
    with edit(found.graph, {"_0": lambda maps: maps * 0}), pytest.raises(Exception, match="trace it outside"):
        collect(MODEL, batches())


@pytest.mark.parametrize("toy", [toys.residual_pair, toys.depthwise_block, toys.shared_activation], ids=lambda toy: toy.__name__)
def test_toys_show_the_sites_they_have(toy):
    made = toy()
    profile = collect(made.model, made.batches)
    assert [site.name for site in profile.sites] == made.truth["sites"]
    assert profile.images == made.images
    assert set(profile.weight_norms) == set(made.truth["sites"])


def test_a_zoo_network_keeps_its_name():
    model = zoo.build("resnet20", 10, 3, 16)
    assert collect(model, [(torch.randn(12, 3, 16, 16), torch.arange(12) % 10)]).network == "resnet20"


NONE = torch.full((16,), -1)


@pytest.mark.parametrize("missing", ["first", "last", "some"])
def test_what_is_labeled_is_used_and_what_is_not_is_said(missing):
    parts = batches()
    if missing == "some":
        labels = parts[1][1].clone()
        labels[:16:2] = -1
        mixed, kept = [parts[0], (parts[1][0], labels.tolist(), parts[1][2])], [*range(16), *range(17, 32, 2)]
    else:
        mixed = [(parts[0][0], None if missing == "last" else NONE, parts[0][2]), parts[1]]
        mixed, kept = (mixed, range(16, 32)) if missing == "first" else (mixed[::-1], range(16, 32))
    with pytest.warns(UserWarning, match=rf"{32 - len(kept)} of 32 images have no label and were left out"):
        profile = collect(MODEL, mixed, shards=5)
    assert profile.targets == ("margin", "correct_logit", "top_margin")
    assert (profile.images, profile.tally.images, profile.unlabeled) == (len(kept), len(kept), 32 - len(kept))
    same(profile, collect(MODEL, batches(list(kept)), shards=5))


def test_labels_that_begin_late_are_not_lost_by_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr("channelscope.profiling.collect.CheckpointTimer", lambda: CheckpointTimer(0.0))
    parts = batches(size=8)
    mixed = [(parts[0][0], None, parts[0][2]), *parts[1:4]]

    def broken():
        yield from mixed[:3]
        raise StoppedError

    kept = tmp_path / "unfinished"
    with pytest.raises(StoppedError):
        collect(MODEL, broken(), shards=5, checkpoint=kept)
    assert (load(kept).images, load(kept).unlabeled) == (16, 8)
    with pytest.warns(UserWarning, match="8 of 32 images"):
        same(collect(MODEL, mixed, shards=5, checkpoint=kept), collect(MODEL, parts[1:4], shards=5))
    save(collect(MODEL, [(images, None, index) for images, _, index in parts[:1]], shards=5), kept)
    with pytest.raises(MismatchError, match="begun on images without labels"):
        collect(MODEL, parts, shards=5, checkpoint=kept)


def test_images_of_another_precision_are_taken_in_the_networks():
    single = collect(MODEL, [(PIXELS.float(), LABELS)], shards=0)
    assert single.images == IMAGES
    close(single.record("0").pooled.mean, WHOLE.record("0").pooled.mean, 1e-6)


def test_one_image_twice_is_found_whatever_the_batches():
    with pytest.raises(MismatchError, match="16 of the 45 images of one are among the 16 of the other"):
        WHOLE + collect(MODEL, batches(range(20, 36), 5), shards=5)


class Windows(nn.Module):
    """Four windows of an image are rows of a linear layer's input, one image after the other or the other way round."""

    def __init__(self, mixed: bool = False):
        super().__init__()
        self.conv, self.inside, self.head, self.mixed = nn.Conv2d(3, 4, 1), nn.Linear(4, 5), nn.Linear(5, 3), mixed

    def forward(self, x):
        x = self.conv(x).unflatten(2, (2, -1)).unflatten(4, (2, -1))
        x = x.permute(2, 4, 0, 3, 5, 1) if self.mixed else x.permute(0, 2, 4, 3, 5, 1)
        x = self.inside(x.flatten(3, 4).flatten(0, 2)).relu()
        return self.head(x.unflatten(0, (4, -1)).mean((0, 2)) if self.mixed else x.unflatten(0, (-1, 4)).mean((1, 2)))


@pytest.mark.parametrize("readout", ["pooled", "positions(3)", "positions(all)"])
def test_windows_of_an_image_are_positions_of_it(readout):
    torch.manual_seed(0)
    model = Windows().eval()
    images, labels = torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    profile = collect(model, [(images, labels)], readout=readout, sensitivity=True, maps=True)
    site = profile.site("inside")
    assert (site.windows, site.shape, site.positions) == (4, (4, 5), 16)
    with torch.no_grad():
        each = model.inside(model.conv(images).flatten(2).transpose(1, 2)).double()
    record = profile.record("inside")
    assert record.pooled.count == 6
    assert torch.allclose(record.pooled.mean[:5], each.mean((0, 1)), atol=1e-6)
    assert torch.allclose(record.pooled.covariance[:5, :5], each.mean(1).T.cov(correction=0), rtol=1e-5)
    assert torch.allclose(record.classes.means[1], each[labels == 1].mean((0, 1)), atol=1e-5)


def test_windows_that_are_not_one_image_after_the_other_are_refused():
    with pytest.raises(InputError, match="the rows of the value of inside are not one image after the other"):
        collect(Windows(mixed=True).eval(), [torch.randn(6, 3, 4, 4)])


@pytest.fixture(scope="module")
def profile():
    return collected(0)


def collected(seed: int):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    images = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return collect(model, [(images, torch.arange(20) % 3)], shards=4, sensitivity=True, maps=True)


@pytest.fixture
def file(profile, tmp_path):
    return save(profile, tmp_path / "net.profile")


def same_store(a, b) -> None:
    for name in ("network", "weights_hash", "input_shape", "classes", "sites", "readout", "cut_readout", "targets", "seed", "shards"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.images == b.images
    assert a.tally == b.tally
    assert a.unlabeled == b.unlabeled
    assert torch.equal(a.fingerprints, b.fingerprints) or not len(a.fingerprints)
    assert dict(a.skipped) == dict(b.skipped)
    for mine, theirs in ((a.tensors, b.tensors), *((a.weight_norms[site.name], b.weight_norms[site.name]) for site in a.sites)):
        assert set(mine) == set(theirs)
        for name, value in mine.items():
            assert value.dtype == theirs[name].dtype
            assert torch.equal(value, theirs[name]), name


def test_load_after_save_is_the_identity(profile, file):
    same_store(load(file), profile)


def test_saving_what_was_loaded_writes_the_same_bytes(file, tmp_path):
    assert save(load(file), tmp_path / "again.profile").read_bytes() == file.read_bytes()


def test_a_profile_without_shards_or_labels_comes_back(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(64, 3))
    bare = collect(model, [torch.randn(6, 1, 6, 6)], "pooled", shards=0)
    same_store(load(save(bare, tmp_path / "deep" / "er" / "net.profile")), bare)


def test_sums_of_loaded_profiles_are_sums_of_profiles(profile, file, tmp_path):
    other = collected(1)
    both = load(file) + load(save(other, tmp_path / "other.profile"))
    same_store(both, profile + other)
    assert both.images == 40
    assert len(both.fingerprints.unique()) == 40


def test_the_same_images_are_not_counted_twice(profile, file, tmp_path):
    with pytest.raises(MismatchError, match="no image in common: 20 of the 20 images of one are among the 20 of the other"):
        load(file) + load(file)
    with pytest.raises(MismatchError, match="20 of the 40 images"):
        profile + collected(1) + load(file)


def test_a_profile_without_fingerprints_is_read_and_added(profile, file):
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["channelscope"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if name != "fingerprints"}  # noqa: SIM118
    del header["unlabeled"], header["checksum"]
    save_file(tensors, file, metadata={"channelscope": json.dumps(header)})
    old = load(file)
    same_store(old, profile)
    assert (len(old.fingerprints), old.unlabeled) == (0, 0)
    assert (old + collected(1)).images == 40
    with pytest.raises(MismatchError, match="20 of the 20 images"):
        old + old
    assert torch.equal((old + collected(1)).fingerprints, collected(1).fingerprints)


def test_no_file(tmp_path):
    with pytest.raises(FormatError, match=r"no profile at .*: write one with `channelscope profile"):
        load(tmp_path / "none.profile")
    with pytest.raises(FormatError, match="no profile at"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FormatError, match="damaged or not a profile"):
        load(file)


def test_other_files(tmp_path):
    (tmp_path / "text").write_text("not a profile, but long enough to be one")
    with pytest.raises(FormatError, match="damaged or not a profile"):
        load(tmp_path / "text")
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(FormatError, match="safetensors file but not a profile"):
        load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("version", [1, 99, None])
def test_another_version_of_the_format(file, version):
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["channelscope"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    header["format"] = version
    save_file(tensors, file, metadata={"channelscope": json.dumps(header)})
    with pytest.raises(FormatError, match=f"format {version}, this version reads {FORMAT}: collect it again"):
        load(file)


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(profile, file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(profile + collected(1), file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["net.profile"]


def test_the_clock_is_due_once_an_interval():
    assert CheckpointTimer(0.0).due()
    clock = CheckpointTimer(3600)
    assert not clock.due()
    clock.last -= 3601
    assert clock.due()
    assert not clock.due()


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, 1.0])
def test_one_changed_bit_is_noticed(file, place):
    """Also where the file is still a profile, whose numbers would be others."""
    whole = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    whole[start + int(place * (len(whole) - start - 1))] ^= 1
    file.write_bytes(bytes(whole))
    with pytest.raises(FormatError, match=r"is damaged: its checksum is [0-9a-f]{8}, that of its contents [0-9a-f]{8}; collect it again"):
        load(file)


@pytest.mark.parametrize("change", [{"images": "many"}, {"sites": 3}, {"tally": None}, {"sites": [{"name": "x"}]}])
def test_a_changed_header_is_refused(file, change):
    """By the checksum; without one, where it makes no profile."""
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["channelscope"]) | change
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata={"channelscope": json.dumps(header)})
    with pytest.raises(FormatError, match="its checksum is"):
        load(file)
    if "images" not in change:
        del header["checksum"]
        save_file(tensors, file, metadata={"channelscope": json.dumps(header)})
        with pytest.raises(FormatError, match="is damaged or not a profile"):
            load(file)


@pytest.mark.parametrize("classes", [1, 2])
def test_a_classifier_has_two_classes_or_more(classes):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)).eval()
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    if classes == 2:
        assert collect(model, [(images, torch.arange(6) % 2)]).tally.images == 6
    else:
        with pytest.raises(InputError, match=r"images × classes \(at least 2 classes\), received \d+×1$"):
            collect(model, [(images, torch.zeros(6).long())])


class Maps(nn.Module):
    """A network whose output is a dictionary of maps, as that of torchvision's segmentation networks."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, images):
        return {"out": self.head(self.features(images).relu())}


def test_a_network_of_maps_is_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"received \d+×5×4×4; of maps, pass a module that returns their mean over positions"):
        collect(Maps().eval(), [torch.randn(6, 3, 4, 4)])
