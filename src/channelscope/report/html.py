"""html: a run folder's tables as one page that opens without a network."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from channelscope import tables
from channelscope.errors import FormatError
from channelscope.report import figures, text
from channelscope.report.quantities import BY_NAME, MAIN, QUANTITIES, diagram
from channelscope.report.sections import extra_sections

NAMES = ("channels", "alignment", "alignment_mean", "groups", "skipped")


def write(folder: str | Path) -> Path:
    """Write report.html and figures/ of a run folder from its tables; returns the page's path.

    Raises   FormatError if the folder has no run.json or lacks a table.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise FormatError(f"no run at {folder}: expected a folder with run.json, such as `channelscope axes … --out {folder}` writes")
    facts = json.loads((folder / "run.json").read_text())
    found = {name: tables.read(folder / f"{name}.csv") for name in NAMES}
    figures.write(found, folder / "figures")
    partial = folder / "report.html.partial"
    partial.write_text(page(found, facts, extra_sections(folder)), encoding="utf-8")
    os.replace(partial, folder / "report.html")
    return folder / "report.html"


def page(found: dict[str, pd.DataFrame], facts: dict[str, Any], extras: list[dict[str, Any]]) -> str:
    """The whole page as text."""
    environment = Environment(loader=PackageLoader("channelscope.report"), undefined=StrictUndefined, autoescape=True)
    environment.filters |= {"shown": text.shown, "share": text.share}
    stage = facts["stages"][-1]
    means = found["alignment_mean"]
    return environment.get_template("page.html.j2").render(
        facts=facts,
        verdict=text.verdict(means, facts),
        answer=text.answer(means, facts),
        pairs=[_spoken(row) for row in means[means["stage"] == stage].to_dict("records")],
        measured=text.measured(facts),
        grouped=text.grouped(found["groups"], stage),
        quantities=QUANTITIES,
        main=MAIN,
        diagram=Markup(diagram()),
        skipped=found["skipped"].to_dict("records"),
        extras=extras,
        data=Markup(_json(payload(found, facts))),
        plotly=Markup(get_plotlyjs()),
    )


def _spoken(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the answer's table, its pair by their titles."""
    one, other = BY_NAME[row["local"]], BY_NAME[row["target"]]
    return row | {"one": one.title, "other": other.title, "interval": text.interval(row["rho"], row["low"], row["high"])}


def payload(found: dict[str, pd.DataFrame], facts: dict[str, Any]) -> dict[str, Any]:
    """What the page's script draws: channels by stage and site, alignment and groupings by depth."""
    channels = found["channels"]
    columns = [quantity.name for quantity in QUANTITIES if quantity.name in channels]
    sites: dict[str, dict[str, Any]] = {}
    for (stage, site), own in channels.groupby(["stage", "site"], sort=False):
        values = {name: own[name].tolist() for name in columns} | {"note": own["note"].fillna("").tolist()}
        sites.setdefault(str(site), {"depth": int(own["depth"].iloc[0]), "kind": own["kind"].iloc[0], "stages": {}})["stages"][stage] = (
            values
        )
    return {
        "stages": facts["stages"],
        "images": facts["images"],
        "columns": columns,
        "quantities": {
            q.name: {"title": q.title, "symbol": q.symbol, "axis": q.axis, "digits": q.digits, "span": q.span} for q in QUANTITIES
        },
        "sites": sites,
        "alignment": found["alignment"].to_dict("records"),
        "groups": found["groups"].to_dict("records"),
    }


def _json(value: Any) -> str:
    """JSON that may stand inside a script element; nan is null and infinity the string 'inf'."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return ("inf" if value > 0 else "-inf") if math.isinf(value) else float(f"{value:.6g}")
    return value
