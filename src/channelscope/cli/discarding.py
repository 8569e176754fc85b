"""The command `discard`."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import Tensor, nn

from channelscope import tables
from channelscope.cli.circuits import circuit_facts
from channelscope.cli.options import NetworkOptions, console, fitted, load_network
from channelscope.cli.run_folder import RunAddition, folder_at
from channelscope.data.images import ImageSplits
from channelscope.data.masks import object_masks
from channelscope.data.sources import ImageSource
from channelscope.data.splits import Split
from channelscope.discarding import concentration
from channelscope.discarding import tables as discarding_tables
from channelscope.discarding.cid import CalibrationStatistics, CIDOptions, CIDResult
from channelscope.discarding.cid import discard as discarded
from channelscope.discarding.concentration import edge_color_correlation
from channelscope.discarding.map_cache import MapCache, fingerprint
from channelscope.discarding.noise import Cells
from channelscope.discarding.pixel_network import PixelNetwork
from channelscope.discarding.reconstruction import reconstruction_table
from channelscope.errors import DataError
from channelscope.network.module_state import weights_hash
from channelscope.progress import progress_bar
from channelscope.pruning.folder import RECIPE, load_pruned
from channelscope.report import page
from channelscope.tables.rounding import format_interval

BATCH = 16
"""Images run at once: gradients of every step up to a layer are kept meanwhile."""

EVALUATED = 32
"""Test images looked at where the user says nothing."""


@dataclass(frozen=True)
class ComparedNetwork:
    """What a network is compared with, under the same rule and on the same images."""

    compare: str | None = None
    """another network, a folder that `prune` made of this one, or the folder of an earlier run of this command"""
    compare_weights: Path | None = None
    """weights file of the other network"""
    compare_layers: str | None = None
    """its layers, separated by commas; by default those of the same names"""


@dataclass(frozen=True)
class ExtraAnalyses:
    """What else is asked about the maps."""

    boxes: bool = False
    """is what is kept on the object? With the data's boxes: concentration, ρ and knowledge points"""
    masks: str | None = None
    """the same with masks: a column of mask images, or folder:PATH with one at every picture's path; above zero is the object"""
    margin: float = 0.2
    """nats below the background's mean at which a cell is a knowledge point"""
    decoder: Literal["none", "ridge", "trained"] = "none"
    """how much of the image can be had back: a linear decoder, or also a network trained on top of it"""

    def objects(self, split: Split) -> Callable[[int], Tensor] | None:
        """Image → pixels of its object, where it was asked for; refused before the work where the data has none."""
        if self.boxes and self.masks is not None:
            raise DataError("expected --boxes or --masks, received both: an object has one outline")
        indices, plane = split.indices.tolist(), (split.image_shape[1], split.image_shape[2])
        if self.masks is not None:
            return dict(zip(indices, object_masks(split, self.masks), strict=True)).__getitem__
        boxes = dict(zip(indices, split.column("boxes"), strict=True)) if self.boxes else None
        return None if boxes is None else lambda image: concentration.box_mask(boxes[image], plane)


