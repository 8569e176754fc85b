"""The command `faithfulness`."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from channelscope import tables
from channelscope.cli.circuits import circuit_facts
from channelscope.cli.discarding import BATCH, layer_names, options_text
from channelscope.cli.options import NetworkOptions, console, fitted, load_network
from channelscope.cli.run_folder import RunAddition, folder_at
from channelscope.data.images import ImageSplits
from channelscope.data.sources import ImageSource
from channelscope.data.splits import Split
from channelscope.discarding import faithfulness as judged
from channelscope.discarding import localization
from channelscope.discarding import tables as discarded
from channelscope.discarding.attribution import attributions
from channelscope.discarding.cid import CalibrationStatistics, CIDOptions, CIDResult, discard
from channelscope.discarding.noise import Cells
from channelscope.discarding.pixel_network import LayerOutput, PixelNetwork
from channelscope.discarding.tables import COLUMNS
from channelscope.errors import DataError, NumericError
from channelscope.network.module_state import weights_hash
from channelscope.progress import progress_bar
from channelscope.report import page
from channelscope.tables.rounding import format_interval

EVALUATED, TUNED = 64, 32
"""Test and calibration images where the user says nothing."""


def faithfulness(
    network: NetworkOptions,
    source: ImageSource,
    rule: CIDOptions,
    out: Path,
    layers: str = "",
    evaluated: int | None = None,
    tuned: int | None = None,
) -> None:
    """Judge CID maps against gradient, integrated gradients, Grad-CAM and LRP: descriptive accuracy, and finding the object.

    Needs captum and zennit (the extra `attribution`) and images with boxes.

    out        folder for the tables and report.html
    layers     modules whose CID is judged, separated by commas; Grad-CAM is taken at the last; by default the third of four
    evaluated  test images judged; by default 64, or all there are
    tuned      calibration images on which each method's threshold is chosen; by default 32, or all there are
    """
    begun = time.monotonic()
    if min(each for each in (evaluated, tuned, 2) if each is not None) < 2:
        raise DataError(f"expected --evaluated and --tuned of at least 2, received {evaluated} and {tuned}")
    folder_at(out)
    model, images = load_network(network, source)
    RunAddition(out).agrees(weights_hash(model), network.model)
    size = min(source.batch_size, BATCH)
    tuning_on = fitted(images.calibration, tuned, TUNED, "--tuned").with_batch_size(size)
    splits = tuning_on, fitted(images.test, evaluated, EVALUATED, "--evaluated").with_batch_size(size)
    boxes = [_images_with_boxes(split) for split in splits]
    view = PixelNetwork(model, images.image_shape, *images.normalization, device=network.device)
    chosen = view.layers(layer_names(layers)) if layers else [view.layers()[2]]
    methods = _methods(model, view, images, chosen, rule)
    with progress_bar("maps", sum(-(-len(split) // size) for split in splits)) as step:
        tuning, _ = _judge_methods(model, methods, splits[0], step, curves=False)
        maps, curves = _judge_methods(model, methods, splits[1], step, curves=True)
    found = localization.localization_table(tuning, boxes[0], maps, boxes[1], rule)
    found = tables.describe(found.assign(converged=_converged(methods, splits[1])), found.attrs | {"columns": COLUMNS})
    for frame in (judged.descriptive_accuracy_table(curves, rule), found):
        tables.write(frame, out / f"{frame.attrs['name']}.csv")
    if not (out / "run.json").exists():
        facts = {
            "title": f"Faithfulness of maps of {network.model}",
            "layers": [layer.name for layer in chosen],
            "rule": options_text(rule),
        }
        tables.write_json(circuit_facts(network, model, images, begun) | facts, out / "run.json")
    for row in found.to_dict("records"):
        overlap = format_interval(row["iou"], row["iou_low"], row["iou_high"], int(row["n"]), "images")
        doubt = f"; {row['converged']:.0%} of the images converged" if row["converged"] < 1 else ""
        console.print(f"{row['method']}: mean IoU {overlap}{doubt}")
    print(page.write_report(out))


def _images_with_boxes(split: Split) -> list:
    """The boxes of a split, every image having one."""
    boxes = split.column("boxes")
    without = [index for index, own in zip(split.indices.tolist(), boxes, strict=True) if not any(b[2] > b[0] and b[3] > b[1] for b in own)]
    if without:
        few = ", ".join(map(str, without[:5]))
        raise DataError(f"{len(without)} of {len(boxes)} {split.name} images have no box inside the image ({few}, …): leave them out")
    return boxes


@dataclass(frozen=True)
class CidMethod:
    """What a layer keeps (−H) as a map, and how sure each of the maps is."""

    view: PixelNetwork
    layer: LayerOutput
    backdrop: CalibrationStatistics
    rule: CIDOptions
    found: list[CIDResult] = field(default_factory=list)

    def __call__(self, batch: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """The map, finite also where a value never varies."""
        (found,) = discard(self.view, [(batch, target, index)], self.backdrop, [self.layer], self.rule)
        self.found.append(found)
        cells = Cells.of((self.view.shape[1], self.view.shape[2]), self.rule.side)
        return -cells.expand_to_pixels(found.entropy.clamp(min=found.entropy[found.entropy.isfinite()].min()))

    def converged(self, index: Tensor) -> float:
        """Share of some images whose CID is known."""
        frame = discarded.image_table(self.found, self.rule, "")
        return float(frame[frame.image.isin(index.tolist())].converged.mean())


def _methods(
    model: nn.Module, view: PixelNetwork, images: ImageSplits, layers: Sequence[LayerOutput], rule: CIDOptions
) -> dict[str, Callable]:
    """Name → map from (images, target, index)."""
    given = attributions(model, layers[-1].name)
    calibration = images.calibration.with_batch_size(2 * BATCH)
    with progress_bar("data", -(-len(calibration) // calibration.batch_size)) as step:
        backdrop = CalibrationStatistics.over(view, calibration, layers, step)
    backdrops = [CalibrationStatistics(backdrop.pixels, (feature,)) for feature in backdrop.features]
    own = {f"cid {layer.name}": CidMethod(view, layer, each, rule) for layer, each in zip(layers, backdrops, strict=True)}

    def random(batch: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return torch.stack([torch.rand(batch.shape[2:], generator=torch.Generator().manual_seed(int(one))) for one in index])

    others = {name: lambda batch, target, index, method=method: method(batch, target) for name, method in given.items()}
    return {**own, **others, "random": random, "center": lambda batch, target, index: localization.center_prior(batch)}


def _converged(methods: dict[str, Callable], split: Split) -> pd.Series:
    """Share of the images whose CID is known, method by method; nan for the others."""
    return pd.Series([method.converged(split.indices) if isinstance(method, CidMethod) else math.nan for method in methods.values()])


def _judge_methods(
    model: nn.Module, methods: dict[str, Callable], split: Split, step: Callable[[], None], curves: bool
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """Smoothed maps of every method, and the curves of descriptive accuracy where they are asked for."""
    maps: dict[str, list[Tensor]] = {name: [] for name in methods}
    found: dict[tuple[str, str], list[Tensor]] = {}
    for batch, _, index in split:
        with torch.no_grad():
            target = model(batch).argmax(1)
        for name, method in methods.items():
            relevance = method(batch, target, index)
            if not bool(relevance.isfinite().all()):
                raise NumericError(f"the map of {name} is not finite: check the network, or name another layer")
            maps[name].append(localization.smoothed(relevance.float()))
            for baseline in ("zero", "blur") if curves else ():
                curve = judged.descriptive_accuracy(model, batch, target, relevance, baseline)
                found.setdefault((name, baseline), []).append(curve)
        step()
    return {name: torch.cat(parts) for name, parts in maps.items()}, {key: torch.cat(parts) for key, parts in found.items()}
