"""Table of the network families that can be cut: each is cut, compared, saved, loaded and repaired in a process of its own.

Random weights, BatchNorm statistics of one pass in training mode, the channels with the smallest weights removed until
0.6 of the multiply-adds are left. A row that is in the table already is not run again: delete the table to start over.
"""

import argparse
import copy
import csv
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import channelscope
from channelscope import zoo
from channelscope.data.torchvision_cpu import models
from channelscope.errors import BudgetError, ChannelscopeError
from channelscope.network.cost import fused_kernels
from channelscope.network.module_state import eval_mode

TABLE, PAGE = Path("docs/supported-networks.csv"), Path("docs/supported-networks.md")
COLUMNS = ["network", "pixels", "million", "outcome", "groups", "channels", "whole", "sites", "macs", "predicted", "error", "repaired"]
COLUMNS += ["seconds", "note"]
BUDGET, CLASSES, IMAGES, LIMIT = 0.6, 10, 8, 240
RELATIVE = 1e-6
SAMPLE = {
    64: "torchvision:squeezenet1_1 torchvision:shufflenet_v2_x0_5 torchvision:mobilenet_v2 torchvision:mobilenet_v3_small "
    "torchvision:mnasnet0_5 torchvision:regnet_y_400mf torchvision:resnet18 torchvision:efficientnet_b0 torchvision:densenet121 "
    "timm:ghostnet_050 timm:lcnet_050 timm:tinynet_e timm:semnasnet_050 timm:res2net50_14w_8s timm:resnetv2_50 timm:dla46_c "
    "timm:hardcorenas_a timm:convnext_atto timm:repvgg_a0 timm:resnext26ts timm:xcit_nano_12_p16_224 timm:poolformer_s12 "
    "timm:mobileone_s0 timm:nf_regnet_b0 timm:skresnet18 timm:resnest14d timm:selecsls42 timm:fbnetc_100 timm:cspresnet50 "
    "timm:rexnet_100 timm:edgenext_xx_small timm:starnet_s1 timm:fastvit_t8 timm:inception_next_atto",
    128: "torchvision:googlenet torchvision:alexnet torchvision:vgg11_bn timm:hgnetv2_b0",
    224: "timm:vit_tiny_patch16_224 timm:deit_tiny_patch16_224 timm:mixer_s32_224 timm:levit_128s timm:efficientformer_l1 "
    "timm:crossvit_tiny_240 timm:convit_tiny timm:pit_ti_224 timm:mobilevit_xxs timm:swin_tiny_patch4_window7_224",
}
WORDS = {
    "equal": "cut to the budget, equal to the silenced network, saved, loaded and repaired",
    "partly": "the same, at the smallest cost that can be reached, which is above the budget",
    "whole": "nothing can be removed",
    "refused": "refused with a reason",
    "wrong": "the smaller network differs",
    "failed": "another error",
    "late": "not finished in the time limit",
}


def prepared(name: str, pixels: int) -> nn.Module:
    """A network with random weights and the BatchNorm statistics of noise."""
    torch.manual_seed(0)
    model = zoo.build(name, classes=CLASSES, image_size=pixels)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(torch.randn(IMAGES, 3, pixels, pixels))
    return model.eval()


def multiply_adds(model: nn.Module, image: torch.Tensor) -> int:
    """Multiply-adds of one image, as executed."""
    counter = FlopCounterMode(display=False, custom_mapping=fused_kernels())
    with counter, torch.no_grad(), eval_mode(model):
        model(image)
    return counter.get_total_flops() // 2


def distance(small: nn.Module, model: nn.Module, removed: channelscope.Subset, images: torch.Tensor) -> float:
    """Largest difference of the smaller and the silenced network's outputs in float64, relative to the largest output."""
    small, model = copy.deepcopy(small).double().eval(), copy.deepcopy(model).double().eval()
    with torch.no_grad(), channelscope.silence(model, removed):
        expected = model(images.double())
    with torch.no_grad():
        return float((small(images.double()) - expected).abs().max() / expected.abs().max())


