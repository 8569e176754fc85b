"""Where a budget of multiply-adds should be saved: trial cuts of each kind of channels, and a cut that follows them.

    python benchmarks/allocation.py [RESULTS.jsonl] [--macs .5] [--exponent 2] [--follow]

The CIFAR-100 network of ../shared/data is cut to the budget by `optimal_brain_surgeon`, repaired by least squares from 200
calibration images, and compared with the original on 250 others. Then, for one kind of channels (groups of the same layers) after
the other, half of those that are gone are put back, or an eighth of all is removed where at most three are gone: how much divergence
does that save or add, for how many multiply-adds? With `--follow` the budget is spent anew where it saves most divergence, and both
networks, repaired from all 1,000 calibration images, are compared on 2,000 validation images. No test image is used. A result
already in the file is not measured again, so an interrupted run goes on.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from channelscope import data, zoo
from channelscope.network.cost import MacCounter
from channelscope.network.removal.groups import Groups, groups
from channelscope.pruning.cut import group_importance, groups_by_layers, remove_to_budget, shrink
from channelscope.pruning.optimal_brain_surgeon import optimal_brain_surgeon
from channelscope.pruning.prune import log_probabilities
from channelscope.pruning.repair import repair

DATA = Path(__file__).parents[2] / "shared" / "data"
FIT, JUDGE = slice(0, 200), slice(200, 450)
POWER = 3.0
"""Divergence per multiply-add is taken to grow with this power of the number of channels of a kind that are gone."""
MOST_FURTHER = 1.5
"""Largest factor by which more channels of a kind go than in the trial cuts."""
LEAST_RATE = 0.1
"""Smallest divergence per multiply-add of a kind, as a fraction of that of all kinds together."""
BEYOND = 1e9
"""Factor on the scores of channels outside the range that was tried."""


@dataclass(frozen=True)
class TrialCut:
    """Some channels of one kind put back (`changed` above 0) or removed, at a budget at which so many are gone."""

    family: np.ndarray
    """groups of this kind, first removed first"""
    gone: int
    changed: int
    macs: float
    """multiply-adds of the changed channels, as a fraction of the network's"""
    divergence: float
    """mean divergence that they save [nats]"""
    error: float
    """its standard error over images"""

    @property
    def rate(self) -> float:
        """Divergence per multiply-add [nats for all multiply-adds of the network]."""
        return self.divergence / self.macs


def trial(scores: np.ndarray, family: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, int, int, np.ndarray]:
    """One kind's groups in the order of removal, how many are gone, how many to put back, and what is then kept."""
    order = family[np.lexsort((family, scores[family], kept[family]))]
    gone = int((~kept[family]).sum())
    changed = (gone + 1) // 2 if gone > 3 else -max(len(family) // 8, 1)
    other = kept.copy()
    other[order[gone - max(changed, 0) : gone + max(-changed, 0)]] = changed > 0
    return order, gone, changed, other


def scores_of_trials(groups: int, trials: Sequence[TrialCut]) -> np.ndarray:
    """Divergence per multiply-add of each group, so that one threshold spends the budget where it saves most.

    A rate is drawn toward that of all kinds together the more, the larger its standard error is.
    """
    result = np.full(groups, BEYOND**2)
    pooled = sum(each.divergence for each in trials) / sum(each.macs for each in trials)
    for each in trials:
        share = pooled**2 / (pooled**2 + (each.error / each.macs) ** 2)
        rate = max(pooled + share * (each.rate - pooled), LEAST_RATE * pooled)
        number = np.arange(len(each.family)) + 0.5
        least, most = (each.gone - each.changed, MOST_FURTHER * each.gone) if each.changed > 0 else (0, each.gone - 2 * each.changed)
        factor = np.where(number < least, 1 / BEYOND, np.where(number > most, BEYOND, 1.0))
        result[each.family] = factor * rate * (number / (each.gone - each.changed / 2)) ** POWER
    return result


