"""The commands `ablate`, `hulls`, `communities`, `propagation`, `gradients`, `trajectory`, `discard` and `faithfulness`."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from channelscope import tables, zoo
from channelscope.cli.call import (
    NetworkOptions,
    ScoreFlags,
    at_least,
    chosen_device,
    current_call,
    finish_run,
    fitted,
    load_network,
    network_facts,
    note_chance,
    open_run,
    profile_facts,
    read_profile,
    run_profile,
)
from channelscope.cli.wording import remark
from channelscope.data.sources import ImageSource
from channelscope.discarding.analysis import DiscardingAnalysis, ExtraAnalyses
from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.faithfulness import compare_maps
from channelscope.errors import DataError, InputError, MismatchError, SampleError
from channelscope.experiments.ablation import ablate as run_ablation
from channelscope.experiments.ablation_plan import AblationPlan
from channelscope.experiments.communities import find_communities
from channelscope.experiments.gradients import gradient_angles, simulate
from channelscope.experiments.hulls import HullOptions, replacement_sets
from channelscope.experiments.propagation import axis_propagation
from channelscope.experiments.trajectory import training_trajectory
from channelscope.network.module_state import weights_hash
from channelscope.profiling.collect import collect
from channelscope.profiling.collect import load as load_profile
from channelscope.profiling.collect import save as save_profile
from channelscope.progress import console, progress_bar, track
from channelscope.pruning.folder import RECIPE, load_pruned
from channelscope.scores.score import ScoreOptions as Shared
from channelscope.scores.score_table import assumption
from channelscope.stats.profile import Profile
from channelscope.tables.frame import format_interval
from channelscope.tables.run_folder import read_facts
from channelscope.zoo.training_run import History

EVALUATED = 1000
"""Test images where the user says nothing."""


def ablate(
    network: NetworkOptions,
    source: ImageSource,
    convention: ScoreFlags,
    plan: AblationPlan,
    rule: HullOptions,
    out: Path = Path("runs/ablation"),
    profile: Path | None = None,
    test: int | None = None,
) -> None:
    """Ablate channels one by one, replace them by predictions from their peers, and correlate the damage with every score.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    convention
        Options that all scores share.
    plan
        Which channels are ablated and how.
    rule
        How replacement sets grow.
    out
        Folder for the tables and report.html; an interrupted run goes on from there.
    profile
        A profile collected before, instead of a new pass over the calibration images.
    test
        Test images on which the damage is measured; by default 1,000, or all there are.

    Examples
    --------
    channelscope ablate resnet20 -w runs/demo/trained.safetensors --out runs/ablation
    channelscope ablate timm:resnet18 -w mine.safetensors -d folder:photos --layers layer3.0.conv1 --all --out runs/mine
    """
    at_least(1, test=test)
    run = open_run(out)
    model, images = load_network(network, source)
    held_out = fitted(images.test, test, EVALUATED, "--test")
    found = run_profile(run, model, images, profile)
    note_chance(network, found.tally.accuracy_interval()[0], images)
    unfinished = _unfinished(out)
    current_call().unfinished[unfinished] = "ablations measured so far"
    console.print(f"ablating channels on {len(held_out):,} test images")
    frames = run_ablation(model, found, held_out, plan, rule, unfinished, **convention.options())
    facts = profile_facts(
        found,
        f"Ablations in {network.title}",
        data=source.data,
        target=convention.target,
        assumption=assumption(found, Shared(**convention.options())),
        **network.origin,
    )
    for line in frames["notes"]["note"]:
        remark(line)
    console.print(_recovered_line(frames["recovered"]))
    finish_run(run, frames, facts)


def _unfinished(out: Path) -> Path:
    """The file of an interrupted run; one that an earlier version left goes on under its own name."""
    earlier = out / "lesion.unfinished"
    return earlier if earlier.exists() else out / "ablation.unfinished"


def _recovered_line(rows: pd.DataFrame) -> str:
    """The answer in one sentence."""
    (whole,) = rows.query("site == 'all layers' and quantity == 'kl' and replacement == 'hull' and subset == 'all'").to_dict("records")
    share = format_interval(whole["recovered"], whole["low"], whole["high"], int(whole["n"]), "channels")
    return f"replacement sets (hulls) recover {share} of the KL divergence that ablation causes"


def hulls(profile: Path, rule: HullOptions, out: Path = Path("runs/hulls"), shrinkage: str | float | None = None) -> None:
    """Find the small sets of peers that can stand in for each channel, from a profile alone.

    Parameters
    ----------
    profile
        Profile, or a run folder that holds one.
    rule
        How replacement sets grow.
    out
        Folder for the tables and report.html.
    shrinkage
        Of correlation matrices: a number from 0 to 1, or oas.

    Examples
    --------
    channelscope hulls runs/axes --out runs/axes
    channelscope hulls resnet20.profile --hull-size 5 --out runs/hulls
    """
    found = read_profile(profile)
    run = open_run(out, found.weights_hash, found.network)
    console.print(f"replacement sets of {_extent(found)}")
    frames = replacement_sets(found, rule, shrinkage=shrinkage)
    finish_run(run, frames, profile_facts(found, f"Hulls of {found.network}"))


def _extent(profile: Profile) -> str:
    """What a profile holds, in words."""
    channels = sum(site.channels for site in profile.sites)
    return f"{channels:,} channels in {len(profile.sites)} layers, from statistics of {profile.images:,} calibration images"


def communities(
    profile: Path,
    convention: ScoreFlags,
    out: Path = Path("runs/communities"),
    share: float = 0.1,
    weighted: bool = True,
    intervals: bool = True,
) -> None:
    """Find communities of channels that share information, and of channels that are informative only together.

    Parameters
    ----------
    profile
        Profile, or a run folder that holds one.
    convention
        Options that all scores share.
    out
        Folder for the tables and report.html.
    share
        Edges kept: this share of the positive ones, the strongest.
    weighted
        Count the edges' weights in the modularity.
    intervals
        Give intervals over images, at ten times the cost.

    Examples
    --------
    channelscope communities runs/axes --out runs/axes
    channelscope communities resnet20.profile --no-intervals --out runs/communities
    """
    found = read_profile(profile)
    run = open_run(out, found.weights_hash, found.network)
    console.print(f"graphs of {_extent(found)}{', once more without each shard of them' if intervals else ''}")
    frames = find_communities(found, share, weighted, intervals, **convention.options())
    finish_run(run, frames, profile_facts(found, f"Communities in {found.network}", target=convention.target))


def propagation(
    network: NetworkOptions,
    source: ImageSource,
    convention: ScoreFlags,
    out: Path = Path("runs/propagation"),
    profile: Path | None = None,
    permutations: int = 200,
) -> None:
    """Correlate the scores of each layer's channels with those of the layers that read them, within and across the two axes.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    convention
        Options that all scores share.
    out
        Folder for the tables and report.html.
    profile
        A profile collected before, instead of a new pass over the calibration images.
    permutations
        Shuffles of the upstream channels behind the null.

    Examples
    --------
    channelscope propagation resnet20 -w runs/demo/trained.safetensors --out runs/propagation
    """
    run = open_run(out)
    model, images = load_network(network, source)
    found = run_profile(run, model, images, profile)
    console.print(f"{permutations:,} permutations of {_extent(found)}")
    frames = axis_propagation(model, found, permutations, source.seed, **convention.options())
    title = f"Propagation in {network.model}"
    finish_run(run, frames, profile_facts(found, title, data=source.data, target=convention.target, **network.origin))


def gradients(
    network: NetworkOptions,
    source: ImageSource,
    out: Path = Path("runs/gradients"),
    profile: Path | None = None,
    readout: Literal["positions(all)", "pooled"] = "positions(all)",
    layers: tuple[str, ...] | None = None,
) -> None:
    """Measure the angle between the gradients of input capture and of task information with respect to each channel's weights.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    out
        Folder for the tables and report.html.
    profile
        A profile collected before; the directions take a pass over the calibration images of their own.
    readout
        What a sample is: every position of an image, or its average.
    layers
        Layers to look at; by default every one.

    Examples
    --------
    channelscope gradients resnet20 -w runs/demo/trained.safetensors --layers layer1.0.conv1,layer3.0.conv1 --out runs/gradients
    """
    run = open_run(out)
    model, images = load_network(network, source)
    found = run_profile(run, model, images, profile)
    console.print(f"gradients of the channels of {len(layers or found.sites)} layers on {len(images.calibration):,} calibration images")
    frames = gradient_angles(model, found, images.calibration, "pooled" if readout == "pooled" else "positions", layers) | simulate()
    for row in frames["gradient_skipped"].itertuples():
        console.print(f"  skipped {row.site}: {current_call().wording(str(row.reason))}", style="dim")
    title = f"Gradient directions in {network.model}"
    finish_run(run, frames, profile_facts(found, title, data=source.data, target="margin", **network.origin))


USUAL = 2000
"""Calibration images where the user says nothing."""

Checkpoint = tuple[str, int, Path]
"""run, epoch, weights"""


def trajectory(
    runs: list[Path],
    convention: ScoreFlags,
    rule: HullOptions,
    out: Path = Path("runs/trajectory"),
    images: int | None = None,
    layer_count: int = 6,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Measure hulls, synergy, communities and the alignment of the axes at the checkpoints of one or more training runs.

    Parameters
    ----------
    runs
        Folders that `channelscope train` left, as a rule of several seeds.
    convention
        Options that all scores share.
    rule
        How replacement sets grow.
    out
        Folder for the tables, the profiles and report.html; an interrupted call goes on from there.
    images
        Calibration images, the same for every checkpoint and run; by default 2,000, or all there are.
    layer_count
        Layers to look at, evenly spaced in depth.
    seed
        Seed of the calibration sample.
    device
        Where it runs: cpu, cuda, cuda:1, …; auto is cuda where there is one, else cpu.

    Examples
    --------
    channelscope trajectory runs/seed0 runs/seed1 --out runs/trajectory
    channelscope trajectory runs/training --layer-count 3 --images 500 --out runs/trajectory
    """
    at_least(1, layer_count=layer_count)
    histories = [History.read(run) for run in runs]
    source = _image_source(histories, images, seed)
    pairs = zip(names(runs), histories, strict=True)
    stages = [(run, epoch, path) for run, one in pairs for epoch, path in one.checkpoints.items()]
    if not stages:
        raise SampleError(f"no checkpoint in {', '.join(map(str, runs))}: train with --every 1 to keep one per epoch")
    folder = open_run(out, network=histories[0].network)
    call = current_call()
    call.device = chosen_device(device)
    call.unfinished[out / "profiles"] = "profiles of the checkpoints so far"
    console.print(
        f"{len(stages):,} checkpoints of {len(runs):,} runs, {source.images:,} train images of {source.data} each, on {call.device}"
    )
    profiles = dict(_profiles(stages, histories[0].network, source, call.device, out / "profiles"))
    measured = track([(run, epoch, profiles[run, epoch]) for run, epoch, _ in stages], "trajectory")
    frames = training_trajectory(measured, layer_count, rule, **convention.options())
    last = profiles[stages[-1][0], stages[-1][1]]
    for row in frames["trajectory_change"].query("verdict != ''").itertuples():
        console.print(f"{row.quantity}: {row.first:.3f} → {row.last:.3f} over {row.n} runs, the published direction {row.verdict}")
    finish_run(folder, frames, profile_facts(last, f"Training of {last.network}", data=source.data, target=convention.target))


