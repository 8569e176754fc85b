"""Sub-features: the images with the largest activation in clusters, and a circuit for each cluster."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from channelscope import tables
from channelscope.circuits.circuit import Circuit, remove_dead_ends, union
from channelscope.circuits.criteria import CircuitOptions
from channelscope.circuits.evaluation import CIRCUIT_COLUMNS
from channelscope.circuits.feature import LocatedFeature, activation_range
from channelscope.circuits.kernel_scores import KernelScores
from channelscope.circuits.selection import connected_top_k, top_k
from channelscope.display import Facts, Shown, spread
from channelscope.errors import BudgetError, InputError, SampleError
from channelscope.lazy import LazyModule
from channelscope.network.module_state import eval_mode
from channelscope.subset import Subset
from channelscope.types import Float, Int, Tensor

sklearn_cluster = LazyModule("sklearn.cluster")

sklearn_metrics = LazyModule("sklearn.metrics")

MAX_CLUSTERS = 6
"""Most groups that are tried where the number is not given."""

SUBFEATURE_FRACTIONS = (0.5, 0.3, 0.2, 0.1, 0.05)
"""shares of the relevant kernels at which circuits are judged on each other's images"""

CONTROL = "mixed"

GENERAL_SHARE = 0.5
"""share of the relevant kernels in the general circuit that sub-features are looked for in"""


@dataclass(frozen=True, eq=False, repr=False)
class TopImages(Shown):
    """The images on which a feature is largest, with its layer's activations at the maximum."""

    images: Float[Tensor, "images C H W"]
    """the images, the strongest first"""
    indices: Int[Tensor, "images"]
    """place of each among the images given"""
    positions: Int[Tensor, "images"]
    """flat position of the maximum"""
    values: Float[Tensor, "images"]
    """the feature there"""
    layer_activations: Float[Tensor, "images channels"]
    """all channels of the layer there"""

    def facts(self) -> Facts:
        """How many images, and the range of the feature at its maximum in them."""
        return f"TopImages({len(self.images):,} images, the feature {spread(self.values)})", []


@torch.no_grad()
def top_images(feature: LocatedFeature, images: Tensor | Iterable, count: int) -> TopImages:
    """The `count` images with the highest maxima of the feature.

    Parameters
    ----------
    feature
        The feature and its network; positions `all` or `max`.
    images
        Images (images, C, H, W), or batches of them.
    count
        Number of images, at least 2.

    Returns
    -------
    TopImages
        The largest maximum first.

    Raises
    ------
    SampleError
        With fewer images, or if the feature is constant on all of them.
    InputError
        For fewer than two images, or a feature at other positions than all or its maximum.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.Conv2d(1, 1, 1)).eval()
    >>> _ = torch.nn.init.constant_(model[0].weight, 2.0)
    >>> images = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])[:, None, None]
    >>> found = top_images(locate_feature(model, "0:0", images), images, 2)
    >>> found.indices.tolist(), found.positions.tolist(), found.values.tolist()
    ([1, 2], [1, 0], [6.0, 4.0])

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (sub-feature circuits).
    """
    if count < 2:
        raise InputError(f"strongest: expected at least 2 images to tell groups apart in, received {count}")
    if feature.feature.positions not in ("all", "max"):
        raise InputError(f"feature {feature.feature}: its strongest images are told by its maximum; leave out @ and what follows")
    pictures = list(feature.image_batches(images))
    activation_range(feature, pictures)
    top: list[tuple[Tensor, ...]] = []
    with eval_mode(feature.model):
        for each in pictures:
            (maps,) = feature.run(each, (feature.step,))
            values, positions = feature.feature.map(maps, feature.axis).max(1)
            rows = maps.movedim(feature.axis + 1, 1)
            own = rows.reshape(*rows.shape[:2], -1)
            top.append((values, positions, own[torch.arange(len(each)), :, positions]))
    values, positions, vectors = (torch.cat([part[kind] for part in top]).cpu() for kind in range(3))
    if len(values) < count:
        raise SampleError(f"expected at least {count} images to take the strongest of, received {len(values)}")
    order = values.argsort(descending=True, stable=True)[:count]
    return TopImages(torch.cat(pictures).cpu()[order], order, positions[order], values[order], vectors[order])


