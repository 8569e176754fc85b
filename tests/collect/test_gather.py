"""Two processes, one profile: the shares of a pass add up to the whole."""

import socket
from itertools import chain

import pytest
import torch
from torch import distributed, multiprocessing

from channelscope import collect, store, zoo
from channelscope.collect.gather import gather, share


def _rank(rank: int, port: int, out: str) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    toy = zoo.toys.residual_pair(images=192)
    whole = gather(collect(toy.model, share(toy.batches, rank, 2), shards=3))
    assert (whole is None) == (rank == 1)
    if whole is not None:
        store.save(whole, out)
    distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.filterwarnings("ignore")
def test_two_gloo_ranks_give_the_profile_of_one_process(tmp_path):
    multiprocessing.spawn(_rank, args=(free_port(), str(tmp_path / "sum.profile")), nprocs=2)
    both = store.load(tmp_path / "sum.profile")
    toy = zoo.toys.residual_pair(images=192)
    alone = collect(toy.model, toy.batches, shards=3)
    assert both.images == alone.images == 192
    assert both.tally.images == alone.tally.images
    assert both.tally.loss == pytest.approx(alone.tally.loss, rel=1e-9)
    for name, value in alone.tensors.items():
        torch.testing.assert_close(both.tensors[name], value, rtol=1e-5, atol=1e-5)


def test_shares_are_disjoint_and_complete():
    batches = list(range(7))
    shares = [list(share(batches, rank, 3)) for rank in range(3)]
    assert sorted(chain(*shares)) == batches
    assert [len(part) for part in shares] == [3, 2, 2]
