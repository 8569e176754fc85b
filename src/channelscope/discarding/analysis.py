"""DiscardingAnalysis: every table about the information that a network's layers discard, from one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from channelscope import tables
from channelscope.data.images import object_masks
from channelscope.data.splits import Split
from channelscope.discarding.cid import (
    CalibrationStatistics,
    CIDOptions,
    CIDResult,
    MapCache,
    difference_table,
    discard,
    fingerprint,
    image_table,
    layer_table,
)
from channelscope.discarding.concentration import box_mask, concentration_by_layer, concentration_table, edge_color_correlation
from channelscope.discarding.jacobian import PixelNetwork
from channelscope.discarding.noise import Cells
from channelscope.discarding.reconstruction import reconstruction_table
from channelscope.display import Facts, Shown
from channelscope.errors import DataError, check_choice
from channelscope.network.module_state import weights_hash
from channelscope.progress import progress_bar
from channelscope.types import Bool, Tensor

BATCH = 16
"""images run at once: the gradients of every step up to a layer are kept in the meantime"""

Decoder = Literal["none", "ridge", "trained"]


def pixel_network(model: nn.Module, split: Split) -> PixelNetwork:
    """A network whose inputs are pixels of 0 to 1, on the device of its parameters.

    Parameters
    ----------
    model
        Network whose inputs are normalized images.
    split
        Images, whose shape and normalization are taken.

    Returns
    -------
    PixelNetwork
        The traced network, normalization included.

    Examples
    --------
    >>> from channelscope import data
    >>> images = data.read_images(data.ImageSource("digits", images=20))
    >>> pixel_network(nn.Conv2d(1, 2, 3), images.calibration).shape
    (1, 8, 8)

    References
    ----------
    Ma et al. 2022 (noise is measured in pixels).
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return PixelNetwork(model, split.image_shape, split.mean, split.std, device=str(device))


@dataclass(frozen=True)
class ExtraAnalyses:
    """Tables beyond CID by image and layer: concentration on the object, and reconstruction."""

    boxes: bool = False
    """is what is kept on the object? With the data's boxes: concentration, ρ and knowledge points"""
    masks: str | None = None
    """the same with masks: a column of mask images, or folder:PATH with one at every picture's path; above zero is the object"""
    margin: float = 0.2
    """nats below the background's mean at which a cell is a knowledge point"""
    decoder: Decoder = "none"
    """how much of the image can be had back: a linear decoder, or also a network trained on top of it"""

    def objects(self, split: Split) -> Callable[[int], Bool[Tensor, "height width"]] | None:
        """A function from an image's index to the pixels of its object; None without boxes and masks.

        Parameters
        ----------
        split
            Images with a column of boxes or masks.

        Returns
        -------
        Callable or None
            Index of an image → True at the pixels of its object. A box without pixels raises DataError when it is asked for.

        Raises
        ------
        DataError
            If boxes and masks are both asked for, or the data has no such column.

        Examples
        --------
        >>> ExtraAnalyses().objects(None) is None
        True
        """
        if self.boxes and self.masks is not None:
            raise DataError("expected --boxes or --masks, received both: an object has one outline")
        if self.masks is not None:
            return dict(zip(split.indices.tolist(), object_masks(split, self.masks), strict=True)).__getitem__
        if not self.boxes:
            return None
        boxes = dict(zip(split.indices.tolist(), split.column("boxes"), strict=True))
        return lambda image: box_mask(boxes[image], (split.image_shape[1], split.image_shape[2]))


