"""Groupings: are the groups of channels on one axis groups on the other?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from channelscope.report import text
from channelscope.report.chart import Chart
from channelscope.report.run import where
from channelscope.report.section import Section
from channelscope.tables import shown


def grouping(frame: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[str]:
    """Whether groups on one axis are groups on the other."""
    if frame is None or "ari" not in frame.columns:
        return []
    rows = where(frame, stage=text.last(frame, facts)).dropna(subset=["ari"])
    if not len(rows):
        return ["No layer has enough channels to be grouped."]
    values = rows["ari"].to_numpy(float)
    above = int((values > rows["null_high"].to_numpy(float)).sum())
    chance = shown(0.05 * len(rows), 1)
    middle, least, most = (shown(float(each), 2, top=1.0) for each in np.quantile(values, [0.5, 0, 1]))
    count = f"{len(rows)} {'layer' if len(rows) == 1 else 'layers'}"
    return [
        f"Groups of channels by local and by target quantities agree with a median adjusted Rand index of {middle} "
        f"(range {least} to {most}, n = {count}); 0 is chance, 1 is the same groups.",
        f"In {above} of {count} they agree more than 95 % of shuffled groupings; by chance about {chance} would.",
    ]


GROUPS = Section(
    "groups",
    "Groupings",
    "If channels are sorted into groups by their local quantities, and again by their target quantities, are these the same groups?",
    (
        Chart(
            "Agreement of the two groupings",
            "depth",
            "ari",
            panels=("stage",),
            band=("null_mean", "null_high"),
            of="channels",
            label="adjusted Rand index",
            zero=True,
            caption="The grey band reaches from the mean to the 95th percentile of the index when channels are shuffled: "
            "points above it agree beyond chance.",
        ),
    ),
    lambda run: grouping(run.table("groups"), run.facts),
)
