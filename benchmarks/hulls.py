"""Hulls: all replaceability hulls of one layer. `python benchmarks/hulls.py [CHANNELS] [MAX_SIZE]`

Asked for: 512 channels, at most 10 members, under 2 s on two cores. The channels are correlated as those of a network are:
a power-law spectrum, 5,000 samples.
"""

import sys
import time

import torch

from channelscope.formulas.gaussian import correlation
from channelscope.formulas.regression import hulls


def main(channels: int = 512, max_size: int = 10) -> None:
    source = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, channels + 1, dtype=torch.float64).rsqrt()
    samples = torch.randn(5000, channels, generator=source, dtype=torch.float64) * spectrum
    samples = samples @ torch.linalg.qr(torch.randn(channels, channels, generator=source, dtype=torch.float64)).Q
    rho = correlation(samples.T.cov())
    for order in ("forward", "prefix"):
        taken, worked = [], []
        for _ in range(3):
            begun, busy = time.perf_counter(), time.process_time()
            found = hulls(rho, max_size, order=order)
            taken.append(time.perf_counter() - begun)
            worked.append(time.process_time() - busy)
        print(
            f"{order}: {channels} channels, at most {max_size} members: {min(taken):.2f} s (best of 3, {torch.get_num_threads()} threads), "
            f"{min(worked):.2f} s of processor time; "
            f"mean size {found.size.double().mean():.2f}, saturated {found.saturated.double().mean():.1%}, "
            f"explained with all peers {found.support.mean():.2f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
