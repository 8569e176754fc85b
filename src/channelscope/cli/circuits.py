"""The commands `circuit` and `subcircuits`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from channelscope import storage, tables
from channelscope.circuits import diagram_page, folder
from channelscope.circuits.circuit import Circuit
from channelscope.circuits.comparison import COMPARED, COMPARED_FRACTIONS, compare_criteria, sample_features
from channelscope.circuits.criteria import AUTO, CircuitOptions, criterion_named, with_signs
from channelscope.circuits.diagram_layout import lay_out
from channelscope.circuits.evaluation import CURVE_FRACTIONS, HeldOutImages, choose_size, evaluate_circuit
from channelscope.circuits.extraction import extract_module
from channelscope.circuits.feature import EXAMPLES, LocatedFeature, activation_range, image_batches, locate_feature
from channelscope.circuits.kernel_scores import KernelScores
from channelscope.circuits.pictures import PixelNormalization, contact_sheet, feature_visualizations, top_patches
from channelscope.circuits.subfeatures import GENERAL_SHARE, top_images
from channelscope.circuits.subfeatures import cluster_images as grouped
from channelscope.circuits.subfeatures import subfeature_circuits as told_apart
from channelscope.cli.call import NetworkOptions, batch_count, current_call, finish_run, fitted, load_network, network_facts, open_run
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.data.splits import Split
from channelscope.errors import InputError
from channelscope.network.graph import trace
from channelscope.network.module_state import weights_hash, zero_batch
from channelscope.progress import console, progress_bar, track
from channelscope.tables.run_folder import RunFolder

N_SCORING = 64
"""Images that kernels are scored on where the user says nothing."""

N_SEARCHED = 1000
"""Images that the strongest are looked for among where the user says nothing."""


@dataclass(frozen=True)
class ComparisonOptions:
    """Criteria against each other, instead of one circuit."""

    compare: bool = False
    """compare criteria on many features and sizes, instead of finding one circuit"""
    criteria: tuple[str, ...] = COMPARED
    """criteria to compare"""
    sizes: tuple[float, ...] = COMPARED_FRACTIONS
    """shares of the relevant kernels to compare them at"""
    features: str = "20"
    """how many channels to draw, spread over the layers; or their names, separated by spaces"""


def circuit(
    network: NetworkOptions,
    source: ImageSource,
    choice: CircuitOptions,
    comparison: ComparisonOptions,
    out: Path = Path("runs/circuit"),
    feature: str = "",
    held_out: int = 128,
    pictures: Literal["patches", "visualized", "none"] = "patches",
) -> None:
    """Find the kernels that one feature needs, run them as a network of their own, and judge it on held-out images.

    Kernels are scored on calibration images (64 of them, if --images does not say otherwise).

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    choice
        How the circuit's kernels are scored and selected.
    comparison
        What --compare compares.
    out
        Folder for the circuit (circuit.json and circuit.safetensors), its tables, and the diagram (circuit.html, .svg, .png).
    feature
        layer3.1.conv1:7, a unit layer3.1.conv1:7@4,5, its maximum …:7@max, a direction layer3.1.conv1:vector.npy or logit:3.
    held_out
        Images the circuit is judged on, from the validation images (the test images where there are none).
    pictures
        Of channels in the diagram: the image patches that drive them most, images made to drive them (slow), or none.

    Examples
    --------
    channelscope circuit resnet20 -w runs/demo/trained.safetensors --feature layer3.0.conv2:17 --out runs/circuit
    channelscope circuit resnet20 -w runs/demo/trained.safetensors --compare --features 10 --criteria gate,magnitude --out runs/criteria
    """
    if comparison.compare and (feature or choice != CircuitOptions()):
        raise InputError(
            "circuit: --compare takes --features, --criteria and --sizes; leave out --feature and what one circuit is chosen by, "
            "such as --criterion and --keep"
        )
    open_run(out)
    model, images = open_inputs(network, source)
    run = open_run(out, weights_hash(model), network.model)
    if comparison.compare:
        compare_features(run, model, images, network, comparison, held_out)
        return
    target = locate(model, images, feature)
    choice.kernels(target)
    split = held_out_images(images, held_out)
    console.print(f"scoring kernels on {len(images.calibration):,} calibration images, evaluating on {len(split):,} {split.name} images")
    scored = list(image_batches(images.calibration, target.device))
    activation_range(target, scored)
    held = HeldOutImages.of(target, split)
    with progress_bar("kernel scores", None):
        parts = choice.shard_scores(target, scored, source.seed)
    saliency = choice.total_scores(parts)
    if choice.keep == AUTO:
        choice = sized(choice, saliency, HeldOutImages.of(target, scored), source.seed)
    found, signs = choice.circuit(saliency), with_signs(saliency, scored)
    small = extract_module(found, target)
    with progress_bar("evaluation of the circuit", None):
        frames = evaluate_circuit(choice, parts, held, source.seed, signs)
    headline = circuit_headline(frames["circuit"].iloc[0].to_dict())
    with progress_bar("pictures", None):
        drawn, shots = lay_out(found, signs), make_pictures(found, target, images, scored, pictures)
    folder.save_circuit(out, found, small, {"network": network.model, "weights": weights_hash(model), "criterion": choice.criterion})
    console.print(headline)
    diagram = diagram_page.write_diagram(out, drawn, shots, f"{target.feature} of {Path(network.model).name}", headline)
    title = f"Circuit of {target.feature} in {network.model}"
    finish_run(run, frames, network_facts(network, model, images, title, held_out=split.name, kernels=found.count), diagram)


def sized(choice: CircuitOptions, scores: KernelScores, scored: HeldOutImages, seed: int) -> CircuitOptions:
    """The choice with a size: the smallest at which the circuit is better than random ones on the images it was scored on, and say so."""
    if criterion_named(choice.criterion).needs_size:
        keep, why = str(choice.kernels(scores.feature)), f"kernels, for which {choice.criterion} scored them"
    else:
        share = choose_size(choice, scores, scored, seed)
        better = "the smallest size at which the circuit is better than random ones on the images it was scored on"
        keep = str(max(CURVE_FRACTIONS) if share is None else share)
        why = "at no size is the circuit better than random ones" if share is None else better
    console.print(f"--keep {keep}: {why}")
    return replace(choice, keep=keep)


def subcircuits(
    network: NetworkOptions,
    source: ImageSource,
    choice: CircuitOptions,
    feature: str,
    out: Path = Path("runs/subcircuits"),
    strongest: int = 64,
    clusters: int | None = None,
    general: float = GENERAL_SHARE,
) -> None:
    """Group a feature's strongest images by what its layer does there, and find one circuit for each group.

    The strongest images are taken from the calibration images (1,000 of them, if --images does not say otherwise).

    Parameters
    ----------
    network
        Network, its weights and its device.
    source
        Images and their preparation.
    choice
        How the circuit's kernels are scored and selected.
    feature
        layer3.1.conv1:7, or a direction layer3.1.conv1:vector.npy.
    out
        Folder for a circuit a group, their union, a control scored on images of all groups, the tables, and the groups' images.
    strongest
        How many of the images that drive the feature most are grouped.
    clusters
        Number of groups; by default the one with the clearest separation (silhouette).
    general
        Share of the relevant kernels in the feature's general circuit, inside which the groups' kernels are scored; 1 for all.

    Examples
    --------
    channelscope subcircuits resnet20 -w runs/demo/trained.safetensors --feature layer3.0.conv2:17 --clusters 2 --out runs/subcircuits
    """
    open_run(out)
    model, images = few(*load_network(network, source), N_SEARCHED)
    run = open_run(out, weights_hash(model), network.model)
    target = locate(model, images, feature)
    choice.kernels(target)
    console.print(f"looking for the {strongest:,} strongest of {len(images.calibration):,} calibration images, a circuit for each group")
    searched = track(images.calibration, "strongest images", batch_count(images.calibration))
    found = top_images(target, searched, strongest)
    labels = grouped(found, clusters, source.seed)
    with progress_bar("circuits of the groups", None):
        circuits, frames = told_apart(target, found, labels, choice, source.seed, general)
    modules = {name: extract_module(each, target) for name, each in circuits.items()}
    for name, each in circuits.items():
        folder.save_circuit(out / f"circuit_{name}", each, modules[name], {"network": network.model, "weights": weights_hash(model)})
    page = contact_sheet(target, found, labels, PixelNormalization(*images.normalization))
    with storage.atomic_file(out / "groups.png") as half:
        page.save(half)
    whole = frames["subcircuit_overlap"].query("site == ''")
    sizes = ", ".join(f"{int((labels == group).sum())}" for group in range(int(labels.max()) + 1))
    shared = tables.format_percent(float(whole["shared"].mean()))
    console.print(f"{target.feature}: groups of {sizes} images; two groups' circuits share {shared} of their kernels on average")
    title = f"Sub-features of {target.feature} in {network.model}"
    finish_run(run, frames, network_facts(network, model, images, title), out / "subcircuit_curves.csv")


def compare_features(
    run: RunFolder, model: nn.Module, images: ImageSplits, network: NetworkOptions, comparison: ComparisonOptions, held_out: int
) -> None:
    """Compare criteria on drawn or given features; an interrupted comparison goes on from OUT/compare.unfinished."""
    graph = trace(model, zero_batch(model, images.image_shape))
    scored, split = list(image_batches(images.calibration, network.place)), held_out_images(images, held_out)
    wanted = comparison.features
    features = sample_features(graph, scored, int(wanted), images.source.seed) if wanted.isdigit() else wanted.split()
    unfinished = run.folder / "compare.unfinished"
    current_call().unfinished[unfinished] = "features compared so far"
    console.print(
        f"{len(comparison.criteria)} criteria at {len(comparison.sizes)} sizes for {len(features)} features, with "
        f"{len(images.calibration):,} calibration images, evaluated on {len(split):,} {split.name} images"
    )
    frames = compare_criteria(graph, features, scored, split, comparison.criteria, comparison.sizes, unfinished, images.source.seed)
    for row in frames["circuit_medians"].to_dict("records"):
        mark = " *" if row["best"] else ""
        console.print(
            f"{row['criterion']:16s} {row['kept']:<5g} |r| {row['median_r']:.3f} [{row['median_r_low']:.3f}, {row['median_r_high']:.3f}] "
            f"error {row['median_error']:.3f}{mark}",
        )
    title = f"Criteria for circuits of {len(features)} features in {network.model}"
    facts = network_facts(network, model, images, title, held_out=split.name)
    finish_run(run, frames, facts, run.folder / "circuit_medians.csv")


def make_pictures(found: Circuit, target: LocatedFeature, images: ImageSplits, scored: list[Tensor], how: str) -> diagram_page.Pictures:
    """Pictures of the circuit's channels, as asked for."""
    palette = PixelNormalization(*images.normalization)
    if how == "none":
        return {}
    return (
        top_patches(found, target, scored, palette)
        if how == "patches"
        else feature_visualizations(found, target, palette, images.source.seed)
    )


