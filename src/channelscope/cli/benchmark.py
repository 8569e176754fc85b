"""The command `benchmark`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from channelscope import tables
from channelscope.benchmark.analysis import COLUMNS, analyze
from channelscope.benchmark.run import FILE, Engine
from channelscope.benchmark.run import benchmark as measured
from channelscope.benchmark.trial import Grid, Setup
from channelscope.cli.call import VERSION, NetworkOptions, current_call, finish_run, note_chance, noted, open_run
from channelscope.cli.wording import announce_network
from channelscope.data.sources import ImageSource
from channelscope.evaluation import Precision
from channelscope.network.module_state import weights_hash
from channelscope.progress import Bar, Logger, console, log_numbers, logging_to, progress_bar


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
    out: Path = Path("runs/benchmark"),
    test: int | None = None,
    precision: Precision = "float32",
    log: Logger = "none",
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
    test
        Test images of the evaluation, the first; by default all.
    precision
        Networks are evaluated in bfloat16 if the unpruned one's accuracy changes by less than .1 points on 2,000 images; tables say so.
    log
        Also log the accuracy of every network at its budget in OUT/log, for TensorBoard or Weights & Biases (offline).

    Examples
    --------
    channelscope benchmark resnet20 -w runs/demo/trained.safetensors --scores l2,overlap,random --budgets 0.7,0.5 --out runs/benchmark
    channelscope benchmark torchvision:resnet18 -w mine.pt -d folder:photos --seeds 0,1,2 --engine workers --out runs/benchmark
    """
    call = current_call()
    call.device = network.place
    bench = Setup(network.model, network.weights, source, test, network.place, network.example, precision)
    open_run(out)
    noted(network)
    found, images = bench.open(int(grid.seeds[0]))
    model = found.graph.model
    run = open_run(out, weights_hash(model), network.model)
    announce_network(network.title, network.place, model, images)
    call.unfinished[out / FILE] = "networks measured so far"
    split = bench.test(images)
    console.print(
        f"{len(grid.scores)} scores at {len(grid.budgets)} budgets, {len(grid.allocations)} allocations, {len(grid.repairs)} repairs and "
        f"{len(grid.seeds)} seeds, evaluated on {len(split):,} {split.name} images"
    )
    with progress_bar("rankings", None) as bar:
        results = measured(bench, grid, out, running.engine, running.workers, running.address, counted_trials(bar))
    done = results.done()
    provenance = results.facts | {"version": VERSION, "network": network.model}
    with progress_bar("statistics", None):
        frames = {name: tables.describe(frame, {"name": name, "columns": COLUMNS, **provenance}) for name, frame in analyze(done).items()}
    facts = results.facts | {"network": network.model, "title": f"Scores compared on {network.model}"} | network.origin
    note_chance(network, frames["benchmark"].query("score == 'unpruned'")["accuracy_low"].min(), images)
    console.print(benchmark_headline(frames["benchmark_auc"]))
    with logging_to(log, out / "log", call.options):
        log_trials(frames["benchmark"])
    if len(frames["benchmark_left_out"]):
        console.print(f"{len(frames['benchmark_left_out'])} measurements are part of no area: see benchmark_left_out.csv for the reasons")
    finish_run(run, frames, facts)


def counted_trials(bar: Bar) -> Callable[[int, int], None]:
    """Function that shows the trials of a benchmark on the bar of its rankings: those that are left when they begin, one after each."""
    begun = False

    def step(done: int, total: int) -> None:
        nonlocal begun
        if begun:
            bar()
        else:
            bar.begin("pruned networks measured", total - done)
        begun = True

    return step


def log_trials(frame: pd.DataFrame) -> None:
    """Log the accuracy of every trial: a curve a score, rule and seed, whose step is the percentage of multiply-adds kept."""
    for row in frame.sort_values("budget").to_dict("records"):
        rule = "/".join(str(row[name]) for name in ("score", "allocation", "repair") if row[name])
        log_numbers(f"benchmark/{rule}/seed {row['seed']}", round(100 * row["budget"]), accuracy=row["accuracy"])


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
