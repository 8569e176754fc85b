"""Training trajectories and gradient directions."""

import pandas as pd

from channelscope.report.section import Chart, Section
from channelscope.tables.frame import format_interval, format_number
from channelscope.tables.run_folder import RunFolder, where

NAMES = {
    "hull_size": "Mean hull size",
    "saturated": "The saturated fraction",
    "ratio": "S3/S2",
    "capture_relevance": "The alignment of input capture and task information",
}


def trajectory_sentences(run: RunFolder) -> list[str]:
    """Sentences: the change of each quantity, and whether its published direction holds, is reversed, or is undecided.

    Examples
    --------
    >>> from pathlib import Path
    >>> row = {"quantity": "ratio", "first": 0.25, "last": 0.6, "change": 0.35, "change_low": 0.28, "change_high": 0.43, "n": 3}
    >>> row |= {"published_first": 0.19, "published_last": 0.38, "verdict": "holds"}
    >>> trajectory_sentences(RunFolder(Path(), {}, {"trajectory_change": pd.DataFrame([row])}))
    ['S3/S2 goes from 0.250 to 0.600, a change of 0.350 [0.280, 0.430] (n = 3 runs); published 0.190 to 0.380: the direction holds.']
    """
    frame, said = run.table("trajectory_change"), []
    for row in [] if frame is None else frame[frame["verdict"] != ""].to_dict("records"):
        change = format_interval(row["change"], row["change_low"], row["change_high"], int(row["n"]), "runs", digits=3)
        said.append(
            f"{NAMES.get(row['quantity'], row['quantity'])} goes from {format_number(row['first'], 3)} to {format_number(row['last'], 3)}, "
            f"a change of {change}; published {format_number(row['published_first'], 3)} to {format_number(row['published_last'], 3)}: "
            f"the direction {VERDICTS[row['verdict']]}."
        )
    return said


VERDICTS = {
    "holds": "holds",
    "reversed": "is reversed",
    "open": "is undecided: the interval over runs contains zero, or there is no interval",
}

TRAJECTORY = Section(
    "trajectory_change",
    "Over training",
    "How do hulls, synergy, communities and the alignment of the axes change from checkpoint to checkpoint? "
    "Beside them stands what was published.",
    (
        Chart(
            "Quantities over training",
            "epoch",
            "value",
            panels=("quantity",),
            only={"quantity": ("hull_size", "saturated", "ratio", "gap", "capture_relevance", "accuracy")},
            table="trajectory",
            low="low",
            high="high",
            of="runs",
            label="mean over runs",
            free=True,
            caption="Mean over runs of the mean over layers, with 95 % Student intervals over runs. Epoch 0 is the initialization.",
        ),
    ),
    trajectory_sentences,
    more=("trajectory", "trajectory_layers"),
    value="change",
)


def gradient_sentences(run: RunFolder) -> list[str]:
    """Sentences: the range of the angle over layers, the error of the identity w'g = 0, and the result of the simulation.

    Examples
    --------
    >>> from pathlib import Path
    >>> row = {"site": "conv1", "cosine": 0.57, "cosine_low": 0.5, "cosine_high": 0.64, "n": 64, "identity": 0.0}
    >>> gradient_sentences(RunFolder(Path(), {}, {"gradient_layers": pd.DataFrame([row])}))[1]
    "The identity w'g = 0 holds to 0.00 of |w| |g| or better."
    """
    layers, simulation = run.table("gradient_layers"), run.table("simulation")
    said = [] if layers is None else _layers(layers)
    return said + ([] if simulation is None else [_simulated(where(simulation, system=name)) for name in simulation["system"].unique()])


def _layers(layers: pd.DataFrame) -> list[str]:
    rows = layers.dropna(subset=["cosine"]).sort_values("cosine").to_dict("records")
    if not rows:
        return []
    ends = [
        f"{format_interval(row['cosine'], row['cosine_low'], row['cosine_high'], int(row['n']), 'channels', top=1.0)} in {row['site']}"
        for row in (rows[0], rows[-1])
    ]
    middle = rows[len(rows) // 2]["cosine"]
    return [
        f"The mean |cosine| of the two directions goes from {ends[0]} to {ends[1]}; "
        f"the median layer has {format_number(middle, 2)} (n = {len(rows)} layers).",
        f"The identity w'g = 0 holds to {format_number(max(row['identity'] for row in rows), 2)} of |w| |g| or better.",
    ]


def _simulated(rows: pd.DataFrame) -> str:
    first, *_, last = rows.sort_values("step").to_dict("records")
    start, end = (
        format_interval(row["alignment"], row["alignment_low"], row["alignment_high"], int(row["n"]), "starts") for row in (first, last)
    )
    return f"Simulation of {SYSTEMS[first['system']]}: alignment {start} at the start, {end} after {last['step']} steps."


SYSTEMS = {"channels": "channels that each follow their own task information", "network": "a linear network that descends its error"}

GRADIENTS = Section(
    "gradient_layers",
    "Gradient directions",
    "What is the angle between the weight gradients of input capture and of task information? If it is 90°, "
    "a small step along one does not change the other.",
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
    gradient_sentences,
    more=("gradients", "simulation", "gradient_skipped"),
    value="cosine",
    anchor="gradients",
)
