"""Two processes, one profile: the shares of a pass add up to the whole."""

import os
import subprocess
import sys
from itertools import chain

import pytest
import torch

from channelscope import zoo
from channelscope.data.sources import ImageSource
from channelscope.profiling.collect import collect, rank_batches
from channelscope.profiling.collect import load as load_profile


def test_torchrun_with_two_ranks_writes_the_profile_of_one_process(tmp_path):
    out = tmp_path / "sum.profile"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "channelscope"]
    command += ["profile", "resnet20", "--out", str(out), "--data", "digits", "--images", "192", "--batch-size", "48", "--shards", "3"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    both = load_profile(out)
    model, images = zoo.load("resnet20", ImageSource("digits", images=192, batch_size=48))
    alone = collect(model, images.calibration, shards=3)
    assert both.weights_hash == alone.weights_hash
    assert both.images == alone.images == 192
    assert both.tally.correct == alone.tally.correct
    assert both.tally.loss == pytest.approx(alone.tally.loss, rel=1e-6)
    assert set(both.tensors) == set(alone.tensors)
    for name, value in alone.tensors.items():
        scale = max(float(value.abs().max()), 1e-3)
        torch.testing.assert_close(both.tensors[name] / scale, value / scale, rtol=0, atol=1e-5, msg=name)
    assert [path.name for path in tmp_path.iterdir()] == ["sum.profile"]


def test_shares_are_disjoint_and_complete():
    batches = [(torch.zeros(size, 1, 2, 2), [0] * size) for size in (4, 4, 4, 4, 4, 4, 3)]
    shares = [[index.tolist() for *_, index in rank_batches(batches, rank, 3)] for rank in range(3)]
    assert sorted(chain(*chain(*shares))) == list(range(27))
    assert shares[1] == [[4, 5, 6, 7], [16, 17, 18, 19]]
