"""The local axis: what a channel takes from its input, and what it shares with its peers."""

from typing import Literal

import torch

from channelscope.errors import InputError
from channelscope.formulas.information.mutual import correlation_information
from channelscope.types import Float, Tensor


def rayleigh(variance: Float[Tensor, "channels"], weight_norm: Float[Tensor, "channels"]) -> Float[Tensor, "channels"]:
    """Rayleigh quotient of a channel's weights w on its input covariance: w'Σw / |w|² = Var(Y) / |w|².

    The input covariance is never formed: w'Σw is the variance of the output. `weight_norm` is |w|, not its square.

    Returns  input variance per unit weight, ≥ 0, between the extreme eigenvalues of Σ.
    Undefined (nan) where the weights are zero.
    Source   Safaai et al. 2026; checked by tests/pencil.py::rayleigh
    """
    return (variance / weight_norm.square()).masked_fill(weight_norm == 0, torch.nan)


def capture(variance: Float[Tensor, "channels"], noise: float | Literal["median"] = "median") -> Float[Tensor, "channels"]:
    """Input capture: information between a channel and its input through Gaussian noise of variance s².

        I_X = ½ ln(1 + Var(Y)/s²)

    By default s² is the layer's own median variance (over the channels that are not nan), so the median channel has ½ ln 2
    whatever the layer's scale, and values compare within a layer only. A number is a fixed noise variance.

    Returns  nats, ≥ 0.
    Raises   InputError if the noise is not positive.
    Undefined (nan) for the whole layer where its median variance is zero: more than half of it is silent.
    Source   Safaai et al. 2026, median as in the published code; checked by tests/pencil.py::capture
    """
    if noise == "median":
        level = variance.nanquantile(0.5)
        return (variance / level.masked_fill(level == 0, torch.nan)).log1p() / 2
    if isinstance(noise, str) or not noise > 0:
        raise InputError(f'noise is "median" or a positive variance, received {noise!r}')
    return (variance / noise).log1p() / 2


def overlap(
    rho: Float[Tensor, "channels channels"], ceiling: float | None = None, over: Literal["peers", "channels"] = "peers"
) -> Float[Tensor, "channels"]:
    """Peer overlap: mean over the other channels j of R_ij = −½ ln(1 − ρ_ij²).

    Silent channels (nan rows) are nobody's peers. An exact copy gives inf unless a ceiling is stated. `over="channels"`
    divides by the number of channels instead of peers (with ceiling=CEILING: the paper's convention).

    Returns  nats, ≥ 0; nan for silent channels and where there is no peer.
    Source   Safaai et al. 2026 (arXiv 2605.07086); checked by tests/pencil.py::overlap
    """
    mean = peer_mean(correlation_information(rho, ceiling))
    if over == "peers":
        return mean
    alive = (~rho.diagonal().isnan()).sum()
    return mean * (alive - 1) / len(rho)


def peer_mean(pairs: Float[Tensor, "channels channels"]) -> Float[Tensor, "channels"]:
    """Mean of each row without its diagonal and without nan entries (silent peers).

    Undefined (nan) where nothing is left.
    Source   Safaai et al. 2026; checked by tests/pencil.py::overlap
    """
    others = pairs.clone()
    others.fill_diagonal_(torch.nan)
    return others.nanmean(1)


def peer_top(
    pairs: Float[Tensor, "channels channels"], rho: Float[Tensor, "channels channels"], top: int = 10, of: int = 50
) -> Float[Tensor, "channels"]:
    """Mean of the `top` largest entries of a row among the `of` peers with the largest |ρ|.

    Selecting the largest is biased upward: report it with its permutation null. Fewer peers than asked: all of them.
    Returns  the unit of `pairs`; nan for silent channels.
    Source   Safaai et al. 2026 (the published code's summary); checked by tests/pencil.py::peer_top
    """
    near = rho.abs().nan_to_num(nan=-1.0)
    near.fill_diagonal_(-1)
    peers = min(of, max(len(rho) - 1, 0))
    closest = near.topk(peers, dim=1)
    values = pairs.gather(1, closest.indices).masked_fill(closest.values < 0, torch.nan)
    ordered = values.nan_to_num(nan=-torch.inf).topk(min(top, peers), dim=1).values
    return ordered.masked_fill(ordered.isneginf(), torch.nan).nanmean(1)
