"""What the report says, in every case it may have to say it."""

import math
import re

import pandas as pd
import pytest

from channelscope import tables
from channelscope.report import verdict
from channelscope.report.sections.axes import by_depth, change_with_depth, cluster_sentences, layer_alignment, mass_sentences
from channelscope.tables.run_folder import RunFolder
from report.folders import FACTS, means, tiny

NAN = math.nan
TRAINED = {"stages": ["trained"]}
BOTH = {"stages": ["initialization", "trained"]}
PAIR = ("trained", "capture", "relevance")


@pytest.mark.parametrize(
    ("rho", "words"),
    [
        (0.05, "almost unrelated, slightly aligned"),
        (-0.06, "almost unrelated, slightly opposed"),
        (0.1, "weakly aligned"),
        (0.29, "weakly aligned"),
        (0.3, "moderately aligned"),
        (0.69, "clearly aligned"),
        (0.9, "strongly aligned"),
        (1.0, "strongly aligned"),
        (-0.2, "weakly opposed"),
        (-0.8, "strongly opposed"),
    ],
)
def test_words_for_the_size_of_a_correlation(rho, words):
    assert verdict.strength(rho) == words


@pytest.mark.parametrize(
    ("rho", "low", "high", "sentence"),
    [
        (
            0.21,
            0.12,
            0.30,
            "Within layers, input capture and task information are weakly aligned: mean Spearman 0.21 [0.12, 0.30] (n = 19 layers).",
        ),
        (
            -0.6,
            -0.7,
            -0.5,
            "Within layers, input capture and task information are clearly opposed: mean Spearman −0.60 [−0.70, −0.50] (n = 19 layers).",
        ),
        (
            0.04,
            -0.05,
            0.12,
            "Within layers, input capture and task information are not visibly aligned: "
            "mean Spearman 0.04 [−0.05, 0.12] (n = 19 layers), an interval that covers 0.",
        ),
        (
            0.5,
            NAN,
            NAN,
            "Within layers, input capture and task information have a mean Spearman correlation of 0.50 [no interval] (n = 19 layers): "
            "too few layers for an interval.",
        ),
        (NAN, NAN, NAN, "The alignment of input capture and task information is undefined: no layer has two or more channels with both."),
    ],
)
def test_the_answer(rho, low, high, sentence):
    assert verdict.answer(means((*PAIR, rho, low, high)), TRAINED) == sentence


def test_one_layer_is_singular():
    assert "(n = 1 layer)" in verdict.answer(means((*PAIR, 0.5, NAN, NAN), n=1), TRAINED)


def test_an_interval_that_ends_at_zero_covers_it():
    assert "covers 0" in verdict.answer(means((*PAIR, 0.2, 0.0, 0.4)), TRAINED)


def test_without_alignment_it_says_so():
    assert verdict.answer(None, TRAINED) == "Alignment of the two axes was not measured in this run."
    assert verdict.verdict(None, TRAINED) == "Whether the two axes are aligned was not measured"
    assert verdict.pairs(None, TRAINED) == verdict.pooled(None, TRAINED) == verdict.training(None, BOTH) == []


def test_the_answer_is_about_the_last_stage():
    frame = means(("initialization", "capture", "relevance", 0.9, 0.8, 1.0), (*PAIR, 0.2, 0.1, 0.3))
    assert "weakly aligned" in verdict.answer(frame, BOTH)
    assert "weakly aligned" in verdict.answer(frame, {}), "without facts, the last stage of the table"


