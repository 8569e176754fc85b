"""gather: one profile from many processes, each of which profiled its share of the images."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import distributed

from channelscope.stats.profile import Profile


def share(batches: Iterable, rank: int, world: int) -> Iterator:
    """The batches of one process: every `world`-th, from `rank` on. They must carry the image index."""
    for number, batch in enumerate(batches):
        if number % world == rank:
            yield batch


def gather(profile: Profile) -> Profile | None:
    """Sum of the profiles of all processes of the default group, on rank 0; None on the others.

    Every process must have profiled at least one batch.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    facts: list = [None] * world
    distributed.all_gather_object(facts, (profile.images, profile.tally))
    names = sorted(profile.tensors)
    if rank:
        for name in names:
            distributed.send(profile.tensors[name].contiguous(), 0)
        return None
    total = profile
    for other in range(1, world):
        tensors = {}
        for name in names:
            tensors[name] = torch.empty_like(profile.tensors[name])
            distributed.recv(tensors[name], other)
        images, tally = facts[other]
        total = total + replace(profile, images=images, tally=tally, tensors=tensors)
    return total
