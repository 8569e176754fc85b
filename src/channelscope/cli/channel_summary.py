"""The command `why`."""

from pathlib import Path

from channelscope import tables
from channelscope.benchmark.channel_summary import channel_summary as joined
from channelscope.cli.options import console
from channelscope.cli.run_folder import VERSION, RunAddition
from channelscope.report import page


def why(channel: str, runs: list[Path], out: Path) -> None:
    """Say why a channel was kept, or not: its scores, its lesion, its stand-ins and the circuits it serves, from runs made before.

    Parameters
    ----------
    channel
        layer:channel, such as layer3.0.conv2:17.
    runs
        Run folders of one network: of axes, lesion, hulls, prune, circuit or subcircuits.
    out
        Folder for the tables and report.html.
    """
    frames = joined(channel, runs)
    joint = frames["why"].attrs["provenance"]
    RunAddition(out).agrees(joint["weights"], joint["network"])
    facts = {"title": f"Why {frames['why'].attrs['provenance']['channel']}?", "version": VERSION}
    for name, frame in frames.items():
        tables.write(frame, out / f"{name}.csv")
    tables.write_json(facts | frames["why"].attrs["provenance"], out / "run.json")
    for said in frames["why"]["said"]:
        console.print(said)
    print(page.write_report(out))
