"""Sections: tables of further experiments, shown below the two axes when a run folder has them.

To add one, register its file name, title, the question it answers and, for a chart, which columns to draw.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from channelscope import tables
from channelscope.report.text import shown


@dataclass(frozen=True)
class Section:
    """One table of a run folder that the report knows how to introduce."""

    file: str
    """table in the run folder, without its ending"""
    title: str
    """heading"""
    question: str
    """the question the table answers, in a sentence"""
    figure: str | None = None
    """picture in figures/ to show above the table"""


SECTIONS = (
    Section("lesion_summary", "Taking channels away", "How does damage go with each score, and what do peers repay?", "lesion.svg"),
    Section("hulls_summary", "Replaceability hulls", "How many peers does it take to stand in for a channel?", "hulls.svg"),
    Section("graphs", "Communities", "Are overlap and synergy organized in communities?", "graphs.svg"),
    Section("trajectory", "Over training", "How do the axes, hulls and graphs develop?", "trajectory.svg"),
    Section("propagation", "From layer to layer", "Does what is local upstream become local downstream?", "propagation.svg"),
    Section("theory", "Gradient directions", "How far apart are the directions that raise each quantity?", "theory.svg"),
    Section("pruning_summary", "A smaller network", "What does each score keep, and at what accuracy?", "pruning.svg"),
    Section("pruning_paired", "Paired differences", "Which scores differ beyond chance at matched cost?"),
)


def extra_sections(folder: Path) -> list[dict[str, Any]]:
    """The registered sections that the folder has tables for, ready to be drawn."""
    found = []
    for section in SECTIONS:
        path = folder / f"{section.file}.csv"
        if path.is_file():
            frame = tables.read(path)
            picture = folder / "figures" / section.figure if section.figure else None
            found.append(
                {
                    "title": section.title,
                    "question": section.question,
                    "columns": list(frame.columns),
                    "rows": [[_cell(value) for value in row] for row in frame.itertuples(index=False)],
                    "picture": _svg(picture) if picture is not None and picture.is_file() else None,
                }
            )
    return found


def _cell(value: Any) -> str:
    return shown(value, 3) if isinstance(value, float) and not value.is_integer() else str(value).removesuffix(".0")


def _svg(path: Path) -> str:
    """The drawing itself, without the XML head."""
    text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]
