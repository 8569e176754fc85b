"""Target axis: what channels say about the task only together."""

import torch

from channelscope.formulas import information
from channelscope.scores.layer import Layer
from channelscope.scores.score import score
from channelscope.types import Float, Tensor

TOP, OF = 10, 50


@score(axis="target", unit="nats", keeps="high", source="Safaai et al. 2026; Barrett 2015")
def excess(layer: Layer, top: int | None = None, of: int = OF) -> Float[Tensor, "channels"]:
    """Target excess: mean over the peers of S_ij = I(T; Y_i, Y_j) − max(I_i, I_j).

    With `top=10` the mean of the ten largest among the `of` most overlapping peers, which is biased upward: compare it
    with `scores.null`. The overlap of peers is measured at the target's readout; for the label, in the pooled samples.
    Source   Safaai et al. 2026
    """
    if layer.convention.paper:
        top = TOP
    pairs = information.excess(layer.pair, layer.single)
    return information.peer_mean(pairs) if top is None else information.peer_top(pairs, layer.peer_rho, top, of)


def triplets(layer: Layer, n: int = 2000, over: str = "pairs", seed: int = 0) -> tuple[float, float]:
    """Mean triplet excess S3 [nats] over `n` sampled triples of a layer, and its ratio S3/S2 to the pairs inside them.

    Undefined (nan, nan) for a layer with fewer than three channels that vary.
    Raises   InputError for the label, which has no correlation.
    Source   Safaai et al. 2026
    """
    alive = (~layer.target_rho.isnan()).nonzero()[:, 0]
    if len(alive) < 3:
        return float("nan"), float("nan")
    triples = information.sample_triples(alive, n, seed)
    mean = information.triplet_excess(layer.target_rho, layer.peer_rho, triples, over).nanmean()  # type: ignore[arg-type]
    ratio = information.triplet_ratio(layer.target_rho, layer.peer_rho, triples, over)  # type: ignore[arg-type]
    return float(mean), float(ratio) if torch.isfinite(ratio) else float("nan")
