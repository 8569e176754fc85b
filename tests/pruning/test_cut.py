"""cut meets the budget for every score and allocation, in the order of the score, and says what it cannot do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from channelscope.errors import BudgetError, InputError, MismatchError
from channelscope.network.cost import MacCounter, cost, macs
from channelscope.network.removal.groups import groups
from channelscope.pruning.cut import cut, group_importance, refuse_out_of_reach, shrink
from channelscope.ranking import Ranking
from channelscope.subset import Subset
from networks import built
from pencil_pruning import cut_slowly

NETS = {}


def net(name: str):
    if name not in NETS:
        model, shape = built(name)
        NETS[name] = groups(model, torch.zeros(1, *shape))
    return NETS[name]


def ranking(found, seed=0, keeps="high", **planted) -> Ranking:
    draw = np.random.default_rng(seed)
    values = {site.name: np.exp(draw.normal(size=site.channels)) for site in found.sites}
    for name, (channel, value) in planted.items():
        values[name.replace("_", ".")][channel] = value
    return Ranking("planted", "", keeps, values, found.sites, tuple(found.example[0].shape[1:]))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "regnety_002", "densenet121", "convnext_tiny"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "as"])
@pytest.mark.parametrize("fraction", [0.7, 0.5])
def test_the_budget_is_met_from_below_within_one_group(name, allocation, fraction):
    found = net(name)
    score = ranking(found)
    kept = cut(score, found, macs=fraction, allocation=ranking(found, seed=1) if allocation == "as" else allocation)
    full, spent = MacCounter(found).total, macs(found, kept)
    assert spent <= fraction * full
    ledger = MacCounter(found)
    gone = np.flatnonzero(~found.kept(kept)).tolist()
    for group in gone:
        ledger.remove(group)
    cheapest = full
    for group in gone:
        cheapest = min(cheapest, ledger.add(group))
        ledger.remove(group)
    assert fraction * full - spent <= max(0.005 * fraction * full, cheapest)
    for site in found.sites:
        assert int(kept[site.name].sum()) >= max(1, np.ceil(0.05 * site.channels))


def chain(widths=(6, 8, 10)) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 4, 1), nn.Flatten()).eval()


CHAIN = groups(chain(), torch.zeros(1, 3, 8, 8))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.25, 1), st.sampled_from(["mean", "none", "zscore"]), st.sampled_from(["global", "uniform"]))
def test_the_same_as_a_slow_loop(seed, fraction, normalize, allocation):
    score = ranking(CHAIN, seed, keeps="low" if seed % 2 else "high")
    kept = cut(score, CHAIN, macs=fraction, allocation=allocation, normalize=normalize)
    expected = cut_slowly(score, CHAIN, fraction, allocation, normalize)
    assert {name: kept[name].tolist() for name in kept} == expected


def test_a_threshold_then_what_still_fits():
    score = ranking(CHAIN)
    kept = cut(score, CHAIN, macs=0.5)
    values = group_importance(score, CHAIN)
    alive = CHAIN.kept(kept)
    below = np.flatnonzero(alive & (values < values[~alive].max()))
    ledger = MacCounter(CHAIN)
    for group in [*np.flatnonzero(~alive), *below]:
        ledger.remove(int(group))
    assert ledger.total <= 0.5 * MacCounter(CHAIN).total
    assert len(below) < len(alive) / 4


def test_normalizing_within_layers_makes_scale_irrelevant_and_none_does_not():
    score = ranking(CHAIN)
    louder = Ranking("louder", "", "high", {**score.values, "2": score["2"] * 1000}, score.sites, score.input_shape)
    assert cut(score, CHAIN) == cut(louder, CHAIN)
    assert cut(score, CHAIN, normalize="zscore") == cut(louder, CHAIN, normalize="zscore")
    assert bool(cut(louder, CHAIN, macs=0.5, normalize="none")["2"].all())


def test_low_keeps_the_low_end():
    score = ranking(CHAIN)
    turned = Ranking("turned", "", "low", {name: -values for name, values in score.values.items()}, score.sites, score.input_shape)
    assert cut(score, CHAIN) == cut(turned, CHAIN)
    lowest = cut(Ranking("low", "", "low", score.values, score.sites, score.input_shape), CHAIN, allocation="uniform")
    for site in CHAIN.sites[:3]:
        kept = lowest[site.name].numpy()
        assert score[site.name][kept].mean() < score[site.name][~kept].mean()


def test_silent_channels_go_first_and_infinite_ones_last_or_first():
    spoiled = ranking(CHAIN, **{"2": (3, np.nan), "4": (7, np.inf)})
    kept = cut(spoiled, CHAIN, macs=0.95)
    assert not kept["2"][3]
    assert kept["4"][7]
    assert bool(cut(spoiled, CHAIN, macs=0.35)["4"][7])
    redundant = ranking(CHAIN, keeps="low", **{"4": (7, np.inf)})
    assert not cut(redundant, CHAIN, macs=0.97)["4"][7]
    assert np.isfinite(group_importance(redundant, CHAIN)).sum() == len(CHAIN) - 1


def test_uniform_takes_the_same_fraction_of_every_layer():
    found = net("resnet50")
    kept = cut(ranking(found), found, macs=0.4, allocation="uniform")
    fractions = np.array([float(kept[site.name].float().mean()) for site in found.sites if site.channels >= 32])
    assert fractions.max() - fractions.min() < 0.08


def test_as_takes_the_counts_of_one_score_and_the_choice_of_another():
    first, second = ranking(CHAIN, 0), ranking(CHAIN, 1)
    pattern, kept = cut(first, CHAIN, macs=0.5), cut(second, CHAIN, macs=0.5, allocation=first)
    assert [int(kept[site.name].sum()) for site in CHAIN.sites] == [int(pattern[site.name].sum()) for site in CHAIN.sites]
    assert kept != pattern
    assert cut(first, CHAIN, macs=0.5, allocation=first) == pattern
    for site in CHAIN.sites[:3]:
        alive = kept[site.name].numpy()
        assert second[site.name][alive].min() > second[site.name][~alive].max() if not alive.all() else True


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.head(self.a(x) + self.b(x)).flatten(1)


def test_group_scores_by_hand():
    found = groups(Pair().eval(), torch.zeros(1, 3, 4, 4))
    values = {"a": np.array([1.0, 2.0, np.nan]), "b": np.array([4.0, np.nan, np.nan])}
    score = Ranking("hand", "", "high", values, found.sites, (3, 4, 4))
    np.testing.assert_allclose(group_importance(score, found, normalize="none"), [2.5, 2, np.nan])
    np.testing.assert_allclose(group_importance(score, found, normalize="none", reduce="sum"), [5, 2, np.nan])
    np.testing.assert_allclose(group_importance(score, found, normalize="none", reduce="max"), [4, 2, np.nan])
    np.testing.assert_allclose(group_importance(score, found), [(1 / 1.5 + 1) / 2, 2 / 1.5, np.nan])
    np.testing.assert_allclose(group_importance(score, found, normalize="zscore"), [-0.5, 1, np.nan])
    assert cut(score, found, macs=0.9)["a"].tolist() == [True, True, False]


def test_bad_input_says_what_to_do():
    found, score = CHAIN, ranking(CHAIN)
    with pytest.raises(BudgetError, match=r"the smallest budget is 0\.\d\d\d"):
        cut(score, found, macs=0.001)
    with pytest.raises(BudgetError, match="kept whole") as caught:
        cut(score, found, macs=0.5, cap=0.1)
    smallest = float(str(caught.value).split("smallest budget is ")[1].split()[0])
    assert isinstance(cut(score, found, macs=smallest, cap=0.1), Subset)
    for word, value in (("macs", 0), ("macs", 1.2), ("cap", 2), ("allocation", "best"), ("normalize", "rank"), ("reduce", "min")):
        with pytest.raises(InputError, match=word):
            cut(score, found, **{word: value})
    few = Ranking("few", "", "high", {"0": score["0"]}, score.sites[:1], score.input_shape)
    with pytest.raises(MismatchError, match="no values for 2"):
        cut(few, found)
    other = groups(chain((6, 8, 11)), torch.zeros(1, 3, 8, 8))
    with pytest.raises(MismatchError, match="10 channels at 4, the network 11"):
        cut(score, other)


class Hybrid(nn.Module):
    """A convolutional stem before an attention layer to which a key of zeros is added, so that it is kept whole."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3, 2, 1))
        self.enc = nn.MultiheadAttention(48, 4, batch_first=True, add_zero_attn=True)
        self.fc = nn.Linear(48, 10)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        attended, weights = self.enc(tokens, tokens, tokens)
        return self.fc(attended.mean(1)) + weights.mean((1, 2))[:, None]