def names(runs: Sequence[Path]) -> list[str]:
    """Names of run folders: as many last parts of their paths as tell them apart.

    Parameters
    ----------
    runs
        The folders.

    Returns
    -------
    list
        One name a folder, in their order.

    Raises
    ------
    InputError
        If a folder is given twice.

    Examples
    --------
    >>> names([Path("runs/seed0"), Path("runs/seed1")]), names([Path("/a/seed0"), Path("/b/seed0")])
    (['seed0', 'seed1'], ['a/seed0', 'b/seed0'])
    """
    parts = [run.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise InputError(f"expected different runs, received {', '.join(map(str, runs))}: name each folder once")
    count = next(count for count in itertools.count(1) if len({each[-count:] for each in parts}) == len(parts))
    return ["/".join(each[-count:]) for each in parts]


def _image_source(histories: list[History], images: int | None, seed: int) -> ImageSource:
    """The images of the runs, normalized as they were in training.

    Raises   MismatchError if the runs are of different networks or images.
    """
    kinds = {(one.network, one.settings["images"]["data"]) for one in histories}
    if len(kinds) > 1:
        raise MismatchError(f"the runs are of different things: {'; '.join(f'{network} on {data}' for network, data in sorted(kinds))}")
    settings = histories[0].settings["images"]
    if images is None:
        images = min(USUAL, settings["splits"]["train"])
        if images < USUAL:
            console.print(f"--images: {images:,} training images, for that is all there are; {USUAL:,} where there are so many")
    return ImageSource(settings["data"], images=images, seed=seed, mean=tuple(settings["mean"]), std=tuple(settings["std"]))


def _profiles(
    stages: list[Checkpoint], network: str, source: ImageSource, device: str, folder: Path
) -> Iterator[tuple[tuple[str, int], Profile]]:
    """The profile of every checkpoint, kept in a folder; one that is there already is read."""
    with progress_bar("checkpoints", len(stages)) as step:
        for run, epoch, weights in stages:
            model, images = zoo.load(network, source, weights, device)
            path = folder / f"{run.replace('/', '_')}_{weights.stem}.profile"
            if path.exists():
                found = load_profile(path)
                if (found.weights_hash, found.images, found.seed) != (weights_hash(model), len(images.calibration), source.seed):
                    raise MismatchError(f"{path} is of other weights or images than {weights}: delete it, or give another --out")
            else:
                found = collect(model, images.calibration, shards=0, seed=source.seed)
                save_profile(found, path)
            yield (run, epoch), found
            step()


MAPPED = 32
"""Test images of `discard` where the user says nothing."""

MAPS_JUDGED, TUNED = 64, 32
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
        Layers, as module paths or steps, separated by commas; by default four, evenly spaced.
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
    names = ", ".join(layer.name for layer in analysis.network.layers(analysis.layers))
    console.print(f"maps of {len(split):,} test images at {names}")
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
        Layers whose CID is judged, separated by commas; Grad-CAM is taken at the last; by default the third of four.
    test
        Test images judged; by default 64, or all there are.
    tuning
        Calibration images on which each method's threshold is chosen; by default 32, or all there are.

    Examples
    --------
    channelscope faithfulness timm:resnet18 -w mine.pt -d hf:boxed --test 32 --out runs/faithfulness
    """
    at_least(2, test=test, tuning=tuning)
    open_run(out)
    model, images = load_network(network, source)
    run = open_run(out, weights_hash(model), network.model)
    tuned = fitted(images.calibration, tuning, TUNED, "--tuning")
    split = fitted(images.test, test, MAPS_JUDGED, "--test")
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
