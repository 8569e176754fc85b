"""The report's sentences, pure functions of facts and tables. Every number has its n and, where there is one, its interval."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from channelscope.tables.frame import format_interval, format_number, format_percent
from channelscope.tables.quantities import HEADLINE, QUANTITIES, SCORE_TITLES, score_title
from channelscope.tables.run_folder import RunFolder, where

PAIRS = tuple(product(HEADLINE[:2], HEADLINE[2:]))
"""(local, target) of the four headline pairs; the first one is the answer's"""

STRENGTHS = ((0.3, "weakly"), (0.5, "moderately"), (0.7, "clearly"), (float("inf"), "strongly"))
"""words for the size of a correlation, by upper limit"""

UNRELATED = 0.1
"""correlations smaller than this are called almost unrelated, however sure their sign"""

TARGETS = {
    "margin": "the logit margin: the label's logit minus the largest other one",
    "correct_logit": "the label's logit",
    "top_margin": "the margin between the first and the second logit, which needs no labels",
    "label": "the class label",
}

COLUMN_TITLES = {
    "auc": "FLOPs-AUC",
    "iou": "IoU",
    "kl": "KL divergence of the output",
    "modularity_r": "modularity of the R-graph",
    "modularity_s": "modularity of the S-graph",
}
COLUMN_TITLES |= SCORE_TITLES | {
    f"{local}_{target}": f"{QUANTITIES[local].title} with {QUANTITIES[target].title}" for local, target in PAIRS
}
"""titles of columns that are no quantities of the axes; values of tables have them too"""

ARROW = " → "

VALUE_TITLES = {
    "lrp": "LRP",
    "gradcam": "Grad-CAM",
    "none": "no repair",
    "batchnorm": "BatchNorm re-estimated",
    "scratch": "trained from scratch",
    "loss": "rise of the loss",
    "damage_kl": "damage of ablation, as KL divergence of the output",
    "damage_loss": "damage of ablation, as rise of the loss",
    "recovered_hull_kl": "recovered by the hull, as KL divergence of the output",
    "recovered_hull_loss": "recovered by the hull, as rise of the loss",
    "ratio": "triplet over pair excess",
    "gap": "gap between the modularities of the R-graph and the S-graph",
}
"""titles of values; a column of the same name may be something else, such as the loss or the ratio of two times"""


