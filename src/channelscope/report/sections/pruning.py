"""A smaller network: what it lost, and what repair gave back."""

from channelscope.report.chart import Chart
from channelscope.report.run import Run
from channelscope.report.section import Section
from channelscope.tables import interval


def smaller(run: Run) -> list[str]:
    """Accuracy and cost of every state of the network."""
    frame = run.table("pruning")
    if frame is None:
        return []
    first, last = frame.iloc[0], frame.iloc[-1]
    said = [
        f"{str(row.state).capitalize()}: accuracy {interval(row.accuracy, row.accuracy_low, row.accuracy_high, row.images, 'images')}."
        for row in frame.itertuples()
    ]
    return [
        f"The network keeps {last['kept']:.1%} of its multiply-adds ({last['macs']:,} of {first['macs']:,}) and "
        f"{last['parameters']:,} of {first['parameters']:,} parameters; one image takes {last['latency']:.1f} ms instead of "
        f"{first['latency']:.1f} ms (medians of the same machine's runs).",
        *said,
    ]


PRUNING = Section(
    "pruning",
    "A smaller network",
    "What does the network lose when channels go, and how much of it does repair give back without training?",
    (
        Chart(
            "Accuracy",
            "kept",
            "accuracy",
            kind="scatter",
            by="state",
            low="accuracy_low",
            high="accuracy_high",
            of="images",
            caption="Whiskers are 95 % Wilson intervals over the evaluated images; all states saw the same images.",
        ),
    ),
    smaller,
    value="accuracy",
)
