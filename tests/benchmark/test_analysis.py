"""The statistics of a benchmark, on results with planted differences and against plain arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch

from channelscope import tables
from channelscope.benchmark.analysis import COLUMNS, agreement, analyze, paired
from channelscope.benchmark.grid import ORIGINAL, Trial
from channelscope.benchmark.score_curves import DRAWS, Protocol, Resampled, ScoreCurve, areas
from channelscope.errors import SampleError
from channelscope.formulas.resampling import bootstrap_mean, sign_flip
from channelscope.scores.registry import REGISTRY

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
