"""Commands about circuits: circuit, subcircuits."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import Tensor, nn

from channelscope import tables
from channelscope.circuits import diagram, recipe
from channelscope.circuits.assess import assess
from channelscope.circuits.choice import Choice
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.compare import COMPARED, SIZES, compare, drawn
from channelscope.circuits.drawing import drawing
from channelscope.circuits.extract import extract
from channelscope.circuits.feature import EXAMPLES
from channelscope.circuits.fidelity import HeldOut
from channelscope.circuits.picture import Palette, patches, visualizations
from channelscope.circuits.score import signed
from channelscope.circuits.sheet import sheet
from channelscope.circuits.subfeature import GENERAL, peaks
from channelscope.circuits.subfeature import clusters as grouped
from channelscope.circuits.subfeature import subcircuits as told_apart
from channelscope.circuits.target import Target, activity, batches, locate
from channelscope.cli.addition import Addition, folder_at
from channelscope.cli.folder import provenance
from channelscope.cli.sources import Network, console, fitted, opened
from channelscope.errors import InputError
from channelscope.net.edits import blank
from channelscope.net.graph import trace
from channelscope.net.identity import weights_hash
from channelscope.zoo import Images, ImageSource
from channelscope.zoo.split import Split

SCORED = 64
"""Images that kernels are scored on where the user says nothing."""
SEARCHED = 1000
"""Images that the strongest are looked for among where the user says nothing."""


@dataclass(frozen=True)
class Comparison:
    """Criteria against each other, instead of one circuit."""

    compare: bool = False
    """compare criteria on many features and sizes, instead of finding one circuit"""
    criteria: tuple[str, ...] = COMPARED
    """criteria to compare"""
    sizes: tuple[float, ...] = SIZES
    """shares of the relevant kernels to compare them at"""
    features: str = "20"
    """how many channels to draw, spread over the layers; or their names, separated by spaces"""


def circuit(
    network: Network,
    source: ImageSource,
    choice: Choice,
    comparison: Comparison,
    out: Path,
    feature: str = "",
    held_out: int = 128,
    pictures: Literal["patches", "visualized", "none"] = "patches",
) -> None:
    """Find the kernels that one feature needs, run them as a network of their own, and judge it on held-out images.

    Kernels are scored on calibration images (64 of them, if --images does not say otherwise).

    out       folder for the circuit (circuit.json and circuit.safetensors), its tables, and the diagram (circuit.html, .svg, .png)
    feature   layer3.1.conv1:7, a unit layer3.1.conv1:7@4,5, its maximum …:7@max, a direction layer3.1.conv1:vector.npy or logit:3
    held_out  images the circuit is judged on, from the validation images (the test images where there are none)
    pictures  of channels in the diagram: the image patches that drive them most, images made to drive them (slow), or none
    """
    begun = time.monotonic()
    if comparison.compare and (feature or choice != Choice()):
        raise InputError(
            "circuit: --compare takes --features, --criteria and --sizes; leave out --feature and what one circuit is chosen by, "
            "such as --criterion and --keep"
        )
    folder_at(out)
    model, images = prepared(network, source)
    Addition(out).agrees(weights_hash(model), network.model)
    if comparison.compare:
        compared(model, images, network, comparison, out, held_out)
        return
    target = located(model, images, feature)
    choice.kernels(target)
    scored = list(batches(images.calibration, target.device))
    activity(target, scored)
    split = judging(images, held_out)
    held = HeldOut.of(target, split)
    parts = choice.parts(target, scored, source.seed)
    saliency = choice.saliency(parts)
    found, signs = choice.circuit(saliency), signed(saliency, scored)
    small = extract(found, target)
    frames = assess(choice, parts, held, source.seed, signs)
    said = headline(frames["circuit"].iloc[0].to_dict())
    drawn, shots = drawing(found, signs), pictured(found, target, images, scored, pictures)
    recipe.write(out, found, small, {"network": network.model, "weights": weights_hash(model), "criterion": choice.criterion})
    facts = {"title": f"Circuit of {target.feature} in {network.model}", "held_out": split.name, "kernels": found.count}
    written(out, frames, facts | about(network, model, images, begun))
    console.print(said)
    print(diagram.write(out, drawn, shots, f"{target.feature} of {Path(network.model).name}", said))


def subcircuits(
    network: Network,
    source: ImageSource,
    choice: Choice,
    feature: str,
    out: Path,
    strongest: int = 64,
    clusters: int | None = None,
    general: float = GENERAL,
) -> None:
    """Group a feature's strongest images by what its layer does there, and find one circuit for each group.

    The strongest images are taken from the calibration images (1,000 of them, if --images does not say otherwise).

    feature    layer3.1.conv1:7, or a direction layer3.1.conv1:vector.npy
    out        folder for a circuit a group, their union, a control scored on images of all groups, the tables, and the groups' images
    strongest  how many of the images that drive the feature most are grouped
    clusters   number of groups; by default the one with the clearest separation (silhouette)
    general    share of the relevant kernels in the feature's general circuit, inside which the groups' kernels are scored; 1 for all
    """
    begun = time.monotonic()
    folder_at(out)
    model, images = few(*opened(network, source), SEARCHED)
    Addition(out).agrees(weights_hash(model), network.model)
    target = located(model, images, feature)
    choice.kernels(target)
    found = peaks(target, images.calibration, strongest)
    labels = grouped(found, clusters, source.seed)
    circuits, frames = told_apart(target, found, labels, choice, source.seed, general)
    modules = {name: extract(each, target) for name, each in circuits.items()}
    for name, each in circuits.items():
        recipe.write(out / f"circuit_{name}", each, modules[name], {"network": network.model, "weights": weights_hash(model)})
    page = sheet(target, found, labels, Palette(*images.normalization))
    with tables.whole(out / "groups.png") as half:
        page.save(half)
    written(out, frames, {"title": f"Sub-features of {target.feature} in {network.model}"} | about(network, model, images, begun))
    whole = frames["subcircuit_overlap"].query("site == ''")
    sizes = ", ".join(f"{int((labels == group).sum())}" for group in range(int(labels.max()) + 1))
    shared = tables.percent(float(whole["shared"].mean()))
    console.print(f"{target.feature}: groups of {sizes} images; two groups' circuits share {shared} of their kernels on average")
    print(out / "subcircuit_curves.csv")


def compared(model: nn.Module, images: Images, network: Network, comparison: Comparison, out: Path, held_out: int) -> None:
    """Compare criteria on drawn or given features; an interrupted comparison goes on from OUT/compare.unfinished."""
    begun = time.monotonic()
    graph = trace(model, blank(model, images.image_shape))
    scored, split = list(batches(images.calibration, network.device)), judging(images, held_out)
    wanted = comparison.features
    features = drawn(graph, scored, int(wanted), images.source.seed) if wanted.isdigit() else wanted.split()
    frames = compare(graph, features, scored, split, comparison.criteria, comparison.sizes, out / "compare.unfinished", images.source.seed)
    title = f"Criteria for circuits of {len(features)} features in {network.model}"
    written(out, frames, {"title": title, "held_out": split.name} | about(network, model, images, begun))
    for row in frames["circuit_medians"].to_dict("records"):
        mark = " *" if row["best"] else ""
        console.print(
            f"{row['criterion']:16s} {row['kept']:<5g} |r| {row['median_r']:.3f} [{row['median_r_low']:.3f}, {row['median_r_high']:.3f}] "
            f"error {row['median_error']:.3f}{mark}",
        )
    print(out / "circuit_medians.csv")


def pictured(found: Circuit, target: Target, images: Images, scored: list[Tensor], how: str) -> diagram.Pictures:
    """Pictures of the circuit's channels, as asked for."""
    palette = Palette(*images.normalization)
    if how == "none":
        return {}
    return patches(found, target, scored, palette) if how == "patches" else visualizations(found, target, palette, images.source.seed)


