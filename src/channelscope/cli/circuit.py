"""Commands about circuits: circuit, subcircuits."""

import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import pandas as pd
from torch import nn

from channelscope import tables
from channelscope.circuits import recipe
from channelscope.circuits.assess import assess
from channelscope.circuits.choice import Choice
from channelscope.circuits.extract import extract
from channelscope.circuits.fidelity import HeldOut
from channelscope.circuits.target import Target, activity, batches, locate
from channelscope.cli.folder import VERSION
from channelscope.cli.sources import Network, console, opened
from channelscope.net.edits import blank
from channelscope.net.graph import trace
from channelscope.net.identity import weights_hash
from channelscope.zoo import Images, ImageSource

SCORED = 64
"""Images that kernels are scored on where the user says nothing."""
BATCH = 32
"""Images run at once: contributions and gradients of every layer are kept meanwhile."""


def circuit(network: Network, source: ImageSource, choice: Choice, feature: list[str], out: Path, held_out: int = 128) -> None:
    """Find the kernels that one feature needs, run them as a network of their own, and judge it on held-out images.

    Kernels are scored on calibration images (64 of them, if --images does not say otherwise).

    feature   layer3.1.conv1:7, a unit layer3.1.conv1:7@4,5, its maximum …:7@max, a direction layer3.1.conv1:vector.npy or logit:3
    out       folder for the circuit (circuit.json and circuit.safetensors) and its tables
    held_out  images the circuit is judged on, from the validation images (the test images where there are none)
    """
    begun = time.monotonic()
    model, images = opened(network, replace(source, images=source.images or SCORED, batch_size=min(source.batch_size, BATCH)))
    target = located(model, images, feature[0])
    choice.kernels(target)
    scored = list(batches(images.calibration, target.device))
    activity(target, scored)
    judged, held = judging(target, images, held_out)
    parts = choice.parts(target, scored, source.seed)
    found = choice.circuit(choice.saliency(parts))
    small = extract(found, target)
    frames = assess(choice, parts, held, source.seed)
    recipe.write(out, found, small, {"network": network.model, "weights": weights_hash(model), "criterion": choice.criterion})
    facts = {"title": f"Circuit of {target.feature} in {network.model}", "held_out": judged, "kernels": found.count}
    written(out, frames, facts | about(network, images, begun))
    console.print(headline(frames["circuit"].iloc[0].to_dict()), highlight=False, soft_wrap=True)
    print(out / recipe.RECIPE)


def located(model: nn.Module, images: Images, feature: str) -> Target:
    """The feature in the network, found without looking at an image."""
    return locate(trace(model, blank(model, images.image_shape)), feature)


def judging(target: Target, images: Images, count: int) -> tuple[str, HeldOut]:
    """The held-out images, and which split they are from."""
    split = images.validation if len(images.validation) else images.test
    return split.name, HeldOut.of(target, split.take(min(count, len(split))))


def about(network: Network, images: Images, begun: float) -> dict:
    """What every run folder says."""
    return {
        "network": network.model,
        "data": images.source.data,
        "images": len(images.calibration),
        "seed": images.source.seed,
        "version": VERSION,
        "date": date.today().isoformat(),
        "seconds": round(time.monotonic() - begun, 1),
    }


def written(out: Path, frames: dict[str, pd.DataFrame], facts: dict) -> None:
    """Tables and run.json of a run folder."""
    for name, frame in frames.items():
        tables.write(frame, out / f"{name}.csv")
    tables.write_json(facts, out / "run.json")


def headline(row: dict) -> str:
    """The answer in a sentence or two."""
    said = (
        f"{row['feature']}: {row['kernels']:,} of {row['relevant']:,} kernels ({row['kernels'] / row['relevant']:.1%}) reach "
        f"r = {row['r']:.3f} [{row['r_low']:.3f}, {row['r_high']:.3f}] and an error of {row['error']:.3g} "
        f"[{row['error_low']:.3g}, {row['error_high']:.3g}] on {row['images']} held-out images; as many random kernels: "
        f"r = {row['random_r']:.3f}, error {row['random_error']:.3g}; the network without them: error {row['rest_error']:.3g}"
    )
    if row["r"] != row["r"]:
        said += "\nthe circuit computes a constant, so r does not exist: keep more, or pass --live for kernels on live paths only"
    return said
