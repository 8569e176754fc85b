"""Run folders as the experiments write them: one tiny with known numbers, others as large and as odd as asked for."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from channelscope import tables

LOCAL, TARGET = ("capture", "overlap", "support"), ("relevance", "excess", "unique")
FACTS = {
    "title": "Tiny on noise",
    "network": "tiny",
    "data": "noise",
    "images": 120,
    "labeled": True,
    "accuracy": 0.9,
    "accuracy_low": 0.85,
    "accuracy_high": 0.94,
    "accuracy_images": 60,
    "accuracy_split": "test",
    "readout": "positions(16)",
    "target": "margin",
    "assumption": "Gaussian, ML covariance, n = 120 images",
    "seed": 0,
    "version": "0.1.0",
    "command": "channelscope axes tiny --data noise",
    "stages": ["initialization", "trained"],
    "seconds": 1.5,
    "date": "2026-01-01",
    "weights": "0123456789abcdef",
}


def means(*rows: tuple[str, str, str, float, float, float], n: int = 19, pooled: float = 0.45) -> pd.DataFrame:
    """alignment_mean with the given (stage, local, target, rho, low, high)."""
    names = ("stage", "local", "target", "rho", "low", "high")
    return tables.table([dict(zip(names, row, strict=True)) | {"n": n, "pooled": pooled} for row in rows], "alignment_mean")


def written(folder: Path, facts: dict[str, Any], **frames: list[dict[str, Any]] | pd.DataFrame) -> Path:
    for name, rows in frames.items():
        frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
        tables.write(tables.describe(frame, frame.attrs or {"name": name}), folder / f"{name}.csv")
    tables.write_json(facts, folder / "run.json")
    return folder


def tiny(folder: Path) -> Path:
    """Two layers, two stages; one exact copy, one silent channel; every number is known."""
    channels, alignment, groups, mean = [], [], [], []
    for step, stage in enumerate(FACTS["stages"]):
        for depth, (site, n) in enumerate((("conv1", 4), ("layer1.0.conv1", 6))):
            for channel in range(n):
                values = {"capture": 0.25 * (channel + 1), "overlap": 0.1 + 0.05 * channel, "support": 0.9 - 0.1 * channel}
                values |= {"relevance": 0.02 * (step + 1) * (n - channel), "excess": 0.001 * (channel + step), "unique": 0.01 * channel}
                channels.append({"stage": stage, "site": site, "depth": depth, "channel": channel, "kind": "conv", **values, "note": ""})
            for local in LOCAL:
                for target in TARGET:
                    row = {"stage": stage, "site": site, "depth": depth, "local": local, "target": target}
                    alignment.append(row | {"rho": 0.25 + 0.1 * depth, "low": 0.1, "high": 0.4 + 0.1 * depth, "n": n, "images": 120})
            row = {
                "stage": stage,
                "site": site,
                "depth": depth,
                "n": n,
                "ari": 0.1 + 0.2 * depth,
                "null_mean": 0.0,
                "null_high": 0.2,
                "p": 0.3,
            }
            groups.append(row | {f"{what}_{side}": 0.5 for what in ("silhouette", "stability") for side in ("local", "target")})
        for local in LOCAL:
            for target in TARGET:
                rho = 0.6 - 0.3 * step
                mean.append(
                    {
                        "stage": stage,
                        "local": local,
                        "target": target,
                        "rho": rho,
                        "low": rho - 0.1,
                        "high": rho + 0.1,
                        "n": 2,
                        "pooled": 0.5,
                    }
                )
    channels[1] |= {"overlap": math.inf, "note": "overlap: an exact copy of channel 2"}
    channels[16] |= {"capture": math.nan, "relevance": math.nan, "note": "capture: silent, it does not vary over the images"}
    skipped = [{"site": "fc", "reason": "its outputs are the network's own outputs, not channels inside it"}]
    return written(folder, FACTS, channels=channels, alignment=alignment, alignment_mean=mean, groups=groups, skipped=skipped)


def large(folder: Path, widths: tuple[int, ...] = (64,) * 5 + (128,) * 5 + (256,) * 5 + (512,) * 5, stages: int = 2, seed: int = 0) -> Path:
    """A run as large as asked for: heavy-tailed quantities that are less aligned after training than before."""
    random = np.random.default_rng(seed)
    names = ["initialization", "trained"][-stages:]
    channels, alignment, groups = [], [], []
    for step, stage in enumerate(names):
        for depth, width in enumerate(widths):
            site = f"layer{1 + 4 * depth // len(widths)}.{depth % 5}.conv{1 + depth % 2}"
            shared, own, other = random.normal(size=(3, width))
            mix = 0.75 - 0.6 * step if stages > 1 else 0.2
            values = {
                "capture": 0.5 * np.log1p(np.exp(shared + 0.2 * own)),
                "overlap": 0.02 * np.exp(0.8 * own) / (1 + depth),
                "support": 1 / (1 + np.exp(-own - 0.3 * depth)),
                "relevance": (0.002 + 0.01 * step) * np.exp(mix * shared + (1 - mix) * other),
                "excess": 0.003 * np.exp(random.normal(size=width)),
                "unique": 0.001 * np.maximum(0, other),
            }
            values["overlap"][1], values["capture"][2] = math.inf, math.nan
            notes = ["", "overlap: an exact copy of channel 5", "capture: silent, it does not vary over the images"]
            for channel in range(width):
                row = {"stage": stage, "site": site, "depth": depth, "channel": channel, "kind": "conv"}
                channels.append(
                    row | {name: column[channel] for name, column in values.items()} | {"note": notes[channel] if channel < 3 else ""}
                )
            for local in LOCAL:
                for target in TARGET:
                    rho = _spearman(values[local], values[target])
                    half = 1.96 / math.sqrt(width)
                    row = {"stage": stage, "site": site, "depth": depth, "local": local, "target": target, "rho": rho, "images": 2000}
                    alignment.append(row | {"low": max(-1.0, rho - half), "high": min(1.0, rho + half), "n": width - 1})
            ari = 0.3 * (1 - step) * random.uniform() + 0.02 * random.normal()
            row = {
                "stage": stage,
                "site": site,
                "depth": depth,
                "n": width - 2,
                "ari": ari,
                "null_mean": 0.0,
                "null_high": 4 / width,
                "p": 0.1,
            }
            groups.append(row | {f"{what}_{side}": 0.5 for what in ("silhouette", "stability") for side in ("local", "target")})
    frame = pd.DataFrame(alignment)
    mean = []
    for (stage, local, target), rows in frame.groupby(["stage", "local", "target"], sort=False):
        rho, half = rows["rho"].mean(), 1.96 * rows["rho"].std() / math.sqrt(len(rows))
        row = {"stage": stage, "local": local, "target": target, "rho": rho, "low": rho - half, "high": rho + half}
        mean.append(row | {"n": len(rows), "pooled": rho + 0.1})
    facts = FACTS | {"title": "Large on noise", "network": "large", "images": 2000, "stages": names}
    skipped = pd.DataFrame({"site": pd.Series([], dtype=str), "reason": pd.Series([], dtype=str)})
    return written(folder, facts, channels=channels, alignment=alignment, alignment_mean=mean, groups=groups, skipped=skipped)


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    known = ~(np.isnan(one) | np.isnan(other))
    return float(np.corrcoef(rankdata(one[known]), rankdata(other[known]))[0, 1])
