"""What is said of damage: against loops, on planted cohorts, with intervals that cover."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata

import pencil_experiments as pencil
from channelscope.experiments.ablation_plan import (
    DAMAGE_QUANTITIES,
    AblationPlan,
    BootstrapDraws,
    Damage,
    Replacement,
    damage_summary,
    layer_damage,
)
from channelscope.experiments.ablation_tables import ALL, _matched, analyze, correlations

SCORES = ("relevance", "capture", "overlap", "support", "compactness", "excess", "unique")
GROUPS = 5
PLAN = AblationPlan(groups=GROUPS, draws=60)


def cohort(layers=4, channels=24, seed=0, noise=0.02, made=None):
    """Channels whose damage is a known function of their scores, and the tables an ablation study would have left."""
    source = np.random.default_rng(seed)
    replacements, damage, rows = {}, {}, []
    for layer in range(layers):
        site = f"layer{layer}"
        scores = {name: source.uniform(size=channels) for name in SCORES}
        silent, hull = made(scores, source) if made else (1 + scores["capture"], 0.25 * (1 + scores["capture"]))
        replacements[site], harms = [], []
        for channel in range(channels):
            for name, value in (("silence", silent[channel]), ("hull", hull[channel]), ("random", 0.5), ("mean", 1.0)):
                if name in ("silence", "hull") or channel % 2:
                    replacements[site].append(Replacement(name, channel))
                    harms.append(value + noise * source.standard_normal((len(DAMAGE_QUANTITIES), 4 * GROUPS)))
        damage[site] = Damage.of(torch.tensor(np.array(harms)), torch.arange(4 * GROUPS) % GROUPS, GROUPS)
        mean = damage[site].mean.numpy()
        places = {(each.name, each.channel): place for place, each in enumerate(replacements[site])}
        for channel in range(channels):
            row = {"site": site, "depth": layer, "channel": channel} | {name: scores[name][channel] for name in SCORES}
            for place, quantity in enumerate(DAMAGE_QUANTITIES):
                row[quantity] = mean[places["silence", channel], place]
                row[f"recovered_hull_{quantity}"] = 1 - mean[places["hull", channel], place] / row[quantity]
            rows.append(row)
    return pd.DataFrame(rows), replacements, damage


@pytest.fixture(scope="module")
def study():
    frame, replacements, damage = cohort()
    frame.loc[[2, 7], "overlap"] = np.nan
    frame.loc[3, "overlap"] = np.inf
    frame.loc[[5, 6], "recovered_hull_loss"] = np.nan
    return frame, analyze(frame, replacements, damage, PLAN)


def one(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


class TestCorrelations:
    @pytest.mark.parametrize("outcome", ["damage_loss", "damage_kl", "recovered_hull_loss"])
    @pytest.mark.parametrize("score", ["capture", "overlap", "unique"])
    def test_mean_over_layers_of_spearman(self, study, outcome, score):
        frame, tables = study
        column = outcome.removeprefix("damage_")
        expected = pencil.mean_spearman([(own[score].to_numpy(), own[column].to_numpy()) for _, own in frame.groupby("site")])
        row = one(tables["ablation_correlations"], outcome=outcome, score=score)
        assert row.rho == pytest.approx(expected, abs=1e-9)
        assert row.low <= row.rho <= row.high or abs(row.rho) > 0.9
        assert row.n == int((~(frame[score].isna() | frame[column].isna())).sum())

    def test_the_pooled_value_stands_beside(self, study):
        frame, tables = study
        row = one(tables["ablation_correlations"], outcome="damage_loss", score="relevance")
        assert row.pooled == pytest.approx(pencil.mean_spearman([(frame.relevance, frame.loss)]))

    def test_what_made_the_damage_is_found_and_the_rest_is_not(self, study):
        _, tables = study
        own = tables["ablation_correlations"].query("outcome == 'damage_loss'").set_index("score")
        assert own.loc["capture", "rho"] > 0.95
        assert own.loc["capture", "low"] > 0.8
        for name in ("relevance", "excess", "unique"):
            assert own.loc[name, "low"] < 0.1
            assert own.loc[name, "high"] > -0.1


class TestRepaid:
    def test_ratio_of_sums(self, study):
        frame, tables = study
        row = one(tables["recovered"], site="layer1", quantity="loss", replacement="hull", baseline="silence", subset="all")
        own = frame[frame.site == "layer1"]
        hull = (1 - own.recovered_hull_loss) * own.loss
        known = ~hull.isna()
        assert row.n == 24
        assert row.damage == pytest.approx(own.loss.mean())
        assert row.recovered == pytest.approx(1 - hull[known].sum() / own.loss[known].sum(), abs=0.01)
        assert row.recovered == pytest.approx(0.75, abs=0.01)
        assert row.low <= row.recovered <= row.high

    def test_controls_are_compared_on_the_same_channels(self, study):
        _, tables = study
        own = tables["recovered"].query("site == @ALL and quantity == 'kl'").set_index(["replacement", "baseline", "subset"])
        assert own.loc[("hull", "silence", "all"), "n"] == 96
        controls = own.drop(("hull", "silence", "all"))
        assert (controls.n == 48).all()
        assert own.loc[("mean", "silence", "controls"), "recovered"] == pytest.approx(1 - 1 / 1.5, abs=0.05)
        assert own.loc[("random", "mean", "controls"), "recovered"] == pytest.approx(0.5, abs=0.02)
        assert own.loc[("hull", "mean", "controls"), "recovered"] == pytest.approx(1 - 0.25 * 1.5, abs=0.05)

    def test_all_layers_is_the_ratio_of_all_sums(self, study):
        _, tables = study
        own = tables["recovered"].query("quantity == 'loss' and replacement == 'hull' and subset == 'all'")
        layers, whole = own[own.site != ALL], own[own.site == ALL].iloc[0]
        weights = layers.damage * layers.n
        assert whole.recovered == pytest.approx((layers.recovered * weights).sum() / weights.sum())


class TestMatched:
    def test_confounding_by_capture_goes_away_inside_the_bins(self):
        """Damage follows capture, and overlap follows capture too: overlap looks harmful until capture is matched."""

        def made(scores, source):
            scores["overlap"] = scores["capture"] + 0.15 * source.uniform(size=len(scores["capture"]))
            return 1 + scores["capture"], np.full(len(scores["capture"]), 0.5)

        frame, replacements, damage = cohort(6, 60, 1, made=made)
        tables = analyze(frame, replacements, damage, PLAN)
        plain = one(tables["ablation_correlations"], outcome="damage_loss", score="overlap").rho
        inside = one(tables["ablation_matched"], outcome="damage_loss", score="overlap", bin="all")
        assert plain > 0.9
        assert inside.rho < plain - 0.1
        partial = one(tables["ablation_partial"], outcome="damage_loss", score="overlap")
        assert partial.low < 0 < partial.high or abs(partial.rho) < 0.1

    def test_an_effect_at_equal_information_stays(self):
        def made(scores, _):
            return 2 + scores["capture"] + scores["relevance"] - scores["support"], np.ones(len(scores["support"]))

        frame, replacements, damage = cohort(5, 40, 2, made=made)
        tables = analyze(frame, replacements, damage, PLAN)
        assert one(tables["ablation_matched"], outcome="damage_kl", score="support", bin="all").high < -0.3
        partial = one(tables["ablation_partial"], outcome="damage_kl", score="support")
        assert partial.high < -0.5
        assert partial.rho < partial.plain

    def test_the_mean_over_bins_is_by_their_number_of_channels(self, study):
        _, tables = study
        own = tables["ablation_matched"].query("outcome == 'damage_loss' and score == 'support'")
        cells, whole = own[own.bin != "all"], own[own.bin == "all"].iloc[0]
        assert len(cells) == 9
        assert whole.n == cells[cells.rho.notna()].n.sum()
        assert whole.rho == pytest.approx(np.average(cells.rho.dropna(), weights=cells.n[cells.rho.notna()]))

    def test_a_draw_in_which_a_bin_is_constant_counts_the_other_bins_alone(self):
        """Of bins with few channels, many draws take one channel several times; two channels have no correlation."""
        frame, replacements, damage = cohort(1, 18)
        resamples = BootstrapDraws.of(GROUPS, 40, 0)
        (layer,) = layer_damage(frame, replacements, damage, resamples)
        row = next(r for r in _matched([layer], resamples) if (r["outcome"], r["score"], r["bin"]) == ("damage_loss", "support", "all"))
        third = {name: (rankdata(frame[name]) - 0.5) / 18 * 3 // 1 for name in ("relevance", "capture")}
        harm = layer.of("silence", "loss")
        means = []
        for draw in range(41):
            total = weight = 0.0
            for cell in range(9):
                inside = torch.tensor((third["relevance"] == cell // 3) & (third["capture"] == cell % 3))
                if inside.sum() < 3:
                    continue
                picks = resamples.picks(int(inside.sum()), cell)[draw]
                one, other = harm[draw, inside][picks], torch.tensor(frame["support"].to_numpy())[inside][picks]
                if len(set(picks.tolist())) > 1:
                    total += int(inside.sum()) * np.corrcoef(rankdata(one), rankdata(other))[0, 1]
                    weight += int(inside.sum())
            means.append(total / weight)
        assert [row["rho"], row["low"], row["high"]] == pytest.approx([means[0], *np.quantile(means[1:], [0.025, 0.975])])


class TestPartial:
    def test_either_of_the_two_quantities_is_held_equal_for_the_other_and_both_for_the_rest(self, study):
        _, tables = study
        own = tables["ablation_partial"].query("outcome == 'damage_loss'")
        assert dict(zip(own.score, own.given, strict=True)) == {
            "relevance": "capture",
            "capture": "relevance",
            **dict.fromkeys(("overlap", "support", "compactness", "excess", "unique"), "relevance capture"),
        }

    def test_mean_over_layers_of_residual_correlations(self, study):
        frame, tables = study
        row = one(tables["ablation_partial"], outcome="recovered_hull_loss", score="support")
        expected = []
        for _, own in frame.dropna(subset="recovered_hull_loss").groupby("site"):
            ranks = np.array([pencil.ranked(own[name].tolist()) for name in ("recovered_hull_loss", "support", "relevance", "capture")])
            expected.append(pencil.partial_correlation(ranks.T))
        assert row.rho == pytest.approx(np.mean(expected), abs=1e-6)
        assert (row.layers, row.n) == (4, 94)

    def test_a_layer_in_which_what_is_given_determines_the_damage_is_left_out(self):
        frame, replacements, damage = cohort(3, noise=0.0)
        row = one(analyze(frame, replacements, damage, PLAN)["ablation_partial"], outcome="damage_kl", score="support")
        assert (row.layers, row.n) == (0, 0)
        assert np.isnan(row.rho)

    def test_small_layers_have_none(self):
        frame, replacements, damage = cohort(2, 6)
        assert analyze(frame, replacements, damage, PLAN)["ablation_partial"].rho.isna().all()


class TestResamples:
    def test_draw_zero_is_the_data(self):
        resamples = BootstrapDraws.of(4, 10, 0)
        assert resamples.weights[0].tolist() == [1, 1, 1, 1]
        assert resamples.picks(5)[0].tolist() == [0, 1, 2, 3, 4]
        assert (resamples.weights.sum(1) == 4).all()
        assert resamples.picks(5).shape == (11, 5)
        assert not torch.equal(resamples.picks(5, 0), resamples.picks(5, 1))

    def test_damage_of_draw_zero_is_the_mean(self):
        damage = Damage.of(torch.randn(3, 4, 20, dtype=torch.float64), torch.arange(20) % 4, 4)
        torch.testing.assert_close(BootstrapDraws.of(4, 5, 0).damage(damage)[:, 0].T, damage.mean)

    def test_a_draw_of_images_is_a_weighted_mean(self):
        resamples = BootstrapDraws.of(4, 5, 3)
        harms = torch.randn(2, 4, 20, dtype=torch.float64)
        owners = torch.arange(20) % 4
        weights = resamples.weights[2][owners]
        expected = (harms * weights).sum(2) / weights.sum()
        torch.testing.assert_close(resamples.damage(Damage.of(harms, owners, 4))[:, 2].T, expected)

    def test_percentiles_and_when_there_are_none(self):
        said = damage_summary(torch.arange(102.0, dtype=torch.float64) - 1)
        assert list(said.values()) == pytest.approx([-1, 2.5, 97.5])
        lost = torch.full((11,), torch.nan)
        lost[:5] = 1
        assert np.isnan(damage_summary(lost)["low"])

    def test_intervals_cover_a_known_correlation(self):
        """Damage is capture plus as much noise of its own: Spearman's rho of the two is .69 over all channels there could be."""
        hits = 0
        for seed in range(12):
            frame, replacements, damage = cohort(
                2, 30, seed, made=lambda s, source: (3 + s["capture"] + source.uniform(size=30), np.ones(30))
            )
            resamples = BootstrapDraws.of(GROUPS, 80, seed)
            rows = {
                row["outcome"]: row for row in correlations(["capture"], layer_damage(frame, replacements, damage, resamples), resamples)
            }
            hits += rows["damage_kl"]["low"] <= 0.69 <= rows["damage_kl"]["high"]
        assert hits >= 9
