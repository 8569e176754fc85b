"""Propagation: what is handed on from layer to layer, and along which axis."""

from channelscope.report.chart import Chart
from channelscope.report.run import Run
from channelscope.report.section import Section
from channelscope.tables import interval, shown


def answer(run: Run) -> list[str]:
    """The four ways from axis to axis."""
    frame = run.table("propagation_axes")
    return [
        f"From {row['axes'].replace('→', 'to')}: mean partial rank correlation "
        f"{interval(row['rho'], row['low'], row['high'], int(row['n']), 'links', top=1.0)}, "
        f"p = {shown(row['p'], 3)} against shuffled channels."
        for row in ([] if frame is None else frame.to_dict("records"))
    ]


PROPAGATION = Section(
    "propagation_axes",
    "From layer to layer",
    "Is what a channel has on one axis handed on to the channels that read it, and does it stay on its axis? What reaches a reader is "
    "weighted by the strength of its connections; the other axis is held equal.",
    (
        Chart(
            "Handed on from axis to axis",
            "axes",
            "rho",
            kind="rows",
            low="low",
            high="high",
            of="links",
            label="partial Spearman ρ, mean over links",
            zero=True,
            caption="A link is a layer and one that reads it. Bars are 95 % bootstrap intervals over links.",
        ),
        Chart(
            "Quantity by quantity",
            "pair",
            "rho",
            kind="rows",
            by="axes",
            table="propagation_mean",
            low="low",
            high="high",
            of="links",
            label="partial Spearman ρ, mean over links",
            zero=True,
            caption="From the quantity of the channels that are read to that of their readers.",
        ),
    ),
    answer,
    more=("propagation_mean", "propagation"),
    value="rho",
)