@dataclass(frozen=True, eq=False, repr=False)
class DiscardingAnalysis(Shown):
    """CID of some layers of a network on some images, with all tables made from it; measured when first asked for.

    Examples
    --------
    >>> from channelscope import data
    >>> images = data.read_images(data.ImageSource("digits", images=60))
    >>> model = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, bias=False), nn.Flatten(), nn.Linear(9, 10)).eval()
    >>> analysis = DiscardingAnalysis(model, images.test.take(2), images.calibration, ["0"], CIDOptions(mode="exact", side=4))
    >>> {name: len(frame) for name, frame in analysis.tables().items()}
    {'discarded': 2, 'discarded_layers': 1, 'discarded_edges': 2}

    References
    ----------
    Ma et al. 2022 (arXiv 1906.04109); checked by tests/discarding/test_analysis.py.
    """

    model: nn.Module = field(repr=False)
    """network in evaluation mode"""
    images: Split
    """images whose maps are computed"""
    calibration: Split
    """images over which pixels' and features' variances are taken"""
    layers: Sequence[str] = ()
    """module paths or steps; without any, four evenly spaced ones"""
    options: CIDOptions = CIDOptions()  # noqa: RUF009
    """the constraint and the noise's caps"""
    name: str = "network"
    """what the tables call the network"""
    seed: int = 0
    """seed of the random numbers"""
    cache: Path | None = None
    """folder of finished maps: what lies in it is read instead of computed; None keeps them in memory"""

    def facts(self) -> Facts:
        """Images, layers and options; the mean CID of each layer where it has been measured."""
        heading = f"DiscardingAnalysis({self.name}: {len(self.images):,} images, {self.options.mode}, κ = {self.options.fraction:g})"
        if "results" not in vars(self):
            return heading, [("layers", ", ".join(self.layers) or "four evenly spaced ones"), ("CID", "not measured yet")]
        measured = layer_table(self.by_image)
        return heading, [(row.layer, f"CID {row.cid:.3f} [{row.cid_low:.3f}, {row.cid_high:.3f}] nats") for row in measured.itertuples()]

    def plot(self, layers: list[str] | None = None, title: str | None = None) -> np.ndarray:
        """Axes with the first images, and with what each layer discards of them on one scale; see `channelscope.plot`."""
        from channelscope.drawing import plot

        return plot(self, layers=layers, title=title)

    @cached_property
    def network(self) -> PixelNetwork:
        """The network from pixels of 0 to 1 on, on the device of its parameters."""
        return pixel_network(self.model, self.calibration)

    @cached_property
    def statistics(self) -> CalibrationStatistics:
        """Variances of pixels and features over the calibration images."""
        calibration = self.calibration.with_batch_size(min(self.calibration.batch_size, 4 * BATCH))
        with progress_bar("data", -(-len(calibration) // calibration.batch_size)) as step:
            return CalibrationStatistics.over(self.network, calibration, self.network.layers(self.layers), step)

    @cached_property
    def results(self) -> list[CIDResult]:
        """A CIDResult for each batch of images and layer, in that order."""
        layers, split = self.network.layers(self.layers), self._batches
        cache, statistics = MapCache(self.cache, self._facts()), self.statistics
        results = []
        with progress_bar("discard", -(-len(split) // split.batch_size) * len(layers)) as step:
            for result in discard(self.network, split, statistics, layers, self.options, cache, self.seed):
                results.append(result)
                step()
        return results

    @cached_property
    def by_image(self) -> pd.DataFrame:
        """One row per image and layer, as `discarded.csv` holds them."""
        return image_table(self.results, self.options, self.name)

    def edges(self) -> pd.DataFrame:
        """Correlation of what is kept with edges and with color, one row per layer and kind."""
        return edge_color_correlation(self.network, self._batches, self.results, self.options)

    def concentration(self, foreground: Callable[[int], Bool[Tensor, "height width"]], margin: float = 0.2) -> list[pd.DataFrame]:
        """Concentration of what is kept on the object: a table by image, and one by layer.

        Parameters
        ----------
        foreground
            Index of an image → True at the pixels of its object.
        margin
            Nats below the background's mean at which a cell is a knowledge point.
        """
        cells = Cells.of((self.images.image_shape[1], self.images.image_shape[2]), self.options.side)
        cap, varies = replace(self.options, cap=True).caps(self.statistics.pixels, cells)
        frame = concentration_table(self.results, foreground, cells, cap, varies, margin, self.options)
        return [frame, concentration_by_layer(frame)]

    def reconstruction(self, decoder: Decoder = "ridge") -> pd.DataFrame:
        """Reconstruction uncertainty, one row per layer and decoder; "trained" adds a trained decoder to the linear one."""
        with progress_bar("decode", len({result.layer for result in self.results})) as step:
            return reconstruction_table(
                self.network,
                self.calibration.with_batch_size(BATCH),
                self._batches,
                self.results,
                self.options,
                decoder == "trained",
                step,
                self.seed,
            )

    def tables(
        self, extras: ExtraAnalyses | None = None, other: "DiscardingAnalysis | pd.DataFrame | None" = None
    ) -> dict[str, pd.DataFrame]:
        """All tables of the analysis by name: what the command `discard` writes.

        Parameters
        ----------
        extras
            Analyses beyond CID; by default none.
        other
            Analysis of another network on the same images under the same options, or its table `discarded`: its rows and the
            paired differences are added.

        Returns
        -------
        dict[str, DataFrame]
            `discarded`, `discarded_layers` and `discarded_edges`; with `other` also `discarded_difference`; as asked for also
            `concentration`, `concentration_layers` and `reconstruction`.

        Raises
        ------
        DataError
            Before anything is computed, if the data lacks the boxes or masks asked for.
        InputError
            For an unknown decoder.
        MismatchError
            If `other` was measured under other options or on other images.
        """
        extras = extras or ExtraAnalyses()
        check_choice("decoder", extras.decoder, ("none", "ridge", "trained"))
        objects = extras.objects(self.images)
        by_image, differences = self.by_image, []
        if other is not None:
            other_images = other.by_image if isinstance(other, DiscardingAnalysis) else other
            differences = [difference_table(by_image, other_images)]
            by_image = tables.describe(pd.concat([by_image, other_images], ignore_index=True), by_image.attrs)
        frames = [by_image, layer_table(by_image), *differences, self.edges()]
        frames += self.concentration(objects, extras.margin) if objects else []
        frames += [self.reconstruction(extras.decoder)] if extras.decoder != "none" else []
        return {frame.attrs["name"]: frame for frame in frames}

    @property
    def _batches(self) -> Split:
        return self.images.with_batch_size(min(self.images.batch_size, BATCH))

    def _facts(self) -> dict:
        """What must agree for a cached map to be used."""
        return {
            "weights": weights_hash(self.model),
            "rule": self.options.convention() | {"mode": self.options.mode},
            "seed": self.seed,
            "data images": fingerprint(self.calibration.indices),
            "mean": self.calibration.mean,
            "std": self.calibration.std,
        }
