"""Replaceability hulls: how many peers stand in for a channel."""

import pandas as pd

from channelscope.report.chart import Chart
from channelscope.report.run import Run
from channelscope.report.section import Section
from channelscope.tables import percent, shown


def answer(run: Run) -> list[str]:
    """Sizes, and how many hulls reach their threshold."""
    frame = run.table("hulls")
    if frame is None:
        return []
    known = frame.dropna(subset=["support"])
    silent = len(frame) - len(known)
    said = [
        f"A hull has {shown(float(known['size'].mean()), 2)} members on average (n = {len(known):,} channels); "
        f"{percent(float(known['saturated'].astype(float).mean()))} of the hulls are full before they reach their threshold.",
        _layers(run.table("hull_layers")),
    ]
    if silent:
        said.append(
            f"{silent:,} {'channel does' if silent == 1 else 'channels do'} not vary and {'has' if silent == 1 else 'have'} no hull."
        )
    return [line for line in said if line]


def _layers(layers: pd.DataFrame | None) -> str:
    if layers is None or not layers["size"].notna().any():
        return ""
    least, most = (layers.loc[place] for place in (layers["size"].idxmin(), layers["size"].idxmax()))
    return (
        f"Layer by layer the mean size goes from {shown(float(least['size']), 2)} in {least['site']} "
        f"to {shown(float(most['size']), 2)} in {most['site']}."
    )


HULLS = Section(
    "hull_layers",
    "Replaceability hulls",
    "How many peers does it take to say what a channel says? A hull grows by the peer that explains most, until "
    "it reaches its share of what all peers explain.",
    (
        Chart(
            "Mean hull size",
            "depth",
            "size",
            low="size_low",
            high="size_high",
            count="channels",
            of="channels",
            label="members",
            caption="Bars are 95 % intervals over images (jackknife over shards).",
        ),
        Chart(
            "Hulls that are full before they reach the threshold",
            "depth",
            "saturated",
            low="saturated_low",
            high="saturated_high",
            count="channels",
            of="channels",
            label="fraction of channels",
            caption="Bars are 95 % intervals over images (jackknife over shards).",
        ),
        Chart(
            "Explained variance by number of members",
            "size",
            "explained",
            by="site",
            of="channels",
            table="hull_curve",
            label="explained variance",
            caption="Mean over the channels of a layer; a hull that is complete stays where it is.",
        ),
    ),
    answer,
    more=("hulls", "hull_curve"),
)
