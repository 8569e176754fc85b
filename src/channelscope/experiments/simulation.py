"""simulation: channels that follow a gradient on a Gaussian input and target, from a start in which their axes are coupled."""

from collections.abc import Iterator

import pandas as pd
import torch
from scipy import stats

from channelscope.experiments.columns import table
from channelscope.formulas.gradients import LinearAxes, information_step, linear_axes, network_step
from channelscope.formulas.ranks import spearman
from channelscope.types import Float, Tensor

STRONG = 10.0
"""variance of the one strong input direction; all others have 1"""
SHARE = 0.6
"""share of the predictable target that lies on it"""
NOISE = 0.25
"""variance of what cannot be predicted, over that of what can"""
READOUT = 0.125
"""standard deviation of the linear network's first readout"""
RATES = {"channels": 0.02, "network": 0.002}
"""step sizes"""


def simulation(
    channels: int = 64, inputs: int = 24, steps: int = 300, every: int = 10, seeds: int = 5, isotropic: bool = False
) -> dict[str, pd.DataFrame]:
    """Alignment of input capture and task information while channels learn, for two ways of learning.

    `channels`: each one ascends its own task information. `network`: all are the hidden layer of a linear network that descends
    its squared error. One input direction is strong and carries most of the target, so that random channels begin coupled:
    whoever has more of it has more variance and says more.

    channels   number of channels
    inputs     number of inputs
    steps      gradient steps
    every      steps between rows of the table
    seeds      independent starts
    isotropic  all input directions alike: the control, in which the gradients' cosine is zero and nothing is coupled

    Returns  `simulation`: one row per system and step: alignment, mean |cosine| and mean informations, each mean over seeds with
             a 95 % Student interval.
    """
    rows = []
    for system in RATES:
        runs = [list(_run(system, channels, inputs, steps, every, seed, isotropic)) for seed in range(seeds)]
        for at_step in zip(*runs, strict=True):
            row = {"system": system, "step": at_step[0]["step"], "n": seeds}
            for name in ("alignment", "cosine", "capture", "relevance"):
                row |= _band(name, torch.tensor([one[name] for one in at_step]))
            rows.append(row)
    return {"simulation": table("simulation", rows)}


def problem(inputs: int, seed: int, isotropic: bool = False) -> tuple[Float[Tensor, "inputs inputs"], Float[Tensor, "inputs"], float]:
    """Σ, c = Cov(X, T) and Var T of one input and target."""
    source = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(inputs, inputs, generator=source, dtype=torch.float64)).Q
    variances = torch.ones(inputs, dtype=torch.float64)
    if not isotropic:
        variances[0] = STRONG
    rest = torch.randn(inputs - 1, generator=source, dtype=torch.float64)
    share = torch.cat([torch.tensor([SHARE]).double(), (1 - SHARE) * rest.square() / rest.square().sum()])
    slopes = (share / variances).sqrt() * torch.cat([torch.ones(1).double(), rest.sign()])
    covariance = frame @ torch.diag(variances) @ frame.T
    return covariance, covariance @ (frame @ slopes), 1 + NOISE


def _run(system: str, channels: int, inputs: int, steps: int, every: int, seed: int, isotropic: bool) -> Iterator[dict]:
    covariance, cross, variance = problem(inputs, seed, isotropic)
    source = torch.Generator().manual_seed(seed + 1_000_003)
    weights = torch.randn(channels, inputs, generator=source, dtype=torch.float64) / inputs**0.5
    readout = READOUT * torch.randn(channels, generator=source, dtype=torch.float64)
    for step in range(steps + 1):
        if step % every == 0:
            axes = linear_axes(weights, weights @ covariance, cross, variance)
            yield {"step": step, **_said(axes)}
        if system == "channels":
            weights = information_step(weights, covariance, cross, variance, RATES[system])
        else:
            weights, readout = network_step(weights, readout, covariance, cross, RATES[system])


def _said(axes: LinearAxes) -> dict[str, float]:
    return {
        "alignment": float(spearman(axes.capture, axes.relevance)),
        "cosine": float(axes.cosine.abs().nanmean()),
        "capture": float(axes.capture.mean()),
        "relevance": float(axes.relevance.mean()),
    }


def _band(name: str, values: Float[Tensor, "seeds"]) -> dict[str, float]:
    """Mean over seeds and its Student interval."""
    n = len(values)
    mean = float(values.mean())
    reach = float(stats.t.ppf(0.975, n - 1) * values.std() / n**0.5) if n > 1 else float("nan")
    return {name: mean, f"{name}_low": mean - reach, f"{name}_high": mean + reach}
