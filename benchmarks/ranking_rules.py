"""What the `reconstruction` ranking makes of channels with several consumers, and of few images: the rule and others in its place.

    python benchmarks/ranking_rules.py [RESULTS.jsonl] [--network cifar100|lite0] [--budgets .7,.5] [--exponents 1.5,2] [--seed 0]
                                       [--rules "now,consumers: the sum"]

The networks of benchmarks/pruners.py are cut by `optimal_brain_surgeon` and repaired by least squares from the calibration images
(three quarters of them for EfficientNet-Lite0), and compared with the original on 4,000 other training images (the last quarter for
EfficientNet-Lite0): Kullback-Leibler divergence and how often the class is the same. No test image is used.
A result already in the file is not measured again, so an interrupted run goes on.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from allocation import add_result, chunks, divergences, log_probabilities_of, results_in
from pruners import DATA, NETWORKS
from torch import Tensor

from channelscope.errors import check_choice
from channelscope.network.removal.groups import groups
from channelscope.pruning import optimal_brain_surgeon as ranking
from channelscope.pruning.cut import cut

COUNT, PENALTY = ranking.consumer_counts, ranking.ledoit_wolf_penalty
RULES: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "now": ("consumer_counts", COUNT),
    "consumers: the sum": ("consumer_counts", lambda *given: np.ones(len(COUNT(*given)))),
    "consumers: times the square of their number": ("consumer_counts", lambda *given: np.square(COUNT(*given))),
    "consumers: times the root of their number": ("consumer_counts", lambda *given: np.sqrt(COUNT(*given))),
    "images: as if there were no end of them": ("ledoit_wolf_penalty", lambda *given: 0.0),
    "images: a quarter of the penalty": ("ledoit_wolf_penalty", lambda *given: PENALTY(*given) / 4),
    "images: half of the penalty": ("ledoit_wolf_penalty", lambda *given: PENALTY(*given) / 2),
    "images: twice the penalty": ("ledoit_wolf_penalty", lambda *given: PENALTY(*given) * 2),
}
"""rule → what is replaced in the module of the ranking, and by what"""


def images_of(name: str, seed: int) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """The network, the images that it is cut and repaired from, and others to compare it on."""
    model, images = NETWORKS[name].opened(seed)
    fit = torch.cat([batch[0] for batch in images.calibration])
    if name == "cifar100":
        return model, fit, torch.cat([batch[0] for batch in images.validation.take(4000)])
    judging = torch.arange(len(fit)) % 4 == 3
    return model, fit[~judging], fit[judging]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs/ranking_rules.jsonl"))
    parser.add_argument("--network", choices=NETWORKS, default="cifar100")
    parser.add_argument("--budgets", default=".7,.5")
    parser.add_argument("--exponents", default="1.5,2")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rules = asked.rules.split(",")
    for rule in rules:
        check_choice("rule", rule, RULES)
    if not DATA.is_dir():
        print(f"ranking rules: not measured, for there are no images in {DATA}")
        return
    model, fit, judge = images_of(asked.network, asked.seed)
    found = groups(model, fit[:1])
    expected = log_probabilities_of(model, judge)
    seen = {(row["network"], row["seed"], row["exponent"], row["budget"], row["rule"]) for row in results_in(asked.results)}
    for exponent in map(float, asked.exponents.split(",")):
        for rule in rules:
            missing = [b for b in map(float, asked.budgets.split(",")) if (asked.network, asked.seed, exponent, b, rule) not in seen]
            if not missing:
                continue
            with patch.object(ranking, *RULES[rule]):
                order = ranking.optimal_brain_surgeon(found, chunks(fit), exponent=exponent)
            for budget in missing:
                kept = found.kept(cut(order, found, macs=budget))
                divergence, classes = divergences(found, kept, fit, judge, expected, 64)
                agree = float((classes == expected.argmax(1)).double().mean())
                error = float(divergence.std() / len(divergence) ** 0.5)
                row = {"network": asked.network, "seed": asked.seed, "exponent": exponent, "budget": budget, "rule": rule}
                row |= {"divergence": float(divergence.mean()), "error": error, "agree": agree, "images": len(judge)}
                add_result(asked.results, row)


if __name__ == "__main__":
    main()
