"""The command `discard`."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from channelscope import tables
from channelscope.cli.circuits import circuit_facts
from channelscope.cli.options import NetworkOptions, console, fitted, load_network
from channelscope.cli.run_folder import RunAddition, folder_at
from channelscope.data.sources import ImageSource
from channelscope.discarding.analysis import DiscardingAnalysis, ExtraAnalyses
from channelscope.discarding.cid import CIDOptions
from channelscope.errors import DataError
from channelscope.network.module_state import weights_hash
from channelscope.pruning.folder import RECIPE, load_pruned
from channelscope.report import page
from channelscope.tables.rounding import format_interval

EVALUATED = 32
"""Number of test images unless the user gives one."""


@dataclass(frozen=True)
class ComparedNetwork:
    """Another network, measured under the same options on the same images."""

    compare: str | None = None
    """another network, a folder that `prune` made of this one, or the folder of an earlier run of this command"""
    compare_weights: Path | None = None
    """weights file of the other network"""
    compare_layers: str | None = None
    """its layers, separated by commas; by default those of the same names"""


def discard(
    network: NetworkOptions,
    source: ImageSource,
    rule: CIDOptions,
    compared: ComparedNetwork,
    further: ExtraAnalyses,
    out: Path,
    layers: str = "",
    evaluated: int | None = None,
) -> None:
    """Measure how much of each pixel's information every layer throws away (CID), as maps, layer curves and tables.

    out        folder for the tables, maps and report.html; an interrupted run goes on from there
    layers     module paths or steps, separated by commas; by default four, evenly spaced
    evaluated  test images to look at; by default 32, or all there are
    """
    begun = time.monotonic()
    if evaluated is not None and evaluated < 1:
        raise DataError(f"expected --evaluated of at least 1, received {evaluated}")
    folder_at(out)
    model, images = load_network(network, source)
    split = fitted(images.test, evaluated, EVALUATED, "--evaluated")
    RunAddition(out).agrees(weights_hash(model), network.model)
    analysis = DiscardingAnalysis(model, split, images.calibration, layer_names(layers), rule, network.model, source.seed, out / "maps")
    frames = analysis.tables(further, _other(analysis, network, source, compared, out) if compared.compare is not None else None)
    for name, frame in frames.items():
        tables.write(frame, out / f"{name}.csv")
    if not (out / "run.json").exists():
        facts = {"title": f"What {network.model} discards", "rule": options_text(rule)}
        tables.write_json(circuit_facts(network, model, images, begun) | facts, out / "run.json")
    for line in _headline(frames):
        console.print(line)
    print(page.write_report(out))


def _other(
    own: DiscardingAnalysis, network: NetworkOptions, source: ImageSource, compared: ComparedNetwork, out: Path
) -> DiscardingAnalysis | pd.DataFrame:
    """The other network, opened with the same images; or its table, read from an earlier run's folder."""
    assert compared.compare is not None
    folder = Path(compared.compare)
    if (folder / "discarded.csv").is_file():
        return _earlier(folder, network.model)
    pruned = (folder / RECIPE).is_file()
    other = network if pruned else replace(network, model=compared.compare, weights=compared.compare_weights)
    model, images = load_network(other, source, note=not pruned)
    if pruned:
        model, other = load_pruned(folder, model), replace(other, model=f"{other.model} pruned to {folder.name}")
    shape = own.images.image_shape
    if images.image_shape != shape:
        raise DataError(f"{other.model} sees images of {images.image_shape}, {network.model} of {shape}: pass --size")
    layers = own.layers if compared.compare_layers is None else layer_names(compared.compare_layers)
    label = other.model if other.model != network.model else f"{other.model} ({weights_hash(model)[:8]})"
    split = images.test.take(len(own.images))
    return DiscardingAnalysis(model, split, images.calibration, layers, own.options, label, own.seed, out / "maps_compared")


def _earlier(folder: Path, network: str) -> pd.DataFrame:
    """The table of the first network in an earlier run's folder, under a name that differs from this network's."""
    frame = tables.read(folder / "discarded.csv")
    first = frame.network.iloc[0]
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    label = first if first != network else f"{first} ({str(facts.get('weights', folder))[:8]})"
    return tables.describe(frame[frame.network == first].assign(network=label), frame.attrs)


def layer_names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def options_text(rule: CIDOptions) -> str:
    """The options of a CID in one line."""
    convention = rule.convention()
    return f"{rule.mode}; normalizer {rule.normalizer}, κ = {convention['kappa']}, cap {'on' if rule.cap else 'off'}, grid {rule.side}"


def _headline(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Each layer's mean CID, and the difference where there is one."""
    lines = []
    for row in frames["discarded_layers"].to_dict("records"):
        cid = format_interval(row["cid"], row["cid_low"], row["cid_high"], int(row["n"]), "images")
        doubt = "" if row["converged"] == 1 else f"; {row['converged']:.0%} of the images converged"
        doubt += f"; {int(row['unreached'])} images out of reach" if row["unreached"] else ""
        doubt += f"; {row['unseen']:.0%} of the image does not reach it" if row["unseen"] else ""
        lines.append(f"{row['network']} {row['layer']}: CID {cid} nats{doubt}")
    for row in frames["discarded_difference"].to_dict("records") if "discarded_difference" in frames else []:
        change = format_interval(row["difference"], row["difference_low"], row["difference_high"], int(row["n"]), "images")
        lines.append(f"{row['other']} less {row['network']} at {row['layer']}: {change} nats")
    return lines
