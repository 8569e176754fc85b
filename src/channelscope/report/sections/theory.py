"""Theory: the angle between the directions that raise the two informations, on the network and in a simulation."""

import pandas as pd

from channelscope.report.chart import Chart
from channelscope.report.run import Run, where
from channelscope.report.section import Section
from channelscope.tables import interval, shown


def answer(run: Run) -> list[str]:
    """The range of the angle over layers, the identity, and what the simulation does."""
    layers, simulation = run.table("theory_layers"), run.table("simulation")
    said = [] if layers is None else _layers(layers)
    return said + ([] if simulation is None else [_simulated(where(simulation, system=name)) for name in simulation["system"].unique()])


def _layers(layers: pd.DataFrame) -> list[str]:
    rows = layers.dropna(subset=["cosine"]).sort_values("cosine").to_dict("records")
    if not rows:
        return []
    ends = [
        f"{interval(row['cosine'], row['cosine_low'], row['cosine_high'], int(row['n']), 'channels', top=1.0)} in {row['site']}"
        for row in (rows[0], rows[-1])
    ]
    middle = rows[len(rows) // 2]["cosine"]
    return [
        f"The mean |cosine| of the two directions goes from {ends[0]} to {ends[1]}; "
        f"the median layer has {shown(middle, 2)} (n = {len(rows)} layers).",
        f"The identity w'g = 0 holds to {shown(max(row['identity'] for row in rows), 2)} of |w| |g| or better.",
    ]


def _simulated(rows: pd.DataFrame) -> str:
    first, *_, last = rows.sort_values("step").to_dict("records")
    start, end = (interval(row["alignment"], row["alignment_low"], row["alignment_high"], int(row["n"]), "starts") for row in (first, last))
    return f"Simulation of {SYSTEMS[first['system']]}: alignment {start} at the start, {end} after {last['step']} steps."


SYSTEMS = {"channels": "channels that each follow their own task information", "network": "a linear network that descends its error"}

THEORY = Section(
    "theory_layers",
    "Gradient directions",
    "In which direction of weight space does each of the two informations grow, and how far apart are the directions? At a right angle, "
    "learning one says nothing about the other.",
    (
        Chart(
            "Angle of the two directions",
            "depth",
            "cosine",
            low="cosine_low",
            high="cosine_high",
            of="channels",
            label="mean |cosine|",
            zero=True,
            caption="0 is a right angle, which an input with equal variance in all directions would give. "
            "Bars are 95 % bootstrap intervals over channels.",
        ),
        Chart(
            "Simulated learning from a coupled start",
            "step",
            "alignment",
            by="system",
            table="simulation",
            low="alignment_low",
            high="alignment_high",
            of="starts",
            label="Spearman ρ of capture and task",
            zero=True,
            caption="Gaussian input with one strong direction that carries most of the target. Bars are 95 % intervals over random starts.",
        ),
    ),
    answer,
    more=("theory", "simulation", "theory_skipped"),
    value="cosine",
)
