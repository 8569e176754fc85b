"""The command `prune`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import nn

from channelscope import scores as scoring
from channelscope import tables, zoo
from channelscope.cli.call import (
    NetworkOptions,
    batch_count,
    current_call,
    fitted,
    load_network,
    network_facts,
    note_chance,
    open_run,
)
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.data.splits import AugmentedBatches, Split
from channelscope.errors import InputError, NumericError
from channelscope.evaluation import evaluate_networks
from channelscope.network.module_state import weights_hash, zero_batch
from channelscope.network.removal.groups import Groups, groups
from channelscope.profiling.collect import collect
from channelscope.progress import Logger, console, logging_to, progress_bar, track
from channelscope.pruning.budget import Budget
from channelscope.pruning.cut import refuse_out_of_reach
from channelscope.pruning.distillation import Distillation, DistillationPlan, distill
from channelscope.pruning.folder import CARD, save_pruned
from channelscope.pruning.folder import export as exporting
from channelscope.pruning.latency import LatencyTable, latency_path, measure_latency
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeons
from channelscope.pruning.prune import LAYER_COLUMNS, SUMMARY_COLUMNS, PruningResult, compare_networks, kept_by_layer
from channelscope.pruning.prune import prune as pruning
from channelscope.pruning.repair import Method
from channelscope.pruning.rotation import linear_streams, rotate_streams
from channelscope.pruning.timing import SPEED_COLUMNS, compare_runtimes
from channelscope.ranking import Ranking
from channelscope.report import page
from channelscope.report.sections.pruning import speed_sentences
from channelscope.tables.frame import counted
from channelscope.tables.quantities import Column
from channelscope.tables.run_folder import RunFolder
from channelscope.zoo.precision import TrainingPrecision

FEW_TO_DISTILL = 2000
"""images below which distillation is said to gain little"""

HELD_OUT, MOST_HELD = 10, 500
"""one in so many images judges whether harm was done, and no more than that"""

BATCH = 64
"""images of a step of distillation"""


@dataclass(frozen=True)
class PruningOptions:
    """What goes, and what is done about it."""

    score: str = "reconstruction"
    """any score, or reconstruction: the order in which layers can best be re-fitted to what is left"""
    macs: float = 0.5
    """multiply-adds to keep, as a fraction"""
    latency: float | None = None
    """in place of --macs: time to keep, as a fraction of that of the network on this device, measured there"""
    latency_batch: int = 1
    """images of the pass that is timed for --latency"""
    round: int | None = None
    """keep channels in multiples of this; by default single ones, and with --latency the multiple that the device likes"""
    rotate: bool = False
    """also try linear streams (MobileNetV2, EfficientNet) in another basis, and take it where the network is nearer to the original"""
    blocks: bool = False
    """let whole residual blocks go too, where that leaves the network nearer to the original"""
    allocation: Literal["global", "uniform"] = "global"
    """one threshold for the network, or the same fraction of every layer"""
    repair: Method = "least_squares"
    """none, batchnorm, peers or least_squares"""
    closest: bool = False
    """where the budget cannot be met, take the smallest that can"""
    distill: bool = False
    """afterwards let the original network teach the smaller one, on training images without their labels"""
    distill_images: int = 5000
    """training images of the teaching, the first; more gain more"""
    distill_epochs: int | None = None
    """passes of the teaching over its images; by default 16, and 40 where less than .45 of the multiply-adds is left"""
    precision: TrainingPrecision = "auto"
    """of distillation and fine-tuning: auto takes bfloat16 where a trial of two seconds shows that it is faster on this device"""
    speed: bool = False
    """also time the result beside the original in eager PyTorch, torch.compile and onnxruntime, 1 and 32 images a pass (minutes)"""


def prune(
    network: NetworkOptions,
    source: ImageSource,
    plan: PruningOptions,
    out: Path = Path("runs/pruned"),
    export: Literal["onnx", "pt2"] | None = None,
    finetune: int = 0,
    test: int | None = None,
    log: Logger = "none",
) -> None:
    """Make a smaller network that does as well as it can, without training, and save it.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    plan
        Score, budget and repair of the pruned network.
    out
        Folder for weights, recipe, summary and report; a pruned network that is there is replaced when this one is whole.
    export
        Also write the network in a format that runs without this library, and compare its outputs.
    finetune
        Epochs of training afterwards, at a tenth of the usual rate; an interrupted one goes on from OUT.finetune.
    test
        Test images of the evaluation, the first; by default all.
    log
        Also log the losses of distillation and fine-tuning in OUT.log, for TensorBoard or Weights & Biases (offline).

    Examples
    --------
    channelscope prune resnet20 -w runs/demo/trained.safetensors --macs 0.5 --out runs/small
    channelscope prune torchvision:resnet18 -w mine.pt -d folder:photos --images 1000 --export onnx --out runs/small
    """
    open_run(out)
    model, images = load_network(network, source)
    weights = weights_hash(model)
    open_run(out, weights, network.model)
    split = images.test if len(images.test) else images.validation
    if not len(split):
        raise InputError(f"{source.data}: there are no labeled images to evaluate on")
    split = split if test is None else fitted(split, test, test, "--test")
    of = f"{plan.macs:.0%} of the multiply-adds" if plan.latency is None else f"{plan.latency:.0%} of the time"
    console.print(f"pruning to {of} with {len(images.calibration):,} calibration images, evaluated on {len(split):,} {split.name} images")
    if plan.distill:
        note_few_to_distill(images, plan)
    if finetune:
        images.require_training()
    found, made = prune_network(model, images, plan, out.parent)
    networks = {"original": model, "pruned": made.unrepaired} | ({} if plan.repair == "none" else {"repaired": made.model})
    small, failure, taught = made.model, None, None
    with logging_to(log, out.with_name(out.name + ".log"), current_call().options):
        try:
            if plan.distill:
                taught = distill_pruned(small, model, images, network, plan)
                small = networks["distilled"] = taught.model
            if finetune:
                folder = out.with_name(out.name + ".finetune")
                small = networks["fine-tuned"] = finetune_pruned(small, images, network, finetune, folder, plan.precision)
        except NumericError as error:
            failure = error
    frame = evaluated(networks, split, images, out.parent, weights)
    note_chance(network, frame["accuracy_low"].iloc[0], images)
    settings = {**vars(plan), "images": len(images.calibration), "seed": source.seed, "data": source.data, "finetune": finetune}
    settings |= pruning_notes(made, taught) | {"rotated": found.graph.model is not model}
    frames = {
        "pruning": described("pruning", frame, SUMMARY_COLUMNS, {"split": split.name, **settings}),
        "pruned_layers": described("pruned_layers", kept_by_layer(found, made.kept), LAYER_COLUMNS, settings),
    }
    if plan.speed:
        measured = compare_runtimes(small, model, images.image_shape)
        frames["pruning_speed"] = described("pruning_speed", measured, SPEED_COLUMNS, settings | {"threads": torch.get_num_threads()})
    title = f"{network.model} at {frame['kept'].iloc[-1]:.0%} of its multiply-adds"
    facts, call = settings | network_facts(network, model, images, title, weights), current_call()

    def write_more(folder: Path) -> None:
        RunFolder(folder).add(frames, call.record(facts))
        complete_folder(folder, small, frame, split, images.image_shape, export)

    save_pruned(small, model, made.kept, out, settings=settings, write_more=write_more, weights=weights)
    console.print(pruning_headline(frames))
    call.result(out, tables=frames)
    if failure:
        raise NumericError(f"{failure}; the network in {out} is the one from before that")


def complete_folder(
    folder: Path, small: nn.Module, frame: pd.DataFrame, split: Split, shape: tuple[int, ...], export: Literal["onnx", "pt2"] | None
) -> None:
    """Add the results to the model card of a pruned network's folder, and write its report and the export."""
    with (folder / CARD).open("a", encoding="utf-8") as card:
        card.write(results_table(frame, split.name))
    with progress_bar("report", None):
        page.write_report(folder)
    if export:
        with progress_bar(f"export as {export}", None):
            exporting(small, folder / f"network.{export}", shape)