@pytest.mark.parametrize(
    ("rows", "heading"),
    [
        ([(0.2, 0.1, 0.3), (0.05, -0.1, 0.2)], "Here the two axes are weakly aligned"),
        (
            [(0.2, 0.1, 0.3), (-0.6, -0.7, -0.5)],
            "Here the two axes are weakly aligned in one pair of quantities and clearly opposed in another",
        ),
        ([(0.2, -0.1, 0.5), (0.05, -0.1, 0.2)], "Here the two axes are not visibly aligned"),
        ([(0.2, 0.1, 0.3), (0.9, -0.1, 1.0)], "Here the two axes are weakly aligned"),
        ([(0.2, 0.1, 0.3), (0.25, 0.1, 0.4)], "Here the two axes are weakly aligned"),
        ([(-0.05, -0.08, -0.02), (0.02, -0.1, 0.1)], "Here the two axes are almost unrelated, slightly opposed"),
        ([(0.2, 0.1, 0.3), (0.4, 0.3, 0.5)], "Here the two axes are weakly to moderately aligned"),
        ([(0.06, 0.03, 0.09), (0.102, 0.06, 0.15)], "Here the two axes are almost unrelated, at most weakly aligned"),
        ([(0.02, -0.1, 0.1), (-0.4, -0.5, -0.3)], "Here the two axes are not visibly aligned, at most moderately opposed"),
        ([(0.02, -0.1, 0.1), (-0.05, -0.08, -0.02)], "Here the two axes are almost unrelated"),
        ([(0.2, NAN, NAN)], "How the two axes are aligned here is not sure: there is no interval"),
        ([(NAN, NAN, NAN)], "Whether the two axes are aligned was not measured"),
    ],
)
def test_the_heading_says_the_answer_and_the_strongest_sure_pair(rows, heading):
    pairs = [("capture", "relevance"), ("overlap", "relevance")]
    frame = means(*(("trained", *pair, *row) for pair, row in zip(pairs, rows, strict=False)))
    assert verdict.verdict(frame, TRAINED) == heading


def test_other_pairs_do_not_make_the_heading():
    frame = means((*PAIR, 0.05, -0.1, 0.2), ("trained", "rayleigh", "unique", 0.9, 0.8, 1.0))
    assert verdict.verdict(frame, TRAINED) == "Here the two axes are not visibly aligned"


def test_what_the_other_pairs_add():
    strongest = ("trained", "overlap", "excess", -0.5, -0.6, -0.4)
    assert verdict.pairs(means((*PAIR, 0.2, -0.1, 0.5), strongest), TRAINED) == [
        "Of the 2 pairs below, the strongest is peer overlap with target excess, −0.50 [−0.60, −0.40] (n = 19 layers); "
        "1 of their intervals covers 0."
    ]
    assert verdict.pairs(means((*PAIR, 0.7, 0.6, 0.8), strongest), TRAINED) == [
        "Of the 2 pairs below, this one is the strongest; none of their intervals cover 0."
    ]
    covered = means((*PAIR, 0.1, -0.1, 0.3), ("trained", "overlap", "excess", 0.05, -0.1, 0.2))
    assert verdict.pairs(covered, TRAINED) == ["The intervals of all 2 pairs cover 0; this one is the strongest."]
    assert verdict.pairs(means((*PAIR, 0.1, -0.1, 0.3)), TRAINED) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            (0.7, 0.6, 0.8),
            (0.2, 0.1, 0.3),
            "was 0.70 [0.60, 0.80] (n = 19 layers): training lowered it by 0.50, and the two intervals do not overlap.",
        ),
        ((0.2, 0.1, 0.3), (0.7, 0.6, 0.8), "training raised it by 0.50, and the two intervals do not overlap."),
        ((0.3, 0.1, 0.5), (0.2, 0.1, 0.3), "; the two intervals overlap, so a change with training is not established."),
        ((0.3, NAN, NAN), (0.2, 0.1, 0.3), "; without intervals the change cannot be judged."),
    ],
)
def test_what_training_did(before, after, said):
    frame = means(("initialization", "capture", "relevance", *before), (*PAIR, *after))
    (sentence,) = verdict.training(frame, BOTH)
    assert sentence.startswith("At initialization the same mean was ")
    assert sentence.endswith(said)


def test_training_needs_two_measured_stages():
    one = means((*PAIR, 0.2, 0.1, 0.3))
    assert verdict.training(one, TRAINED) == verdict.training(one, BOTH) == []
    assert verdict.training(means(("initialization", "capture", "relevance", NAN, NAN, NAN), (*PAIR, 0.2, 0.1, 0.3)), BOTH) == []


def test_the_pooled_value_never_stands_alone():
    (sentence,) = verdict.pooled(means((*PAIR, 0.2, 0.1, 0.3), pooled=0.45), TRAINED)
    assert sentence.startswith("Over the channels of all layers at once it is 0.45, which mixes")
    assert verdict.pooled(means((*PAIR, NAN, NAN, NAN), pooled=0.45), TRAINED) == []
    assert verdict.pooled(means((*PAIR, 0.2, 0.1, 0.3), pooled=NAN), TRAINED) == []


