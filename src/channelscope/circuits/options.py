"""CircuitOptions: the options of finding a circuit (score, select, remove dead ends), for the command line and for Python."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce as fold
from operator import add
from typing import Literal

import numpy as np
import torch

from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.criteria import criterion_named, score_kernels
from channelscope.circuits.feature import LocatedFeature, image_batches
from channelscope.circuits.kernel_scores import GradientOptions, KernelScores, Path, Reduce
from channelscope.circuits.selection import connected_top_k, kernel_count, top_k
from channelscope.errors import BudgetError
from channelscope.formulas.intervals import bootstrap_counts
from channelscope.types import Float, Tensor

SHARDS = 16
"""Groups of images whose saliencies are kept apart, for bootstraps over images."""

DRAWS = 50
"""Bootstrap samples behind a stability."""


@dataclass(frozen=True)
class CircuitOptions:
    """How a circuit is chosen."""

    criterion: str = "gate"
    """gate, actgrad, snip, snip_batch, force, iterated_gate, iterated_actgrad, learned, magnitude or random"""
    keep: str = "0.1"
    """size of the circuit: a fraction of the relevant kernels (0.1), or a number of kernels (210); in Python a number is taken as well"""
    reduce: Reduce = "sum"
    """how the feature's positions become one value per image"""
    layer_norm: Literal["none", "l1", "l2"] = "none"
    """divide the scores of each layer by their sum (l1) or Euclidean norm (l2)"""
    path: Path | None = None
    """average gradients while all kernels (gates) or the images (inputs) are scaled from 0 to 1"""
    live: bool = False
    """keep only kernels on live paths, grown from the feature, so that no layer is left out"""
    dead_ends: Literal["backward", "full", "none"] = "backward"
    """kernels that lead nowhere: backward drops them (exact), full drops also those nothing leads to (as published), none"""

    def __post_init__(self) -> None:
        """Check the values."""
        criterion_named(self.criterion)
        if not isinstance(self.keep, str):  # a number, as a text without an exponent
            object.__setattr__(self, "keep", np.format_float_positional(self.keep) if isinstance(self.keep, float) else str(self.keep))
        parse_keep(self.keep)

    def kernels(self, feature: LocatedFeature) -> int:
        """Size of the circuit.

        Raises
        ------
        BudgetError
            With the smallest size there is, if no path from the images to the feature fits.
        """
        wanted = kernel_count(feature, parse_keep(self.keep))
        if wanted < feature.shortest_path:
            raise BudgetError(
                f"feature {feature.feature}: keep={self.keep} is {wanted} of {feature.relevant_count:,} kernels, and no path from the "
                f"images is that short; the smallest circuit has {feature.shortest_path} kernels "
                f"(a fraction of {feature.shortest_path / feature.relevant_count:.2g})"
            )
        return wanted

    def shard_scores(
        self, feature: LocatedFeature, images: Tensor | Iterable, seed: int = 0, inside: Circuit | None = None
    ) -> list[KernelScores]:
        """Scores of groups of images, which add up.

        Up to 16 groups; the batches as given for snip_batch; a single one where a criterion needs all images at once.

        Parameters
        ----------
        feature
            The feature and its network.
        images
            Images (images, C, H, W), or batches of them.
        seed
            Seed of `random`.
        inside
            Score in the network that has only these of the relevant kernels; all others get 0.

        Returns
        -------
        list[KernelScores]
            One for each group.
        """
        if self.criterion in ("magnitude", "random"):
            return [self._scored(feature, images, seed, inside)]
        if self.criterion == "snip_batch":
            return [self._scored(feature, batch, seed, inside) for batch in image_batches(images, feature.device)]
        batches = list(feature.image_batches(images))
        if criterion_named(self.criterion).needs_size:
            return [self._scored(feature, batches, seed, inside)]
        together = torch.cat(batches)
        step = max(1, -(-len(together) // SHARDS))
        return [self._scored(feature, group, seed, inside) for group in together.split(step)]

    def scores(self, feature: LocatedFeature, images: Tensor | Iterable, seed: int = 0) -> KernelScores:
        """Scores over all images at once, normalized by layer as the options say."""
        return self._scored(feature, images, seed, None).normalized_by_layer(self.layer_norm)

    def _scored(self, feature: LocatedFeature, images: Tensor | Iterable, seed: int, inside: Circuit | None) -> KernelScores:
        size = self.kernels(feature)
        return score_kernels(feature, images, self.criterion, size, gradient=GradientOptions(self.reduce, self.path, inside), seed=seed)

    def total_scores(self, shard_scores: list[KernelScores]) -> KernelScores:
        """The sum of the scores of groups of images, normalized by layer as the options say."""
        return fold(add, shard_scores).normalized_by_layer(self.layer_norm)

    def circuit(self, scores: KernelScores, keep: int | float | None = None) -> Circuit:
        """The circuit of these scores, without dead ends; of another size if `keep` is given."""
        feature = scores.feature
        wanted = self.kernels(feature) if keep is None else keep
        return remove_dead_ends((connected_top_k if self.live else top_k)(scores, wanted), feature, self.dead_ends)

    def stability(self, shard_scores: list[KernelScores], circuit: Circuit, seed: int = 0) -> Float[Tensor, "draws"]:
        """Intersection over union of the circuit with circuits of bootstrapped images; empty where there is one group of images.

        Parameters
        ----------
        shard_scores
            Scores of groups of images, which are drawn with replacement.
        circuit
            The circuit of all images.
        seed
            Seed of the draws.

        Returns
        -------
        Tensor
            Float64 (50,), or (0,).
        """
        if len(shard_scores) < 2:
            return torch.zeros(0, dtype=torch.float64)
        shares = []
        for weights in bootstrap_counts(len(shard_scores), DRAWS, seed).tolist():
            resample = [part for part, times in zip(shard_scores, weights, strict=True) for _ in range(int(times))]
            shares.append(circuit.iou(self.circuit(self.total_scores(resample)))[""])
        return torch.tensor(shares, dtype=torch.float64)


def parse_keep(text: str) -> float | int:
    """The number that a text means: '0.1' is a fraction of the relevant kernels, '210' a number of kernels.

    Parameters
    ----------
    text
        A fraction with a decimal point, or a whole number.

    Returns
    -------
    float or int
        A float is a fraction, an int a number of kernels.

    Raises
    ------
    BudgetError
        If it is neither.

    Examples
    --------
    >>> parse_keep("0.1"), parse_keep("210")
    (0.1, 210)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022: sizes are fractions of relevant kernels kept.
    """
    if re.fullmatch(r"\d+", text.strip()):
        return int(text)
    if re.fullmatch(r"\d*\.\d+|\d+\.", text.strip()):
        return float(text)
    raise BudgetError(f"keep: expected a fraction such as 0.1 or a number of kernels such as 210, received '{text}'")
