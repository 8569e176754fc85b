"""Table of the network families that can be cut: each is cut, compared, saved, loaded and repaired in a process of its own.

Random weights, BatchNorm statistics of one pass in training mode, the channels with the lowest scores removed until 0.6 of the
multiply-adds are left. Each module of timm is represented by its smallest network, with as few blocks and pixels as it takes
(`--choose` finds them; they stand in architectures.json, with other networks, and with every width of torchvision's for `--all`).
A row that is in the table already is not run again: delete the table to start over.
"""

import argparse
import copy
import csv
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import channelscope
from channelscope import zoo
from channelscope.data.torchvision_cpu import models
from channelscope.errors import BudgetError, ChannelscopeError, OutOfMemoryError
from channelscope.network.cost import fused_kernels
from channelscope.network.module_state import eval_mode, frozen
from channelscope.network.removal.groups import Groups
from channelscope.network.tracing.recording import distance

TABLE, PAGE, CHOSEN = Path("docs/supported-networks.csv"), Path("docs/supported-networks.md"), Path(__file__).with_suffix(".json")
COLUMNS = ["network", "pixels", "million", "outcome", "groups", "channels", "whole", "sites", "macs", "predicted", "error", "repaired"]
COLUMNS += ["seconds", "family", "note"]
BUDGET, CLASSES, IMAGES, LIMIT = 0.6, 10, 8, 240
RELATIVE = 1e-6
MEMORY = 19 << 30
REASONS = 3
SEGMENTATION = "torchvision:segmentation/"
BLOCKS: list[dict[str, Any]] = [
    {name: value}
    for name, values in {
        "depth": (2, 4, (1, 1, 1, 1), (1, 1, 1), (1, 1, 1, 1, 1)),
        "depths": ((1, 1), (1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1, 1), (2, 2, 2), (2, 2, 2, 2)),
        "layers": ((1, 1, 1), (1, 1, 1, 1)),
        "num_layers": (2, (1, 1, 1, 1)),
        "levels": ((1, 1, 1, 1, 1, 1),),
        "serial_depths": ((1, 1, 1, 1),),
    }.items()
    for value in values
]
"""Keywords that make some networks of timm shallower"""
PIXELS = 64, 96, 112, 128, 160, 192, 224, 240, 256
WORDS = {
    "equal": "cut to the budget, equal to the silenced network, saved, loaded and repaired",
    "partly": "the same, at the smallest cost that can be reached, which is above the budget",
    "whole": "nothing can be removed",
    "refused": "refused with a reason",
    "wrong": "the smaller network differs",
    "failed": "another error",
    "late": "not finished in the limit of processor time",
}


WHOLE = [
    "## What is kept whole",
    "",
    "- What a LayerNorm, an RMSNorm or a GroupNorm with one group reads: its statistics are over all of its channels. In transformers",
    "  and in ConvNeXt this is the residual stream; the hidden channels of their MLPs and whole heads of attention are removed.",
    "- What is added to parameters that lie along positions, and not along channels alone, such as a class token or a position table.",
    "- Heads of `nn.MultiheadAttention` whose keys or values have other widths than its queries (`kdim`, `vdim`), to which something is",
    "  added (`add_bias_kv`, `add_zero_attn`), or that has hooks or a forward pass of its own. Of all others, as in torchvision's ViT and",
    "  `nn.TransformerEncoderLayer`, and of attention written out, as in timm and in windowed attention, whole heads go, or the same",
    '  places of every head with `groups(model, images, heads="widths")`.',
    "- Outputs of the network, and what is united with them.",
    "- Layers that share a parameter or are called several times.",
    "- The half of a gate that passes a LayerNorm (gMLP); the half that it scales is removed, and with it the places of the norm's value.",
    "",
]


class MeanLogits(nn.Module):
    """A segmentation network as a classifier: its logits, averaged over positions."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, images × classes."""
        return self.network(images)["out"].mean((2, 3))