class Attending(Hybrid):
    """The same, without the key of zeros and without using the weights."""

    def __init__(self):
        super().__init__()
        self.enc = nn.MultiheadAttention(48, 4, batch_first=True)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.fc(self.enc(tokens, tokens, tokens)[0].mean(1))


STEM, ENCODER, FC = 256 * 27 * 32 + 64 * 32 * 9 * 48, 64 * (48 * 144 + 48 * 48) + 2 * 64 * 65 * 48, 480


def test_what_is_not_followed_counts_and_a_budget_out_of_reach_is_refused():
    torch.manual_seed(0)
    model, image = Hybrid().eval(), torch.zeros(1, 3, 32, 32)
    found = groups(model, image)
    full = STEM + ENCODER + FC
    assert cost(model, image).total_macs == MacCounter(found).total == full
    score = ranking(found)
    small = shrink(found, cut(score, found, macs=0.8))
    assert full * 0.8 - 69_000 < cost(small, image).total_macs <= full * 0.8
    least = float(np.ceil((full - 30 * STEM / 32) / full * 1000) / 1000)
    with pytest.raises(BudgetError, match=rf"0.5 of {full:,} multiply-adds cannot be met; the smallest budget is {least}") as caught:
        cut(score, found, macs=0.5)
    assert f"enc holds {ENCODER / (full - 30 * STEM / 32):.0%}, stem.3 holds 5%, stem.0 holds 1%; at most 0.95" in str(caught.value)
    with pytest.raises(BudgetError, match="enc holds"):
        refuse_out_of_reach(found, 0.3)
    refuse_out_of_reach(found, 0.7)
    nearest = cut(score, found, macs=0.5, closest=True)
    assert nearest == cut(score, found, macs=least) != cut(score, found, macs=0.8)
    assert cost(shrink(found, nearest), image).total_macs == macs(found, nearest) == full - 30 * STEM // 32
    assert cut(score, found, macs=0.5, allocation=score, closest=True) == nearest


