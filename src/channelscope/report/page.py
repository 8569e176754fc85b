"""The report as one HTML file that opens offline."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from channelscope.report import figures, quantity_diagram, verdict
from channelscope.report.section import Section
from channelscope.report.sections import sections
from channelscope.storage import atomic_file
from channelscope.tables.frame import format_interval, format_number
from channelscope.tables.quantities import HEADLINE, QUANTITIES
from channelscope.tables.run_folder import RunFolder

FOLDERS = re.compile(r"\S*/(?=[^/\s]+\.py:)")
"""where a network's file lies, which a heading need not say"""

TEMPLATES = Path(__file__).parent / "templates"

SCRIPTS = ("data.js", "pins.js", "plot.js", "map.js", "table.js", "main.js")

MOST_ROWS = 20_000
"""longest table in the page that no chart needs"""

MOST_OPEN = 6
"""pictures of a section that are not folded away"""

SPOKEN_FOR = ("alignment", "by_depth")
"""sections whose answer is in the heading where the alignment of the axes was measured"""

SCALES = (0.5, 1.0)
"""largest correlation on the scale of the cards: the smallest of these that holds every interval"""

FOOTER_FACTS = {
    "command": "command",
    "network": "network",
    "weights": "hash of the weights",
    "data": "images",
    "readout": "local readout",
    "target": "target",
    "assumption": "assumption",
    "seed": "seed",
    "version": "channelscope",
    "date": "date",
    "seconds": "run time",
}


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run folder: one HTML file, and its charts as PNG and SVG in folder/figures.

    Parameters
    ----------
    out
        The HTML file; by default report.html in the folder.

    Returns
    -------
    Path
        The HTML file. It appears whole or not at all.

    Raises
    ------
    FormatError
        If the folder is no run folder, or for a damaged file in it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "run.json").write_text('{"title": "Tiny"}', encoding="utf-8")
    ...     write_report(folder).name
    'report.html'
    """
    run = RunFolder.read(folder)
    path = Path(out) if out else run.folder / "report.html"
    written = render(run, get_plotlyjs())
    figures.write(run, run.folder / "figures")
    with atomic_file(path) as half:
        half.write_text(written, encoding="utf-8")
    return path


def render(run: RunFolder, plotly: str) -> str:
    """The report's HTML with the given chart library inlined.

    Examples
    --------
    >>> "<h1>Tiny</h1>" in render(RunFolder(Path(), {"title": "Tiny"}, {}), plotly="")
    True
    """
    parts = sections(run)
    shown_parts = [_part(section, run) for section in parts]
    means = run.table("alignment_mean")
    answers = _answers(shown_parts, SPOKEN_FOR if means is not None else ())
    alone = means is None and len(answers) == 1
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"together": _spoken, "lowered": _subscripts}
    channels, skipped = run.table("channels"), run.table("skipped")
    facts = {"title": "", "version": "", "command": ""} | dict(run.facts)
    facts["title"] = heading(run)
    cards = _cards(run)
    named = {name for frame in run.tables.values() for name in (*frame.columns, *frame.get("score", ()))}
    quantities = list(QUANTITIES.values()) if named & set(QUANTITIES) else []
    contents = [("map", "Map")] if channels is not None else []
    contents += [(section.id, section.title) for section in parts]
    contents += (
        ([("channels", "Channels")] if channels is not None else [])
        + ([("skipped", "Skipped")] if "skipped" in run.tables else [])
        + ([("quantities", "Quantities")] if quantities else [])
    )
    return environment.get_template("page.html.j2").render(
        facts=facts,
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        contents=contents,
        verdict=verdict.verdict(means, facts) if means is not None else facts["title"] or "Report",
        first_screen=verdict.first_screen(run) if means is not None else [],
        answers=answers,
        alone=alone,
        cards=cards,
        several=len(run.stages) > 1,
        unsure=any(bar["left"] is None for card in cards for bar in card["bars"]),
        network=[FOLDERS.sub("", sentence) for sentence in verdict.network(facts)],
        commands=str(facts["command"]).splitlines(),
        has_channels=channels is not None,
        most_open=MOST_OPEN,
        parts=[part | {"sentences": part["sentences"][alone:]} for part in shown_parts],
        undefined=verdict.undefined(channels),
        refused=verdict.refused(channels),
        has_skipped="skipped" in run.tables,
        skipped=[] if skipped is None else list(zip(skipped["site"], skipped["reason"], strict=True)),
        drawing=Markup(quantity_diagram.svg()),
        quantities=quantities,
        made=_footer(facts),
        data=Markup(_embedded(_data(run, parts))),
        plotly=Markup(plotly),
        script=Markup("\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)),
    )


def heading(run: RunFolder) -> str:
    """Title of a page: that of its call or, where several calls left tables about one network, what they are about.

    Examples
    --------
    >>> calls = [{"name": name, "tables": [], "facts": {"title": f"{name} of net"}} for name in ("axes", "hulls")]
    >>> heading(RunFolder(Path(), {"title": "axes of net", "network": "net", "data": "digits", "calls": calls}))
    '2 analyses of net on digits'
    >>> heading(RunFolder(Path(), {"title": "Two axes of /home/me/net.py:Net"}))
    'Two axes of net.py:Net'
    """
    titles = {str(call["facts"].get("title")) for call in run.calls}
    if len(titles) > 1 and run.facts.get("network"):
        on = f" on {run.facts['data']}" if run.facts.get("data") else ""
        return FOLDERS.sub("", f"{len(titles)} analyses of {run.facts['network']}{on}")
    return FOLDERS.sub("", str(run.facts.get("title") or ""))


def _answers(parts: list[dict[str, Any]], left_out: tuple[str, ...]) -> list[dict[str, str]]:
    """The first sentence of every section, which answers its question; not of those that the heading speaks for."""
    spoken = [part for part in parts if part["sentences"] and part["id"] not in left_out]
    return [{key: part[key] for key in ("id", "title")} | {"answer": part["sentences"][0]} for part in spoken]


def _spoken(sentence: str) -> Markup:
    """The sentence without folders of networks, with its counts kept on one line, and what stands between backticks as code."""
    said = FOLDERS.sub("", sentence).replace("n = ", "n\u00a0=\u00a0")
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(said))))


def _subscripts(formula: str) -> Markup:
    """The formula with what stands behind an underscore set below the line."""
    return Markup(re.sub(r"_(\w)", r"<sub>\1</sub>", str(escape(formula))))


def _part(section: Section, run: RunFolder) -> dict[str, Any]:
    return {
        "id": section.id,
        "title": section.title,
        "question": section.question,
        "sentences": section.answer(run),
        "plain": not section.charts,
        "drawings": [(drawing, figures.embedded(drawing.figure)) for drawing in figures.drawings(section, run)],
        "tables": [_table_details(name, frame, section) for name, frame in section.frames(run).items()],
    }


def _table_details(name: str, frame: pd.DataFrame, section: Section) -> dict[str, Any]:
    """What stands above a table that is folded away."""
    count = f"{len(frame):,} {'row' if len(frame) == 1 else 'rows'}"
    title = "The numbers" if name == section.table else f"More numbers: {name.replace('_', ' ')}"
    return {"name": name, "summary": f"{title} ({count})", "left_out": _too_long(section, name, frame)}


def _too_long(section: Section, name: str, frame: pd.DataFrame) -> bool:
    """Whether a table is too long for the page; those that charts are drawn of are always there."""
    return len(frame) > MOST_ROWS and name not in {chart.table or section.table for chart in section.charts}


def _cards(run: RunFolder) -> list[dict[str, Any]]:
    """The headline pairs with one bar per stage; positions are percentages of a scale that all cards share."""
    means, cards = run.table("alignment_mean"), []
    found = {pair: [(stage, each) for stage in run.stages if (each := verdict.estimate(means, stage, pair))] for pair in verdict.PAIRS}
    ends = [abs(end) for bars in found.values() for _, each in bars for end in (each.value, each.low, each.high) if math.isfinite(end)]
    reach = next(limit for limit in SCALES if limit >= max(ends, default=0) or limit == SCALES[-1])
    for (local, target), bars in found.items():
        if bars:
            drawn = [_bar(stage, each, reach) for stage, each in bars]
            cards.append({"local": verdict.title(local), "target": verdict.title(target), "bars": drawn, "reach": f"{reach:g}"})
    return cards


def _bar(stage: str, found: verdict.Estimate, reach: float) -> dict[str, Any]:
    known = math.isfinite(found.low) and math.isfinite(found.high)
    return {
        "stage": stage,
        "text": format_interval(found.value, found.low, found.high, top=1.0),
        "count": f"n = {found.layers} {'layer' if found.layers == 1 else 'layers'}",
        "at": _place(found.value, reach) if math.isfinite(found.value) else None,
        "left": _place(found.low, reach) if known else None,
        "width": round(50 * (found.high - found.low) / reach, 2) if known else None,
    }


def _place(rho: float, reach: float) -> float:
    return round(50 * (1 + rho / reach), 2)


def _footer(facts: dict[str, Any]) -> list[tuple[str, str]]:
    values = {key: facts[key] for key in FOOTER_FACTS if facts.get(key) not in (None, "")}
    if "seconds" in values:
        values["seconds"] = f"{format_number(float(values['seconds']), 0)} s"
    return [(FOOTER_FACTS[key], str(value)) for key, value in values.items()]


def _data(run: RunFolder, parts: list[Section]) -> dict[str, Any]:
    frames = {name: frame for section in parts for name, frame in section.frames(run).items() if not _too_long(section, name, frame)}
    frames |= {name: frame for name in ("channels", "alignment_mean") if (frame := run.table(name)) is not None}
    return {
        "stages": list(run.stages),
        "headline": HEADLINE,
        "titles": verdict.COLUMN_TITLES,
        "valueTitles": verdict.VALUE_TITLES,
        "quantities": {each.name: {"title": each.title, "symbol": each.symbol, "axis": each.axis} for each in QUANTITIES.values()},
        "frames": {name: _frame(frame) for name, frame in frames.items()},
        "sections": [
            {
                "value": section.value,
                "charts": [chart.as_dict() | {"table": chart.table or section.table} for chart, _ in section.charted(run)],
            }
            for section in parts
        ],
    }


def _frame(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns and values for the page; the full meaning of the quantities stands in their own table."""
    columns, data = {}, {}
    for name, values in frame.items():
        about = frame.attrs["columns"][name]
        number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        columns[name] = {key: about[key] for key in ("unit", "digits", "meaning", "high") if key in about} | {"number": number}
        data[name] = [_number(value) for value in values.tolist()] if number else [str(value) for value in values]
        if pd.api.types.is_integer_dtype(values):
            columns[name]["digits"] = 0
    return {"columns": columns, "data": data}


def _number(value: float) -> float | str:
    """Eight significant digits, unless they would say a whole number that it is not; what JSON has no number for as a word."""
    if isinstance(value, int):
        return value
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    short = float(f"{value:.8g}")
    return value if short == round(short) else short


def _embedded(data: dict[str, Any]) -> str:
    """JSON that can stand inside a script element."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