def cluster_images(top: TopImages, count: int | None = None, seed: int = 0) -> Int[Tensor, "images"]:
    """Cluster of each image by its activation vector (k-means on vectors of length 1).

    Parameters
    ----------
    top
        Images with their layer's activations.
    count
        Number of clusters; None for the number from 2 to 6 with the best silhouette.
    seed
        Seed of k-means.

    Returns
    -------
    Tensor
        Int64 (images,), numbered by each cluster's first image.

    Raises
    ------
    SampleError
        If there are fewer different vectors than clusters: a cluster would be empty.

    Examples
    --------
    >>> index, vectors = torch.arange(4), torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [0.1, 2.0]])
    >>> cluster_images(TopImages(torch.zeros(4, 1, 1, 1), index, index, index.float(), vectors), 2).tolist()
    [0, 1, 0, 1]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (clustered by the activation vector at the position of the maximum); Rousseeuw 1987.
    """
    vectors = (
        (top.layer_activations / top.layer_activations.norm(dim=1, keepdim=True).clamp(min=torch.finfo(top.layer_activations.dtype).tiny))
        .double()
        .numpy()
    )
    different = len(np.unique(vectors.round(9), axis=0))
    if count is not None and not 2 <= count <= different:
        raise SampleError(
            f"clusters: expected 2 to {different} for {different} different images, received {count}: a cluster would be empty"
        )
    tried = {
        k: sklearn_cluster.KMeans(k, n_init=10, random_state=seed).fit_predict(vectors)
        for k in ([count] if count else range(2, min(MAX_CLUSTERS, different - 1) + 1))
    }
    if not tried:
        raise SampleError(f"clusters: {different} different images are too few to group; pass more images")
    best = max(tried, key=lambda k: sklearn_metrics.silhouette_score(vectors, tried[k])) if len(tried) > 1 else next(iter(tried))
    labels = tried[best]
    first = {old: new for new, old in enumerate(dict.fromkeys(labels.tolist()))}  # numbered by their strongest image
    return torch.tensor([first[label] for label in labels.tolist()])


