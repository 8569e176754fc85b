"""A small run folder with known numbers, as the experiments write it."""

from pathlib import Path

import numpy as np
import pandas as pd

from channelscope import tables

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
    "stages": ["initialization", "trained"],
    "seconds": 1.5,
    "date": "2026-01-01",
    "weights": "0123456789abcdef",
}


def pairs(rho: float, low: float, high: float, stage: str = "trained") -> list[dict]:
    return [
        {"stage": stage, "local": a, "target": b, "rho": rho, "low": low, "high": high, "n": 2, "pooled": 0.5}
        for a in ("capture", "overlap")
        for b in ("relevance", "excess")
    ]


def tiny(folder: Path) -> Path:
    random = np.random.default_rng(0)
    channels, alignment, groups = [], [], []
    for stage in FACTS["stages"]:
        for depth, (site, n) in enumerate((("conv1", 6), ("layer1.0.conv1", 8))):
            for channel in range(n):
                values = {name: round(float(random.uniform(0, 1)), 4) for name in ("rayleigh", "capture", "overlap", "support")}
                values |= {name: round(float(random.uniform(0, 0.1)), 4) for name in ("relevance", "excess", "unique", "redundancy")}
                channels.append({"stage": stage, "site": site, "depth": depth, "channel": channel, "kind": "conv", **values, "note": ""})
            for one in ("capture", "overlap"):
                for other in ("relevance", "excess"):
                    row = {"stage": stage, "site": site, "depth": depth, "local": one, "target": other}
                    alignment.append(row | {"rho": 0.25, "low": 0.1, "high": 0.4, "n": n, "images": 120})
            groups.append(
                {"stage": stage, "site": site, "depth": depth, "n": n, "ari": 0.1, "null_mean": 0.0, "null_high": 0.2, "p": 0.3}
                | {"silhouette_local": 0.4, "silhouette_target": 0.5, "stability_local": 0.9, "stability_target": 0.8}
            )
    channels[1] |= {"overlap": float("inf"), "note": "overlap: exact copy of 2"}
    dead = next(i for i, row in enumerate(channels) if row["stage"] == "trained" and row["channel"] == 3)
    channels[dead] |= {"capture": float("nan"), "note": "capture: silent: it does not vary over the images"}
    frames = {
        "channels": channels,
        "alignment": alignment,
        "alignment_mean": pairs(0.1, -0.1, 0.3, "initialization") + pairs(0.25, 0.15, 0.35),
        "groups": groups,
        "skipped": [{"site": "fc", "reason": "its outputs are the network's own outputs, not channels inside it"}],
    }
    for name, rows in frames.items():
        tables.write(pd.DataFrame(rows), folder / f"{name}.csv")
    tables.write_json(FACTS, folder / "run.json")
    return folder