def measured(name: str, pixels: int) -> dict:
    """The row of one network."""
    model = prepared(name, pixels)
    source = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, pixels, pixels, generator=source)
    row: dict = {"million": round(sum(part.numel() for part in model.parameters()) / 1e6, 2)}
    ranking = channelscope.scores.l2(channelscope.collect(model, [images[:2]]))
    found = channelscope.groups(model, images[:1])
    row |= {
        "groups": len(found),
        "channels": sum(len(group.members) for group in found.members),
        "sites": len(found.sites),
        "whole": len(found.unprunable),
    }
    if len(found) == 0:
        return row | {"outcome": "whole", "note": next(iter(found.unprunable.values()), "")}
    outcome = "equal"
    try:
        kept = channelscope.cut(ranking, found, macs=BUDGET)
    except BudgetError as error:
        outcome, row["note"] = "partly", str(error)
        kept = channelscope.cut(ranking, found, macs=BUDGET, closest=True)
    small = channelscope.shrink(found, kept)
    full = multiply_adds(model, images[:1])
    row["macs"] = round(multiply_adds(small, images[:1]) / full, 4)
    row["predicted"] = round(channelscope.network.cost.macs(found, kept) / channelscope.network.cost.cost(model, images[:1]).total_macs, 4)
    row["error"] = f"{distance(small, model, ~kept, images):.1e}"
    report = channelscope.repair(small, found, kept, [images])
    row["repaired"] = len(report.relative_errors)
    with tempfile.TemporaryDirectory() as folder:
        channelscope.save_pruned(small, model, kept, Path(folder) / "small")
        loaded = channelscope.load_pruned(Path(folder) / "small", model)
    with torch.no_grad(), eval_mode(small):
        same = torch.equal(small(images), loaded(images))
    if not float(row["error"]) <= RELATIVE or not same:
        outcome = "wrong"
    return row | {"outcome": outcome}


def child(name: str, pixels: int) -> None:
    """Print the row of one network as JSON."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.monotonic()
    try:
        row = measured(name, pixels)
    except ChannelscopeError as error:
        row = {"outcome": "refused", "note": f"{type(error).__name__}: {error}"}
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError, KeyError, NotImplementedError) as error:
        row = {"outcome": "failed", "note": f"{type(error).__name__}: {error}"}
    print(json.dumps(row | {"seconds": round(time.monotonic() - start, 1)}))


def parent(name: str, pixels: int, limit: float) -> dict:
    """The row of one network, from a process of its own."""
    try:
        done = subprocess.run([sys.executable, __file__, "--one", name, str(pixels)], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"outcome": "late", "note": f"{limit:g} s"}
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {"outcome": "failed", "note": done.stderr.strip()[-300:]}


def smallest_of_timm() -> dict[int, list[str]]:
    """The smallest network of each module of timm, by its image size."""
    import timm
    from timm.models import _registry

    found: dict[int, list[str]] = {}
    for module in sorted(_registry._module_to_models):
        best: tuple[int, str, int] | None = None
        for name in sorted(_registry._module_to_models[module]):
            with torch.device("meta"):
                try:
                    model = timm.create_model(name, pretrained=False, num_classes=CLASSES)
                except (RuntimeError, TypeError, ValueError, NotImplementedError):
                    continue
            count = sum(part.numel() for part in model.parameters())
            size = max(64, *(model.default_cfg.get("input_size") or (3, 224, 224))[1:])
            if best is None or count < best[0]:
                best = count, name, size
        if best is not None:
            found.setdefault(best[2], []).append(f"timm:{best[1]}")
    return found


def read() -> dict[str, dict]:
    """The rows that are in the table."""
    if not TABLE.exists():
        return {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def write(rows: dict[str, dict]) -> None:
    """Write the table and the page."""
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: " ".join(str(value).split())[:300] for key, value in row.items()} for row in rows.values())
    counts = {outcome: sum(row["outcome"] == outcome for row in rows.values()) for outcome in WORDS}
    lines = [
        "# Supported networks",
        "",
        "*For those who want to know whether a network like theirs can be cut.*",
        "",
        "Written by `make architectures`. Random weights, BatchNorm statistics of one pass in training mode, the channels with the",
        f"smallest weights removed until {BUDGET} of the multiply-adds are left.",
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
    shown = COLUMNS[:-1]
    lines += [f"| {' | '.join(shown)} |", f"|{'---|' * len(shown)}"]
    lines += [f"| {' | '.join(str(row.get(key, '')) for key in shown)} |" for row in rows.values()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help="names, each NAME@PIXELS; none: the sample")
    parser.add_argument("--all", action="store_true", help="all of torchvision and the smallest network of each module of timm")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one network")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "PIXELS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        child(given.one[0], int(given.one[1]))
        return
    wanted = [(name, size) for size, names in SAMPLE.items() for name in names.split()]
    if given.networks:
        wanted = [(name, int(size)) for name, _, size in (each.rpartition("@") for each in given.networks)]
    elif given.all:
        wanted += [(f"torchvision:{name}", 299 if name == "inception_v3" else 224) for name in models.list_models(module=models)]
        wanted += [(name, size) for size, names in smallest_of_timm().items() for name in names]
    rows = read()
    for name, pixels in dict(wanted).items():
        if name not in rows:
            rows[name] = {"network": name, "pixels": pixels, **parent(name, pixels, given.limit)}
            write(rows)
            print(name, rows[name]["outcome"], rows[name].get("note", ""), flush=True)


if __name__ == "__main__":
    main()
