"""Gradient angles: on networks against covariances formed in full, both identities, and what cannot be followed; in the simulation."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pencil_experiments as pencil
from channelscope import data, zoo
from channelscope.errors import DataError, InputError, MismatchError, SiteError
from channelscope.experiments.gradients import RATES, SHARE, STRONG, gradient_angles, problem, simulate
from channelscope.formulas.information import information_step, linear_axes
from channelscope.network.patches import followable, patch_products, pooled_patches
from channelscope.profiling.collect import collect
from channelscope.zoo.models import SmallResNet


class Net(nn.Module):
    """A strided, padded convolution, a grouped and dilated one, and a hidden linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(5, 10, 2, groups=5, dilation=2)
        self.hidden, self.fc = nn.Linear(10, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.grouped(self.first(x).relu()).relu()
        return self.fc(self.hidden(x.mean((2, 3))).relu())


def images(n=60, side=9, seed=0):
    source = torch.Generator().manual_seed(seed)
    pixels = torch.randn(n, 2, side, side, generator=source).cumsum(2) / 2
    return [(pixels, torch.randint(3, (n,), generator=source), torch.arange(n))]


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Net().eval()
    batches = images()
    return model, collect(model, batches, shards=0), batches


def inputs_of(model, pixels):
    """The input of each layer, by hooks."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0]}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        logits = model(pixels)
    for handle in handles:
        handle.remove()
    return seen, logits


def margins(logits, labels):
    values = logits.double().numpy()
    return np.array([z[y] - max(v for c, v in enumerate(z) if c != y) for z, y in zip(values, labels.tolist(), strict=True)])


def expected(model, pixels, labels, name, readout):
    """Cosines of every channel of one layer with all patches written out."""
    seen, logits = inputs_of(model, pixels)
    target, module = margins(logits, labels), model.get_submodule(name)
    if isinstance(module, nn.Linear):
        return pencil.directions(seen[name].double().numpy(), module.weight.detach().double().numpy(), target)[0]
    windows = pencil.patches(seen[name].double().numpy(), module.kernel_size[0], module.stride[0], module.padding[0], module.dilation[0])
    if readout == "pooled":
        windows = windows.mean(1, keepdims=True)
    repeated = np.repeat(target, windows.shape[1])
    weights, cosines = module.weight.detach().double().flatten(1).numpy(), []
    inner, outer = windows.shape[2] // module.groups, len(weights) // module.groups
    for group in range(module.groups):
        own = windows[:, :, group * inner : (group + 1) * inner].reshape(len(repeated), -1)
        cosines.append(pencil.directions(own, weights[group * outer : (group + 1) * outer], repeated)[0])
    return np.concatenate(cosines)


class TestAgainstFullCovariances:
    @pytest.mark.parametrize("readout", ["positions", "pooled"])
    @pytest.mark.parametrize("name", ["first", "grouped", "hidden"])
    def test_cosines(self, network, name, readout):
        model, profile, batches = network
        frame = gradient_angles(model, profile, batches, readout=readout, progress=False)["gradients"]
        own = frame[frame.site == name]
        known = own.cosine.notna().to_numpy()
        assert known.sum() >= 0.6 * len(own)
        with np.errstate(invalid="ignore", divide="ignore"):
            full = expected(model, *batches[0][:2], name, readout)
        np.testing.assert_allclose(own.cosine.to_numpy()[known], full[known], atol=1e-4)

    @pytest.mark.parametrize("readout", ["positions", "pooled"])
    def test_images_that_the_profile_has_not_seen_are_centered_by_their_own_means(self, network, readout):
        model, profile, _ = network
        pixels, labels, index = images(40, seed=1)[0]
        frame = gradient_angles(model, profile, [(pixels + 0.5, labels, index)], readout=readout, progress=False)["gradients"]
        own = frame[frame.site == "first"]
        known = own.cosine.notna().to_numpy()
        assert known.sum() >= 3
        np.testing.assert_allclose(own.cosine.to_numpy()[known], expected(model, pixels + 0.5, labels, "first", readout)[known], atol=1e-4)

    def test_whatever_the_batches(self, network):
        model, profile, batches = network
        parts = [tuple(part[start : start + 25] for part in batches[0]) for start in (0, 25, 50)]
        one, other = (gradient_angles(model, profile, each, progress=False)["gradients"] for each in (batches, parts))
        pd.testing.assert_frame_equal(one.drop(columns="identity"), other.drop(columns="identity"), rtol=1e-3, atol=1e-5)


class TestIdentities:
    def test_a_channels_target_direction_never_changes_its_length(self):
        """w'g = 0 in every layer of a residual network, to the precision of float32 products."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = SmallResNet(8, classes=10, channels=1, width=8).eval()
        batches = list(data.read_images("digits").calibration.take(100))
        profile = collect(model, batches, shards=0)
        tables = gradient_angles(model, profile, batches, progress=False)
        assert len(tables["gradient_layers"]) == len(profile.sites)
        assert tables["gradient_layers"].identity.max() < 1e-4
        assert tables["gradient_layers"].cosine.between(0, 1).all()
        assert (tables["gradient_layers"].cosine_low <= tables["gradient_layers"].cosine).all()

    @pytest.mark.parametrize("scale", [1.0, 3.0])
    def test_an_isotropic_input_gives_right_angles(self, scale):
        """Toys mix orthonormal planes: their covariance is a multiple of the identity."""
        toy = zoo.toys.independent_channels()
        batches = [(scale * pixels, *rest) for pixels, *rest in toy.batches]
        profile = collect(toy.model, batches, shards=0)
        frame = gradient_angles(toy.model, profile, batches, progress=False)["gradients"]
        assert frame.cosine.abs().max() < 1e-5

    def test_an_anisotropic_input_does_not(self, network):
        model, profile, batches = network
        assert gradient_angles(model, profile, batches, progress=False)["gradient_layers"].cosine.iloc[0] > 0.05


class TestPatches:
    @pytest.mark.parametrize(
        ("options", "side"),
        [({"kernel_size": 3, "padding": 1}, 6), ({"kernel_size": 3, "stride": 2}, 7), ({"kernel_size": 2, "dilation": 2, "groups": 2}, 6)],
    )
    def test_products_and_means_are_those_of_windows(self, options, side):
        module = nn.Conv2d(4, 6, **options)
        pixels = torch.randn(3, 4, side, side)
        outputs = module(pixels).detach()
        windows = pencil.patches(pixels.double().numpy(), module.kernel_size[0], module.stride[0], module.padding[0], module.dilation[0])
        groups, inner, outer = module.groups, 4 // module.groups, 6 // module.groups
        found, means = patch_products(module, pixels, outputs), pooled_patches(module, pixels, tuple(outputs.shape[2:]))
        for group in range(groups):
            own = windows[:, :, group * inner : (group + 1) * inner].reshape(3, windows.shape[1], -1)
            np.testing.assert_allclose(means[:, group].numpy(), own.mean(1), atol=1e-6)
            flat = outputs[:, group * outer : (group + 1) * outer].flatten(2).double().numpy()
            np.testing.assert_allclose(
                found[group * outer : (group + 1) * outer].numpy(), np.einsum("bop,bpt->ot", flat, own), rtol=1e-4, atol=1e-4
            )

    def test_same_padding_is_followed_where_it_is_even(self):
        even, uneven = nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(2, 3, 2, padding="same")
        assert followable(even) == ""
        assert "both sides" in followable(uneven)
        pixels = torch.randn(2, 2, 5, 5)
        outputs = even(pixels).detach()
        explicit = nn.Conv2d(2, 3, 3, padding=1)
        torch.testing.assert_close(patch_products(even, pixels, outputs), patch_products(explicit, pixels, outputs))

    def test_what_cannot_be_followed_says_why(self):
        assert "reflect" in followable(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"))
        assert "Conv1d" in followable(nn.Conv1d(2, 3, 3))
        assert followable(nn.Linear(2, 3)) == ""
        assert followable(nn.Conv2d(2, 3, 3, padding="valid")) == ""

    def test_token_layouts_are_flattened(self):
        module, tokens = nn.Linear(3, 2), torch.randn(4, 5, 3)
        outputs = torch.randn(4, 5, 2)
        expected = torch.einsum("bpo,bpt->ot", outputs, tokens).double()
        torch.testing.assert_close(patch_products(module, tokens, outputs), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pooled_patches(module, tokens, ()), tokens.mean(1)[:, None])


class TestBadInput:
    def test_other_weights(self, network):
        _, profile, batches = network
        with pytest.raises(MismatchError, match="weights"):
            gradient_angles(Net().eval(), profile, batches, progress=False)

    def test_a_site_that_is_none(self, network):
        with pytest.raises(SiteError, match="near matches: first"):
            gradient_angles(*network, sites=("frist",), progress=False)

    def test_one_site_alone(self, network):
        frame = gradient_angles(*network, sites=("hidden",), progress=False)["gradients"]
        assert set(frame.site) == {"hidden"}

    def test_a_readout_that_is_none(self, network):
        with pytest.raises(InputError, match="there are: positions, pooled"):
            gradient_angles(*network, readout="all", progress=False)

    def test_no_images_and_no_labels(self, network):
        model, profile, batches = network
        with pytest.raises(DataError, match="no images"):
            gradient_angles(model, profile, [], progress=False)
        with pytest.raises(DataError, match="labels"):
            gradient_angles(model, profile, [(batches[0][0], None)], progress=False)

    def test_a_profile_without_labels(self, network):
        model, _, batches = network
        with pytest.raises(DataError, match="collected without labels"):
            gradient_angles(model, collect(model, [(batches[0][0], None)], shards=0), batches, progress=False)

    def test_layers_that_cannot_be_followed_are_listed(self):
        class Mirrored(nn.Module):
            def __init__(self):
                super().__init__()
                self.mirrored, self.plain = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 1)
                self.fc = nn.Linear(4, 3)

            def forward(self, x):
                return self.fc(self.plain(self.mirrored(x).relu()).relu().mean((2, 3)))

        model, batches = Mirrored().eval(), images()
        profile = collect(model, batches, shards=0)
        tables = gradient_angles(model, profile, batches, progress=False)
        assert tables["gradient_skipped"].to_dict("records") == [{"site": "mirrored", "reason": "it pads with reflect"}]
        with pytest.raises(SiteError, match="mirrored: it pads with reflect"):
            gradient_angles(model, profile, batches, sites=("mirrored",), progress=False)


def test_a_dead_channel_has_no_direction():
    toy = zoo.toys.dead_channel()
    profile = collect(toy.model, toy.batches, shards=0)
    frame = gradient_angles(toy.model, profile, toy.batches, progress=False)["gradients"].set_index("channel")
    assert math.isnan(frame.loc[toy.truth["dead"][0], "cosine"])


@pytest.fixture(scope="module")
def frame():
    return simulate(channels=48, inputs=16, steps=120, every=20, seeds=3)["simulation"]


def of(frame, system, column):
    return frame[frame.system == system][column].to_numpy()


def test_the_axes_start_coupled_and_separate(frame):
    """Random channels that see more of the strong direction have more variance and say more; learning undoes this."""
    alignment = of(frame, "channels", "alignment")
    assert of(frame, "channels", "alignment_low")[0] > 0.1
    assert alignment[-1] < 0.1
    assert of(frame, "channels", "relevance")[-1] > 5 * of(frame, "channels", "relevance")[0]


def test_a_linear_network_that_hardly_moves_its_channels_stays_coupled(frame):
    alignment = of(frame, "network", "alignment")
    assert abs(alignment[-1] - alignment[0]) < 0.1


def test_without_a_strong_direction_nothing_is_coupled():
    frame = simulate(channels=48, inputs=16, steps=0, seeds=3, isotropic=True)["simulation"]
    assert (frame.alignment_low < 0).all()
    assert frame.cosine.abs().max() < 1e-6


def test_rows_and_intervals(frame):
    assert of(frame, "channels", "step").tolist() == [0, 20, 40, 60, 80, 100, 120]
    assert set(frame.system) == set(RATES)
    for name in ("alignment", "cosine", "capture", "relevance"):
        assert (frame[f"{name}_low"] <= frame[name]).all()
        assert (frame[name] <= frame[f"{name}_high"]).all()
    assert (frame.n == 3).all()


def test_one_seed_has_no_interval():
    frame = simulate(channels=8, inputs=4, steps=0, seeds=1)["simulation"]
    assert frame.alignment.notna().all()
    assert frame.alignment_low.isna().all()


def test_the_same_numbers_every_time():
    one, other = (simulate(channels=8, inputs=4, steps=20, every=20, seeds=2)["simulation"] for _ in range(2))
    np.testing.assert_array_equal(one.alignment, other.alignment)


@pytest.mark.parametrize("seed", range(3))
def test_the_problem_is_as_described(seed):
    covariance, cross, variance = problem(10, seed)
    values, vectors = torch.linalg.eigh(covariance)
    assert values[-1] == pytest.approx(STRONG)
    torch.testing.assert_close(values[:-1], torch.ones(9, dtype=torch.float64))
    explained = cross @ torch.linalg.solve(covariance, cross)
    assert float(explained) == pytest.approx(1)
    assert float((vectors[:, -1] @ cross) ** 2 / STRONG) == pytest.approx(SHARE)
    assert variance > float(explained)


def test_following_the_gradient_raises_task_information_and_keeps_lengths():
    covariance, cross, variance = problem(6, 0)
    weights = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after = information_step(weights, covariance, cross, variance, 0.01)
    before, later = (linear_axes(each, each @ covariance, cross, variance).relevance for each in (weights, after))
    assert (later > before).all()
    torch.testing.assert_close(after.norm(dim=1), weights.norm(dim=1), rtol=1e-2, atol=0)