@dataclass(frozen=True)
class DiscardingRun:
    """A network with the layers, images and rule of a run."""

    network: NetworkOptions
    layers: str
    images: ImageSplits
    split: Split
    rule: CIDOptions

    def answer(self, model: nn.Module, out: Path) -> "DiscardingResult":
        """The table by image, and the maps; parts that lie in the folder are not computed again."""
        calibration = self.images.calibration.with_batch_size(min(self.images.source.batch_size, 4 * BATCH))
        view = PixelNetwork(model, self.images.image_shape, *self.images.normalization, device=self.network.device)
        layers = view.layers(layer_names(self.layers))
        kept = MapCache(out, self._facts(model))
        with progress_bar("data", -(-len(calibration) // calibration.batch_size)) as step:
            backdrop = CalibrationStatistics.over(view, calibration, layers, step)
        found = []
        with progress_bar("discard", -(-len(self.split) // self.split.batch_size) * len(layers)) as step:
            for each in discarded(view, self.split, backdrop, layers, self.rule, kept, self.images.source.seed):
                found.append(each)
                step()
        return DiscardingResult(self, view, backdrop, found, discarding_tables.image_table(found, self.rule, self.network.model))

    def _facts(self, model: nn.Module) -> dict:
        mean, std = self.images.normalization
        return {
            "weights": weights_hash(model),
            "rule": self.rule.convention() | {"mode": self.rule.mode},
            "seed": self.images.source.seed,
            "data images": fingerprint(self.images.calibration.indices),
            "mean": mean,
            "std": std,
        }


@dataclass(frozen=True)
class DiscardingResult:
    """What a question led to."""

    question: DiscardingRun
    view: PixelNetwork
    backdrop: CalibrationStatistics
    found: list[CIDResult]
    frame: pd.DataFrame

    def placed(self, inside: Callable[[int], Tensor], margin: float) -> list[pd.DataFrame]:
        """Concentration by image and by layer."""
        split, rule = self.question.split, self.question.rule
        cells = Cells.of((split.image_shape[1], split.image_shape[2]), rule.side)
        cap, varies = replace(rule, cap=True).caps(self.backdrop.pixels, cells)
        frame = concentration.concentration_table(self.found, inside, cells, cap, varies, margin, rule)
        return [frame, concentration.concentration_by_layer(frame)]

    def pictured(self) -> pd.DataFrame:
        """What is there at the places that are kept."""
        return edge_color_correlation(self.view, self.question.split, self.found, self.question.rule)

    def decoded(self, train: bool) -> pd.DataFrame:
        """Reconstruction uncertainty by layer."""
        calibration, split = self.question.images.calibration.with_batch_size(BATCH), self.question.split
        with progress_bar("decode", len({each.layer for each in self.found})) as step:
            return reconstruction_table(
                self.view, calibration, split, self.found, self.question.rule, train, step, self.question.images.source.seed
            )


def discard(
    network: NetworkOptions,
    source: ImageSource,
    rule: CIDOptions,
    compared: ComparedNetwork,
    further: ExtraAnalyses,
    out: Path,
    layers: str = "",
    evaluated: int | None = None,
) -> None:
    """Measure how much of each pixel's information every layer throws away (CID), as maps, layer curves and tables.

    out        folder for the tables, maps and report.html; an interrupted run goes on from there
    layers     module paths or steps, separated by commas; by default four, evenly spaced
    evaluated  test images to look at; by default 32, or all there are
    """
    begun = time.monotonic()
    if evaluated is not None and evaluated < 1:
        raise DataError(f"expected --evaluated of at least 1, received {evaluated}")
    folder_at(out)
    model, images = load_network(network, source)
    split = fitted(images.test, evaluated, EVALUATED, "--evaluated").with_batch_size(min(source.batch_size, BATCH))
    RunAddition(out).agrees(weights_hash(model), network.model)
    objects = further.objects(split)
    question = DiscardingRun(network, layers, images, split, rule)
    answer = question.answer(model, out / "maps")
    mine = answer.frame
    written = [mine]
    if compared.compare is not None:
        other = _other(question, source, compared, out)
        written = [
            tables.describe(pd.concat([mine, other], ignore_index=True), mine.attrs),
            discarding_tables.difference_table(mine, other),
        ]
    written.insert(1, discarding_tables.layer_table(written[0]))
    extra = [answer.pictured()] + (answer.placed(objects, further.margin) if objects else [])
    extra += [answer.decoded(further.decoder == "trained")] if further.decoder != "none" else []
    for frame in (*written, *extra):
        tables.write(frame, out / f"{frame.attrs['name']}.csv")
    if not (out / "run.json").exists():
        facts = {"title": f"What {network.model} discards", "rule": options_text(rule)}
        tables.write_json(circuit_facts(network, model, images, begun) | facts, out / "run.json")
    for line in _headline(written):
        console.print(line)
    print(page.write_report(out))


def _other(question: DiscardingRun, source: ImageSource, compared: ComparedNetwork, out: Path) -> pd.DataFrame:
    """The other network's table: read from an earlier run's folder, or measured on the same images."""
    assert compared.compare is not None
    folder = Path(compared.compare)
    if (folder / "discarded.csv").is_file():
        found = tables.read(folder / "discarded.csv")
        first = found.network.iloc[0]
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        label = first if first != question.network.model else f"{first} ({str(facts.get('weights', folder))[:8]})"
        return tables.describe(found[found.network == first].assign(network=label), found.attrs)
    pruned = (folder / RECIPE).is_file()
    network = question.network if pruned else replace(question.network, model=compared.compare, weights=compared.compare_weights)
    model, images = load_network(network, source, note=not pruned)
    if pruned:
        model, network = load_pruned(folder, model), replace(network, model=f"{network.model} pruned to {folder.name}")
    if images.image_shape != question.images.image_shape:
        raise DataError(
            f"{network.model} sees images of {images.image_shape}, {question.network.model} of {question.images.image_shape}: pass --size"
        )
    split = images.test.take(len(question.split)).with_batch_size(question.split.batch_size)
    layers = question.layers if compared.compare_layers is None else compared.compare_layers
    frame = DiscardingRun(network, layers, images, split, question.rule).answer(model, out / "maps_compared").frame
    label = network.model if network.model != question.network.model else f"{network.model} ({weights_hash(model)[:8]})"
    return tables.describe(frame.assign(network=label), frame.attrs)


def layer_names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def options_text(rule: CIDOptions) -> str:
    """A rule in a few words."""
    convention = rule.convention()
    return f"{rule.mode}; normalizer {rule.normalizer}, κ = {convention['kappa']}, cap {'on' if rule.cap else 'off'}, grid {rule.side}"


def _headline(written: list[pd.DataFrame]) -> list[str]:
    """Each layer's mean CID, and the difference where there is one."""
    lines = []
    for row in written[1].to_dict("records"):
        cid = format_interval(row["cid"], row["cid_low"], row["cid_high"], int(row["n"]), "images")
        doubt = "" if row["converged"] == 1 else f"; {row['converged']:.0%} of the images converged"
        doubt += f"; {int(row['unreached'])} images out of reach" if row["unreached"] else ""
        doubt += f"; {row['unseen']:.0%} of the image does not reach it" if row["unseen"] else ""
        lines.append(f"{row['network']} {row['layer']}: CID {cid} nats{doubt}")
    for row in written[2].to_dict("records") if len(written) > 2 else []:
        change = format_interval(row["difference"], row["difference_low"], row["difference_high"], int(row["n"]), "images")
        lines.append(f"{row['other']} less {row['network']} at {row['layer']}: {change} nats")
    return lines