def results_table(frame: pd.DataFrame, part: str) -> str:
    """Accuracy, multiply-adds and parameters of every state of the network, for its model card."""
    rows = [
        f"| {row['state']} | {row['accuracy']:.1%} [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}] | {row['macs']:,} | "
        f"{row['parameters']:,} |"
        for row in frame.to_dict("records")
    ]
    head = f"| state | accuracy on {frame['images'].iloc[-1]:,} {part} images | multiply-adds | parameters |\n|---|---|---|---|"
    return "\n".join(["", head, *rows, ""])


def evaluated(networks: Mapping[str, nn.Module], split: Split, images: ImageSplits, folder: Path, weights: str) -> pd.DataFrame:
    """The comparison of the networks; what the original, of these weights, does is kept in the folder, from which later runs take it."""
    stored = folder / f"evaluation-{weights[:8]}-{len(split)}-{split.name}.json"
    with progress_bar("evaluation", batch_count(split)) as step:
        tallies, known = evaluate_networks(networks, split, stored, step, weights)
    console.print(f"evaluation of the original: {f'{stored}, from an earlier run' if known else f'kept in {stored}'}")
    with progress_bar("latencies", None):
        return compare_networks(networks, tallies, images.image_shape)


def prune_network(model: nn.Module, images: ImageSplits, plan: PruningOptions, folder: Path) -> tuple[Groups, PruningResult]:
    """The network's groups, and the network pruned and repaired on its calibration images; a table of latencies is kept in the folder."""
    with progress_bar("groups of channels", None):
        found = groups(model, zero_batch(model, images.image_shape))
    budget = Budget(plan.macs if plan.latency is None else plan.latency, "macs" if plan.latency is None else "latency")
    budget = replace(budget, multiple=plan.round, batch=plan.latency_batch, blocks=plan.blocks, closest=plan.closest)
    if plan.latency is not None:
        budget = replace(budget, table=kept_table(found, folder, plan.latency_batch))
    elif not plan.closest and not plan.blocks:
        refuse_out_of_reach(found, plan.macs)
    if plan.rotate:
        found, made = nearer_of_two(found, images, plan, budget)
    else:
        made = remove_and_repair(found, images, plan, budget)
        console.print(rotation_note(found, plan), end="")
    console.print(latency_note(made), end="")
    undefined_note(made.ranking)
    return found, made


