"""Commands that make networks smaller: prune."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import nn

from channelscope import scores as scoring
from channelscope import tables, zoo
from channelscope.cli.addition import Addition, folder_at
from channelscope.cli.folder import provenance
from channelscope.cli.sources import Network, console, opened
from channelscope.collect import collect
from channelscope.errors import InputError
from channelscope.net.budget import refuse_out_of_reach
from channelscope.net.edits import blank
from channelscope.net.groups import Groups, groups
from channelscope.net.identity import weights_hash
from channelscope.net.surgery import shrink
from channelscope.prune import export as exporting
from channelscope.prune import prune as pruning
from channelscope.prune import save_pruned
from channelscope.prune.summary import COLUMNS, summary
from channelscope.ranking import Ranking
from channelscope.repair import Method, reconstructions
from channelscope.report import html
from channelscope.zoo import Images, ImageSource


@dataclass(frozen=True)
class Plan:
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
    network: Network,
    source: ImageSource,
    plan: Plan,
    out: Path,
    export: Literal["onnx", "pt2"] | None = None,
    finetune: int = 0,
) -> None:
    """Make a smaller network that does as well as it can, without training, and save it.

    out       folder for weights, recipe, summary and report; a pruned network that is there is replaced when this one is whole
    export    also write the network in a format that runs without this library, and compare its outputs
    finetune  epochs of training afterwards, at a tenth of the usual rate; an interrupted one goes on from OUT.finetune
    """
    begun = time.monotonic()
    folder_at(out)
    model, images = opened(network, source)
    Addition(out).agrees(weights_hash(model), network.model)
    test = images.test if len(images.test) else images.validation
    if not len(test):
        raise InputError(f"{source.data}: there are no labeled images to evaluate on")
    found = groups(model, blank(model, images.image_shape))
    if not plan.closest:
        refuse_out_of_reach(found, plan.macs)
    ranking = ranked(plan.score, found, images)
    made = pruning(ranking, found, images.calibration, plan.macs, plan.allocation, plan.repair, plan.closest)
    undefined_said(made.ranking)
    networks = {"original": model, "pruned": shrink(model, made.kept, found).eval(), "repaired": made.model}
    if plan.repair == "none":
        networks["pruned"] = networks.pop("repaired")
    small = made.model
    if finetune:
        small = networks["fine-tuned"] = tuned(small, images, network, finetune, out.with_name(out.name + ".finetune"))
    frame = summary(networks, test, images.image_shape)
    facts = {**vars(plan), "images": len(images.calibration), "seed": source.seed, "data": source.data, "finetune": finetune}
    facts |= {
        "ranking": made.ranking.name,
        "undefined": sum(len(each) for each in made.ranking.notes.values()),
        "skipped": dict(made.report.skipped),
        "notes": dict(made.report.notes),
    }

    def also(folder: Path) -> None:
        described = tables.described(frame, {"name": "pruning", "columns": COLUMNS, "split": test.name, **facts})
        tables.write(described, folder / "pruning.csv")
        about = {"title": f"{network.model} at {frame['kept'].iloc[-1]:.0%} of its multiply-adds", "network": network.model}
        about |= facts | network.origin | {"weights": weights_hash(model)} | provenance(begun)
        tables.write_json(about, folder / "run.json")
        html.write(folder)
        if export:
            exporting(small, folder / f"network.{export}", images.image_shape)

    save_pruned(small, model, made.kept, out, facts, also)
    console.print(headline(frame))
    print(out)


def ranked(name: str, found: Groups, images: Images) -> Ranking | list[Ranking]:
    """The ranking of that name, from the calibration images; several where pruning is to choose."""
    if name == "reconstruction":
        return reconstructions(found, images.calibration, seed=images.source.seed)
    (score,) = scoring.named(name)
    profile = collect(
        found.graph.model,
        images.calibration,
        shards=0,
        seed=images.source.seed,
        sensitivity=score.axis == "gradient",
        maps=name in ("hrank", "chip"),
    )
    return score(profile, seed=images.source.seed) if "seed" in score.options else score(profile)


def undefined_said(ranking: Ranking) -> None:
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


def tuned(small: nn.Module, images: Images, network: Network, epochs: int, folder: Path) -> nn.Module:
    """The network after some epochs of training."""
    schedule = zoo.tuning(network.model, images.source.data, epochs, images.source.seed)
    return zoo.finetune(small, images, folder, schedule, network.device)


def headline(frame: pd.DataFrame) -> str:
    """The answer in two sentences."""
    rows = [row._asdict() for row in frame.itertuples(index=False)]
    first, last = rows[0], rows[-1]
    said = ", ".join(f"{row['state']} {row['accuracy']:.1%} [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}]" for row in rows)
    return (
        f"accuracy on {last['images']:,} images: {said}\n{last['macs']:,} of {first['macs']:,} multiply-adds ({last['kept']:.1%}), "
        f"{last['parameters']:,} of {first['parameters']:,} parameters, {last['latency']:.1f} of {first['latency']:.1f} ms an image"
    )