def prepared(name: str, pixels: int) -> nn.Module:
    """A network with random weights and the BatchNorm statistics of noise."""
    torch.manual_seed(0)
    if name.startswith(SEGMENTATION):
        options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
        model = MeanLogits(models.get_model(name.removeprefix(SEGMENTATION), **options))
    else:
        model = zoo.build(name, classes=CLASSES, image_size=pixels)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for part in model.parameters():
        if part.dim() > 1 and not bool(part.any()):
            nn.init.normal_(part, std=0.1)
    model.train()
    if norms:
        with torch.no_grad():
            model(torch.randn(IMAGES, 3, pixels, pixels))
    return model.eval()


def multiply_adds(model: nn.Module, image: torch.Tensor) -> int:
    """Multiply-adds of one image, as executed."""
    counter = FlopCounterMode(display=False, custom_mapping=fused_kernels())
    with counter, torch.no_grad(), eval_mode(model), frozen(model):
        model(image)
    return counter.get_total_flops() // 2


def apart(small: nn.Module, model: nn.Module, removed: channelscope.Subset, images: torch.Tensor) -> float:
    """Largest difference of the smaller and the silenced network's outputs in float64, relative to the largest output."""
    small, model = copy.deepcopy(small).double().eval(), copy.deepcopy(model).double().eval()
    with torch.no_grad(), channelscope.silence(model, removed):
        expected = model(images.double())
    with torch.no_grad():
        return distance(small(images.double()), expected)[0]


def held(found: Groups) -> str:
    """Why channels are kept whole: the reasons that hold the most multiply-adds, each with the dearest of its layers."""
    costs = {layer.name: layer.taps * layer.positions * len(layer.inputs) * len(layer.outputs) // layer.groups for layer in found.layers}
    layers: dict[str, list[str]] = {}
    for site, reason in found.unprunable.items():
        layers.setdefault(reason.partition(": ")[2], []).append(site)
    said = []
    for why, sites in sorted(layers.items(), key=lambda item: -sum(costs.get(site, 0) for site in item[1]))[:REASONS]:
        dearest = max(sites, key=lambda site: costs.get(site, 0))
        said.append(f"{dearest}{f' and {len(sites) - 1} others' if len(sites) > 1 else ''}: {why}")
    return "; ".join(said)


def rankings(model: nn.Module, images: torch.Tensor) -> list[channelscope.Ranking]:
    """By one score of the images and one of the weights; their profile, which takes more memory than a large network, is let go."""
    profile = channelscope.collect(model, [images], shards=0)
    return [channelscope.scores.capture(profile), channelscope.scores.l2(profile)]


def measured(name: str, pixels: int) -> dict:
    """The row of one network."""
    model = prepared(name, pixels)
    source = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, pixels, pixels, generator=source)
    row: dict = {"million": round(sum(part.numel() for part in model.parameters()) / 1e6, 2)}
    found = channelscope.groups(model, images[:1])
    row |= {
        "groups": len(found),
        "channels": sum(len(group.members) for group in found.members),
        "sites": len(found.sites),
        "whole": len(found.unprunable),
        "note": held(found),
    }
    if len(found) == 0:
        return row | {"outcome": "whole"}
    outcome, errors = "equal", []
    for ranking in rankings(model, images):
        try:
            kept = channelscope.cut(ranking, found, macs=BUDGET)
        except BudgetError as error:
            outcome, row["note"] = "partly", f"{str(error).partition(' (closest')[0]}; {held(found)}"
            kept = channelscope.cut(ranking, found, macs=BUDGET, closest=True)
        small = channelscope.shrink(found, kept)
        errors.append(apart(small, model, ~kept, images[:2]))
    row["macs"] = round(multiply_adds(small, images[:1]) / multiply_adds(model, images[:1]), 4)
    row["predicted"] = round(channelscope.network.cost.macs(found, kept) / channelscope.network.cost.cost(model, images[:1]).total_macs, 4)
    row["error"] = f"{max(errors):.1e}"
    report = channelscope.repair(small, found, kept, [images])
    row["repaired"] = len(report.relative_errors)
    with tempfile.TemporaryDirectory() as folder:
        channelscope.save_pruned(small, model, kept, Path(folder) / "small")
        loaded = channelscope.load_pruned(Path(folder) / "small", model)
    with torch.no_grad(), eval_mode(small):
        same = distance(loaded(images[:2]), small(images[:2]))[0] == 0
    if not float(row["error"]) <= RELATIVE or not same:
        outcome = "wrong"
    return row | {"outcome": outcome}


