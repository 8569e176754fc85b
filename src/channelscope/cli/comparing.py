"""Commands that compare: benchmark."""

import time
from datetime import date
from pathlib import Path

import pandas as pd

from channelscope import tables
from channelscope.cli.addition import Addition, folder_at
from channelscope.cli.folder import VERSION
from channelscope.cli.sources import Network, console, noted
from channelscope.experiments.progress import bar
from channelscope.net.identity import weights_hash
from channelscope.report import html
from channelscope.study import Bench, Grid, analysis
from channelscope.study import benchmark as measured
from channelscope.study.columns import COLUMNS
from channelscope.study.engines import Engine
from channelscope.zoo import ImageSource


def benchmark(
    network: Network,
    source: ImageSource,
    grid: Grid,
    out: Path,
    tests: int | None = None,
    engine: Engine = "process",
    workers: int = 2,
    address: str | None = None,
) -> None:
    """Compare scores by what networks can do after pruning: same groups, budgets, removal, repair and images for all.

    out      folder for results.sqlite, the tables and the report; a run that was interrupted goes on from there
    tests    evaluate on the first so many test images; by default on all
    engine   process: here; workers: in processes of this machine; ray: on a cluster
    workers  how many, for workers and for a Ray cluster begun here
    address  of a running Ray cluster
    """
    begun = time.monotonic()
    bench = Bench(network.model, network.weights, source, tests, network.device, network.example)
    folder_at(out)
    noted(network)
    found, _ = bench.open(int(grid.seeds[0]))
    Addition(out).agrees(weights_hash(found.graph.model), network.model)
    with bar("cells", None) as step:
        results = measured(bench, grid, out, engine, workers, address, lambda done, total: step())
    done = results.done()
    facts = results.facts | {"version": VERSION, "date": date.today().isoformat(), "network": network.model}
    frames = analysis(done)
    for name, frame in frames.items():
        tables.write(tables.described(frame, {"name": name, "columns": COLUMNS, **facts}), out / f"{name}.csv")
    about = network.origin | {"title": f"Scores compared on {network.model}", "seconds": round(time.monotonic() - begun, 1)}
    tables.write_json(facts | about, out / "run.json")
    path = html.write(out)
    console.print(headline(frames["benchmark_auc"]))
    if len(frames["benchmark_left_out"]):
        console.print(f"{len(frames['benchmark_left_out'])} measurements are part of no area: see benchmark_left_out.csv for the reasons")
    print(path)


def headline(frame: pd.DataFrame) -> str:
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
