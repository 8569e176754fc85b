"""One profile from several processes, each of which profiles a part of the images."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import distributed

from channelscope.data.batches import indexed_batches
from channelscope.stats.profile import Profile


def rank_batches(batches: Iterable, rank: int, world: int) -> Iterator:
    """Batches of one process: every `world`-th, starting with number `rank`.

    Parameters
    ----------
    batches
        Batches of all processes, each as for `data.batches.read_batch`.
    rank
        Number of this process.
    world
        Number of processes.

    Yields
    ------
    tuple
        Images, labels and index; without an index of their own, images are numbered over the batches of all processes.

    Examples
    --------
    >>> batches = [torch.zeros(2, 1, 4, 4)] * 3
    >>> [index.tolist() for _, _, index in rank_batches(batches, 0, 2)]
    [[0, 1], [4, 5]]
    """
    for number, batch in enumerate(indexed_batches(batches)):
        if number % world == rank:
            yield batch


def sum_on_rank_zero(profile: Profile) -> Profile | None:
    """Sum of the profiles of all processes of the default group.

    Parameters
    ----------
    profile
        The profile of this process, of at least one batch.

    Returns
    -------
    Profile or None
        The sum on rank 0, None on the other ranks.

    Examples
    --------
    >>> import tempfile
    >>> from channelscope import collect
    >>> from channelscope.zoo.toys import exact_copy
    >>> toy = exact_copy()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    ...     total = sum_on_rank_zero(collect(toy.model, rank_batches(toy.batches, 0, 1)))
    ...     distributed.destroy_process_group()
    >>> total.images
    256
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