def open_inputs(network: NetworkOptions, source: ImageSource) -> tuple[nn.Module, ImageSplits]:
    """The network and few calibration images, for whatever happens in every layer is looked at."""
    return few(*load_network(network, source), N_SCORING)


def few(model: nn.Module, images: ImageSplits, usual: int) -> tuple[nn.Module, ImageSplits]:
    """The network and its images, with the usual number of calibration images where none was asked for."""
    if images.source.images is not None:
        return model, images
    return model, replace(images, calibration=fitted(images.calibration, None, usual, "--images"))


def locate(model: nn.Module, images: ImageSplits, feature: str) -> LocatedFeature:
    """The feature in the network, found without looking at an image, once it is known that its circuit can be stored."""
    if not feature:
        raise InputError(f"circuit: pass --feature, such as {EXAMPLES}")
    target = locate_feature(trace(model, zero_batch(model, images.image_shape)), feature)
    folder.recipe_of(extract_module(Circuit.full(target), target))
    return target


def held_out_images(images: ImageSplits, count: int) -> Split:
    """The held-out images: validation images, or test images where there are none."""
    if count < 1:
        raise InputError(f"--held-out: expected at least 1 image, received {count}")
    split = images.validation if len(images.validation) else images.test
    return split.take(min(count, len(split)))


def circuit_headline(row: dict) -> str:
    """The answer in a sentence or two."""
    r, error = (tables.format_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits=3) for name in ("r", "error"))
    share, asked = (
        tables.format_percent(row["kernels"] / row["relevant"]),
        f"; {row['asked']:,} asked for" if row["asked"] > row["kernels"] else "",
    )
    said = (
        f"{row['feature']}: {row['kernels']:,} of {row['relevant']:,} kernels ({share}{asked}) "
        f"reach r = {r} and an error of {error} on {row['images']} held-out images; as many random kernels: "
        f"r = {tables.format_number(row['random_r'])}, error {tables.format_number(row['random_error'])}; the network without them: "
        f"error {tables.format_number(row['rest_error'])}."
    )
    if row["r"] != row["r"]:
        return said + "\nThe circuit computes a constant, so r does not exist: keep more, or pass --live for kernels on live paths only."
    if row["error"] >= 1:
        return said + "\nAn error of 1 or more is no better than the feature's mean: keep more, or try --criterion learned."
    return said
