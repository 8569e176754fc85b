"""Figures of a run folder as PNG and SVG: alignment by depth, two-axis maps, groupings."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from channelscope.report.quantities import BY_NAME

COLORS = {0: "#9aa3ad", 1: "#2563a8"}
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "svg.hashsalt": "channelscope"}


def alignment(frame: pd.DataFrame, local: str = "capture", target: str = "relevance") -> Figure:
    """Spearman's rho of two quantities by depth, with intervals, one line per stage."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots()
        pairs = frame[(frame["local"] == local) & (frame["target"] == target)]
        for number, (stage, rows) in enumerate(pairs.groupby("stage", sort=False)):
            color = COLORS[1 if number == pairs["stage"].nunique() - 1 else 0]
            errors = np.abs(rows[["low", "high"]].to_numpy() - rows[["rho"]].to_numpy()).T
            axes.errorbar(rows["depth"] + 0.15 * number, rows["rho"], errors, fmt="o-", ms=3.5, lw=1, capsize=2, color=color, label=stage)
        axes.axhline(0, color="#555", lw=0.7)
        axes.set(ylim=(-1, 1), xlabel="depth (site in execution order)", ylabel="Spearman's ρ")
        axes.set_title(
            f"{BY_NAME[local].title} and {BY_NAME[target].title.lower()}, 95 % jackknife intervals over image shards", loc="left"
        )
        axes.legend(frameon=False)
        return figure


def maps(channels: pd.DataFrame, local: str = "capture", target: str = "relevance", most: int = 12) -> Figure:
    """Two-axis map of up to `most` depth-spaced layers of the last stage."""
    last = channels[channels["stage"] == channels["stage"].iloc[-1]]
    sites = list(dict.fromkeys(last["site"]))
    chosen = [sites[i] for i in np.unique(np.linspace(0, len(sites) - 1, min(most, len(sites))).astype(int))]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.4 * columns, 2.1 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for place in axes.flat[len(chosen) :]:
            place.set_axis_off()
        for place, site in zip(axes.flat, chosen, strict=False):
            own = last[last["site"] == site].replace([np.inf, -np.inf], np.nan)
            place.scatter(own[local], own[target], s=8, color=COLORS[1], alpha=0.6, linewidths=0)
            place.set_title(f"{site} (n = {own[[local, target]].dropna().shape[0]})", loc="left", fontsize=8)
        figure.supxlabel(f"{BY_NAME[local].title} [nats]", fontsize=9)
        figure.supylabel(f"{BY_NAME[target].title} [nats]", fontsize=9)
        return figure


def groups(frame: pd.DataFrame) -> Figure:
    """Adjusted Rand index of the two groupings by depth against its permutation null."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.subplots()
        last = frame[frame["stage"] == frame["stage"].iloc[-1]]
        if "ari" in last:
            axes.fill_between(last["depth"], last["null_mean"], last["null_high"], color="#ddd", label="chance: mean to 95th percentile")
            axes.plot(last["depth"], last["ari"], "o", ms=4, color=COLORS[1], label="measured")
            axes.legend(frameon=False)
        axes.axhline(0, color="#555", lw=0.7)
        axes.set(xlabel="depth (site in execution order)", ylabel="adjusted Rand index")
        axes.set_title("Do channels that are alike locally fall together on the target axis?", loc="left")
        return figure


def write(tables: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write every figure the tables allow, PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    if "alignment" in tables:
        drawn["alignment"] = alignment(tables["alignment"])
    if "channels" in tables:
        drawn["two-axis-maps"] = maps(tables["channels"])
    if "groups" in tables:
        drawn["groups"] = groups(tables["groups"])
    paths = []
    for name, figure in drawn.items():
        for ending in ("png", "svg"):
            paths.append(folder / f"{name}.{ending}")
            figure.savefig(paths[-1], dpi=150, metadata={"Date": None} if ending == "svg" else None)
    return paths
