"""The table of scores, and what every score has in common."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from channelscope import scores
from channelscope.errors import InputError, SampleError, ShapeError
from channelscope.profiling.collect import collect
from channelscope.ranking import Ranking
from channelscope.scores.score import MATRICES, LayerStatistics
from channelscope.stats.profile import Profile
from channelscope.zoo import toys
from channelscope.zoo.toys import independent_channels
from measured import CHANNELS, SHARDS, images, network, profile


def test_the_table_has_a_row_per_channel_and_a_column_per_score():
    frame = scores.table(profile(), scores.REGISTRY)
    assert list(frame["site"]) == ["0"] * CHANNELS + ["3"] * 4
    assert list(frame["channel"]) == [*range(CHANNELS), *range(4)]
    for name, score in scores.REGISTRY.items():
        column = score(profile())
        np.testing.assert_array_equal(frame.loc[frame["site"] == "0", name], column.values["0"])
        assert frame.attrs["units"][name] == score.unit == column.unit
        assert frame.attrs["keeps"][name] == score.keeps == column.keeps
    assert (frame["note"] == "").all()


def test_the_assumption_is_said():
    said = scores.table(profile(), ["capture"], target="label", shrinkage=0.2).attrs["assumption"]
    assert f"n = {len(images()[1])} images" in said
    for words in ("positions(all)", "target label", "0.2", "median variance"):
        assert words in said
    assert "pseudo-replicated" in scores.table(profile(), ["capture"], preset="paper").attrs["assumption"]
    assert "target label, pooled;" in scores.table(profile(), ["capture"], preset="paper", target="label").attrs["assumption"]


def test_standard_errors_are_the_jackknife_over_shards():
    pixels, labels = images()
    index = torch.arange(len(labels))
    left_out = []
    for shard in range(SHARDS):
        keep = index % SHARDS != shard
        part = collect(network(), [(pixels[keep], labels[keep], index[keep])], "positions(all)", shards=0)
        left_out.append(scores.overlap(part).values["0"])
    center = np.mean(left_out, 0)
    expected = np.sqrt((SHARDS - 1) / SHARDS * ((left_out - center) ** 2).sum(0))
    frame = scores.table(profile(), ["overlap"], errors=True)
    np.testing.assert_allclose(frame.loc[frame["site"] == "0", "overlap_se"], expected, rtol=1e-3)
    assert frame.attrs["units"]["overlap_se"] == "nats"


def test_errors_need_shards():
    pixels, labels = images()
    with pytest.raises(SampleError, match="at least 2 shards"):
        scores.table(collect(network(), [(pixels, labels)], shards=0), ["overlap"], errors=True)


def pair_network(edit) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 3)).double()
    with torch.no_grad():
        edit(model[0].weight)
    return model


def seen(model: nn.Module):
    return collect(model, [images()], "positions(all)", shards=3)


def silence(weight):
    weight[2] = 0


def copy(weight):
    weight[4] = -3 * weight[1]


def test_a_silent_channel_is_nan_with_a_reason_in_every_statistical_score():
    frame = scores.table(seen(pair_network(silence)))
    row = frame[frame["channel"] == 2].iloc[0]
    for name in scores.DEFAULT_SCORES:
        assert np.isnan(row[name]), name
    assert "silent: it does not vary over the images" in row["note"]
    assert frame.loc[frame["channel"] != 2, list(scores.DEFAULT_SCORES)].notna().all(axis=None)


def test_an_exact_copy_is_inf_with_a_note():
    ranking = scores.overlap(seen(pair_network(copy)))
    assert np.isposinf(ranking.values["0"][[1, 4]]).all()
    assert "exact copy of 4" in ranking.notes["0"][1]
    assert "exact copy of 1" in ranking.notes["0"][4]
    assert np.isfinite(ranking.values["0"][[0, 2, 3, 5]]).all()


def test_copies_have_full_support_and_add_nothing_to_each_other():
    profile = seen(pair_network(copy))
    assert scores.support(profile).values["0"][[1, 4]] == pytest.approx(1, abs=2e-3)
    site = profile.site("0")
    layer = scores.LayerStatistics(profile, site, profile.record(site), scores.ScoreOptions())
    assert float(layer.pair_information[1, 4]) == pytest.approx(float(layer.task_information[1]), abs=1e-5)


def test_another_ridge_gives_another_support():
    toy = toys.suppressor_pair()
    given = collect(toy.model, toy.batches)
    site = given.site("conv")
    layer = LayerStatistics(given, site, given.record(site), scores.ScoreOptions())
    matrix, ridge = layer.correlation.double().numpy(), 0.5
    expected = []
    for channel in range(3):
        peers = [other for other in range(3) if other != channel]
        inner, across = matrix[np.ix_(peers, peers)], matrix[peers, channel]
        weights = np.linalg.solve(inner + ridge * np.eye(2), across)
        expected.append(weights @ across)
    np.testing.assert_allclose(scores.support(given, ridge=ridge)["conv"], expected, atol=1e-6)


def test_indexing_channels_commutes_with_measuring():
    whole = profile().record("0").preactivation
    some = torch.tensor([5, 0, 3])
    model = network()
    with torch.no_grad():
        thin = nn.Conv2d(2, 3, 3, padding=1).double()
        thin.weight.copy_(model[0].weight[some])
        thin.bias.copy_(model[0].bias[some])
    small = nn.Sequential(thin, nn.Flatten(), nn.ReLU(), nn.Linear(75, 3)).double()
    alone = collect(small, [images()], "positions(all)", shards=SHARDS).record("0").preactivation
    torch.testing.assert_close(whole[some].scatter, alone[:3].scatter, rtol=1e-6, atol=1e-6 * float(whole.scatter.max()))
    torch.testing.assert_close(whole[some].mean, alone[:3].mean)


@pytest.mark.parametrize("name", ["overlap", "support", "relevance", "excess", "compactness"])
@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_correlation_scores_do_not_feel_the_scale_of_a_channel(name, factor):
    def stretch(weight):
        weight[1:4] *= factor

    plain, stretched = (seen(pair_network(edit)) for edit in (lambda weight: None, stretch))
    score = scores.REGISTRY[name]
    stretched_values = score(stretched).values["0"]
    if name in ("relevance", "excess"):  # the logits change with the channel, so keep to the label
        np.testing.assert_allclose(
            score(plain, target="label").values["0"], score(stretched, target="label").values["0"], rtol=1e-3, atol=1e-6
        )
    else:
        np.testing.assert_allclose(score(plain).values["0"], stretched_values, rtol=1e-4)


def test_too_few_images_are_refused_by_the_score_and_said_in_the_table():
    pixels, labels = images()
    few = collect(network(), [(pixels[:5], labels[:5])], shards=0)
    with pytest.raises(SampleError, match=r"at 0: 5 images are too few to regress each of 7 channels .* shrinkage='oas'"):
        scores.support(few)
    frame = scores.table(few, ["support", "overlap"])
    assert set(frame.attrs["refused"]) == {"support at 0"}
    assert frame.loc[frame["site"] == "0", "support"].isna().all()
    assert frame.loc[frame["site"] == "3", "support"].notna().all()
    assert scores.support(few, shrinkage="oas").values["0"].max() <= 1
    with pytest.raises(SampleError, match="label target needs at least 6 images"):
        scores.relevance(few, target="label")


def test_what_was_not_collected_is_asked_for():
    pixels, labels = images()
    bare = collect(network(), [(pixels, labels)])
    with pytest.raises(InputError, match=r"sensitivity=True"):
        scores.fisher(bare)
    with pytest.raises(InputError, match=r"maps=True"):
        scores.chip(bare)
    with pytest.raises(InputError, match="no target is called magic; near matches: margin; there are: margin, correct_logit"):
        scores.relevance(bare, target="magic")
    unlabeled = collect(network(), [pixels])
    with pytest.raises(InputError, match="label target needs labels"):
        scores.relevance(unlabeled, target="label")
    assert np.isfinite(scores.relevance(unlabeled, target="top_margin").values["0"]).all()


def test_names_are_looked_up():
    assert [score.name for score in scores.lookup("overlap")] == ["overlap"]
    with pytest.raises(InputError, match=r"no score is called magic; there are: "):
        scores.lookup(["overlap", "magic"])


def test_a_ranking_says_what_it_is_and_refuses_what_does_not_fit():
    ranking = scores.overlap(profile(), preset="paper")
    assert ranking.name == "overlap(preset=paper)"
    assert (ranking.unit, ranking.keeps, ranking.family, ranking.input_shape) == ("nats", "low", "local", (2, 5, 5))
    with pytest.raises(ShapeError, match="has no values for site 0"):
        Ranking("x", "", "high", {}, ranking.sites, ranking.input_shape)


def test_random_is_a_function_of_seed_and_site():
    first, again, other = (scores.random(profile(), seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["0"], again["0"])
    assert (first["0"] != other["0"]).all()
    assert (first["0"][:4] != first["3"]).all()


class Bare(nn.Module):
    """Two convolutions, the second of which no layer reads: the classifier is a parameter."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)
        self.head = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return self.b(self.a(x).relu()).relu().mean((2, 3)) @ self.head


