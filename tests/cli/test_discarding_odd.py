"""discard on networks with layers that no CID, or only part of one, can be had of."""

import pytest

from channelscope import tables
from cli.commands import refused, run

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.left, self.dead = nn.Conv2d(1, 4, 3, padding=1), nn.Identity(), nn.Identity()
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        left = self.left(self.conv(x)[:, :, ::2, :4])
        return self.head(left.mean(2).repeat(1, 1, 2).flatten(1)) + self.dead(0 * left).sum()
"""
FEW = ("--images", "40", "--test", "2")


@pytest.fixture
def network(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:Net"


def test_what_a_layer_does_not_see_is_said(network, tmp_path, capsys):
    assert run("discard", network, *FEW, "--layers", "left", "--out", tmp_path / "out") == 0
    layers = tables.read(tmp_path / "out" / "discarded_layers.csv")
    assert 0 < layers.unseen.item() < 0.5
    assert f"{layers.unseen.item():.0%} of the image does not reach it" in capsys.readouterr().err
    assert "of the image does not reach left" in (tmp_path / "out" / "report.html").read_text()


def test_without_caps_it_is_refused(network, tmp_path, capsys):
    said = refused(capsys, "discard", network, *FEW, "--layers", "left", "--no-cap", "--out", tmp_path / "out")
    assert "cap" in said
    assert not list(tmp_path.rglob("*.csv"))


def test_a_feature_that_never_varies_is_refused(network, tmp_path, capsys):
    said = refused(capsys, "discard", network, *FEW, "--layers", "dead", "--out", tmp_path / "out")
    assert "dead" in said
    assert "no variance over the data, and so no CID" in said
    assert not (tmp_path / "out").exists()
