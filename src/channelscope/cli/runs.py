"""The commands on run folders: `report`, `explain` and `info`."""

from pathlib import Path

from channelscope.benchmark.channel_summary import channel_summary as joined
from channelscope.cli.call import current_call
from channelscope.cli.options import finish_run, open_run
from channelscope.progress import console
from channelscope.report import page


def report(folder: Path) -> None:
    """Write the report of a run folder again from its tables.

    Parameters
    ----------
    folder
        Run folder, such as runs/demo.
    """
    current_call().result(page.write_report(folder))


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
    run = open_run(out, joint["weights"], joint["network"])
    for said in frames["explanation"]["said"]:
        console.print(said)
    finish_run(run, frames, {**joint, "title": f"Why {joint['channel']}?"})
