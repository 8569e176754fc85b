"""Random Gaussian laws to test on, from one seed; not a test file."""

import torch


def covariance(channels, seed=0, factors=None):
    """A well-conditioned random covariance with very different variances."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, factors or channels, generator=generator, dtype=torch.float64)
    scale = torch.exp(torch.randn(channels, generator=generator, dtype=torch.float64))
    law = mixing @ mixing.T / mixing.shape[1] + 0.3 * torch.eye(channels, dtype=torch.float64)
    return law * torch.outer(scale, scale)


def correlations(channels, seed=0):
    """Target correlations (channels,) and the channels' correlation matrix, jointly possible."""
    joint = covariance(channels + 1, seed)
    deviation = joint.diagonal().sqrt()
    rho = joint / torch.outer(deviation, deviation)
    rho.fill_diagonal_(1)
    return rho[-1, :-1].clone(), rho[:-1, :-1].clone()


def with_copy(rho, of, sign=1.0):
    """The matrix with one more channel: a copy of channel `of`, or its negative."""
    row = sign * rho[of]
    top = torch.cat([rho, row[:, None]], 1)
    return torch.cat([top, torch.cat([row, row.new_ones(1)])[None]], 0)


def with_silent(rho, at):
    """The matrix with one more channel at place `at` that does not vary: a row and a column of nan."""
    size = len(rho) + 1
    wider = torch.full((size, size), torch.nan, dtype=rho.dtype)
    rest = [i for i in range(size) if i != at]
    wider[torch.tensor(rest)[:, None], torch.tensor(rest)] = rho
    return wider