def test_without_a_reader_the_peer_residual_is_nan_with_the_reason():
    torch.manual_seed(0)
    ranking = scores.peer_residual(collect(Bare().double(), [images()]))
    assert np.isfinite(ranking["a"]).all()
    assert np.isnan(ranking["b"]).all()
    assert dict(ranking.notes["b"]) == dict.fromkeys(range(3), "no convolution or linear layer reads it")


def test_the_peer_residual_weighs_by_what_reads_behind_pooling_and_sums():
    """A channel whose readers outweigh all others is the last to go, and costs the square of its readers' weight."""

    def seen(factor):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(5, 3)).double()
        with torch.no_grad():
            model[4].weight[:, 2] *= factor
        return scores.peer_residual(collect(model, [images()]))["0"]

    once, twice = seen(1000), seen(2000)
    assert once.argmax() == 2
    assert twice[2] == pytest.approx(4 * once[2])
    np.testing.assert_allclose(np.delete(twice, 2), np.delete(once, 2))


def test_a_channel_shut_by_its_activation_has_no_peer_residual_and_says_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()
    with torch.no_grad():
        model[0].bias[1] = -1000
    ranking = scores.peer_residual(collect(model, [images()]))
    assert ranking.notes["0"] == {1: "silent: it does not vary at its cut point"}


