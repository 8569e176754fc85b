"""Pictures of channels: the image patches with the largest activation, or images optimized for it."""

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from channelscope.circuits.circuit import Circuit
from channelscope.circuits.feature import LocatedFeature
from channelscope.circuits.subfeatures import TopImages
from channelscope.data.batches import indexed_batches, on_device_of
from channelscope.network.channel_graph import KernelEdges
from channelscope.network.graph import Graph
from channelscope.network.module_state import eval_mode
from channelscope.network.operations import layer_of
from channelscope.network.patches import ReceptiveField, receptive_fields
from channelscope.network.sites import Sites, by_image, sites_of
from channelscope.progress import track
from channelscope.site import Site
from channelscope.tables.frame import fill
from channelscope.tables.quantities import Column, Schema
from channelscope.types import Bool, Float, Int

PATCHES, TOGETHER = 6, 1000
"""Most patches kept for each channel, and for all channels of a circuit together: a page has to stay light enough to mail."""

CROP_PIXELS = 64
"""Pixels of a picture's side."""

QUALITY = 70
"""Of a picture's compression, from 0 to 100; a patch takes about 400 bytes."""

STEPS = 64
"""Gradient steps of a feature visualization."""

RATE = 0.05

JITTER = 4
"""Pixels by which an image is moved at random before each step, so that no pattern depends on its exact place."""

Pictures = Mapping[str, tuple[bytes, ...]]
"""channel → WebP files, the strongest first; none for a channel that is the same everywhere"""


@dataclass(frozen=True)
class PixelNormalization:
    """How pixels were normalized, to show them as they were."""

    mean: tuple[float, ...]
    """subtracted from pixels in 0..1"""
    std: tuple[float, ...]
    """divides after the subtraction"""

    def shown(self, image: Float[Tensor, "C H W"]) -> Image.Image:
        """A normalized image as a picture."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixels = (image.cpu() * std + mean).clamp(0, 1).mul(255).round().byte().numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, 2))


@dataclass(frozen=True)
class ChannelLocation:
    """Where the channels of one layer are read for their pictures."""

    layer: str
    """module path"""
    step: str
    """the step that the layer's readers see, after normalization and activation where these belong to the layer"""
    channels: tuple[int, ...]
    """channels of the circuit"""
    axis: int
    """axis of the channels, without the batch"""
    field: ReceptiveField | None
    """what a position sees; None for the whole image"""


def channel_locations(circuit: Circuit, feature: LocatedFeature) -> list[ChannelLocation]:
    """The layers of a circuit with the channels that have kernels in it.

    Parameters
    ----------
    circuit
        Kernels that are kept.
    feature
        The feature that the circuit computes.

    Returns
    -------
    list[ChannelLocation]
        One for each layer with kernels, in execution order.

    Examples
    --------
    >>> from channelscope.circuits.feature import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "logit:1", toy.batches[0][0])
    >>> [(location.layer, location.step, location.channels) for location in channel_locations(Circuit.full(feature), feature)]
    [('conv', 'act', (0, 1, 2, 3, 4)), ('fc', 'fc', (1,))]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (diagram: nodes are channels).
    """
    sites = {site.name: site for site in sites_of(feature.graph, none=True)}
    seen = receptive_fields(feature.graph, feature.step)
    found = []
    for call in feature.channel_graph.calls:
        if call.layer not in circuit or not bool(circuit[call.layer].any()):
            continue
        site = sites.get(call.layer)
        inside = site is not None and site.activation in seen
        step, axis = (site.activation, site.channel_axis) if site is not None and inside else (call.step, _axis(feature, call))
        found.append(
            ChannelLocation(call.layer, step, tuple(circuit[call.layer].any(1).nonzero().flatten().tolist()), axis, seen.get(step))
        )
    return found


def _axis(feature: LocatedFeature, call: KernelEdges) -> int:
    """Where a convolution or linear layer has its channels, without the batch."""
    layer = layer_of(feature.graph.modules[call.layer])
    assert layer is not None
    return layer.channel_axis(len(feature.graph.shapes[call.step])) - 1