def remove_and_repair(found: Groups, images: ImageSplits, plan: PruningOptions, budget: Budget) -> PruningResult:
    """The network pruned by the ranking that was asked for, and repaired."""
    ranking = make_ranking(plan.score, found, images)
    return pruning(ranking, found, images.calibration, allocation=plan.allocation, method=plan.repair, budget=budget)


def nearer_of_two(found: Groups, images: ImageSplits, plan: PruningOptions, budget: Budget) -> tuple[Groups, PruningResult]:
    """The groups and the result of the network, or of the one with its linear streams in another basis, whichever is nearer to it."""
    if plan.score != "reconstruction":
        raise InputError(
            f"--rotate: networks are compared by what is repaired on held-out images: expected --score reconstruction, not {plan.score}"
        )
    turned = groups(rotate_streams(found, images.calibration, seed=images.source.seed), found.example)
    made = {each: remove_and_repair(each, images, plan, budget) for each in (found, turned)}
    own, other = (each.divergence for each in made.values())
    best = turned if other < own else found
    console.print(
        f"{counted(len(linear_streams(found)), 'linear stream')} in another basis: {other:.3g} nats from the original on held-out images, "
        f"{own:.3g} in their own, so {'the other' if best is turned else 'their own'} is taken"
    )
    return best, made[best]


def rotation_note(found: Groups, plan: PruningOptions) -> str:
    """That linear streams can be tried in another basis, where there are any and the networks could be compared."""
    streams = len(linear_streams(found)) if plan.score == "reconstruction" else 0
    if not streams:
        return ""
    return f"{counted(streams, 'linear stream')} can be written in another basis: --rotate also tries that, for twice the time\n"


def kept_table(found: Groups, folder: Path, batch: int) -> LatencyTable:
    """The network's table of latencies on this device: as an earlier run left it in the folder, or measured now and left there."""
    path = latency_path(folder, found, batch)
    if path.is_file():
        console.print(f"times of the network's steps on this device: {path}, from an earlier run")
        return LatencyTable.load(path)
    with progress_bar("times of the network's steps on this device", None):
        table = measure_latency(found, batch=batch)
    table.save(path)
    console.print(f"times of the network's steps on this device: {table.facts()[0]}, kept in {path}")
    return table


def latency_note(made: PruningResult) -> str:
    """What was measured of a budget of time, and which blocks were left out; empty where neither was asked for."""
    said = f"{len(made.blocks)} residual blocks are left out: {', '.join(made.blocks)}\n" if made.blocks else ""
    found = made.latency
    if found is None:
        return said
    miss = "" if found.is_met else f"; nearer than {found.measured / found.target - 1:+.0%} no width in multiples of {found.multiple} comes"
    return (
        f"{said}time of the smaller network: {found.measured:.3f} ± {found.error:.3f} of the original's, asked for {found.target:g}, "
        f"predicted {found.predicted:.3f}; widths in multiples of {found.multiple}, {found.rounds} cuts tried{miss}\n"
    )


def pruning_notes(made: PruningResult, taught: Distillation | None) -> dict:
    """What the recipe of a pruned network says of its ranking, repair and distillation."""
    wording = current_call().wording
    return {
        "ranking": made.ranking.name,
        "undefined": sum(len(each) for each in made.ranking.notes.values()),
        "skipped": {name: wording(reason) for name, reason in made.repair.skipped.items()},
        "notes": {name: wording(note) for name, note in made.repair.notes.items()},
        "blocks_left_out": list(made.blocks),
        "measured_latency": None if made.latency is None else made.latency.measured,
        "distilled_in": None if taught is None else taught.precision,
        "distilled_epochs": None if taught is None else taught.epochs,
        "distillation_undone": taught is not None and taught.harmed,
    }


