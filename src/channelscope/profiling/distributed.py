"""One profile from many processes, each of which profiled its share of the images."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import distributed

from channelscope.data.batches import indexed_batches
from channelscope.stats.profile import Profile


def rank_batches(batches: Iterable, rank: int, world: int) -> Iterator:
    """The batches of one process: every `world`-th, from `rank` on, with the index that each image has among all of them."""
    for number, batch in enumerate(indexed_batches(batches)):
        if number % world == rank:
            yield batch


def sum_on_rank_zero(profile: Profile) -> Profile | None:
    """Sum of the profiles of all processes of the default group, on rank 0; None on the others.

    Every process must have profiled at least one batch.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    facts: list = [None] * world
    own = {name: getattr(profile, name) for name in ("images", "tally", "unlabeled", "fingerprints")}
    distributed.all_gather_object(facts, (own, {name: value.shape for name, value in profile.tensors.items()}))
    names = sorted(profile.tensors)
    if rank:
        for name in names:
            distributed.send(profile.tensors[name].contiguous(), 0)
        return None
    total = profile
    for other in range(1, world):
        counts, shapes = facts[other]
        tensors = {}
        for name in names:
            tensors[name] = torch.empty(shapes[name], dtype=profile.tensors[name].dtype)
            distributed.recv(tensors[name], other)
        total = total + replace(profile, **counts, tensors=tensors)
    return total