FAILURES = (MemoryError, RuntimeError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, IndexError, KeyError)


def child(measure: Callable[[str, int], dict], name: str, pixels: int, answers: Any, limit: int) -> None:
    """Send the row of one network to the process that asked for it, if it takes no more processor time than the limit."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    warnings.simplefilter("ignore")
    start = time.process_time()
    try:
        row = measure(name, pixels)
    except OutOfMemoryError as error:
        row = {"outcome": "failed", "note": str(error)}
    except ChannelscopeError as error:
        row = {"outcome": "refused", "note": f"{type(error).__name__}: {error}"}
    except FAILURES as error:
        row = {"outcome": "failed", "note": f"{type(error).__name__}: {error}"}
    answers.send(row | {"seconds": round(time.process_time() - start, 1)})


def parent(name: str, pixels: int, limit: int, measure: Callable[[str, int], dict] = measured) -> dict:
    """The row of one network, from a process of its own, which is stopped after `limit` seconds of processor time."""
    context = multiprocessing.get_context("fork")
    answers, end = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(measure, name, pixels, end, limit))
    process.start()
    end.close()
    try:
        row = answers.recv()
    except EOFError:
        process.join()
        row = {"outcome": "failed", "note": f"the process ended without an answer, with status {process.exitcode}"}
        if process.exitcode == -signal.SIGXCPU:
            row = {"outcome": "late", "note": f"{limit} s"}
    process.kill()
    process.join()
    return row


def choose() -> None:
    """Write the smallest network of each module of timm, with as few blocks and pixels as it takes, to architectures.json."""
    import timm
    from timm.models import _registry

    chosen = json.loads(CHOSEN.read_text())
    for module in sorted(set(_registry._module_to_models) - set(chosen["modules"])):
        sizes = {}
        for name in sorted(_registry._module_to_models[module]):
            try:
                with torch.device("meta"):
                    sizes[name] = sum(part.numel() for part in timm.create_model(name, num_classes=CLASSES).parameters())
            except FAILURES:
                continue
        found = _smallest(min(sizes, key=lambda name: sizes[name])) if sizes else None
        if found is not None:
            chosen["modules"][module] = found
            CHOSEN.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


def _smallest(name: str) -> list | None:
    """The name of a network with its keywords, pixels, and seconds of a pass; None for one that does not classify images."""
    full = zoo.build(f"timm:{name}", classes=CLASSES).default_cfg["input_size"][1]  # type: ignore[union-attr,index]
    found = [(_runs(name, options, full), options) for options in ({}, *BLOCKS)]
    runs = [(tried[0], index) for index, (tried, _) in enumerate(found) if tried]
    options = found[min(runs)[1]][1] if runs else {}
    for pixels in (*(size for size in PIXELS if size < full), full):
        for more in ({}, {"img_size": pixels}):
            tried = _runs(name, options | more, pixels)
            if tried:
                words = ",".join(f"{key}={value}".replace(" ", "") for key, value in (options | more).items())
                return [f"timm:{name}({words})" if words else f"timm:{name}", pixels, round(tried[1], 3)]
    return None


def _runs(name: str, options: dict, pixels: int) -> tuple[int, float] | None:
    """Number of modules, and seconds of a pass over two images; None if it cannot run so."""
    import timm

    try:
        model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options).eval()
        start = time.process_time()
        with torch.no_grad():
            right = model(torch.zeros(2, 3, pixels, pixels)).shape == (2, CLASSES)
        return (len(list(model.modules())), time.process_time() - start) if right else None
    except FAILURES:
        return None


def wanted(every: bool) -> list[tuple[str, int, str]]:
    """(name, pixels, family) of the networks of the table, cheap ones first."""
    chosen = json.loads(CHOSEN.read_text())
    modules = sorted(chosen["modules"].items(), key=lambda item: item[1][2])
    found = [(name, pixels, f"timm {module}") for module, (name, pixels, _) in modules]
    found += [(name, pixels, name.partition(":")[0]) for name, pixels in chosen["others"].items()]
    if every:
        found += [(name, pixels, "torchvision") for name, pixels in chosen["torchvision"].items()]
    return found


def read(table: Path = TABLE) -> dict[str, dict]:
    """The rows that are in the table."""
    if not table.exists():
        return {}
    with table.open(encoding="utf-8", newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def save(rows: dict[str, dict], table: Path, columns: list[str]) -> None:
    """Write a table of networks."""
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: " ".join(str(value).split())[:300] for key, value in row.items()} for row in rows.values())


def write(rows: dict[str, dict]) -> None:
    """Write the table and the page."""
    save(rows, TABLE, COLUMNS)
    counts = {outcome: sum(row["outcome"] == outcome for row in rows.values()) for outcome in WORDS}
    lines = [
        "# Supported networks",
        "",
        "*For those who want to know whether a network like theirs can be cut.*",
        "",
        "Written by `make architectures`. Random weights, BatchNorm statistics of one pass in training mode, the channels with the",
        f"lowest scores (`l2` and `capture`) removed until {BUDGET} of the multiply-adds are left. Each module of timm is represented by",
        "its smallest network, with as few blocks and pixels as it takes; `python tools/architectures.py --all` (or the tests of",
        "`tests/network/removal/test_families.py` under the mark `slow`) runs every width of torchvision's classification networks.",
        "",
        "| outcome | networks | meaning |",
        "|---|---|---|",
        *(f"| {outcome} | {count} | {WORDS[outcome]} |" for outcome, count in counts.items() if count),
        "",
        "`groups` of together so many `channels` can be removed, `whole` of the `sites` have channels that cannot; `macs` is the",
        "fraction left, as executed, and",
        "`predicted` what `cut` counted on; `error` is the largest difference from the silenced network in float64, relative to the",
        "largest output; `repaired` layers were fitted again. The reasons are in `supported-networks.csv`.",
        "",
    ]
    others = [row for row in rows.values() if row["outcome"] != "equal"]
    lines += WHOLE
    if others:
        lines += ["## Not cut to the budget", "", "| network | outcome | why |", "|---|---|---|"]
        lines += [f"| {row['network']} | {row['outcome']} | {' '.join(str(row.get('note', '')).split())[:300]} |" for row in others]
        lines += [""]
    lines += ["## Every network", ""]
    shown = COLUMNS[:-2]
    lines += [f"| {' | '.join(shown)} |", f"|{'---|' * len(shown)}"]
    lines += [f"| {' | '.join(str(row.get(key, '')) for key in shown)} |" for row in rows.values()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help="names, each NAME@PIXELS; they are run again if they are in the table")
    parser.add_argument("--all", action="store_true", help="every width of torchvision's classification networks too, the largest last")
    parser.add_argument("--choose", action="store_true", help="find the smallest network of each module of timm")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of processor time for one network")
    given = parser.parse_args()
    if given.choose:
        choose()
        return
    rows = read()
    todo = [row for row in wanted(given.all) if row[0] not in rows]
    if given.networks:
        families = {name: family for name, _, family in wanted(False)}
        pairs = (each.rpartition("@") for each in given.networks)
        todo = [(name, int(size), families.get(name, name.partition(":")[0])) for name, _, size in pairs]
    for name, pixels, family in todo:
        row = {"network": name, "pixels": pixels, "family": family, **parent(name, pixels, given.limit)}
        rows = read()
        rows[name] = row
        write(rows)
        print(name, row["outcome"], row.get("macs", ""), row.get("note", ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
