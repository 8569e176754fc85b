"""The command `explain`."""

from pathlib import Path

from channelscope import tables
from channelscope.benchmark.channel_summary import channel_summary as joined
from channelscope.cli.options import console
from channelscope.cli.run_folder import VERSION, RunAddition
from channelscope.report import page


def explain(channel: str, runs: list[Path], out: Path) -> None:
    """Summarize what earlier runs found about one channel: pruning, ablation, circuits, scores and replacement sets.

    Parameters
    ----------
    channel
        layer:channel, such as layer3.0.conv2:17.
    runs
        Run folders of one network: of axes, ablate, hulls, prune, circuit or subcircuits.
    out
        Folder for the tables and report.html.
    """
    frames = joined(channel, runs)
    joint = frames["explanation"].attrs["provenance"]
    RunAddition(out).agrees(joint["weights"], joint["network"])
    facts = {"title": f"Why {frames['explanation'].attrs['provenance']['channel']}?", "version": VERSION}
    for name, frame in frames.items():
        tables.write(frame, out / f"{name}.csv")
    tables.write_json(facts | frames["explanation"].attrs["provenance"], out / "run.json")
    for sentence in frames["explanation"]["sentence"]:
        console.print(sentence)
    print(page.write_report(out))
