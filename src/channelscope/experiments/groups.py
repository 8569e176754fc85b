"""groups: do channels that are alike on one axis fall together on the other?"""

import pandas as pd
import torch

from channelscope.errors import SampleError, at
from channelscope.formulas.groupings import grouping, rand_index, rand_null, silhouette, stability
from channelscope.formulas.information import CEILING
from channelscope.scores import Convention, Layer, capture, excess, overlap, relevance
from channelscope.stats.profile import Profile
from channelscope.types import Float, Tensor

PERMUTATIONS = 200


def groups(profile: Profile, k: int = 4, seed: int = 0, **options) -> pd.DataFrame:
    """k-means groupings of each layer's channels on local features (I_X, R̄) and on target features (I_T, S), z-scored.

    Returns  one row per site: adjusted Rand index of the two groupings with its permutation null (channels shuffled),
             silhouettes, stability between random starts, and n, the channels with all features. Layers with fewer than
             4 k of them, or too few images for the target, stay nan: their groups would be single channels.
    preset="paper" puts the target excess into both feature sets, as the published code does.
    """
    convention = Convention.of(options)
    rows = []
    for site in profile.sites:
        with at(site.name):
            layer = Layer(profile, site, profile.record(site), convention)
            rows.append({"site": site.name, "depth": site.depth, **_compared(layer, k, seed)})
    frame = pd.DataFrame(rows)
    frame.attrs["name"] = "groups"
    return frame


def _compared(layer: Layer, k: int, seed: int) -> dict[str, float]:
    try:
        local, target = _features(layer)
    except SampleError:
        return {"n": 0}
    known = local.isfinite().all(1) & target.isfinite().all(1)
    local, target = local[known], target[known]
    if len(local) < 4 * k:
        return {"n": len(local)}
    one, other = grouping(local, k, seed), grouping(target, k, seed)
    ari, null = rand_index(one, other), rand_null(one, other, PERMUTATIONS, seed)
    return {
        "n": len(local),
        "ari": ari,
        "null_mean": float(null.mean()),
        "null_high": float(null.quantile(0.95)),
        "p": float(1 + (null >= ari).sum()) / (1 + PERMUTATIONS),
        "silhouette_local": silhouette(local, one),
        "silhouette_target": silhouette(target, other),
        "stability_local": stability(local, k),
        "stability_target": stability(target, k),
    }


def _features(layer: Layer) -> tuple[Float[Tensor, "channels local"], Float[Tensor, "channels target"]]:
    together = excess.formula(layer)
    local = [capture.formula(layer), overlap.formula(layer, ceiling=CEILING)]
    if layer.convention.paper:
        local.append(together)
    return torch.stack(local, 1), torch.stack([relevance.formula(layer), together], 1)
