"""The commands on run folders: `report`, `compare` and `explain`."""

from pathlib import Path

from channelscope.benchmark.channel_summary import channel_summary as joined
from channelscope.cli.call import current_call
from channelscope.cli.options import finish_run, open_run
from channelscope.progress import console
from channelscope.report import page
from channelscope.tables.comparison import compare_runs
from channelscope.tables.rounding import format_interval, format_number
from channelscope.tables.run_folder import RunFolder

SHOWN = 8
"""Largest differences that `compare` prints."""


def report(folder: Path) -> None:
    """Write the report of a run folder again from its tables.

    Parameters
    ----------
    folder
        Run folder, such as runs/demo.
    """
    current_call().result(page.write_report(folder))


def compare(first: Path, second: Path, out: Path = Path("runs/comparison")) -> None:
    """Compare two runs: their facts, every number that both have with its difference and interval, and their channels' scores.

    The interval of a difference treats the runs as independent; for runs on the same images it is too wide.

    Parameters
    ----------
    first
        Run folder.
    second
        Another one, of the same network or of a different one.
    out
        Folder for the tables and report.html.

    Examples
    --------
    channelscope compare runs/seed0 runs/seed1
    channelscope compare runs/margin runs/label --out runs/targets --json
    """
    run, runs = open_run(out), (RunFolder.read(first), RunFolder.read(second))
    frames = compare_runs(*runs)
    values = frames["compared_values"]
    known = values["difference_low"].notna()
    console.print(
        f"{len(values):,} numbers are in both runs; of {int(known.sum()):,} with intervals, {int(values['apart'].sum()):,} differ"
    )
    for row in values[values["apart"]].sort_values("difference", key=abs, ascending=False).head(SHOWN).to_dict("records"):
        change = format_interval(row["difference"], row["difference_low"], row["difference_high"])
        console.print(
            f"  {row['table']} {row['row']}: {row['quantity']} {format_number(row['first'])} → {format_number(row['second'])}, {change}"
        )
    titles = [str(each.facts.get("title") or each.folder) for each in runs]
    finish_run(run, frames, {"title": f"{titles[0]} against {titles[1]}", "runs": [str(first), str(second)]})


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
    for sentence in frames["explanation"]["sentence"]:
        console.print(sentence)
    finish_run(run, frames, {**joint, "title": f"Why {joint['channel']}?"})
