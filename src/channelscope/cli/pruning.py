"""The commands `prune` and `benchmark`."""

import math
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import nn

from channelscope import scores as scoring
from channelscope import tables, zoo
from channelscope.benchmark.analysis import COLUMNS, analyze
from channelscope.benchmark.engines import Engine
from channelscope.benchmark.grid import Grid
from channelscope.benchmark.run import benchmark as measured
from channelscope.benchmark.setup import Setup
from channelscope.cli.options import NetworkOptions, console, load_network, noted
from channelscope.cli.run_folder import VERSION, RunAddition, folder_at, provenance
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.errors import InputError
from channelscope.evaluation import Precision
from channelscope.network.module_state import weights_hash, zero_batch
from channelscope.network.removal.groups import Groups, groups
from channelscope.profiling.collect import collect
from channelscope.progress import progress_bar
from channelscope.pruning.cut import refuse_out_of_reach
from channelscope.pruning.export import export as exporting
from channelscope.pruning.folder import save_pruned
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeons
from channelscope.pruning.prune import LAYER_COLUMNS, SUMMARY_COLUMNS, compare_networks, kept_by_layer
from channelscope.pruning.prune import prune as pruning
from channelscope.pruning.recovery.repair import Method
from channelscope.ranking import Ranking
from channelscope.report import page


@dataclass(frozen=True)
class EngineOptions:
    """Where the trials of a benchmark run."""

    engine: Engine = "process"
    """process: here; workers: in processes of this machine; ray: on a cluster"""
    workers: int = 2
    """how many, for workers and for a Ray cluster begun here"""
    address: str | None = None
    """of a running Ray cluster"""


def benchmark(
    network: NetworkOptions,
    source: ImageSource,
    grid: Grid,
    running: EngineOptions,
    out: Path,
    tests: int | None = None,
    precision: Precision = "float32",
) -> None:
    """Compare scores by what networks can do after pruning: same groups, budgets, removal, repair and images for all.

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    grid
        Scores, budgets and rules to compare.
    running
        Where trials run.
    out
        Folder for results.sqlite, the tables and the report; a run that was interrupted goes on from there.
    tests
        Evaluate on the first so many test images; by default on all.
    precision
        Networks are evaluated in bfloat16 if the unpruned one's accuracy changes by less than .1 points on 2,000 images; tables say so.
    """
    begun = time.monotonic()
    bench = Setup(network.model, network.weights, source, tests, network.device, network.example, precision)
    folder_at(out)
    noted(network)
    found, _ = bench.open(int(grid.seeds[0]))
    RunAddition(out).agrees(weights_hash(found.graph.model), network.model)
    with progress_bar("cells", None) as step:
        results = measured(bench, grid, out, running.engine, running.workers, running.address, lambda done, total: step())
    done = results.done()
    facts = results.facts | {"version": VERSION, "date": date.today().isoformat(), "network": network.model}
    frames = analyze(done)
    for name, frame in frames.items():
        tables.write(tables.describe(frame, {"name": name, "columns": COLUMNS, **facts}), out / f"{name}.csv")
    about = network.origin | {"title": f"Scores compared on {network.model}", "seconds": round(time.monotonic() - begun, 1)}
    tables.write_json(facts | about, out / "run.json")
    path = page.write_report(out)
    console.print(benchmark_headline(frames["benchmark_auc"]))
    if len(frames["benchmark_left_out"]):
        console.print(f"{len(frames['benchmark_left_out'])} measurements are part of no area: see benchmark_left_out.csv for the reasons")
    print(path)


def benchmark_headline(frame: pd.DataFrame) -> str:
    """The best and the worst score under each rule."""
    said = []
    for rule, rows in frame.groupby(["allocation", "repair", "epochs"], sort=False):
        best, worst = rows.iloc[0], rows.iloc[-1]
        allocation, repair, epochs = rule
        after = f", {epochs} epochs of fine-tuning" if epochs else ""
        area = f"{best['auc']:.3f} [{best['auc_low']:.3f}, {best['auc_high']:.3f}]"
        said.append(
            f"{allocation}, repair {repair}{after}: {best['score']} is best with a FLOPs-AUC of {area}, {worst['score']} last of "
            f"{len(rows)} scores with {worst['auc']:.3f} (n = {best['n']} seeds, {best['images']:,} images)"
        )
    return "\n".join(said) or "no score met every budget: see benchmark.csv for the reasons"