def prepared(network: Network, source: ImageSource) -> tuple[nn.Module, Images]:
    """The network and few calibration images, for whatever happens in every layer is looked at."""
    return few(*opened(network, source), SCORED)


def few(model: nn.Module, images: Images, usual: int) -> tuple[nn.Module, Images]:
    """The network and its images, with the usual number of calibration images where none was asked for."""
    if images.source.images is not None:
        return model, images
    return model, replace(images, calibration=fitted(images.calibration, None, usual, "--images"))


def located(model: nn.Module, images: Images, feature: str) -> Target:
    """The feature in the network, found without looking at an image."""
    if not feature:
        raise InputError(f"circuit: pass --feature, such as {EXAMPLES}")
    return locate(trace(model, blank(model, images.image_shape)), feature)


def judging(images: Images, count: int) -> Split:
    """The held-out images: validation images, or test images where there are none."""
    if count < 1:
        raise InputError(f"held-out: expected at least 1 image, received {count}")
    split = images.validation if len(images.validation) else images.test
    return split.take(min(count, len(split)))


def about(network: Network, model: nn.Module, images: Images, begun: float) -> dict:
    """What every run folder says."""
    return (
        network.origin
        | {
            "network": network.model,
            "weights": weights_hash(model),
            "data": images.source.data,
            "images": len(images.calibration),
            "seed": images.source.seed,
        }
        | provenance(begun)
    )


def written(out: Path, frames: dict[str, pd.DataFrame], facts: dict) -> None:
    """Tables and run.json of a run folder."""
    for name, frame in frames.items():
        tables.write(frame, out / f"{name}.csv")
    tables.write_json(facts, out / "run.json")


def headline(row: dict) -> str:
    """The answer in a sentence or two."""
    r, error = (tables.interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits=3) for name in ("r", "error"))
    share, asked = (
        tables.percent(row["kernels"] / row["relevant"]),
        f"; {row['asked']:,} asked for" if row["asked"] > row["kernels"] else "",
    )
    said = (
        f"{row['feature']}: {row['kernels']:,} of {row['relevant']:,} kernels ({share}{asked}) "
        f"reach r = {r} and an error of {error} on {row['images']} held-out images; as many random kernels: "
        f"r = {tables.shown(row['random_r'])}, error {tables.shown(row['random_error'])}; the network without them: "
        f"error {tables.shown(row['rest_error'])}."
    )
    if row["r"] != row["r"]:
        return said + "\nThe circuit computes a constant, so r does not exist: keep more, or pass --live for kernels on live paths only."
    if row["error"] >= 1:
        return said + "\nAn error of 1 or more is no better than the feature's mean: keep more, or try --criterion learned."
    return said
