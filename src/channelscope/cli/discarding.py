"""The commands `discard` and `faithfulness`."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from channelscope import tables
from channelscope.cli.call import current_call
from channelscope.cli.options import NetworkOptions, at_least, finish_run, fitted, load_network, network_facts, open_run
from channelscope.data.sources import ImageSource
from channelscope.discarding.analysis import DiscardingAnalysis, ExtraAnalyses
from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.faithfulness import compare_maps
from channelscope.errors import DataError
from channelscope.network.module_state import weights_hash
from channelscope.progress import console
from channelscope.pruning.folder import RECIPE, load_pruned
from channelscope.tables.rounding import format_interval
from channelscope.tables.run_folder import read_facts

MAPPED = 32
"""Test images of `discard` where the user says nothing."""

EVALUATED, TUNED = 64, 32
"""Test and calibration images of `faithfulness` where the user says nothing."""


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
    out: Path = Path("runs/discarding"),
    layers: str = "",
    test: int | None = None,
) -> None:
    """Measure how much of each pixel's information every layer throws away (CID), as maps, layer curves and tables.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    rule
        Constraint and cells of the noise.
    compared
        Another network.
    further
        Concentration on objects, and reconstruction.
    out
        Folder for the tables, maps and report.html; an interrupted run goes on from there.
    layers
        Module paths or steps, separated by commas; by default four, evenly spaced.
    test
        Test images to look at; by default 32, or all there are.

    Examples
    --------
    channelscope discard resnet20 -w runs/demo/trained.safetensors --test 16 --out runs/discard
    channelscope discard resnet20 -w runs/demo/trained.safetensors --against runs/small --out runs/discard
    """
    at_least(1, test=test)
    open_run(out)
    model, images = load_network(network, source)
    split = fitted(images.test, test, MAPPED, "--test")
    run = open_run(out, weights_hash(model), network.model)
    current_call().unfinished[out / "maps"] = "maps of the images so far"
    analysis = DiscardingAnalysis(model, split, images.calibration, layer_names(layers), rule, network.model, source.seed, out / "maps")
    console.print(f"maps of {len(analysis.layers)} layers on {len(split):,} test images")
    frames = analysis.tables(further, _other(analysis, network, source, compared, out) if compared.compare is not None else None)
    for line in _headline(frames):
        console.print(line)
    finish_run(run, frames, network_facts(network, model, images, f"What {network.model} discards", rule=options_text(rule)))


def faithfulness(
    network: NetworkOptions,
    source: ImageSource,
    rule: CIDOptions,
    out: Path = Path("runs/faithfulness"),
    layers: str = "",
    test: int | None = None,
    tuning: int | None = None,
) -> None:
    """Judge CID maps against gradient, integrated gradients, Grad-CAM and LRP: descriptive accuracy, and finding the object.

    Needs captum and zennit (the extra `attribution`) and images with boxes.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    rule
        Constraint and cells of the noise.
    out
        Folder for the tables and report.html.
    layers
        Modules whose CID is judged, separated by commas; Grad-CAM is taken at the last; by default the third of four.
    test
        Test images judged; by default 64, or all there are.
    tuning
        Calibration images on which each method's threshold is chosen; by default 32, or all there are.
    """
    at_least(2, test=test, tuning=tuning)
    open_run(out)
    model, images = load_network(network, source)
    run = open_run(out, weights_hash(model), network.model)
    tuned = fitted(images.calibration, tuning, TUNED, "--tuning")
    split = fitted(images.test, test, EVALUATED, "--test")
    console.print(f"maps of {len(split):,} test images, thresholds from {len(tuned):,} calibration images")
    comparison = compare_maps(model, split, tuned, images.calibration, layer_names(layers), rule)
    for row in comparison.tables["localization"].to_dict("records"):
        overlap = format_interval(row["iou"], row["iou_low"], row["iou_high"], int(row["n"]), "images")
        doubt = f"; {row['converged']:.0%} of the images converged" if row["converged"] < 1 else ""
        console.print(f"{row['method']}: mean IoU {overlap}{doubt}")
    title = f"Faithfulness of maps of {network.model}"
    facts = network_facts(network, model, images, title, layers=list(comparison.layers), rule=options_text(rule))
    finish_run(run, comparison.tables, facts)


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
    facts = read_facts(folder / "run.json")
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
