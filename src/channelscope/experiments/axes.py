"""axes: are what a channel takes from its input and what it says about the task the same thing? (H1)"""

from collections.abc import Sequence

import pandas as pd
import torch

from channelscope.errors import SampleError, at
from channelscope.formulas.ranks import spearman
from channelscope.formulas.resampling import bootstrap_mean, jackknife
from channelscope.scores import Convention, Layer, Score, named
from channelscope.site import Site
from channelscope.stats.profile import Profile
from channelscope.types import Tensor

LOCAL = ("capture", "overlap", "support", "rayleigh")
TARGET = ("relevance", "excess")


def axes(profile: Profile, local_axis: Sequence[str] = LOCAL, target_axis: Sequence[str] = TARGET, **options) -> dict[str, pd.DataFrame]:
    """Rank correlation of every local quantity with every target quantity, layer by layer and over layers.

    Returns  `alignment`: one row per site and pair, Spearman's rho over the site's channels with a jackknife interval over
             image shards; `alignment_mean`: the mean over layers with a bootstrap interval over layers, beside the pooled
             value, which mixes layers and is never to be read alone.
    A layer whose score is refused for want of images has nan there.
    """
    convention = Convention.of(options)
    whole = {name: [] for name in (*local_axis, *target_axis)}
    rows = []
    for site in profile.sites:
        with at(site.name):
            values, replicates = _values(profile, site, convention, named((*local_axis, *target_axis)))
        for name, column in values.items():
            whole[name].append(column)
        for one in local_axis:
            for other in target_axis:
                rho = spearman(values[one], values[other])
                low, high = _interval(rho, [spearman(each[one], each[other]) for each in replicates])
                rows.append(
                    {
                        "site": site.name,
                        "depth": site.depth,
                        "local": one,
                        "target": other,
                        "rho": float(rho),
                        "low": low,
                        "high": high,
                        "n": int((values[one].isfinite() & values[other].isfinite()).sum()),
                        "images": profile.images,
                    }
                )
    alignment = pd.DataFrame(rows)
    alignment.attrs["name"] = "alignment"
    return {"alignment": alignment, "alignment_mean": _over_layers(alignment, {name: torch.cat(parts) for name, parts in whole.items()})}


def _values(profile: Profile, site: Site, convention: Convention, wanted: list[Score]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Every wanted quantity of one layer, and again without each shard of images."""
    layer = Layer(profile, site, profile.record(site), convention)
    left_out = profile.leaving_one_out(site) if profile.shards > 1 else []
    return _columns(layer, wanted), [_columns(Layer(profile, site, record, convention), wanted) for record in left_out]


def _columns(layer: Layer, wanted: list[Score]) -> dict[str, Tensor]:
    columns = {}
    for one in wanted:
        try:
            columns[one.name] = one.formula(layer).double()
        except SampleError:
            columns[one.name] = torch.full((layer.channels,), torch.nan, dtype=torch.float64)
    return columns


def _interval(rho: Tensor, replicates: list[Tensor]) -> tuple[float, float]:
    """Jackknife interval clipped to −1 … 1; nan without shards."""
    if not replicates:
        return float("nan"), float("nan")
    interval = jackknife(rho, torch.stack([torch.as_tensor(each) for each in replicates])).interval()
    return max(interval.low, -1.0), min(interval.high, 1.0)


def _over_layers(alignment: pd.DataFrame, whole: dict[str, Tensor]) -> pd.DataFrame:
    rows = []
    for (one, other), pairs in alignment.groupby(["local", "target"], sort=False):
        known = pairs["rho"].dropna()
        mean = bootstrap_mean(torch.tensor(known.to_numpy())) if len(known) > 1 else None
        rows.append(
            {
                "local": one,
                "target": other,
                "rho": mean.value if mean else float(known.mean()),
                "low": mean.low if mean else float("nan"),
                "high": mean.high if mean else float("nan"),
                "n": len(known),
                "pooled": float(spearman(whole[one], whole[other])),
            }
        )
    frame = pd.DataFrame(rows)
    frame.attrs["name"] = "alignment_mean"
    return frame
