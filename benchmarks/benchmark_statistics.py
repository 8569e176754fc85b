"""Statistics of a benchmark: all scores at once against pair by pair. `python benchmarks/benchmark_statistics.py [SCORES] [IMAGES]`

Intervals and paired differences of 27 scores on 10,000 images, one seed. One after the other, every interval draws its own
resamples and every pair is multiplied with the sign patterns; at once, all of them share the weights of each resample and one
matrix product. Both give the same numbers, which is checked.
"""

import itertools
import sys
import time

import numpy as np
import torch

from channelscope.benchmark.analysis import DRAWS, Protocol, Resampled, ScoreCurve
from channelscope.formulas.intervals import bootstrap_mean, sign_flip, sign_flip_contrasts
from channelscope.scores.score import REGISTRY

FLIPS = 2048
"""Sign patterns tried here; an analysis of 27 scores tries 65,000."""


def areas(scores: int, images: int) -> list[ScoreCurve]:
    """Areas of scores that are right about some images together."""
    source = np.random.default_rng(0)
    common = source.random((images, 5))
    found = []
    for place, name in enumerate(itertools.islice(REGISTRY, scores)):
        right = 0.7 * common + 0.3 * source.random((images, 5)) < 0.6 + 0.002 * place
        found.append(ScoreCurve(name, Protocol("global", "none", 0), (0.8, 0.6, 0.5, 0.4, 0.3), (0,), right.mean(1)[None]))
    return found


def timed(call) -> tuple[float, object]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def main(scores: int = 27, images: int = 10_000) -> None:
    found = areas(scores, images)
    pairs = list(itertools.combinations(found, 2))
    gaps = [torch.from_numpy((one.images - two.images)[0]) for one, two in pairs]

    def singly() -> list[tuple[float, float]]:
        return [(each.low, each.high) for each in (bootstrap_mean(gap, DRAWS) for gap in gaps)]

    def together() -> list[tuple[float, float]]:
        resampled = Resampled(found)
        return list(zip(*resampled.intervals([resampled.mixture(one) - resampled.mixture(two) for one, two in pairs]), strict=True))

    columns = torch.from_numpy(np.concatenate([area.images for area in found]).T)
    between = torch.zeros(len(found), len(pairs), dtype=torch.float64)
    for place, (one, two) in enumerate(itertools.combinations(range(len(found)), 2)):
        between[one, place], between[two, place] = 1, -1
    slow, fast = timed(singly), timed(together)
    np.testing.assert_allclose(fast[1], slow[1], atol=1e-12)
    print(f"intervals of {len(pairs)} pairs of {scores} scores, {images:,} images, {DRAWS:,} resamples, {torch.get_num_threads()} threads:")
    print(f"  one after the other {slow[0]:.2f} s, at once {fast[0]:.2f} s: {slow[0] / fast[0]:.0f}×")
    slow, fast = timed(lambda: sign_flip(torch.stack(gaps), FLIPS)), timed(lambda: sign_flip_contrasts(columns, between, FLIPS))
    np.testing.assert_array_equal(fast[1], slow[1])
    print(f"  {FLIPS:,} sign patterns: pair by pair {slow[0]:.2f} s, score by score {fast[0]:.2f} s: {slow[0] / fast[0]:.0f}×")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