def subfeature_circuits(
    feature: LocatedFeature,
    top: TopImages,
    labels: Int[Tensor, "images"],
    options: CircuitOptions | None = None,
    seed: int = 0,
    general_share: float = GENERAL_SHARE,
) -> tuple[dict[str, Circuit], dict[str, pd.DataFrame]]:
    """One circuit for each cluster of images, with tables of its error at the feature's maxima in the images of every cluster.

    Half of each cluster's images score the kernels, the other half evaluate; a control is scored on as many images of all clusters.

    Parameters
    ----------
    feature
        The feature and its network.
    top
        The images on which the feature is largest.
    labels
        Cluster of each image, from 0 on without a gap.
    options
        How circuits are chosen.
    seed
        Seed of the control's images and of random scores.
    general_share
        Share of the relevant kernels in the feature's general circuit, scored on images of all clusters; the clusters'
        kernels are scored inside it. 1 scores them in the whole network.

    Returns
    -------
    tuple[dict[str, Circuit], dict[str, pd.DataFrame]]
        Circuits by cluster ('0', '1', …, 'mixed', 'union', 'general'); tables `subcircuits` (images), `subcircuit_curves`
        (error of the circuit of one cluster on the images of another, by size) and `subcircuit_overlap` (by layer; '' for
        all kernels).

    Raises
    ------
    InputError
        If labels do not fit, or a cluster has fewer than two images.
    BudgetError
        If the general circuit is smaller than those of the clusters.

    Examples
    --------
    The channel is the sum of two input planes; the images of each cluster have one of them.

    >>> from channelscope.circuits import locate_feature
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(2, 1, 1, bias=False), torch.nn.Conv2d(1, 1, 1)).eval()
    >>> _ = torch.nn.init.constant_(model[0].weight, 1.0)
    >>> images = torch.tensor([[4.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 1.0]])[:, :, None, None]
    >>> feature = locate_feature(model, "0:0", images)
    >>> top = top_images(feature, images, 4)
    >>> circuits, frames = subfeature_circuits(feature, top, torch.tensor([0, 1, 0, 1]), CircuitOptions(keep="1"), general_share=1.0)
    >>> [circuits[name]["0"].tolist() for name in ("0", "1", "union")]
    [[[True, False]], [[False, True]], [[True, True]]]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (sub-feature circuits).
    """
    options = options or CircuitOptions()
    if len(labels) != len(top.images) or sorted(set(labels.tolist())) != list(range(int(labels.max()) + 1)):
        raise InputError(f"subcircuits: expected one label from 0 on for each of {len(top.images)} images, without a gap")
    feature = replace(feature, feature=replace(feature.feature, positions="max"))
    groups = [(labels == group).nonzero().flatten() for group in range(int(labels.max()) + 1)]
    small = [group for group, members in enumerate(groups) if len(members) < 2]
    if small:
        raise InputError(
            f"cluster {small[0]} is too small: it takes one image to score kernels and one to judge; pass more images or fewer clusters"
        )
    if not options.kernels(feature) / feature.relevant_count <= general_share <= 1:
        raise BudgetError(f"general: expected a share from keep={options.keep} of the relevant kernels to 1, received {general_share}")
    scoring, judging = [members[::2] for members in groups], [members[1::2] for members in groups]
    every = torch.cat(scoring)
    mixed = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[: max(1, len(every) // len(groups))]]
    sets = {**{str(group): members for group, members in enumerate(scoring)}, CONTROL: mixed}
    whole = options.scores(feature, top.images[every], seed)
    room = (connected_top_k if options.live else top_k)(whole, float(general_share))
    parts = {name: options.shard_scores(feature, top.images[members], seed, room) for name, members in sets.items()}
    saliencies = {name: options.total_scores(each) for name, each in parts.items()}
    circuits = {name: options.circuit(scores) for name, scores in saliencies.items()}
    alone = [circuits[str(group)] for group in range(len(groups))]
    frames = {
        "subcircuits": _cluster_tables(feature, top, labels, judging),
        "subcircuit_curves": _curves(options, saliencies, room, top, judging),
        "subcircuit_overlap": _overlap(alone),
    }
    facts = {"feature": str(feature.feature), "criterion": options.criterion, "seed": seed, "general": general_share}
    described = {name: tables.table(frame, name, CIRCUIT_COLUMNS, facts) for name, frame in frames.items()}
    return circuits | {"union": union(alone), "general": remove_dead_ends(room, feature)}, described


@torch.no_grad()
def error_at_maximum(feature: LocatedFeature, circuit: Subset, top: TopImages, members: Int[Tensor, "chosen"]) -> float:
    """Σ|ŷ − y|/Σ|y| of a circuit over some images, each at the position of its maximum in the unmasked network.

    0 is exact, and 1 is the error of a circuit that is silent. nan where the feature is 0 at all of them.

    Parameters
    ----------
    feature
        The feature and its network.
    circuit
        Kernels that are kept.
    top
        Images with the feature's maxima.
    members
        Indices into `top`.

    Returns
    -------
    float
        At least 0.

    Examples
    --------
    >>> from channelscope.circuits import locate_feature
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(2, 1, 1, bias=False), torch.nn.Conv2d(1, 1, 1)).eval()
    >>> _ = torch.nn.init.constant_(model[0].weight, 1.0)
    >>> images = torch.tensor([[4.0, 0.0], [0.0, 1.0]])[:, :, None, None]
    >>> feature = locate_feature(model, "0:0", images)
    >>> circuit = Circuit.of_feature(feature, {"0": torch.tensor([[True, False]])})
    >>> error_at_maximum(feature, circuit, top_images(feature, images, 2), torch.tensor([0, 1]))
    0.2

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (preservation curves: error at each image's original maximum position).
    """
    with feature.ablated((~circuit).masks):
        maps = feature.feature_map(top.images[members].to(feature.device))
    guess, truth = maps.cpu().gather(1, top.positions[members][:, None])[:, 0].double(), top.values[members].double()
    return float((guess - truth).abs().sum() / truth.abs().sum()) if bool(truth.any()) else float("nan")


def _cluster_tables(feature: LocatedFeature, top: TopImages, labels: Tensor, judging: Sequence[Tensor]) -> pd.DataFrame:
    judged = set(torch.cat(list(judging)).tolist())
    rows = []
    for number, (image, place, value, label) in enumerate(zip(top.indices, top.positions, top.values, labels, strict=True)):
        spot = ",".join(str(int(at)) for at in np.unravel_index(int(place), feature.spatial_shape)) if feature.spatial_shape else ""
        row = {"cluster": int(label), "image": int(image), "activation": float(value), "position": spot}
        rows.append(row | {"scored_on": "" if number in judged else str(int(label))})
    return pd.DataFrame(rows)


def _curves(
    options: CircuitOptions, score_sets: dict[str, KernelScores], general: Circuit, top: TopImages, judging: Sequence[Tensor]
) -> pd.DataFrame:
    """Errors of the general circuit, and of every cluster's circuits of the sizes that fit into it."""
    rows, feature = [], next(iter(score_sets.values())).feature
    sizes = [size for size in SUBFEATURE_FRACTIONS if feature.shortest_path <= size * feature.relevant_count <= general.count]
    judged = [("general", general.fraction, general)]
    judged += [(name, size, options.circuit(scores, size)) for name, scores in score_sets.items() for size in sizes]
    for name, size, circuit in judged:
        for group, members in enumerate(judging):
            row = {"scored_on": name, "judged_on": group, "kept": size, "kernels": circuit.count}
            rows.append(row | {"peak_error": error_at_maximum(feature, circuit, top, members), "images": len(members)})
    return pd.DataFrame(rows, columns=["scored_on", "judged_on", "kept", "kernels", "peak_error", "images"])


def _overlap(circuits: list[Circuit]) -> pd.DataFrame:
    rows = []
    for one in range(len(circuits)):
        for other in range(one + 1, len(circuits)):
            for layer, share in circuits[one].iou(circuits[other]).items():
                rows.append({"cluster": one, "other": other, "site": layer, "shared": share})
    return pd.DataFrame(rows, columns=["cluster", "other", "site", "shared"])