def alignment(*rows: tuple[str, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"stage": "trained", "site": site, "local": "capture", "target": "relevance", "rho": rho, "low": low, "high": high, "n": 64}
            for site, rho, low, high in rows
        ]
    )


def test_layers_from_least_to_most():
    said = layer_alignment(alignment(("a", 0.5, 0.4, 0.6), ("b", -0.1, -0.3, 0.1), ("c", NAN, NAN, NAN)), TRAINED)
    assert said == [
        "Layer by layer, input capture and task information correlate from −0.10 [−0.30, 0.10] (n = 64 channels) in b "
        "to 0.50 [0.40, 0.60] (n = 64 channels) in a.",
        "In 1 of 2 layers the interval over images leaves out 0.",
    ]


def test_layers_without_shards_have_no_intervals():
    (said,) = layer_alignment(alignment(("a", 0.5, NAN, NAN), ("b", -0.1, NAN, NAN)), TRAINED)
    assert said.endswith("There are no intervals over images: the profile has no shards.")
    assert layer_alignment(alignment(("a", 0.5, 0.4, 0.6)), TRAINED) == []
    assert layer_alignment(None, TRAINED) == []


def test_groupings():
    rows = [{"stage": "trained", "ari": ari, "null_high": 0.1} for ari in (0.5, 0.05, -0.02, NAN)]
    said = cluster_sentences(pd.DataFrame(rows), TRAINED)
    assert "median adjusted Rand index of 0.05 (range −0.02 to 0.50, n = 3 layers)" in said[0]
    assert said[1] == "In 1 of 3 layers they agree more than 95 % of shuffled clusters; by chance about 0.2 would."


@pytest.mark.parametrize("frame", [pd.DataFrame({"stage": ["trained"], "ari": [NAN], "null_high": [NAN]})])
def test_groupings_of_narrow_layers(frame):
    assert cluster_sentences(frame, TRAINED) == ["No layer has enough channels to be grouped."]
    assert cluster_sentences(pd.DataFrame({"stage": ["trained"], "n": [3]}), TRAINED) == []
    assert cluster_sentences(None, TRAINED) == []


def masses(*rows):
    names = ("stage", "site", "duplicate_share", "duplicate_share_low", "duplicate_share_high")
    return pd.DataFrame([dict(zip(names, ("trained", *row), strict=True)) | {"n": 8} for row in rows])


def test_peers_duplicate_least_and_most():
    several = masses(("a", 0.5, 0.4, 0.6), ("b", NAN, NAN, NAN), ("c", 0.25, 0.125, 0.375), ("d", 0.3, 0.2, 0.4))
    assert mass_sentences(several, TRAINED) == [
        "Peers duplicate 0.25 [0.12, 0.38] (n = 8 channels) of the channels' task information in c, the least, "
        "and 0.50 [0.40, 0.60] (n = 8 channels) in a, the most.",
        "What peers duplicate cannot be said in 1 of 4 layers: there are too few images in 1; the table has the numbers.",
    ]
    one = masses(("a", 0.5, 0.4, 0.6))
    assert mass_sentences(one, TRAINED) == ["Peers duplicate 0.50 [0.40, 0.60] (n = 8 channels) of the channels' task information in a."]
    said = "What peers duplicate cannot be said here: there are too few images in 1; the table has the numbers."
    assert mass_sentences(masses(("b", NAN, NAN, NAN)), TRAINED) == [said]
    unsure = masses(("a", 0.5, 0.4, 0.6), *((name, NAN, NAN, NAN) for name in "bcd")).assign(task=[0.4, 0.01, -0.02, NAN])
    reasons = "the channels' summed task information could be 0 in 2 and there are too few images in 1"
    expected = f"What peers duplicate cannot be said in 3 of 4 layers: {reasons}; the table has the numbers."
    assert mass_sentences(unsure, TRAINED)[1] == expected
    reasons = "the channels' summed task information could be 0 in 2"
    said = f"What peers duplicate cannot be said in any of the 2 layers: {reasons}; the table has the numbers."
    assert mass_sentences(unsure.iloc[1:3], TRAINED) == [said]
    assert mass_sentences(None, TRAINED) == mass_sentences(pd.DataFrame({"stage": ["trained"], "n": [3]}), TRAINED) == []