@dataclass(frozen=True)
class PruningOptions:
    """What goes, and what is done about it."""

    score: str = "reconstruction"
    """any score, or reconstruction: the order in which layers can best be re-fitted to what is left"""
    macs: float = 0.5
    """multiply-adds to keep, as a fraction"""
    allocation: Literal["global", "uniform"] = "global"
    """one threshold for the network, or the same fraction of every layer"""
    repair: Method = "least_squares"
    """none, batchnorm, peers or least_squares"""
    closest: bool = False
    """where the budget cannot be met, take the smallest that can"""


def prune(
    network: NetworkOptions,
    source: ImageSource,
    plan: PruningOptions,
    out: Path,
    export: Literal["onnx", "pt2"] | None = None,
    finetune: int = 0,
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
    """
    begun = time.monotonic()
    folder_at(out)
    model, images = load_network(network, source)
    RunAddition(out).agrees(weights_hash(model), network.model)
    test = images.test if len(images.test) else images.validation
    if not len(test):
        raise InputError(f"{source.data}: there are no labeled images to evaluate on")
    found = groups(model, zero_batch(model, images.image_shape))
    if not plan.closest:
        refuse_out_of_reach(found, plan.macs)
    ranking = make_ranking(plan.score, found, images)
    made = pruning(ranking, found, images.calibration, macs=plan.macs, allocation=plan.allocation, method=plan.repair, closest=plan.closest)
    undefined_note(made.ranking)
    networks = {"original": model, "pruned": made.unrepaired}
    if plan.repair != "none":
        networks["repaired"] = made.model
    small = made.model
    if finetune:
        small = networks["fine-tuned"] = finetune_pruned(small, images, network, finetune, out.with_name(out.name + ".finetune"))
    frame = compare_networks(networks, test, images.image_shape)
    facts = {**vars(plan), "images": len(images.calibration), "seed": source.seed, "data": source.data, "finetune": finetune}
    facts |= {
        "ranking": made.ranking.name,
        "undefined": sum(len(each) for each in made.ranking.notes.values()),
        "skipped": dict(made.repair.skipped),
        "notes": dict(made.repair.notes),
    }

    def write_more(folder: Path) -> None:
        described = tables.describe(frame, {"name": "pruning", "columns": SUMMARY_COLUMNS, "split": test.name, **facts})
        tables.write(described, folder / "pruning.csv")
        layers = kept_by_layer(found, made.kept)
        tables.write(tables.describe(layers, {"name": "pruned_layers", "columns": LAYER_COLUMNS, **facts}), folder / "pruned_layers.csv")
        about = {"title": f"{network.model} at {frame['kept'].iloc[-1]:.0%} of its multiply-adds", "network": network.model}
        about |= facts | network.origin | {"weights": weights_hash(model)} | provenance(begun)
        tables.write_json(about, folder / "run.json")
        page.write_report(folder)
        if export:
            exporting(small, folder / f"network.{export}", images.image_shape)

    save_pruned(small, model, made.kept, out, settings=facts, write_more=write_more)
    console.print(pruning_headline(frame))
    print(out)


def make_ranking(name: str, found: Groups, images: ImageSplits) -> Ranking | list[Ranking]:
    """The ranking of that name, from the calibration images; several where pruning is to choose."""
    if name == "reconstruction":
        return optimal_brain_surgeons(found, images.calibration, seed=images.source.seed)
    (score,) = scoring.lookup(name)
    profile = collect(
        found.graph.model,
        images.calibration,
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


def finetune_pruned(small: nn.Module, images: ImageSplits, network: NetworkOptions, epochs: int, folder: Path) -> nn.Module:
    """The network after some epochs of training."""
    schedule = zoo.finetuning_schedule(network.model, images.source.data, epochs, images.source.seed)
    return zoo.finetune(small, images, folder, schedule, network.device)


def pruning_headline(frame: pd.DataFrame) -> str:
    """The answer in two sentences."""
    rows = [row._asdict() for row in frame.itertuples(index=False)]
    first, last = rows[0], rows[-1]
    said = ", ".join(f"{row['state']} {row['accuracy']:.1%} [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}]" for row in rows)
    return (
        f"accuracy on {last['images']:,} images: {said}\n{last['macs']:,} of {first['macs']:,} multiply-adds ({last['kept']:.1%}), "
        f"{last['parameters']:,} of {first['parameters']:,} parameters, {last['latency']:.1f} of {first['latency']:.1f} ms an image"
    )
