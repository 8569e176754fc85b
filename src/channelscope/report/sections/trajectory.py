"""Over training: hulls, synergy, communities and alignment at every checkpoint."""

from channelscope.report.chart import Chart
from channelscope.report.run import Run
from channelscope.report.section import Section
from channelscope.tables import interval, shown

NAMES = {
    "hull_size": "Mean hull size",
    "saturated": "The saturated fraction",
    "ratio": "S3/S2",
    "capture_relevance": "The alignment of input capture and task information",
}


def answer(run: Run) -> list[str]:
    """Each published direction: held, reversed, or open."""
    frame, said = run.table("trajectory_change"), []
    for row in [] if frame is None else frame[frame["verdict"] != ""].to_dict("records"):
        change = interval(row["change"], row["change_low"], row["change_high"], int(row["n"]), "runs", digits=3)
        said.append(
            f"{NAMES.get(row['quantity'], row['quantity'])} goes from {shown(row['first'], 3)} to {shown(row['last'], 3)}, "
            f"a change of {change}; published {shown(row['published_first'], 3)} to {shown(row['published_last'], 3)}: "
            f"the direction {VERDICTS[row['verdict']]}."
        )
    return said


VERDICTS = {"holds": "holds", "reversed": "is reversed", "open": "is open, for the interval over runs holds zero or there is none"}

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
    answer,
    more=("trajectory", "trajectory_layers"),
    value="change",
)
