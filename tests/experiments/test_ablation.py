"""Ablations on networks whose answers are known, resumed, refused, and against hooks and loops."""

import sqlite3
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import pencil_experiments as pencil
from channelscope import data, zoo
from channelscope.errors import DataError, FormatError, InputError, MismatchError, NumericError, SampleError, SiteError
from channelscope.experiments.ablation import ablate
from channelscope.experiments.ablation_plan import DAMAGE_QUANTITIES, AblationPlan, Damage, Replacement, image_damage, split_evenly
from channelscope.experiments.hulls import HullOptions
from channelscope.network.module_state import weights_hash
from channelscope.network.removal.groups import groups
from channelscope.profiling.collect import collect
from channelscope.pruning.cut import shrink
from channelscope.stats.moments import Moments
from channelscope.subset import Subset
from channelscope.zoo.models import SmallResNet

room = sys.modules["channelscope.experiments.ablation"]

EVERY = AblationPlan(all=True, groups=4, draws=20)
QUIET = AblationPlan(all=True, groups=4, draws=20, silence="mean")
SHARP = HullOptions(ridge=0.0)


def of(toy, plan=EVERY, rule=SHARP, **options):
    return ablate(toy.model, collect(toy.model, toy.batches), toy.batches, plan, rule, progress=False, **options)