def fraction_of(found: Groups, kept: np.ndarray) -> float:
    """Multiply-adds of what is kept, as a fraction of the network's."""
    counter = MacCounter(found)
    full = counter.total
    for group in np.flatnonzero(~kept):
        counter.remove(int(group))
    return counter.total / full


def chunks(images: Tensor) -> list[tuple[Tensor]]:
    return [(part,) for part in images.split(250)]


def results_in(path: Path) -> list[dict]:
    """What earlier runs have measured; the file's folder is there afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_result(path: Path, row: dict) -> None:
    """Write a result behind those of a file, and print it."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def log_probabilities_of(model: nn.Module, images: Tensor) -> Tensor:
    """Log probabilities of the classes, (images, classes)."""
    return torch.cat(list(log_probabilities(model, chunks(images))))


def divergences(found: Groups, kept: np.ndarray, fit: Tensor, judge: Tensor, expected: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Divergence of each judging image from what the original `expected`, and the class that the repaired network gives it."""
    subset = found.to_subset(kept)
    small = shrink(found, subset).eval()
    repair(small, found, subset, chunks(fit), positions=positions)
    received = log_probabilities_of(small, judge)
    return (expected.exp() * (expected - received)).sum(1), received.argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs/allocation.jsonl"))
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--exponent", type=float, default=2.0)
    parser.add_argument("--follow", action="store_true")
    asked = parser.parse_args()
    if not DATA.is_dir():
        print(f"allocation: not measured, for there are no images in {DATA}")
        return
    done = {row["kind"]: row for row in results_in(asked.results) if (row["budget"], row["exponent"]) == (asked.macs, asked.exponent)}

    def write(kind: str, **values: float) -> None:
        done[kind] = {"kind": kind, "budget": asked.macs, "exponent": asked.exponent, **values}
        add_result(asked.results, done[kind])

    source = data.ImageSource(f"hf:{DATA / 'cifar100'}", 250, 0, 1000, mean=(0.507, 0.487, 0.441), std=(0.267, 0.256, 0.276))
    weights = DATA / "weights" / "cifar100_resnetsmall20.safetensors"
    model, images = zoo.load(f"{DATA / 'archs.py'}:ResNetSmall", source, weights)
    pixels = torch.cat([batch[0] for batch in images.calibration])
    found = groups(model, pixels[:1])
    scores = group_importance(optimal_brain_surgeon(found, chunks(pixels), exponent=asked.exponent), found)
    kept = remove_to_budget(scores, found, MacCounter(found), asked.macs)
    expected = before = None
    trials = []
    for family in groups_by_layers(found):
        order, gone, changed, other = trial(scores, family, kept)
        kind = found.members[family[0]].members[0][0]
        if kind not in done:
            if expected is None or before is None:
                expected = log_probabilities_of(model, pixels[JUDGE])
                before = divergences(found, kept, pixels[FIT], pixels[JUDGE], expected, 32)[0]
            saved = before - divergences(found, other, pixels[FIT], pixels[JUDGE], expected, 32)[0]
            saved, macs = saved if changed > 0 else -saved, abs(fraction_of(found, other) - fraction_of(found, kept))
            error = float(saved.std() / len(saved) ** 0.5)
            write(kind, channels=len(family), gone=gone, changed=changed, macs=macs, divergence=float(saved.mean()), error=error)
        trials.append(TrialCut(order, gone, changed, *(done[kind][each] for each in ("macs", "divergence", "error"))))
    if asked.follow:
        batches = list(images.validation.take(2000))
        judge, labels = (torch.cat([batch[place] for batch in batches]) for place in (0, 1))
        measured = remove_to_budget(scores_of_trials(len(found), trials), found, MacCounter(found), asked.macs)
        for kind, chosen in (("cut by the order alone", kept), ("cut by the trials", measured)):
            if kind not in done:
                divergence, classes = divergences(found, chosen, pixels, judge, log_probabilities_of(model, judge), 64)
                right = float((classes == labels).double().mean())
                error = float(divergence.std() / len(divergence) ** 0.5)
                write(kind, accuracy=right, divergence=float(divergence.mean()), error=error, macs=fraction_of(found, chosen))


if __name__ == "__main__":
    main()
