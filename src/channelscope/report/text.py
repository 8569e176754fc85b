"""The sentences of a report: pure functions of its tables."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from channelscope.report.quantities import BY_NAME

STRENGTHS = ((0.1, "hardly"), (0.3, "weakly"), (0.5, "moderately"), (1.01, "strongly"))


def shown(value: float, digits: int = 2) -> str:
    """A number as a reader should see it: nan is 'undefined', inf '∞', and rounding never turns almost into exactly.

    `shown(0.9999)` is '>0.99', never '1.00'.
    """
    if value != value:
        return "undefined"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}"
    if float(text) == 1 and value < 1:
        return f">{1 - 10**-digits:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def share(value: float, digits: int = 1) -> str:
    """A fraction as percent; 100 % and 0 % are printed only when exactly true."""
    if value != value:
        return "undefined"
    text = f"{100 * value:.{digits}f}"
    if float(text) == 100 and value < 1:
        return f">{100 - 10**-digits:.{digits}f} %"
    if float(text) == 0 and value > 0:
        return f"<{10**-digits:.{digits}f} %"
    return f"{text} %"


def interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """'0.21 [0.12, 0.30]', or the number with 'no interval'."""
    if low != low or high != high:
        return f"{shown(value, digits)} (no interval)"
    return f"{shown(value, digits)} [{shown(low, digits)}, {shown(high, digits)}]"


def aligned(row: Mapping[str, Any]) -> str:
    """One pair of quantities in one sentence."""
    one, other = BY_NAME[row["local"]].title, BY_NAME[row["target"]].title
    n = int(row["n"])
    numbers = f"mean Spearman {interval(row['rho'], row['low'], row['high'])} over {n} layer{'s' if n != 1 else ''}"
    if row["rho"] != row["rho"]:
        return f"{one} and {other.lower()} cannot be compared: no layer has both."
    if row["low"] <= 0 <= row["high"]:
        return f"{one} and {other.lower()} show no consistent alignment within layers: {numbers}, an interval that includes zero."
    strength = next(word for limit, word in STRENGTHS if abs(row["rho"]) < limit)
    direction = "opposed" if row["rho"] < 0 else "aligned"
    return f"{one} and {other.lower()} are {strength} {direction} within layers: {numbers}."


def answer(alignment_mean: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The report's first sentence: are the two axes aligned in this network, by how much, how sure."""
    stage = facts["stages"][-1]
    return aligned(_pair(alignment_mean, stage, "capture", "relevance")) + _change(alignment_mean, facts["stages"])


def _pair(frame: pd.DataFrame, stage: str, local: str, target: str) -> dict[str, Any]:
    chosen = frame[(frame["stage"] == stage) & (frame["local"] == local) & (frame["target"] == target)]
    return chosen.iloc[0].to_dict()


def _change(frame: pd.DataFrame, stages: list[str]) -> str:
    if len(stages) < 2:
        return ""
    before = _pair(frame, stages[0], "capture", "relevance")
    return f" At {stages[0]} it was {interval(before['rho'], before['low'], before['high'])}."


def verdict(alignment_mean: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """Two or three words over the answer."""
    row = _pair(alignment_mean, facts["stages"][-1], "capture", "relevance")
    if row["rho"] != row["rho"]:
        return "Not measurable here"
    if row["low"] <= 0 <= row["high"]:
        return "The two axes are not aligned"
    strength = next(word for limit, word in STRENGTHS if abs(row["rho"]) < limit)
    return f"The two axes are {strength} {'opposed' if row['rho'] < 0 else 'aligned'}"


def grouped(groups: pd.DataFrame, stage: str) -> str:
    """What the groupings say."""
    if "ari" not in groups:
        return "No layer has enough channels to be grouped."
    own = groups[(groups["stage"] == stage) & groups["ari"].notna()]
    if own.empty:
        return "No layer has enough channels to be grouped."
    above = int((own["p"] < 0.05).sum())
    expected = 0.05 * len(own)
    return (
        f"Grouping each layer's channels once by local and once by target quantities, the two groupings agree beyond chance "
        f"(p < .05, permutation of channels) in {above} of {len(own)} layers; {expected:.1f} would by chance alone. "
        f"The median adjusted Rand index is {shown(own['ari'].median())} (1 is identical, 0 is chance)."
    )


def measured(facts: Mapping[str, Any]) -> str:
    """What was measured, on what."""
    parts = [f"{facts['network']} on {facts['data']}", f"{facts['images']:,} calibration images"]
    if facts.get("labeled") and facts.get("accuracy") is not None:
        split, n = facts.get("accuracy_split", "calibration"), facts.get("accuracy_images", facts["images"])
        low, high = share(facts["accuracy_low"]), share(facts["accuracy_high"])
        parts.append(f"{split} accuracy {share(facts['accuracy'])} [{low}, {high}] on {n:,} images")
    return "; ".join(parts)