def make_ranking(name: str, found: Groups, images: ImageSplits) -> Ranking | list[Ranking]:
    """The ranking of that name, from the calibration images; several where pruning is to choose."""
    if name == "reconstruction":
        return optimal_brain_surgeons(found, images.calibration, seed=images.source.seed)
    (score,) = scoring.lookup(name)
    profile = collect(
        found.graph.model,
        track(images.calibration, f"statistics for {name}", batch_count(images.calibration)),
        shards=0,
        seed=images.source.seed,
        sensitivity=score.family == "gradient",
        maps=name in ("hrank", "chip"),
    )
    return score(profile, seed=images.source.seed) if "seed" in score.options else score(profile)


def undefined_note(ranking: Ranking) -> None:
    """Say which channels have no value, and that they go first."""
    lost = {site: [channel for channel, value in enumerate(ranking[site]) if math.isnan(value)] for site in ranking.values}
    lost = {site: channels for site, channels in lost.items() if channels}
    if lost:
        site, channels = next(iter(lost.items()))
        reason = ranking.notes.get(site, {}).get(channels[0], "undefined")
        console.print(
            f"{ranking.name}: {sum(map(len, lost.values()))} channels in {len(lost)} layers have no value and go first, such as "
            f"{site}[{channels[0]}]: {reason}",
        )


def distillation_images(images: ImageSplits, plan: PruningOptions) -> tuple[Split, int]:
    """The images that distillation draws from, and how many of them."""
    pool = images.train if len(images.train) else images.calibration
    return pool, min(plan.distill_images, len(pool))


def note_few_to_distill(images: ImageSplits, plan: PruningOptions) -> None:
    """Say, before anything is computed, that distillation will gain little."""
    _, count = distillation_images(images, plan)
    if count < FEW_TO_DISTILL:
        console.print(f"{count:,} images to distill on are few: where it was measured, 1,000 gained nothing and 5,000 much")


def distill_pruned(small: nn.Module, model: nn.Module, images: ImageSplits, network: NetworkOptions, plan: PruningOptions) -> Distillation:
    """The network after the original one taught it, or as it was where that did harm, and how far both are from it."""
    pool, count = distillation_images(images, plan)
    held = max(1, min(count // HELD_OUT, MOST_HELD))
    schedule = zoo.finetuning_schedule(network.model, images.source.data, 1)
    lessons = AugmentedBatches(pool.drop(held).take(count - held).with_batch_size(BATCH), schedule.pad, schedule.flip, images.source.seed)
    console.print(f"distilling on {count - held:,} images without labels, judged on {held:,} others")
    how = DistillationPlan(plan.distill_epochs, mirror=schedule.flip, precision=plan.precision)
    found = distill(small, model, lessons, pool.take(held), how)
    said = "; it rose beyond chance, the network stays as it was" if found.harmed else ""
    taught = f"{found.after:.3g} after {found.epochs} passes in {found.precision}{said}"
    console.print(f"loss on the judging images {found.before:.3g} nats before, {taught}")
    return found


def finetune_pruned(
    small: nn.Module, images: ImageSplits, network: NetworkOptions, epochs: int, folder: Path, precision: TrainingPrecision
) -> nn.Module:
    """The network after some epochs of training; an interrupted training goes on from the folder."""
    current_call().unfinished[folder] = "epochs of fine-tuning so far"
    optimizer = zoo.usual_optimizer(small)
    schedule = zoo.finetuning_schedule(network.model, images.source.data, epochs, images.source.seed, optimizer=optimizer)
    return zoo.finetune(small, images, folder, schedule, network.place, precision=precision)


def pruning_headline(frames: Mapping[str, pd.DataFrame]) -> str:
    """The answer in two sentences, and where the result is faster most and least if that was measured."""
    rows = [row._asdict() for row in frames["pruning"].itertuples(index=False)]
    first, last = rows[0], rows[-1]
    said = ", ".join(f"{row['state']} {row['accuracy']:.1%} [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}]" for row in rows)
    cost = (
        f"accuracy on {last['images']:,} images: {said}\n{last['macs']:,} of {first['macs']:,} multiply-adds ({last['kept']:.1%}), "
        f"{last['parameters']:,} of {first['parameters']:,} parameters, {last['latency']:.1f} of {first['latency']:.1f} ms an image"
    )
    return "\n".join((cost, *speed_sentences(frames.get("pruning_speed"))))


def described(name: str, frame: pd.DataFrame, columns: Mapping[str, Column], settings: Mapping) -> pd.DataFrame:
    """A table with its columns described, and what it was made with."""
    return tables.describe(frame, {"name": name, "columns": columns, **settings})