def test_a_channel_without_a_hull_says_so():
    toy = independent_channels()
    ranking = scores.compactness(collect(toy.model, toy.batches))
    assert ranking.notes["conv"] == dict.fromkeys(range(5), "no peer explains it: its hull is empty")


def noted_records(monkeypatch) -> list[str]:
    """Sites whose records are unpacked from now on."""
    unpacked, record = [], Profile.record
    monkeypatch.setattr(Profile, "record", lambda self, site, shard=None: unpacked.append(site.name) or record(self, site, shard))
    return unpacked


def test_scores_asked_one_by_one_share_what_was_computed(monkeypatch):
    toy = toys.residual_pair()
    profile = collect(toy.model, toy.batches)
    names = [site.name for site in profile.sites]
    alone = [score(replace(profile))["inner"] for score in (scores.support, scores.nonreplaceable_task, scores.excess)]
    unpacked = noted_records(monkeypatch)
    together = [score(profile)["inner"] for score in (scores.support, scores.nonreplaceable_task, scores.excess)]
    assert unpacked == names
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    kept = LayerStatistics.of_all(profile, profile.site("inner"), scores.ScoreOptions())
    assert {"correlation", "peer_support", "task_information", "pair_information"} <= set(vars(kept))
    scores.support(profile, shrinkage=0.1)
    assert unpacked == 2 * names
    assert {options.shrinkage for _, options in profile.computed} == {0.1}
    assert (profile + collect(toy.model, [(x + 1, y) for x, y, *_ in toy.batches])).computed == {}


def test_what_is_kept_with_a_profile_has_a_limit(monkeypatch):
    toy = toys.residual_pair()
    profile = collect(toy.model, toy.batches)
    first, *rest = profile.sites
    monkeypatch.setattr("channelscope.scores.score.KEPT", 8 * MATRICES * first.channels**2)
    unpacked = noted_records(monkeypatch)
    again = [scores.support(profile), scores.overlap(profile)]
    assert [site for site, _ in profile.computed] == [first.name]
    assert unpacked == [first.name, *(site.name for site in rest), *(site.name for site in rest)]
    assert again[0].notes == scores.support(profile).notes