def test_what_was_measured():
    said = " ".join(verdict.network(FACTS))
    assert said == (
        "tiny on 120 images of noise. Target: the logit margin: the label's logit minus the largest other one. "
        "Accuracy 90.0 % [85.0 %, 94.0 %] (n = 60 test images)."
    )


def test_accuracy_of_one_is_printed_only_when_true():
    assert "Accuracy 99.9 % [no interval] (n = 60 test images)." in verdict.network(FACTS | {"accuracy": 0.9999, "accuracy_low": None})
    assert "Accuracy 100.0 %" in " ".join(verdict.network(FACTS | {"accuracy": 1.0}))


def test_unlabeled_images():
    said = verdict.network(FACTS | {"labeled": False, "accuracy": None, "target": "top_margin"})
    assert "Target: the margin between the first and the second logit, which needs no labels." in said
    assert "The images carry no labels, so the network's accuracy is not known." in said
    assert not any(sentence.startswith("Accuracy") for sentence in said)


def test_bare_facts_are_enough():
    assert verdict.network({}) == []
    assert verdict.network({"network": "net"}) == ["net on images."]


def test_undefined_channels_are_counted():
    frame = pd.DataFrame({"capture": [NAN, 1.0, 2.0], "overlap": [1.0, math.inf, 2.0], "note": ["silent", "copy", ""]})
    (said,) = verdict.undefined(frame)
    assert said.startswith("Not a finite number, of 3 rows: input capture in 1 (undefined); peer overlap in 1 (infinite). The note column")
    both = pd.DataFrame({"capture": [NAN, 1.0], "overlap": [NAN, 2.0], "support": [NAN, NAN]})
    assert "peer support in 2 (undefined); input capture and peer overlap in 1 (undefined)." in verdict.undefined(both)[0]
    assert verdict.undefined(frame.iloc[2:]) == ["Every quantity of all 1 channels is a finite number."]
    assert verdict.undefined(None) == []


def test_changes_with_training(tmp_path):
    run = RunFolder.read(tiny(tmp_path))
    (said,) = change_with_depth(by_depth(run), run.facts)
    assert said == (
        "From initialization to trained, the median channel's peer overlap rose in 0 of 2 layers, "
        "task information in 2 of 2, target excess in 2 of 2."
    )
    assert change_with_depth(by_depth(run), TRAINED) == []


def test_every_correlation_on_the_first_screen_has_n_and_interval(tmp_path):
    run = RunFolder.read(tiny(tmp_path))
    for sentence in verdict.first_screen(run)[:3]:
        for number in re.findall(r"−?0\.\d+ \[.*?\]( \(n = \d+ layers\))?", sentence):
            assert number


def test_names_that_are_not_quantities_are_readable():
    assert verdict.title("capture") == "input capture"
    assert verdict.title("taylor_weights") == "taylor weights"


def test_estimates_come_from_frames_without_stages_too():
    frame = tables.table([{"local": "capture", "target": "relevance", "rho": 0.2, "low": 0.1, "high": 0.3, "n": 4}], "alignment_mean")
    found = verdict.estimate(frame, "trained", ("capture", "relevance"))
    assert str(found) == "0.20 [0.10, 0.30] (n = 4 layers)"
    assert verdict.estimate(frame, "trained", ("overlap", "relevance")) is None


def test_refused_scores_are_listed_with_their_layers():
    frame = pd.DataFrame({"site": ["a"]})
    assert verdict.refused(frame) == verdict.refused(None) == []
    frame.attrs["provenance"] = {"refused": {"support at a": "too few images", "support at b": "too few again", "label": "no classes"}}
    assert verdict.refused(frame) == [("peer support", ["a", "b"], "too few images"), ("label", ["all layers"], "no classes")]


def test_other_values_have_names_too():
    assert verdict.title("capture_relevance") == "input capture with task information"
    assert verdict.title("damage_kl") == "damage of ablation, as KL divergence of the output"


def test_a_column_is_not_called_what_a_value_of_its_name_means():
    assert (verdict.title("loss"), verdict.column_title("loss")) == ("rise of the loss", "loss")
    assert (verdict.title("ratio"), verdict.column_title("ratio")) == ("triplet over pair excess", "ratio")
    assert not set(verdict.VALUE_TITLES) & {*verdict.COLUMN_TITLES, *verdict.QUANTITIES}
