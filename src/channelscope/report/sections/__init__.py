"""sections: the parts of the report, in order; a part appears when the run folder has its table.

To add one (ten lines of code; `CHANNEL_SUMMARY` in sections/runs.py is a short example):

1. Write the table into the run folder: `tables.write(tables.describe(frame, {"name": "notes", "columns": COLUMNS}), out / "notes.csv")`.
   Axis titles, units and digits come from the columns' descriptions; NAME_low and NAME_high are shown as NAME's interval, and a table
   with columns site and channel gets hover, keep and highlight for free. `stage`, `depth`, `n` and `images` mean what they say.
2. In sections/notes.py write `NOTES = Section("notes", title, question, charts, answer)`. Charts are declared, not drawn:
   `Chart(title, x="support", y="kl", kind="scatter", by="stage", panels=("site",), low="kl_low", high="kl_high", of="images")`
   becomes an interactive plot in the page and PNG and SVG files; kind="rows" is for named things with intervals, one below the other.
   `more=("note_layers",)` are further tables of the section; `Chart(…, table="note_layers")` is drawn from one of them.
   Answer is a function from `RunFolder` to sentences; `run.table(NAME)` is a frame or None, `run.facts` is run.json; write every
   number with `tables.format_interval(value, low, high, n, "channels")`, and state what could not be measured.
3. What no chart can show (a graph, pictures): `drawings=` a function from `RunFolder` to `[Drawing(name, title, figure, caption)]`,
   where figure is a matplotlib Figure or a PNG or SVG file. A table made from others of the run: `derive=`, a function from
   `RunFolder` to a described frame.
4. Put it into `SECTIONS` below, where a reader would look for it, and test the sentences in tests/report/sections/test_notes.py.
"""

from channelscope.report.section import Section
from channelscope.report.sections.axes import ALIGNMENT, CLUSTERS, DEPTH, GRADIENTS, MASS, PICTURES, TRAJECTORY
from channelscope.report.sections.circuits import CIRCUIT, COMPARISON, SUBCIRCUITS
from channelscope.report.sections.discarding import DISCARDED, FAITHFUL
from channelscope.report.sections.experiments import ABLATION, COMMUNITIES, HULLS, PROPAGATION
from channelscope.report.sections.pruning import BENCHMARK, PRUNING
from channelscope.report.sections.runs import CHANNEL_SUMMARY, SIDE_BY_SIDE
from channelscope.tables.run_folder import RunFolder

SECTIONS: tuple[Section, ...] = (
    CHANNEL_SUMMARY,
    SIDE_BY_SIDE,
    ALIGNMENT,
    DEPTH,
    CLUSTERS,
    MASS,
    PICTURES,
    ABLATION,
    HULLS,
    COMMUNITIES,
    PROPAGATION,
    TRAJECTORY,
    GRADIENTS,
    PRUNING,
    BENCHMARK,
    DISCARDED,
    FAITHFUL,
    CIRCUIT,
    COMPARISON,
    SUBCIRCUITS,
)
"""Every section a report may have, in order."""

OWN = {"channels", "alignment_mean", "skipped"}
"""tables that have a place of their own on the page"""


def sections(run: RunFolder) -> list[Section]:
    """The sections this run has something for; tables that no section knows come last, each under its own name.

    Examples
    --------
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> frames = {"remarks": pd.DataFrame({"a": [1]}), "communities": pd.DataFrame({"a": [1]})}
    >>> [each.title for each in sections(RunFolder(Path(), {}, frames))]
    ['Communities', 'Remarks']
    """
    claimed = {name for each in SECTIONS for name in (each.table, *each.more)} | OWN
    rest = [Section(name, name.replace("_", " ").capitalize(), "") for name in run.tables if name not in claimed]
    return [section for section in (*SECTIONS, *rest) if section.frames(run)]
