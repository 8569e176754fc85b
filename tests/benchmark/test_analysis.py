"""The statistics of a benchmark, on results with planted differences and against plain arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch

import pencil
from channelscope import tables
from channelscope.benchmark.analysis import (
    COLUMNS,
    DRAWS,
    Protocol,
    Resampled,
    ScoreCurve,
    _factorial,
    agreement,
    analyze,
    areas,
    common_budgets,
    flops_auc,
    paired,
)
from channelscope.benchmark.trial import ORIGINAL, Trial
from channelscope.errors import InputError, SampleError, ShapeError
from channelscope.formulas.intervals import bootstrap_mean, sign_flip
from channelscope.scores.score import REGISTRY

IMAGES = 400
BUDGETS = (0.8, 0.5, 0.3)
CHANCES = {"l2": 0.6, "l1": 0.55, "capture": 0.75, "random": 0.3, "relevance": 0.4}


def row(hits):
    return {"accuracy": float(hits.mean()), "loss": 1.0, "kept": 0.5, "parameters": 10, "images": len(hits), "hits": hits, "reason": ""}


def planted(seeds=(0, 1, 2), scores=CHANCES, rules=(("global", "none"),)):
    draw = np.random.default_rng(0)
    done = {ORIGINAL: row(draw.random(IMAGES) < 0.9)}
    for seed in seeds:
        for score, chance in scores.items():
            for allocation, repair in rules:
                for budget in BUDGETS:
                    done[Trial(seed, score, budget, allocation, repair)] = row(draw.random(IMAGES) < chance * budget**0.3)
    return done


def area_slowly(done, score, seed):
    """The trapezoid over 1, .8, .5, .3 kept, by hand."""
    y = [done[ORIGINAL]["accuracy"], *(done[Trial(seed, score, budget, "global", "none")]["accuracy"] for budget in BUDGETS)]
    return (0.2 * (y[0] + y[1]) / 2 + 0.3 * (y[1] + y[2]) / 2 + 0.2 * (y[2] + y[3]) / 2) / 0.7


def test_areas_are_trapezoids_of_the_mean_accuracy():
    done = planted()
    for area in areas(done):
        assert area.images.shape == (3, IMAGES)
        for place, seed in enumerate(area.seeds):
            assert area.images[place].mean() == pytest.approx(area_slowly(done, area.score, seed))
    frame = analyze(done)["benchmark_auc"]
    assert list(frame["score"]) == ["capture", "l2", "l1", "relevance", "random"]
    assert (frame["auc_low"] < frame["auc"]).all()
    assert (frame["auc"] < frame["auc_high"]).all()
    assert (frame["n"] == 3).all()
    assert (frame["spread"] > 0).all()


def test_differences_are_paired_and_corrected():
    frame = analyze(planted())["benchmark_paired"].set_index(["first", "second"])
    assert len(frame) == 10
    clear = frame.loc[("capture", "random")]
    assert clear["difference_low"] > 0
    assert clear["p_holm"] < 0.05
    assert clear["p_seeds"] == pytest.approx(0.25)  # three seeds cannot say more
    assert clear["effect"] > 1
    assert (frame["p_holm"] >= frame["p"]).all()
    assert (frame["difference"] >= 0).all()


def test_what_is_clear_stays_clear_among_many_pairs():
    names = [name for name in REGISTRY if name != "random"][:15]
    many = paired(areas(planted(scores={"random": 0.2, **dict.fromkeys(names, 0.8)}))).set_index(["first", "second"])
    assert len(many) == 120
    clear = many[[second == "random" for _, second in many.index]]
    assert (clear["p_holm"] <= 0.01).all()
    assert (many.drop(clear.index)["p_holm"] > 0.05).mean() > 0.9


def test_equal_scores_do_not_differ():
    done = planted(scores={"l2": 0.5})
    done |= {Trial(cell.seed, "l1", *list(cell.as_dict().values())[2:]): value for cell, value in done.items() if cell.score}
    (only,) = paired(areas(done)).to_dict("records")
    assert only["difference"] == 0
    assert only["p"] == 1
    assert math.isnan(only["effect"])


def test_one_seed_has_no_statistics_over_seeds():
    frames = analyze(planted(seeds=(4,)))
    assert frames["benchmark_auc"]["spread"].isna().all()
    assert frames["benchmark_paired"][["p_seeds", "effect"]].isna().all().all()
    assert frames["benchmark_paired"]["p"].notna().all()


def test_a_curve_with_a_hole_is_left_out():
    done = planted()
    lost = Trial(1, "l1", 0.5, "global", "none")
    nothing = {"images": 0, "hits": np.zeros(0, dtype=bool), "accuracy": math.nan, "reason": "cannot be met"}
    done[lost] = {**row(np.ones(1, dtype=bool)), **nothing}
    found = {area.score: area.seeds for area in areas(done)}
    assert found["l1"] == (0, 2)
    assert found["l2"] == (0, 1, 2)
    frames = analyze(done)
    left = frames["benchmark_left_out"]
    assert list(left["score"]) == ["l1"] * 3
    assert set(left["seed"]) == {1}
    assert set(left["note"]) == {"the score does not meet 0.5: cannot be met"}
    assert frames["benchmark"]["note"].str.contains("cannot").sum() == 1
    pairs = frames["benchmark_paired"]
    assert set(pairs[(pairs["first"] == "l1") | (pairs["second"] == "l1")]["n"]) == {2}


def continued(done, score, budgets):
    """The same results, of which one score has these budgets only."""
    return {cell: value for cell, value in done.items() if cell.score != score or cell.budget in budgets}


def test_a_folder_continued_with_other_budgets_uses_those_in_common_and_names_the_rest():
    done = continued(planted(), "l1", (0.8, 0.3))
    found = {area.score: area for area in areas(done)}
    assert set(found) == set(CHANCES)
    assert {area.budgets for area in found.values()} == {(0.8, 0.3)}
    y = [done[ORIGINAL]["accuracy"], *(done[Trial(1, "l2", budget, "global", "none")]["accuracy"] for budget in (0.8, 0.3))]
    assert found["l2"].images[1].mean() == pytest.approx((0.2 * (y[0] + y[1]) / 2 + 0.5 * (y[1] + y[2]) / 2) / 0.7)
    frames = analyze(done)
    assert set(frames["benchmark_auc"]["budgets"]) == {"0.8, 0.3"}
    left = frames["benchmark_left_out"]
    assert set(zip(left["score"], left["seed"], left["budget"], strict=True)) == {
        (name, seed, 0.5) for name in CHANCES if name != "l1" for seed in (0, 1, 2)
    }
    assert set(left["note"]) == {"not every score was measured at this budget: areas reach over 0.8, 0.3"}


def test_a_score_without_a_common_budget_is_named():
    done = continued(planted(), "l1", ())
    done[Trial(0, "l1", 0.7, "global", "none")] = row(np.ones(IMAGES, dtype=bool))
    assert {area.score for area in areas(done)} == set(CHANCES) - {"l1"}
    (only,) = analyze(done)["benchmark_left_out"].to_dict("records")
    assert (only["score"], only["budget"]) == ("l1", 0.7)
    assert only["note"] == "the score was not measured at 0.8, 0.5, 0.3"


def test_rules_that_rank_alike_agree():
    rules = (("global", "none"), ("uniform", "none"), ("global", "least_squares"))
    found = areas(planted(rules=rules))
    frame = agreement(found)
    assert len(frame) == 3
    assert (frame["spearman"] > 0.8).all()
    assert set(frame["scores"]) == {5}
    assert str(Protocol("global", "none", 3)) == "global, none, 3 epochs"
    factorial = analyze(planted(rules=rules))["benchmark_factorial"]
    assert set(factorial["axis"]) == {"size", "local", "target", "control"}
    sizes = factorial[factorial["axis"] == "size"]
    assert set(sizes["scores"]) == {2}
    assert len(sizes) == 3


def test_every_column_is_described_and_comes_back(tmp_path):
    rules = (("global", "none"), ("uniform", "none"))
    for name, frame in analyze(planted(rules=rules)).items():
        path = tables.write(tables.describe(frame, {"name": name, "columns": COLUMNS}), tmp_path / f"{name}.csv")
        again = tables.read(path)
        assert len(again) == len(frame)
        assert (len(frame) > 0) == (name != "benchmark_left_out")
        assert set(frame.columns) <= set(COLUMNS)


def test_nothing_to_analyze():
    with pytest.raises(SampleError, match="nothing has been measured"):
        analyze({})
    with pytest.raises(SampleError, match="unpruned"):
        analyze({Trial(0, "l2", 0.5, "global", "none"): row(np.ones(3, dtype=bool))})


def test_pairs_from_shared_resamples_are_those_of_each_pair_alone():
    """On numbers whose sums are exact, to the last digit; the third score lacks a seed."""
    draw = np.random.default_rng(1)
    found = [
        ScoreCurve(name, Protocol("global", "none", 0), BUDGETS, seeds, draw.integers(0, 9, (len(seeds), 64)) / 8)
        for name, seeds in {"l1": (0, 1), "l2": (0, 1), "capture": (1,)}.items()
    ]
    frame = paired(found)
    gaps = []
    for (one, two), row in zip(itertools.combinations(found, 2), frame.to_dict("records"), strict=True):
        seeds = [seed for seed in one.seeds if seed in two.seeds]
        gap = sum(one.images[one.seeds.index(seed)] - two.images[two.seeds.index(seed)] for seed in seeds) / len(seeds)
        alone = bootstrap_mean(torch.from_numpy(gap), DRAWS)
        assert (row["first"], row["second"], row["n"]) == (one.score, two.score, len(seeds))
        assert (row["difference"], row["difference_low"], row["difference_high"]) == (alone.value, alone.low, alone.high)
        gaps.append(gap)
    assert frame["p"].tolist() == sign_flip(torch.from_numpy(np.stack(gaps)), DRAWS).tolist()
    resampled = Resampled(found)
    lows, highs = resampled.intervals([resampled.mixture(area) for area in found])
    for area, low, high in zip(found, lows, highs, strict=True):
        alone = bootstrap_mean(torch.from_numpy(area.images.mean(0)), DRAWS)
        assert (low, high) == (alone.low, alone.high)


NONE, BATCHNORM = Protocol("global", "none", 0), Protocol("global", "batchnorm", 0)


def flat(score, protocol, *aucs, images=4):
    """A curve whose images all have the same share of the area, one value a seed."""
    return ScoreCurve(score, protocol, (0.5,), tuple(range(len(aucs))), np.repeat(np.array(aucs)[:, None], images, 1))


def exact(frame, *columns):
    return frame[list(columns)].round(6).to_numpy().tolist()


class TestExactValues:
    """Four images of which the unpruned network has all and the pruned one three: every number by hand."""

    HITS = np.array([True, True, True, False])

    def done(self):
        done = {ORIGINAL: row(self.HITS | True)}
        for seed, hits in ((0, self.HITS), (1, self.HITS & False)):
            done[Trial(seed, "l1", 0.5, "global", "none")] = row(hits)
        return done

    def test_area_and_spread_over_seeds(self):
        (auc,) = analyze(self.done())["benchmark_auc"].to_dict("records")
        assert auc["auc"] == (0.875 + 0.5) / 2
        assert auc["spread"] == pytest.approx(0.375 / 2**0.5)
        assert (auc["n"], auc["images"], auc["budgets"], auc["axis"]) == (2, 4, "0.5", "size")
        assert (auc["auc_low"], auc["auc_high"]) == (0.5625, 0.75)  # the lost image in 3 of 4 draws, and in none

    def test_accuracy_has_a_wilson_interval(self):
        frame = analyze(self.done())["benchmark"]
        assert exact(frame, "seed", "accuracy", "accuracy_low", "accuracy_high") == [
            [0, 1.0, 0.510109, 1.0],
            [0, 0.75, 0.300642, 0.954413],
            [1, 0.0, 0.0, 0.489891],
        ]

    def test_rows_are_sorted_by_seed_score_protocol_and_budget_descending_where_equal(self):
        done = {ORIGINAL: row(self.HITS)}
        for repair, epochs in (("scratch", 1), ("least_squares", 0), ("none", 1), ("none", 0)):
            done[Trial(0, "l1", 0.5, "global", repair, epochs)] = row(self.HITS)
        done[Trial(0, "l1", 0.5, "as(l2)", "none")] = row(self.HITS)
        frame = analyze(done)["benchmark"]
        assert list(zip(frame["allocation"], frame["repair"], frame["epochs"], strict=True))[1:] == [
            ("global", "none", 0),
            ("global", "none", 1),
            ("global", "least_squares", 0),
            ("global", "scratch", 1),
            ("as(l2)", "none", 0),
        ]

    def test_differences_are_first_minus_second_over_shared_seeds(self):
        frame = paired([flat("l1", NONE, 0.5, 0.7), flat("l2", NONE, 0.2, 0.5)])
        assert exact(frame, "difference", "difference_low", "difference_high", "n", "images") == [[0.25, 0.25, 0.25, 2, 4]]
        assert frame["effect"].item() == pytest.approx(0.25 / (0.05 * 2**0.5))
        assert frame["p"].item() == 2 / 2**4  # four images: only all signs alike are as far from zero
        assert frame["p_seeds"].item() == 1 / 2

    def test_pairs_are_corrected_within_a_protocol(self):
        curves = [flat(name, protocol, auc) for protocol in (NONE, BATCHNORM) for name, auc in (("l1", 0.5), ("l2", 0.4), ("fpgm", 0.3))]
        frame = paired(curves)
        assert list(zip(frame["first"], frame["second"], frame["repair"], strict=True)) == [
            (first, second, repair) for repair in ("none", "batchnorm") for first, second in (("l1", "l2"), ("l1", "fpgm"), ("l2", "fpgm"))
        ]
        assert exact(frame, "p", "p_holm") == [[0.125, 0.375]] * 6

    def test_factorial_is_the_mean_over_the_scores_of_a_family(self):
        found = [flat("l1", NONE, 0.5), flat("l2", NONE, 0.3), flat("capture", NONE, 0.6)]
        frame = _factorial(found, Resampled(found))
        assert exact(frame, "auc", "auc_low", "auc_high", "scores", "images") == [[0.6, 0.6, 0.6, 1, 4], [0.4, 0.4, 0.4, 2, 4]]
        assert list(frame["axis"]) == ["local", "size"]

    @pytest.mark.parametrize(("shared", "rows"), [(3, 0), (4, 1)])
    def test_agreement_needs_four_shared_scores(self, shared, rows):
        names = ("l1", "l2", "fpgm", "random")[:shared]
        found = [flat(name, NONE, place / 10) for place, name in enumerate(names)]
        found += [flat(name, BATCHNORM, -place / 10) for place, name in enumerate(names)]
        frame = agreement(found)
        assert exact(frame, "spearman", "scores") == [[-1.0, 4]] * rows

    def test_equally_frequent_budgets_go_to_the_largest(self):
        assert common_budgets({("l1", 0): {0.5: {}}, ("l2", 0): {0.8: {}}}) == (0.8,)

    def test_curves_are_sorted_by_protocol_area_and_name(self):
        done = {ORIGINAL: row(self.HITS | True)}
        for score, hits in (("l2", self.HITS), ("l1", self.HITS), ("random", self.HITS | True)):
            done[Trial(0, score, 0.5, "global", "batchnorm")] = row(hits)
        done[Trial(0, "random", 0.5, "global", "none")] = row(self.HITS)
        assert [(curve.rule.repair, curve.score) for curve in areas(done)] == [
            ("none", "random"),
            ("batchnorm", "random"),
            ("batchnorm", "l1"),
            ("batchnorm", "l2"),
        ]


def test_flops_auc_twin_and_constants():
    removed = [0.0, 0.1, 0.35, 0.7]
    accuracy = [0.9, 0.88, 0.6, 0.1]
    assert flops_auc(torch.tensor(removed), torch.tensor(accuracy)) == pytest.approx(pencil.flops_auc(removed, accuracy), rel=1e-6)
    assert flops_auc(torch.tensor(removed), torch.full((4,), 0.5)) == pytest.approx(0.5)
    shuffled = [2, 0, 3, 1]
    again = flops_auc(torch.tensor(removed)[shuffled], torch.tensor(accuracy)[shuffled])
    assert again == pytest.approx(pencil.flops_auc(removed, accuracy), rel=1e-6)


def test_flops_auc_to_a_common_budget():
    removed, accuracy = torch.tensor([0.0, 0.4, 0.8]), torch.tensor([1.0, 0.6, 0.2])
    assert flops_auc(removed, accuracy, 0.4) == pytest.approx(0.8)
    assert flops_auc(removed, accuracy, 0.6) == pytest.approx(0.7)
    for wrong in (0.0, 0.9, -1):
        with pytest.raises(InputError, match="upto"):
            flops_auc(removed, accuracy, wrong)


@pytest.mark.parametrize("removed", [[0.1, 0.4, 0.8], [0.0, 0.4, 0.4], [0.0, math.nan, 0.4]])
def test_flops_auc_refuses_a_curve_without_its_start(removed):
    with pytest.raises(InputError, match="unpruned"):
        flops_auc(torch.tensor(removed), torch.tensor([1.0, 0.6, 0.2]))


def test_flops_auc_needs_pairs():
    with pytest.raises(InputError, match="unpruned"):
        flops_auc(torch.tensor([0.0]), torch.tensor([1.0]))
    with pytest.raises(ShapeError, match="2 budgets"):
        flops_auc(torch.tensor([0.0, 0.1]), torch.tensor([1.0]))