class Estimate(NamedTuple):
    """A mean rank correlation over layers, with its interval."""

    value: float
    low: float
    high: float
    layers: int
    pooled: float

    @property
    def sure(self) -> bool:
        """Whether it has an interval and the interval leaves out 0."""
        return bool(self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        return format_interval(self.value, self.low, self.high, self.layers, "layers", top=1.0)


def column_title(name: str) -> str:
    """Title of a column of a table.

    Examples
    --------
    >>> column_title("capture"), column_title("auc"), column_title("loss")
    ('input capture', 'FLOPs-AUC', 'loss')
    """
    return COLUMN_TITLES.get(name) or score_title(name)


def title(name: str) -> str:
    """Title of a quantity, a score, another value of a table, or of two with an arrow between them.

    Examples
    --------
    >>> title("capture"), title("loss"), title("made_up")
    ('input capture', 'rise of the loss', 'made up')
    >>> title("relevance → capture")
    'task information → input capture'
    """
    return ARROW.join(VALUE_TITLES.get(part) or column_title(part) for part in name.split(ARROW))


def capitalized(words: str) -> str:
    """Words that begin a sentence; all letters but the first stay as they are.

    Examples
    --------
    >>> capitalized("input capture"), capitalized("the R-graph")
    ('Input capture', 'The R-graph')
    """
    return words[:1].upper() + words[1:]


def strength(rho: float) -> str:
    """How strong a correlation is and which way it goes: "weakly aligned", "strongly opposed", "almost unrelated, slightly opposed".

    Examples
    --------
    >>> strength(0.05), strength(0.2), strength(-0.9)
    ('almost unrelated, slightly aligned', 'weakly aligned', 'strongly opposed')
    """
    way = "aligned" if rho >= 0 else "opposed"
    if abs(rho) < UNRELATED:
        return f"almost unrelated, slightly {way}"
    return f"{next(word for limit, word in STRENGTHS if abs(rho) < limit)} {way}"


def estimate(means: pd.DataFrame | None, stage: str, pair: tuple[str, str]) -> Estimate | None:
    """One pair's mean over layers at one stage; None if it was not measured.

    Examples
    --------
    >>> means = pd.DataFrame([{"local": "capture", "target": "relevance", "rho": 0.23, "low": 0.18, "high": 0.28, "n": 19, "pooled": 0.4}])
    >>> str(estimate(means, "", PAIRS[0])), estimate(means, "", PAIRS[1])
    ('0.23 [0.18, 0.28] (n = 19 layers)', None)
    """
    if means is None:
        return None
    for row in where(means, stage=stage, local=pair[0], target=pair[1]).to_dict("records"):
        return Estimate(row["rho"], row["low"], row["high"], int(row["n"]), row.get("pooled", np.nan))
    return None


def verdict(means: pd.DataFrame | None, facts: Mapping[str, Any]) -> str:
    """The heading: are the two axes aligned here? The answer's pair first, then the strongest of the headline pairs that is sure.

    Examples
    --------
    >>> means = pd.DataFrame([{"local": "capture", "target": "relevance", "rho": 0.23, "low": 0.18, "high": 0.28, "n": 19, "pooled": 0.4}])
    >>> verdict(means, {})
    'Here the two axes are weakly aligned'
    """
    found = _headline(means, last(means, facts))
    known = [each for each in found.values() if np.isfinite(each.value)]
    if not known:
        return "Whether the two axes are aligned was not measured"
    if all(np.isnan(each.low) for each in known):
        return "How the two axes are aligned here is not sure: there is no interval"
    sure = [each for each in known if each.sure]
    first = next(iter(found.values()))
    strongest = max(sure, key=lambda each: abs(each.value)).value if sure else np.nan
    return f"Here the two axes are {_overall(first.value if first.sure else np.nan, strongest)}"


def _overall(first: float, strongest: float) -> str:
    """Two correlations in one phrase; nan for one whose sign is not sure."""
    if np.isnan(strongest):
        return "not visibly aligned"
    if np.isnan(first) and abs(strongest) < UNRELATED:
        return "almost unrelated"
    if abs(strongest) < UNRELATED or first == strongest:
        return strength(strongest)
    if np.isnan(first) or abs(first) < UNRELATED:
        return f"{'not visibly aligned' if np.isnan(first) else 'almost unrelated'}, at most {strength(strongest)}"
    one, other = strength(first), strength(strongest)
    if first * strongest < 0:
        return f"{one} in one pair of quantities and {other} in another"
    return other if one == other else f"{one.split()[0]} to {other}"


def answer(means: pd.DataFrame | None, facts: Mapping[str, Any]) -> str:
    """The answer in one sentence, about input capture and task information.

    Examples
    --------
    >>> means = pd.DataFrame([{"local": "capture", "target": "relevance", "rho": 0.23, "low": 0.18, "high": 0.28, "n": 19, "pooled": 0.4}])
    >>> answer(means, {})
    'Within layers, input capture and task information are weakly aligned: mean Spearman 0.23 [0.18, 0.28] (n = 19 layers).'
    """
    stage = last(means, facts)
    found = _headline(means, stage)
    if not found:
        return "Alignment of the two axes was not measured in this run."
    pair = next(iter(found))
    return _sentence(pair, found[pair])


def _sentence(pair: tuple[str, str], found: Estimate) -> str:
    names = f"{title(pair[0])} and {title(pair[1])}"
    if np.isnan(found.value):
        return f"The alignment of {names} is undefined: no layer has two or more channels with both."
    if np.isnan(found.low):
        return f"Within layers, {names} have a mean Spearman correlation of {found}: too few layers for an interval."
    if not found.sure:
        return f"Within layers, {names} are not visibly aligned: mean Spearman {found}, an interval that covers 0."
    return f"Within layers, {names} are {strength(found.value)}: mean Spearman {found}."


def pairs(means: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[str]:
    """What the other headline pairs add.

    Examples
    --------
    >>> means = pd.DataFrame([{"local": "capture", "target": name, "rho": rho, "low": rho - 0.1, "high": rho + 0.1,
    ...     "n": 19} for name, rho in (("relevance", 0.05), ("excess", 0.4))])
    >>> pairs(means, {})
    ['Of the 2 pairs below, the strongest is input capture with target excess, 0.40 [0.30, 0.50] (n = 19 layers); 1 of their
    intervals covers 0.']
    """
    found = _headline(means, last(means, facts))
    known = {pair: each for pair, each in found.items() if np.isfinite(each.value)}
    if len(known) < 2:
        return []
    first = next(iter(found))
    pair = max(known, key=lambda each: abs(known[each].value))
    covering = sum(not each.sure and np.isfinite(each.low) for each in known.values())
    which = "this one is the strongest" if pair == first else f"the strongest is {title(pair[0])} with {title(pair[1])}, {known[pair]}"
    if covering == len(known):
        return [f"The intervals of all {len(known)} pairs cover 0; {which}."]
    cover = "covers" if covering == 1 else "cover"
    return [f"Of the {len(known)} pairs below, {which}; {covering or 'none'} of their intervals {cover} 0."]


def training(means: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[str]:
    """What training did to the first headline pair; nothing when only one stage was measured.

    Examples
    --------
    >>> means = pd.DataFrame([{"stage": stage, "local": "capture", "target": "relevance", "rho": rho, "low": rho - 0.1,
    ...     "high": rho + 0.1, "n": 19} for stage, rho in (("start", 0.6), ("end", 0.1))])
    >>> training(means, {"stages": ["start", "end"]})
    ['At start the same mean was 0.60 [0.50, 0.70] (n = 19 layers): training lowered it by 0.50, and the two intervals do not overlap.']
    """
    stages = tuple(facts.get("stages") or ())
    if len(stages) < 2:
        return []
    before, after = (estimate(means, stage, PAIRS[0]) for stage in (stages[0], stages[-1]))
    if before is None or after is None or np.isnan(before.value) or np.isnan(after.value):
        return []
    start = f"At {stages[0]} the same mean was {before}"
    if np.isnan(before.low) or np.isnan(after.low):
        return [f"{start}; without intervals the change cannot be judged."]
    if before.low <= after.high and after.low <= before.high:
        return [f"{start}; the two intervals overlap, so a change with training is not established."]
    word = "lowered" if after.value < before.value else "raised"
    return [f"{start}: training {word} it by {format_number(abs(after.value - before.value), 2)}, and the two intervals do not overlap."]


def pooled(means: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[str]:
    """The pooled correlation, never without the within-layer one it stands below.

    Examples
    --------
    >>> means = pd.DataFrame([{"local": "capture", "target": "relevance", "rho": 0.23, "low": 0.18, "high": 0.28, "n": 19, "pooled": 0.4}])
    >>> pooled(means, {})
    ['Over the channels of all layers at once it is 0.40, which mixes differences between layers with differences within them.']
    """
    found = estimate(means, last(means, facts), PAIRS[0])
    if found is None or np.isnan(found.pooled) or np.isnan(found.value):
        return []
    value = format_number(found.pooled, 2, top=1.0)
    return [f"Over the channels of all layers at once it is {value}, which mixes differences between layers with differences within them."]


def network(facts: Mapping[str, Any]) -> list[str]:
    """What was measured, on what, and how good the network is.

    Examples
    --------
    >>> network({"network": "tiny", "images": 120, "data": "digits", "accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.94})
    ['tiny on 120 images of digits.', 'Accuracy 90.0 % [85.0 %, 94.0 %] (n = 120 images).']
    >>> network({"network": "tiny", "images": 120, "accuracy": 0.1, "accuracy_low": 0.06, "accuracy_high": 0.17, "chance": 0.1})[1]
    'Accuracy 10.0 % [6.0 %, 17.0 %] (n = 120 images), not beyond chance (10.0 %).'
    """
    if not (facts.get("network") or facts.get("images") or facts.get("data")):
        return []
    images = f"{facts['images']:,} images" if facts.get("images") else "images"
    data = f" of {facts['data']}" if facts.get("data") else ""
    said = [f"{facts.get('network', 'The network')} on {images}{data}."]
    if facts.get("untrained"):
        said.append(f"No weights were given: they are {facts['untrained']}, and nothing here is about a trained network.")
    if facts.get("target"):
        said.append(f"Target: {TARGETS.get(str(facts['target']), str(facts['target']))}.")
    if not facts.get("labeled", True):
        said.append("The images carry no labels, so the network's accuracy is not known.")
    elif facts.get("accuracy") is not None:
        said.append(f"Accuracy {_accuracy(facts)}.")
    return said


def _accuracy(facts: Mapping[str, Any]) -> str:
    low, high, n = (facts.get(key) for key in ("accuracy_low", "accuracy_high", "accuracy_images"))
    bounds = f" [{format_percent(low)}, {format_percent(high)}]" if low is not None and high is not None else " [no interval]"
    split = f" {facts['accuracy_split']}" if facts.get("accuracy_split") else ""
    count = f" (n = {n or facts.get('images', 0):,}{split} images)"
    chance = "" if low is None else no_better_than_chance(low, facts)
    return f"{format_percent(facts['accuracy'])}{bounds}{count}{f', {chance}' if chance else ''}"


def no_better_than_chance(low: float, facts: Mapping[str, Any]) -> str:
    """Words for an accuracy whose interval begins at chance or below; else empty.

    Examples
    --------
    >>> no_better_than_chance(0.06, {"chance": 0.1}), no_better_than_chance(0.12, {"chance": 0.1}), no_better_than_chance(0.0, {})
    ('not beyond chance (10.0 %)', '', '')
    """
    return f"not beyond chance ({format_percent(facts['chance'])})" if low <= facts.get("chance", -1) else ""


def undefined(channels: pd.DataFrame | None) -> list[str]:
    """How many channels have a value that is not a finite number, quantity by quantity, and where the reasons are.

    Examples
    --------
    >>> undefined(pd.DataFrame({"capture": [1.0, np.nan], "overlap": [0.1, np.inf]}))[0].split(". ")[0]
    'Not a finite number, of 2 rows: input capture in 1 (undefined); peer overlap in 1 (infinite)'
    """
    if channels is None:
        return []
    columns = [name for name in QUANTITIES if name in channels.columns]
    parts = []
    for word, test in (("undefined", np.isnan), ("infinite", np.isinf)):
        counts = {name: int(test(channels[name].to_numpy(float)).sum()) for name in columns}
        alike: dict[int, list[str]] = {}
        for name, count in counts.items():
            if count:
                alike.setdefault(count, []).append(title(name))
        parts += [f"{_listed(names)} in {count:,}" + f" ({word})" for count, names in sorted(alike.items(), reverse=True)]
    if not parts:
        return [f"Every quantity of all {len(channels):,} channels is a finite number."]
    return [
        f"Not a finite number, of {len(channels):,} rows: {'; '.join(parts)}. "
        "The note column or the list of what was skipped says why; in the map such channels stand at the edge."
    ]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def refused(channels: pd.DataFrame | None) -> list[tuple[str, list[str], str]]:
    """Scores that were refused: what people call the score, the layers, and the reason in the first of them.

    Examples
    --------
    >>> channels = pd.DataFrame({"site": ["conv1"]})
    >>> channels.attrs["provenance"] = {"refused": {"support at conv1": "12 images are too few"}}
    >>> refused(channels)
    [('peer support', ['conv1'], '12 images are too few')]
    """
    stated = {} if channels is None else channels.attrs.get("provenance", {}).get("refused", {})
    found: dict[str, tuple[list[str], str]] = {}
    for place, reason in stated.items():
        name, _, site = place.partition(" at ")
        found.setdefault(name, ([], reason))[0].append(site or "all layers")
    return [(title(name), sites, reason) for name, (sites, reason) in found.items()]


def first_screen(run: RunFolder) -> list[str]:
    """The sentences under the heading, the answer first.

    Examples
    --------
    >>> from pathlib import Path
    >>> means = pd.DataFrame([{"local": "capture", "target": "relevance", "rho": 0.23, "low": 0.18, "high": 0.28, "n": 19, "pooled": 0.4}])
    >>> len(first_screen(RunFolder(Path(), {}, {"alignment_mean": means})))
    2
    """
    means, facts = run.table("alignment_mean"), run.facts
    return [answer(means, facts), *training(means, facts), *pairs(means, facts), *pooled(means, facts)]


def _headline(means: pd.DataFrame | None, stage: str) -> dict[tuple[str, str], Estimate]:
    found = {pair: estimate(means, stage, pair) for pair in PAIRS}
    return {pair: each for pair, each in found.items() if each is not None}


def last(frame: pd.DataFrame | None, facts: Mapping[str, Any]) -> str:
    """The last stage that was measured.

    Examples
    --------
    >>> last(pd.DataFrame({"stage": ["start", "end"]}), {}), last(None, {"stages": ["trained"]})
    ('end', 'trained')
    """
    stages: Iterable[str] = facts.get("stages") or (frame["stage"].unique() if frame is not None and "stage" in frame.columns else ("",))
    return list(stages)[-1]
