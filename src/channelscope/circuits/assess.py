"""assess: everything a reader asks about one circuit, as tables: what it keeps, how well it does, and which kernels it has."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from channelscope import tables
from channelscope.circuits.choice import Choice
from channelscope.circuits.circuit import Circuit, trim
from channelscope.circuits.columns import CIRCUIT_COLUMNS
from channelscope.circuits.fidelity import HeldOut
from channelscope.circuits.saliency import Saliency
from channelscope.circuits.score import control, named
from channelscope.circuits.select import top
from channelscope.circuits.target import Target
from channelscope.circuits.wiring import Join

SIZES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001)
"""shares of the relevant kernels at which a circuit is judged"""
SEEDS = 3
"""random circuits behind a control"""


def assess(choice: Choice, parts: list[Saliency], held: HeldOut, seed: int = 0, signs: Saliency | None = None) -> dict[str, pd.DataFrame]:
    """Judge the circuit of a choice on held-out images.

    parts  saliencies of groups of images, as `choice.parts` gives them
    signs  their sum with signed effects, where the criterion measures none

    Returns  `circuit`, one row: size, r, error, what is left without it, random circuits of its size, stability over images;
             `circuit_curve`, one row a size; `circuit_layers`, one row a layer; `circuit_channels`, one row a channel of the
             circuit; `circuit_kernels`, one row a kernel.
    Source   Hamblin, Konkle, Alvarez 2022 (evaluation)
    """
    saliency = choice.saliency(parts)
    circuit, target = choice.circuit(saliency), saliency.target
    curve = _curve(choice, saliency, held)
    short = [share for share in SIZES if share not in set(curve["kept"])]  # no path from the images is that short: r counts as 0 there
    whole = area([*curve["kept"], *short], [*curve["r"], *[0.0] * len(short)])
    found = {
        "circuit": pd.DataFrame([_summary(choice, parts, circuit, held, seed) | {"r_area": whole}]),
        "circuit_curve": curve,
        "circuit_layers": _layers(circuit, signs or saliency),
        "circuit_channels": _channels(circuit, target),
        "circuit_kernels": kernels(circuit, signs or saliency),
    }
    facts = {"feature": str(target.feature), "criterion": choice.criterion, "held-out images": held.images, "seed": seed}
    return {name: tables.table(frame, name, CIRCUIT_COLUMNS, facts) for name, frame in found.items()}


def _summary(choice: Choice, parts: list[Saliency], circuit: Circuit, held: HeldOut, seed: int) -> dict[str, Any]:
    target, asked = held.target, choice.kernels(held.target)
    stability = choice.stability(parts, circuit, seed)
    chance = [held.fidelity(trim(top(control(target, "random", seed + draw), asked), target)) for draw in range(1, 1 + SEEDS)]
    return {
        "feature": str(target.feature),
        "criterion": choice.criterion,
        "kernels": circuit.count,
        "asked": asked,
        "relevant": target.kernels,
        "kept": asked / target.kernels,
        "scored": sum(part.images for part in parts),
        "images": held.images,
        **measured(held, circuit),
        "rest_error": held.fidelity(~circuit).error.value,
        "random_r": float(np.median(np.nan_to_num([each.r.value for each in chance]))),
        "random_error": float(np.median([each.error.value for each in chance])),
        "stability": float(stability.mean()) if len(stability) else float("nan"),
        **dict(zip(("stability_low", "stability_high"), _ends(stability), strict=True)),
    }


def measured(held: HeldOut, circuit: Circuit) -> dict[str, float]:
    """r and error of a circuit with their intervals, as columns of a table.

    Source   Hamblin, Konkle, Alvarez 2022 (evaluation)
    """
    found = held.fidelity(circuit)
    r, error = found.r, found.error
    values = {"r": r.value, "r_low": r.low, "r_high": r.high}
    return values | {"error": error.value, "error_low": error.low, "error_high": error.high}


def _ends(draws: torch.Tensor) -> list[float]:
    return draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist() if len(draws) else [float("nan")] * 2


def _curve(choice: Choice, saliency: Saliency, held: HeldOut) -> pd.DataFrame:
    """Circuits of every size, all cut from the same scores; `made_for` is the size of scores that hold for one alone."""
    rows = []
    made_for = choice.kernels(held.target) / held.target.kernels if named(choice.criterion).sized else float("nan")
    for share in SIZES:
        if share * held.target.kernels < held.target.smallest:
            continue  # no path from the images is that short
        circuit = choice.circuit(saliency, float(share))
        rows.append({"kept": share, "made_for": made_for, "kernels": circuit.count, **measured(held, circuit), "images": held.images})
    names = ["kept", "made_for", "kernels", "r", "r_low", "r_high", "error", "error_low", "error_high", "images"]
    return pd.DataFrame(rows, columns=names)


def area(kept: Sequence[float], r: Sequence[float]) -> float:
    """Area under r over ln(kept), divided by the span of ln(kept): the mean of r over log sizes.

    Sizes at which r is undefined count as 0: such a circuit computes a constant. Areas are comparable over the same sizes: `assess` takes
    all of SIZES, and 0 where no path from the images is that short.
    Source   trapezoid rule over ln(kept)
    """
    order = np.argsort(kept)
    x, y = np.log(np.asarray(kept, dtype=float)[order]), np.nan_to_num(np.asarray(r, dtype=float)[order], nan=0.0)
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float("nan")


def _layers(circuit: Circuit, saliency: Saliency) -> pd.DataFrame:
    rows = []
    for depth, layer in enumerate(circuit):
        marks, relevant = circuit[layer], circuit.relevant[layer]
        signs = None if saliency.signed is None else saliency.signed[layer][marks]
        rows.append(
            {
                "site": layer,
                "depth": depth,
                "relevant": int(relevant.sum()),
                "kernels": int(marks.sum()),
                "kept": float(marks.sum() / relevant.sum()),
                "excitatory": float("nan") if signs is None else float((signs > 0).sum()),
                "inhibitory": float("nan") if signs is None else float((signs < 0).sum()),
            }
        )
    return pd.DataFrame(rows)


def _channels(circuit: Circuit, target: Target) -> pd.DataFrame:
    """Every channel of the circuit by the name it has everywhere in the library."""
    feeds = np.zeros(target.wiring.size, dtype=np.int64)
    for call in target.wiring.calls:
        if call.layer in circuit:
            np.add.at(feeds, call.sources[circuit[call.layer].numpy()], 1)
    for part in reversed(target.wiring.parts):
        if isinstance(part, Join):
            np.add.at(feeds, part.members, feeds[part.outputs][:, None])
    rows = []
    for call in target.wiring.calls:
        if call.layer not in circuit:
            continue
        reads = circuit[call.layer].sum(1).numpy()
        for channel in np.flatnonzero(reads):
            row = {"site": call.layer, "channel": int(channel), "reads": int(reads[channel]), "feeds": int(feeds[call.outputs[channel]])}
            rows.append(row | {"feature": str(target.feature)})
    return pd.DataFrame(rows, columns=["site", "channel", "reads", "feeds", "feature"])


def kernels(circuit: Circuit, saliency: Saliency) -> pd.DataFrame:
    """One row for each kernel of a circuit, the strongest first.

    Source   Hamblin, Konkle, Alvarez 2022; `effect` is the signed gate sum
    """
    target, rows = saliency.target, []
    names = target.wiring.names()
    for call in target.wiring.calls:
        if call.layer not in circuit:
            continue
        for row, column in circuit[call.layer].nonzero().tolist():
            signed = float("nan") if saliency.signed is None else float(saliency.signed[call.layer][row, column])
            values = {"saliency": float(saliency[call.layer][row, column]), "effect": signed}
            rows.append({"site": call.layer, "channel": row, "input": names[call.sources[row, column]], **values})
    frame = pd.DataFrame(rows, columns=["site", "channel", "input", "saliency", "effect"])
    for column in ("saliency", "effect"):
        largest = frame[column].abs().max()
        frame[column] = frame[column] / largest if largest > 0 else frame[column]
    return frame.sort_values("saliency", ascending=False, kind="stable", ignore_index=True)