@torch.no_grad()
def top_patches(
    circuit: Circuit, feature: LocatedFeature, images: Tensor | Iterable, normalization: PixelNormalization
) -> dict[str, tuple[bytes, ...]]:
    """For each channel, the patches that it sees in the images with its largest activations inside the circuit; one patch an image.

    Parameters
    ----------
    circuit
        Kernels that are kept.
    feature
        The feature that the circuit computes.
    images
        Images (images, C, H, W), or batches of them.
    normalization
        How pixels were normalized.

    Returns
    -------
    dict[str, tuple[bytes, ...]]
        `layer:channel` → WebP files, the largest activation first; none for a constant channel.

    Examples
    --------
    >>> from channelscope.circuits.feature import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    >>> found = top_patches(Circuit.full(feature), feature, toy.batches, PixelNormalization((0.5,), (0.25,)))
    >>> {channel: len(patches) for channel, patches in found.items()}
    {'conv:2': 6}

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (diagram: top image patches, cropped to the receptive field).
    """
    where, pictures = channel_locations(circuit, feature), list(feature.image_batches(images))
    best: dict[ChannelLocation, list[tuple[Tensor, Tensor]]] = {location: [] for location in where}
    with feature.ablated((~circuit).masks):
        for each in pictures:
            for location, maps in zip(where, feature.run(each, tuple(location.step for location in where)), strict=True):
                best[location].append(_columns(maps, location).max(2))
    together, found = torch.cat(pictures), {}
    most = max(1, min(PATCHES, TOGETHER // max(1, sum(len(location.channels) for location in where))))
    for location in where:
        values, places = (torch.cat([part[kind] for part in best[location]]).T for kind in (0, 1))
        for row, channel in enumerate(location.channels):
            own = values[row]
            constant = not float(own.max()) > float(own.min())
            ranked = [] if constant else own.argsort(descending=True, stable=True)[:most].tolist()
            patches = [crop(together[image], location, int(places[row, image]), feature, normalization) for image in ranked]
            found[f"{location.layer}:{channel}"] = tuple(_coded(patch) for patch in patches)
    return found


def _columns(maps: Tensor, location: ChannelLocation) -> Float[Tensor, "images channels positions"]:
    """The spot's channels, with one axis of positions."""
    own = maps.movedim(location.axis + 1, 1)[:, list(location.channels)]
    return own.reshape(*own.shape[:2], -1)


def crop(image: Tensor, location: ChannelLocation, place: int, feature: LocatedFeature, normalization: PixelNormalization) -> Image.Image:
    """The part of an image that a position of a layer sees.

    Parameters
    ----------
    image
        Normalized image (C, H, W).
    location
        The layer, with its receptive field.
    place
        Flat index of the position.
    feature
        The feature and its network.
    normalization
        How pixels were normalized.

    Returns
    -------
    Image
        The receptive field inside the image, or the whole image.

    Examples
    --------
    A 1 × 1 convolution sees one pixel.

    >>> from channelscope.circuits.feature import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    >>> (location,) = channel_locations(Circuit.full(feature), feature)
    >>> crop(toy.batches[0][0][0], location, 5, feature, PixelNormalization((0.5,), (0.25,))).size
    (1, 1)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (diagram: top image patches, cropped to the receptive field).
    """
    return _seen(image, location, place, feature.graph, normalization)


def _seen(image: Tensor, location: ChannelLocation, place: int, graph: Graph, normalization: PixelNormalization) -> Image.Image:
    """What a position of a layer sees of an image."""
    if location.field is None:
        return normalization.shown(image)
    columns, (height, width) = graph.shapes[location.step][3], image.shape[1:]
    top, bottom = location.field[0].pixels(place // columns, height)
    left, right = location.field[1].pixels(place % columns, width)
    return normalization.shown(image[:, top:bottom, left:right])


def _coded(picture: Image.Image) -> bytes:
    """A square picture in few bytes, for a large circuit has thousands."""
    file = io.BytesIO()
    _square(picture, CROP_PIXELS).convert("RGB").save(file, "webp", quality=QUALITY)
    return file.getvalue()


def _square(picture: Image.Image, side: int) -> Image.Image:
    """A picture as a square of so many pixels a side; pixels of a smaller one stay sharp."""
    how = Image.Resampling.BICUBIC if max(picture.size) > side else Image.Resampling.NEAREST
    return picture.resize((side, side), how)


def feature_visualizations(
    circuit: Circuit, feature: LocatedFeature, normalization: PixelNormalization, seed: int = 0
) -> dict[str, tuple[bytes, ...]]:
    """For each channel, an image optimized for it at the center of its map, inside the circuit, cropped to its receptive field.

    The image is a sum of waves whose amplitudes fall with frequency, as those of natural images do, shifted at random
    before each of 64 steps of Adam.

    Parameters
    ----------
    circuit
        Kernels that are kept.
    feature
        The feature that the circuit computes.
    normalization
        How pixels were normalized.
    seed
        Seed of the first image and of the shifts.

    Returns
    -------
    dict[str, tuple[bytes, ...]]
        `layer:channel` → one WebP file; none for a channel that is constant in the circuit.

    Examples
    --------
    >>> from channelscope.circuits.feature import locate_feature
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    >>> found = feature_visualizations(Circuit.full(feature), feature, PixelNormalization((0.5,), (0.25,)))
    >>> {channel: len(pictures) for channel, pictures in found.items()}
    {'conv:2': 1}

    References
    ----------
    Olah, Mordvintsev, Schubert 2017 (feature visualization).
    """
    found: dict[str, tuple[bytes, ...]] = {}
    with feature.ablated((~circuit).masks):
        for location in track(channel_locations(circuit, feature), "pictures, layers"):
            made, responded = _optimize_images(location, feature, normalization, seed)
            center = _center(feature, location)
            for channel, image, answers in zip(location.channels, made, responded.tolist(), strict=True):
                found[f"{location.layer}:{channel}"] = (_coded(crop(image, location, center, feature, normalization)),) if answers else ()
    return found


def _optimize_images(
    location: ChannelLocation, feature: LocatedFeature, normalization: PixelNormalization, seed: int
) -> tuple[Float[Tensor, "channels C H W"], Bool[Tensor, "channels"]]:
    """An image for each channel, and whether the channel ever answered to it."""
    shape = feature.graph.shapes[feature.graph.inputs[0]][1:]
    height, width = shape[1:]
    noise = torch.Generator().manual_seed(seed)
    across, down = torch.fft.rfftfreq(width), torch.fft.fftfreq(height)[:, None]
    falling = 1 / (across.square() + down.square()).sqrt().clamp(min=1 / max(height, width))
    spectrum = torch.randn(len(location.channels), *shape[:1], *falling.shape, 2, generator=noise).mul_(0.01).requires_grad_()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (normalization.mean, normalization.std))
    optimizer = torch.optim.Adam([spectrum], lr=RATE)

    def decode() -> Tensor:
        pixels = torch.fft.irfft2(torch.view_as_complex(spectrum) * falling, s=(height, width), norm="ortho")
        return (torch.sigmoid(pixels) - mean) / std

    rows, place = torch.arange(len(location.channels)), _center(feature, location)
    responded = torch.zeros(len(rows), dtype=torch.bool)
    with torch.enable_grad():
        for _ in range(STEPS):
            below, right = torch.randint(-JITTER, JITTER + 1, (2,), generator=noise).tolist()
            (maps,) = feature.run(decode().roll((below, right), (2, 3)).to(feature.device), (location.step,))
            driven = _columns(maps, location)[rows, rows, place].sum()
            (spectrum.grad,) = torch.autograd.grad(-driven, spectrum)
            responded |= spectrum.grad.flatten(1).any(1)
            optimizer.step()
    return decode().detach(), responded


def _center(feature: LocatedFeature, location: ChannelLocation) -> int:
    """Flat index of the middle position of a layer with rows and columns; 0 for any other."""
    places = list(feature.graph.shapes[location.step][1:])
    del places[location.axis]
    return (places[0] // 2) * places[1] + places[1] // 2 if len(places) == 2 else 0


MAX_IMAGES = 12
"""Most images of a group, the strongest first."""

SIDE, GAP, LABEL = 96, 8, 150
"""Pixels of a picture's side, between pictures, and of what stands before a row."""

LETTERS = 18
"""Pixels of letters."""


def contact_sheet(
    feature: LocatedFeature, found: TopImages, labels: Int[Tensor, "images"], normalization: PixelNormalization
) -> Image.Image:
    """A page with a row for each cluster: its images with the largest activations, cropped to what the feature sees at its maximum.

    Parameters
    ----------
    feature
        The feature and its network.
    found
        Images with the feature's maxima.
    labels
        Cluster of each image, from 0 on.
    normalization
        How pixels were normalized.

    Returns
    -------
    Image
        RGB; at most 12 images a row.

    Examples
    --------
    >>> from channelscope.circuits.feature import locate_feature
    >>> from channelscope.circuits.subfeatures import top_images
    >>> from channelscope.zoo import toys
    >>> toy = toys.independent_channels()
    >>> feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    >>> page = contact_sheet(feature, top_images(feature, toy.batches, 4), torch.tensor([0, 1, 0, 0]), PixelNormalization((0.5,), (0.25,)))
    >>> page.size
    (462, 200)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (sub-feature circuits: top-activating images by cluster).
    """
    location = ChannelLocation(
        feature.feature.layer,
        feature.step,
        feature.feature.channels,
        feature.axis,
        receptive_fields(feature.graph, feature.step)[feature.step],
    )
    groups = [(labels == group).nonzero().flatten().tolist() for group in range(int(labels.max()) + 1)]
    columns = min(MAX_IMAGES, max(map(len, groups)))
    page = Image.new("RGB", (LABEL + columns * (SIDE + GAP), len(groups) * (SIDE + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(LETTERS)
    for row, members in enumerate(groups):
        top = row * (SIDE + GAP)
        pen.text((0, top + SIDE / 2), f"group {row}\n{len(members)} images", "#333", font, "lm")
        for column, image in enumerate(members[:MAX_IMAGES]):
            patch = crop(found.images[image], location, int(found.positions[image]), feature, normalization).convert("RGB")
            page.paste(_square(patch, SIDE), (LABEL + column * (SIDE + GAP), top))
    return page


CHANNEL_PICTURES = Schema(
    "channel_pictures",
    "site channel",
    {
        "place": Column.count("1 for the image with the channel's largest activation, 2 for the next", ""),
        "image": Column.count("index of the image in its data set", ""),
        "activation": Column(meaning="largest activation of the channel in the image, over all positions", source="this library"),
    },
)
"""Images that drive a channel most, a row each."""

GUTTER, BETWEEN = 44, 4
"""Pixels of what stands before a row of a layer's sheet, and between its pictures."""


@dataclass
class _Strongest:
    """The images so far with a channel's largest activations."""

    found: list[tuple[float, int, Image.Image]] = field(default_factory=list)
    """activation, index of the image, and what was seen; the largest first, of equal ones the earlier"""
    least: float = float("inf")
    """smallest maximum of all images; the largest of a channel that is the same everywhere"""

    def beaten(self, value: float) -> bool:
        """Whether an activation belongs to the largest."""
        return len(self.found) < PATCHES or value > self.found[-1][0]

    def add(self, value: float, image: int, picture: Image.Image) -> None:
        """Keep an image in the place of the weakest."""
        self.found = sorted([*self.found, (value, image, picture)], key=lambda each: -each[0])[:PATCHES]

    @property
    def kept(self) -> list[tuple[float, int, Image.Image]]:
        """The images; none for a channel that is the same everywhere."""
        return self.found if self.found and self.found[0][0] > self.least else []


@torch.no_grad()
def strongest_images(
    found: Sites, channels: Mapping[str, Sequence[int]], images: Iterable, normalization: PixelNormalization
) -> tuple[pd.DataFrame, Pictures]:
    """For channels of any layers, the images with their largest activations in the whole network, and what the channels see there.

    Parameters
    ----------
    found
        Layers of the traced network.
    channels
        Layer → channels that are wanted.
    images
        Batches of images, read once; no more than six patches of a channel are kept in memory.
    normalization
        How pixels were normalized.

    Returns
    -------
    tuple
        Table `channel_pictures` with up to six rows for each channel, the largest activation first, of images with equal ones the
        earlier; and `layer:channel` → WebP files in the same order. A channel that is the same everywhere has none.

    Raises
    ------
    SiteError
        For a layer that is no site.

    Examples
    --------
    >>> from channelscope.network.sites import sites
    >>> model, images = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 1)), torch.zeros(3, 1, 2, 2)
    >>> _ = torch.nn.init.ones_(model[0].weight)
    >>> images[2, 0, 1, 0], images[1, 0, 0, 0] = 9.0, 5.0
    >>> table, files = strongest_images(sites(model, images), {"0": [1]}, [images], PixelNormalization((0.0,), (1.0,)))
    >>> table.image.tolist(), len(files["0:1"])
    ([2, 1, 0], 3)

    References
    ----------
    Zeiler & Fergus 2014 (images with the largest activations, cropped to the receptive field).
    """
    where = [(found[name], location) for name, location in _locations(found, channels).items()]
    best = {(site.name, channel): _Strongest() for site, location in where for channel in location.channels}
    graph, maxima = found.graph, {}

    def note(site: Site, location: ChannelLocation, maps: Tensor) -> None:
        maps, axis = by_image(site, maps)
        maxima[site.name] = [part.cpu() for part in _columns(maps, replace(location, axis=axis)).max(2)]

    hooks = {location.step: partial(note, site, location) for site, location in where}
    with eval_mode(graph.model):
        for batch, _, index in indexed_batches(images, labels=False):
            maxima.clear()
            graph.run(on_device_of(batch, graph.model), hooks=hooks)
            for site, location in where:
                for row, channel in enumerate(location.channels):
                    values, places = (part[:, row] for part in maxima[site.name])
                    strongest = best[site.name, channel]
                    strongest.least = min(strongest.least, float(values.min()))
                    for image in values.argsort(descending=True, stable=True)[:PATCHES].tolist():
                        if strongest.beaten(float(values[image])):
                            seen = _seen(batch[image], location, int(places[image]), graph, normalization)
                            strongest.add(float(values[image]), int(index[image]), _square(seen, CROP_PIXELS).convert("RGB"))
    rows = [
        {"site": site, "channel": channel, "place": place, "image": image, "activation": value}
        for (site, channel), strongest in best.items()
        for place, (value, image, _) in enumerate(strongest.kept, 1)
    ]
    files = {f"{site}:{channel}": tuple(_coded(picture) for *_, picture in each.kept) for (site, channel), each in best.items()}
    return fill(CHANNEL_PICTURES, rows), files


def _locations(found: Sites, channels: Mapping[str, Sequence[int]]) -> dict[str, ChannelLocation]:
    """Where channels of some layers are read: behind normalization and activation."""
    seen: dict[str, ReceptiveField | None] = {}
    for site in sorted((found[name] for name in channels), key=lambda each: -each.depth):
        if site.activation not in seen:
            seen |= receptive_fields(found.graph, site.activation)
    return {
        name: ChannelLocation(name, site.activation, tuple(wanted), site.channel_axis, seen[site.activation])
        for name, wanted in channels.items()
        for site in (found[name],)
    }


def layer_sheet(rows: Mapping[int, Sequence[bytes]]) -> str:
    """An SVG with a row for each channel of a layer: its number, and the pictures beside it.

    Parameters
    ----------
    rows
        Channel → WebP files.

    Returns
    -------
    str
        SVG that holds the files; as wide as six pictures, however many there are.

    Examples
    --------
    >>> layer_sheet({5: [b"", b""]}).count("<image ")
    2

    References
    ----------
    Zeiler & Fergus 2014 (a row of patches for each channel).
    """
    step = CROP_PIXELS + BETWEEN
    width, height = GUTTER + PATCHES * step - BETWEEN, len(rows) * step - BETWEEN
    colors = "text{fill:#333}@media screen and (prefers-color-scheme:dark){text{fill:#e9ebee}}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    parts = [head, f"<style>{colors}</style>"]
    for row, (channel, files) in enumerate(rows.items()):
        middle = row * step + CROP_PIXELS / 2
        parts.append(
            f'<text x="{GUTTER - 8}" y="{middle:g}" text-anchor="end" dominant-baseline="central" '
            f'font-family="sans-serif" font-size="16">{channel}</text>'
        )
        parts += [
            f'<image x="{GUTTER + column * step}" y="{row * step}" width="{CROP_PIXELS}" height="{CROP_PIXELS}" '
            f'href="data:image/webp;base64,{b64encode(file).decode()}"/>'
            for column, file in enumerate(files)
        ]
    return "\n".join([*parts, "</svg>"])