def test_channels_that_attention_reads_go_and_its_multiply_adds_are_counted():
    model, image = Attending().eval(), torch.zeros(1, 3, 32, 32)
    found = groups(model, image)
    assert found.unprunable == {}
    kept = found.to_subset(np.arange(len(found)) % 4 != 3)
    first, second, inside, out = (int(kept[name].sum()) for name in ("stem.0", "stem.3", "enc.in_proj", "enc.out_proj"))
    assert (first, second, inside, out) == (24, 36, 108, 36)
    attended = 64 * (second * inside + inside // 3 * out) + 2 * 64 * 64 * inside // 3
    assert cost(shrink(found, kept), image).total_macs == macs(found, kept)
    assert macs(found, kept) == 256 * 27 * first + 64 * first * 9 * second + attended + 10 * out


def test_everything_fits_a_whole_budget_and_a_model_may_be_given_itself():
    model = chain()
    score = ranking(CHAIN)
    assert cut(score, model, macs=1.0).fraction == 1
    assert cut(score, model, macs=0.5) == cut(score, CHAIN, macs=0.5)


@pytest.mark.parametrize("value", [0.1, 0.7, 1.1])
def test_a_layer_of_equal_scores_has_zscores_of_zero(value):
    found = groups(Pair().eval(), torch.zeros(1, 3, 4, 4))
    score = Ranking("flat", "", "high", {"a": np.full(3, value), "b": np.full(3, value)}, found.sites, (3, 4, 4))
    np.testing.assert_array_equal(group_importance(score, found, normalize="zscore"), [0, 0, 0])


def test_a_budget_below_the_cap_is_refused_before_anything_is_ranked():
    """Of 40 channels at most 38 may go, so 0.05 of the multiply-adds stay; with a cap of half of them, half."""
    model = nn.Sequential(nn.Conv2d(3, 40, 1), nn.ReLU(), nn.Conv2d(40, 2, 1), nn.Flatten()).eval()
    found = groups(model, torch.zeros(1, 3, 4, 4))
    refuse_out_of_reach(found, 0.05)
    with pytest.raises(BudgetError, match=r"0\.04 of 3,200 multiply-adds cannot be met; the smallest budget is 0\.050"):
        refuse_out_of_reach(found, 0.04)
    refuse_out_of_reach(found, 0.5, cap=0.5)
    with pytest.raises(BudgetError, match=r"the smallest budget is 0\.500"):
        refuse_out_of_reach(found, 0.49, cap=0.5)
