"""How many public architectures torch-pruning cuts right: the networks, the budget and the check of `tools/architectures.py`.

    python benchmarks/pruner_coverage.py [TABLE.csv] [--sample 50] [--networks NAME …] [--limit 240]

Random weights, BatchNorm statistics of noise. Theirs: global pruning by L2 norm in one step, the last linear layer kept, with the
ratio of channels at which the network costs at most .62 of its multiply-adds, a smaller one where that ends with an error; the same
check as for ours: the output is that of the whole network with the removed channels silent, within 1e-6 in float64. Nothing is told
about a network, such as which layers have heads. Ours is in `docs/supported-networks.csv`. A row that is in the table is not measured
again. A network runs in a process of its own.
"""

import argparse
import copy
import random
import sys
from pathlib import Path

import torch
import torch_pruning
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from architectures import CLASSES, FAILURES, IMAGES, LIMIT, RELATIVE, TABLE, apart, multiply_adds, parent, prepared, read, save, wanted

import channelscope
from channelscope.network.removal.groups import Groups
from channelscope.stats.tally import Tally

MOST, STEPS = 0.62, 6
"""Largest share of the multiply-adds, and halvings of the interval of ratios."""
COLUMNS = ["network", "pixels", "outcome", "macs", "error", "seconds", "note"]
WORDS = {
    "equal": "cut to the budget, equal to the silenced network",
    "differs": "cut to the budget, and the output is another one",
    "costly": "above the budget at every ratio",
    "failed": "an error",
    "late": "not finished in the limit of processor time",
}


def cut_by_them(model: nn.Module, image: torch.Tensor, ratio: float) -> tuple[nn.Module, dict[str, set[int]]]:
    """Their smaller network, and the output channels of each layer that are gone."""
    small = copy.deepcopy(model).requires_grad_(True)
    names = {module: name for name, module in small.named_modules()}
    heads = [module for module in small.modules() if isinstance(module, nn.Linear | nn.Conv2d) and CLASSES in module.weight.shape[:1]]
    options = {"global_pruning": True, "pruning_ratio": ratio, "max_pruning_ratio": 0.95, "ignored_layers": heads[-1:]}
    pruner = torch_pruning.pruner.BasePruner(small, image, torch_pruning.importance.MagnitudeImportance(p=2), **options)
    gone: dict[str, set[int]] = {}
    for group in pruner.step(interactive=True):
        for dependency, places in group:
            if pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                gone.setdefault(names.get(dependency.target.module, ""), set()).update(places)
        group.prune()
    return small.eval().requires_grad_(False), gone


def marked(found: Groups, gone: dict[str, set[int]]) -> channelscope.Subset:
    """The channels that are gone, as a subset of the network's sites."""
    masks = {site.name: torch.zeros(site.channels, dtype=torch.bool) for site in found.sites}
    for name in gone.keys() & masks.keys():
        masks[name][sorted(gone[name])] = True
    return channelscope.Subset(masks, found.sites, tuple(found.example[0].shape[1:]), groups=found)


def measured(name: str, pixels: int) -> dict:
    """The row of one network."""
    model = prepared(name, pixels)
    images = torch.randn(IMAGES, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    full = multiply_adds(model, images[:1])
    low, high, best, failure = 0.0, 1.0, None, None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        try:
            small, gone = cut_by_them(model, images[:1], ratio)
            share = multiply_adds(small, images[:1]) / full
        except FAILURES as error:
            failure, high = error, ratio
            continue
        low, high = (low, ratio) if share <= MOST else (ratio, high)
        best = (share, small, gone) if share <= MOST else best
    if best is None and failure is not None:
        raise failure
    if best is None:
        return {"outcome": "costly", "macs": round(share, 4)}
    share, small, gone = best
    error = apart(small, model, marked(channelscope.groups(model, images[:1]), gone), images[:2])
    return {"outcome": "equal" if error <= RELATIVE else "differs", "macs": round(share, 4), "error": f"{error:.1e}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", default=Path("runs/pruner_coverage.csv"))
    parser.add_argument("--networks", nargs="*", help="only these")
    parser.add_argument("--sample", type=int, help="only so many, drawn at random")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of processor time for one network")
    asked = parser.parse_args()
    rows = read(asked.table)
    asked.table.parent.mkdir(parents=True, exist_ok=True)
    networks = wanted(False)
    chosen = networks if asked.sample is None else random.Random(0).sample(networks, asked.sample)
    for name, pixels, _ in sorted(chosen, key=networks.index):
        if name in rows or (asked.networks and name not in asked.networks):
            continue
        rows[name] = {"network": name, "pixels": pixels, **parent(name, pixels, asked.limit, measured)}
        save(rows, asked.table, COLUMNS)
        print(name, rows[name]["outcome"], rows[name].get("macs", ""), rows[name].get("error", rows[name].get("note", "")), flush=True)
    drawn = [rows[name] for name, _, _ in chosen if name in rows]
    counts = {word: sum(row["outcome"] == word for row in drawn) for word in WORDS}
    print(f"{len(drawn)} networks: " + "; ".join(f"{count} {WORDS[word]}" for word, count in counts.items()))
    ours = read(TABLE)
    right = {"theirs": counts["equal"], "ours": sum(ours[row["network"]]["outcome"] == "equal" for row in drawn)}
    for whose, count in right.items():
        tally = Tally(len(drawn), count)
        low, high = tally.accuracy_interval()
        print(f"{whose}: {count} of {len(drawn)} cut right, {tally.accuracy:.1%} [{low:.1%}, {high:.1%}]")


if __name__ == "__main__":
    main()