def row(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def small(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallResNet(8, classes=10, channels=1, width=8).eval()


@pytest.fixture(scope="module")
def network():
    images, model = data.read_images("digits"), small(1)
    with torch.no_grad():  # statistics of a trained network: shifts that survive the convolution
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
    return model, collect(model, images.calibration.take(200)), list(images.test.take(60).with_batch_size(30))


PLAN = AblationPlan(
    channels=40, controls=20, groups=3, draws=20, sites=("conv1", "layer1.0.conv2", "layer2.0.shortcut.0", "layer3.0.conv1")
)


@pytest.fixture(scope="module")
def measured(network):
    return ablate(*network, PLAN, progress=False)


class TestPlanted:
    def test_a_copy_repays_its_ablation_to_numerical_precision(self):
        toy = zoo.toys.exact_copy()
        tables = of(toy)
        for channel, multiple in toy.truth["copies"]:
            silent = row(tables["ablations"], channel=channel, intervention="silence")
            hull = row(tables["ablations"], channel=channel, intervention="hull")
            assert (hull.members, hull["size"]) == (str(multiple), 1)
            assert silent.loss > 1
            assert abs(hull.loss) < 1e-5
            assert row(tables["ablated_channels"], channel=channel).recovered_hull_loss == pytest.approx(1, abs=1e-6)

    def test_the_channel_that_carries_the_label_is_first_and_is_not_repaid(self):
        toy = zoo.toys.label_channel()
        channels = of(toy, QUIET, target="label")["ablated_channels"].set_index("channel")
        label = toy.truth["label"]
        assert channels.relevance.idxmax() == label
        for quantity in DAMAGE_QUANTITIES:
            assert channels[quantity].idxmax() == label
        assert channels.loc[label, "recovered_hull_loss"] == pytest.approx(0, abs=1e-6)
        assert channels.loc[label, "accuracy"] == pytest.approx(toy.truth["accuracy"] - 0.5, abs=0.05)
        assert (channels.drop(label).kl == 0).all()

    def test_independent_channels_are_not_repaid(self):
        channels = of(zoo.toys.independent_channels(), QUIET)["ablated_channels"]
        known = channels.recovered_hull_kl.dropna()
        assert len(known) >= 2
        np.testing.assert_allclose(known, 0, atol=1e-6)
        assert (channels.hull_size == 0).all()

    def test_a_suppressor_says_nothing_alone_and_much_in_its_pair(self):
        toy = zoo.toys.suppressor_pair()
        channels = of(toy, QUIET)["ablated_channels"].set_index("channel")
        assert channels.loc[1, "relevance"] == pytest.approx(0, abs=0.01)
        assert channels.loc[1, "excess"] > 0.1
        assert channels.loc[1, "kl"] > 0.01

    def test_an_xor_pair_is_invisible_to_second_moments(self):
        channels = of(zoo.toys.xor_pair(), EVERY, target="label")["ablated_channels"].set_index("channel")
        assert channels.loc[[0, 1], "excess"].abs().max() < 0.01
        assert channels.loc[[0, 1], "kl"].max() == 0  # the head reads the other four
        assert channels.loc[[2, 3, 4, 5], "kl"].min() > 0

    def test_a_dead_channel_changes_nothing_and_is_said(self):
        toy = zoo.toys.dead_channel()
        tables = of(toy)
        (dead,) = toy.truth["dead"]
        own = row(tables["ablated_channels"], channel=dead)
        assert own[list(DAMAGE_QUANTITIES)].tolist() == [0, 0, 0, 0]
        assert np.isnan(own.recovered_hull_loss)
        assert any("1 of 4 channels are silent" in line for line in tables["notes"].note)

    def test_a_residual_ablation_says_who_sees_it(self):
        consumers = of(zoo.toys.residual_pair(), rule=HullOptions())["consumers"].set_index("site")
        assert consumers.loc["stem", "consumers"].split() == ["inner", "fc"]
        assert "residual sum" in consumers.loc["outer", "note"]
        assert consumers.loc["inner", "note"] == ""


NAMES = [
    "ablations",
    "ablated_channels",
    "consumers",
    "notes",
    "recovered",
    "ablation_correlations",
    "ablation_matched",
    "ablation_partial",
]


def test_a_table_has_one_name_in_code_and_on_disk(measured):
    assert [frame.attrs["name"] for frame in measured.values()] == list(measured) == NAMES


class TestEngine:
    def test_silence_is_what_a_hook_at_the_cut_point_does(self, network, measured):
        model, _, batches = network
        images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
        before = model(images).detach().numpy()
        for site, module in (("conv1", model.act1), ("layer1.0.conv2", model.layer1[0].bn2), ("layer3.0.conv1", model.layer3[0].act1)):
            ablations = measured["ablations"]
            own = ablations[(ablations.site == site) & (ablations.intervention == "silence")]
            for channel in own.channel[:2]:
                after = pencil.silenced(model, module, channel, images).numpy()
                expected = pencil.harm(before.astype(float), after.astype(float), labels.tolist())
                found = row(own, channel=channel)
                np.testing.assert_allclose([found[name] for name in DAMAGE_QUANTITIES], expected.mean(1), atol=2e-5)
                errors = expected.std(1, ddof=1) / len(labels) ** 0.5
                np.testing.assert_allclose([found[f"{name}_se"] for name in DAMAGE_QUANTITIES], errors, rtol=1e-3, atol=1e-6)

    def test_silence_does_what_removal_does(self, network, measured):
        """The normalization behind the channel goes with it: the smaller network loses exactly what the ablation says."""
        model, _, batches = network
        images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
        found = groups(model, images[:1])
        ablations = measured["ablations"]
        own = ablations[(ablations.site == "layer3.0.conv1") & (ablations.intervention == "silence")]
        for channel in own.channel[:3]:
            kept = Subset.everything(found.sites, tuple(images.shape[1:]))
            rest = torch.arange(len(kept["layer3.0.conv1"])) != channel
            kept = Subset({**kept.masks, "layer3.0.conv1": rest}, kept.sites, kept.input_shape)
            with torch.no_grad():
                expected = image_damage(model(images), shrink(found, kept)(images), labels).mean(1)
            np.testing.assert_allclose(row(own, channel=channel)[list(DAMAGE_QUANTITIES)].to_numpy(float), expected, atol=2e-5)

    def test_the_model_is_left_as_it_was(self, network):
        model, profile, batches = network
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        ablate(model, profile, batches[:1], AblationPlan(channels=2, groups=2, draws=20), progress=False)
        assert model.training
        model.eval()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert "forward" not in vars(model)

    def test_the_same_seed_gives_the_same_tables_and_another_one_others(self, network, measured):
        again = ablate(*network, PLAN, progress=False)
        for name, frame in measured.items():
            pd.testing.assert_frame_equal(frame, again[name])
        other = ablate(*network, AblationPlan(channels=40, groups=3, draws=20, sites=PLAN.sites, seed=1), progress=False)
        assert set(zip(other["ablated_channels"].site, other["ablated_channels"].channel, strict=True)) != set(
            zip(measured["ablated_channels"].site, measured["ablated_channels"].channel, strict=True)
        )

    def test_batch_size_does_not_matter(self, network, measured):
        model, profile, batches = network
        whole = [tuple(torch.cat([batch[part] for batch in batches]) for part in range(3))]
        again = ablate(model, profile, whole, PLAN, progress=False)
        pd.testing.assert_frame_equal(measured["ablations"], again["ablations"], rtol=1e-3, atol=1e-6)

    def test_every_layer_gets_its_share_and_controls_are_among_the_ablated(self, measured):
        ablations = measured["ablations"]
        silent = ablations[ablations.intervention == "silence"]
        assert silent.groupby("site").size().tolist() == [8, 8, 12, 12]
        random = ablations[ablations.intervention == "random"]
        assert random.groupby("site").size().tolist() == [5, 5, 5, 5]
        keys = [set(zip(part.site, part.channel, strict=True)) for part in (random, silent)]
        assert keys[0] <= keys[1]
        hull = ablations[ablations.intervention == "hull"].set_index(["site", "channel"])
        for one in random.itertuples():
            assert one.size == hull.loc[(one.site, one.channel), "size"]
            assert str(one.channel) not in one.members.split()

    def test_an_ablation_that_makes_the_output_infinite_is_refused(self):
        toy = zoo.toys.exact_copy()
        profile = collect(toy.model, toy.batches)
        stop_at = {name: value.clone() for name, value in toy.model.state_dict().items()}
        with torch.no_grad():
            toy.model.fc.weight.fill_(3e38)
        object.__setattr__(profile, "weights_hash", weights_hash(toy.model))
        with pytest.raises(NumericError, match="at conv: the output is not finite"):
            ablate(toy.model, profile, toy.batches, EVERY, SHARP, progress=False)
        toy.model.load_state_dict(stop_at)


class TestStandIn:
    def test_prediction_is_least_squares_with_an_intercept(self):
        samples = torch.randn(300, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ torch.randn(
            5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        samples += torch.arange(5)
        replacement = Replacement.predicting("hull", Moments.of(samples), 2, [4, 0], 0.0)
        found = replacement.maps(samples, 0)
        np.testing.assert_allclose(found.numpy(), pencil.prediction(samples.numpy(), 2, [4, 0]), rtol=1e-6)

    def test_the_ridge_does_not_depend_on_a_peers_scale(self):
        samples = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).cumsum(1)
        scale = torch.tensor([1.0, 1.0, 1000.0], dtype=torch.float64)
        one, other = (Replacement.predicting("hull", Moments.of(each), 0, [1, 2], 0.1).maps(each, 0) for each in (samples, samples * scale))
        torch.testing.assert_close(one, other)

    def test_peers_silent_at_the_cut_point_are_left_out(self):
        samples = torch.randn(50, 3, dtype=torch.float64)
        samples[:, 1] = 4
        replacement = Replacement.predicting("hull", Moments.of(samples), 0, [1, 2], 0.0)
        assert replacement.members == (2,)

    def test_no_members_are_the_mean(self):
        samples = torch.randn(50, 2, dtype=torch.float64)
        replacement = Replacement.predicting("hull", Moments.of(samples), 0, [], 0.0)
        torch.testing.assert_close(replacement.maps(samples, 0), samples[:, 0].mean().expand(50))

    @pytest.mark.parametrize("axis", [0, 2])
    def test_only_the_channel_changes_whichever_axis_it_is_on(self, axis):
        maps = torch.randn(3, 4, 4, 4)
        before = maps.clone()
        changed = Replacement("hull", 1, (0, 3), torch.tensor([2.0, -1.0], dtype=torch.float64), 0.5).standing_in(maps, axis)
        expected = 2 * maps.select(axis + 1, 0) - maps.select(axis + 1, 3) + 0.5
        torch.testing.assert_close(changed.select(axis + 1, 1), expected)
        for other in (0, 2, 3):
            assert torch.equal(changed.select(axis + 1, other), maps.select(axis + 1, other))
        assert torch.equal(maps, before)

    def test_nothing_to_change_is_none(self):
        maps = torch.zeros(2, 3, 2, 2)
        assert Replacement("silence", 1).standing_in(maps, 0) is None
        assert Replacement("mean", 1, intercept=1.0).standing_in(maps, 0) is not None


class TestDamage:
    def test_harm_image_by_image(self):
        source = torch.Generator().manual_seed(5)
        before, after = torch.randn(2, 20, 4, generator=source) * 3
        labels = torch.randint(4, (20,), generator=source)
        expected = pencil.harm(before.double().numpy(), after.double().numpy(), labels.tolist())
        np.testing.assert_allclose(image_damage(before, after, labels).numpy(), expected, atol=1e-6)

    def test_it_adds_whatever_the_partition(self):
        harms = torch.randn(3, 4, 12, dtype=torch.float64)
        owners = torch.arange(12) % 5
        whole = Damage.of(harms, owners, 5)
        parts = Damage.of(harms[..., :7], owners[:7], 5) + Damage.of(harms[..., 7:], owners[7:], 5)
        for name in ("images", "sums", "squares"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
        torch.testing.assert_close(whole.mean, harms.mean(2))
        torch.testing.assert_close(whole.error, harms.std(2) / 12**0.5)

    def test_one_image_has_no_error(self):
        assert Damage.of(torch.randn(2, 4, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long), 2).error.isnan().all()


class TestResuming:
    @pytest.mark.parametrize("after", [1, 3, 5])
    def test_an_interrupted_run_gives_the_table_of_an_uninterrupted_one(self, network, measured, tmp_path, monkeypatch, after):
        unfinished = tmp_path / "ablations.sqlite"
        written = []
        write = room.AblationStore.write

        def failing(self, *args):
            if len(written) == after:
                raise KeyboardInterrupt
            written.append(args[2])
            write(self, *args)

        monkeypatch.setattr(room.AblationStore, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            ablate(*network, PLAN, unfinished=unfinished, progress=False)
        monkeypatch.setattr(room.AblationStore, "write", write)
        assert unfinished.exists()
        runs = []
        monkeypatch.setattr(room, "_measure_damage", lambda *args, harm=room._measure_damage: runs.append(1) or harm(*args))
        again = ablate(*network, PLAN, unfinished=unfinished, progress=False)
        assert not unfinished.exists()
        assert len(runs) < 2 * len(measured["ablations"])
        for name, frame in measured.items():
            pd.testing.assert_frame_equal(frame, again[name])

    def begun(self, network, path, monkeypatch):
        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(room.Damage, "of", stop)
            with pytest.raises(KeyboardInterrupt):
                ablate(*network, PLAN, unfinished=path, progress=False)

    def test_another_plan_is_refused(self, network, tmp_path, monkeypatch):
        self.begun(network, tmp_path / "a", monkeypatch)
        with pytest.raises(MismatchError, match=r"another run of ablations: they differ in .*plan"):
            ablate(*network, AblationPlan(channels=3, groups=3), unfinished=tmp_path / "a", progress=False)

    def test_other_images_are_refused(self, network, tmp_path, monkeypatch):
        model, profile, batches = network
        written = []
        write = room.AblationStore.write
        with monkeypatch.context() as patch:
            patch.setattr(room.AblationStore, "write", lambda self, *args: (write(self, *args), written.append(1), 1 / (len(written) < 5)))
            with pytest.raises(ZeroDivisionError):
                ablate(*network, PLAN, unfinished=tmp_path / "a", progress=False)
        with pytest.raises(MismatchError, match="batch 0 holds other images"):
            ablate(model, profile, batches[::-1], PLAN, unfinished=tmp_path / "a", progress=False)

    def test_a_damaged_file_is_said(self, network, tmp_path):
        (tmp_path / "a").write_bytes(b"not a database, whatever its length may be" * 10)
        with pytest.raises(FormatError, match="damaged"):
            ablate(*network, PLAN, unfinished=tmp_path / "a", progress=False)

    def test_a_unit_is_written_whole_or_not_at_all(self, network, tmp_path, monkeypatch):
        self.begun(network, tmp_path / "a", monkeypatch)
        assert sqlite3.connect(tmp_path / "a").execute("SELECT count(*) FROM measured").fetchone() == (0,)


class TestBadInput:
    def test_other_weights_are_refused(self, network):
        _, profile, batches = network
        other = small(2)
        with pytest.raises(MismatchError, match=r"profile is of .* with weights [0-9a-f]{12}"):
            ablate(other, profile, batches, PLAN, progress=False)

    def test_a_site_that_is_none_lists_near_matches(self, network):
        with pytest.raises(SiteError, match=r"no site is called layer1.0.conv3; near matches: layer1.0.conv"):
            ablate(*network, AblationPlan(sites=("layer1.0.conv3",)), progress=False)

    def test_fewer_images_than_groups(self, network):
        model, profile, batches = network
        few = [tuple(part[:3] for part in batches[0])]
        with pytest.raises(SampleError, match=r"3 evaluation images leave some of 10 groups empty"):
            ablate(model, profile, few, AblationPlan(channels=2), progress=False)

    def test_too_few_images_for_the_damage_are_said(self, measured):
        said = " ".join(measured["notes"].note)
        assert "60 images are too few for" in said
        assert "images" in said.split("would stand out")[-1]

    def test_no_images(self, network):
        model, profile, _ = network
        with pytest.raises(DataError, match="no images"):
            ablate(model, profile, [], PLAN, progress=False)

    def test_no_labels(self, network):
        model, profile, batches = network
        with pytest.raises(DataError, match="labels"):
            ablate(model, profile, [(batches[0][0], None)], PLAN, progress=False)
        with pytest.raises(DataError, match="none of the 30 images has one"):
            ablate(model, profile, [(batches[0][0], torch.full((30,), -1))], PLAN, progress=False)

    @pytest.mark.parametrize("numbers", [{"channels": 0}, {"controls": -1}, {"groups": 1}])
    def test_nonsense_numbers(self, numbers):
        with pytest.raises(InputError, match="expected"):
            AblationPlan(**numbers)


class TestSpread:
    @pytest.mark.parametrize(
        ("sizes", "total"), [([4, 4, 4], 6), ([1, 9, 9], 10), ([3, 1, 2], 100), ([5, 5, 5, 5], 2), ([8], 3), ([2, 2], 0)]
    )
    def test_as_even_as_the_layers_allow(self, sizes, total):
        counts = split_evenly(sizes, total)
        assert sum(counts) == min(total, sum(sizes))
        assert all(count <= size for count, size in zip(counts, sizes, strict=True))
        assert sorted(counts) == sorted(pencil.spread(sizes, total))

    def test_what_is_left_over_is_spaced_in_depth(self):
        assert split_evenly([5] * 6, 2) == [1, 0, 0, 1, 0, 0]


def test_a_silence_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="no silence is called maen; near matches: mean; there are: zero, mean"):
        AblationPlan(silence="maen")


def test_labels_beyond_the_classes_are_refused():
    toy = zoo.toys.exact_copy()
    profile = collect(toy.model, toy.batches)
    (images, labels), *_ = [batch[:2] for batch in toy.batches]
    with pytest.raises(DataError, match=r"damage needs labels from 0 to \d+, received "):
        ablate(toy.model, profile, [(images, labels + 9)], EVERY, SHARP, progress=False)
