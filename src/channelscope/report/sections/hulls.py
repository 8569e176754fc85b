"""Replaceability hulls: how many peers stand in for a channel."""

import pandas as pd

from channelscope.report.chart import Chart
from channelscope.report.run import Run
from channelscope.report.section import Section
from channelscope.tables import interval, percent


def answer(run: Run) -> list[str]:
    """Where hulls are small and where large, and how many reach their threshold."""
    frame = run.table("hulls")
    if frame is None:
        return []
    known = frame.dropna(subset=["support"])
    silent, full = len(frame) - len(known), int(known["saturated"].sum())
    said = [
        _layers(run.table("hull_layers")),
        f"{full:,} of {len(known):,} hulls ({percent(full / len(known)) if len(known) else 'none'}) are full before they reach "
        f"their threshold.",
    ]
    if silent:
        said.append(
            f"{silent:,} {'channel does' if silent == 1 else 'channels do'} not vary and {'has' if silent == 1 else 'have'} no hull."
        )
    return [line for line in said if line]


def _layers(layers: pd.DataFrame | None) -> str:
    rows = [] if layers is None else layers.dropna(subset=["size"]).sort_values("size").to_dict("records")
    if not rows:
        return ""
    least, middle, most = (f"{_size(row)} in {row['site']}" for row in (rows[0], rows[len(rows) // 2], rows[-1]))
    return f"Mean number of members of a hull: {middle}, the median layer; from {least} to {most}."


def _size(row: dict) -> str:
    return interval(row["size"], row["size_low"], row["size_high"], int(row["channels"]), "channels")


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
            "Explained variance with one, two, three, five and ten members",
            "depth",
            "explained",
            by="size",
            where={"size": (1, 2, 3, 5, 10)},
            of="channels",
            table="hull_curve",
            label="explained variance",
            caption="Mean over the channels of a layer; a hull that is complete stays where it is.",
        ),
    ),
    answer,
    more=("hulls", "hull_curve"),
)
