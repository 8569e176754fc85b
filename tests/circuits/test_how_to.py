"""The page on circuits: its commands exist and its lines run."""

import re
from pathlib import Path

import torch
import typer

from channelscope.circuits import folder
from channelscope.circuits.criteria import baseline_scores
from channelscope.circuits.extraction import extract_module
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.selection import top_k
from channelscope.cli import app
from channelscope.network.edits import silence
from pencil_circuits import network, pictures

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "circuits.md").read_text()


def test_the_commands_exist():
    group = typer.main.get_command(app)
    lines = [line.split() for line in PAGE.splitlines() if line.startswith("channelscope ")]
    assert {"circuit", "subcircuits", "explain", "report"} <= {words[1] for words in lines}
    for _, name, *words in lines:
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


@torch.no_grad()
def test_the_lines_run(tmp_path, monkeypatch):
    target = locate_feature(network("residual"), "last:1", pictures())
    circuit = top_k(baseline_scores(target, "random"), 0.4)
    folder.save_circuit(tmp_path / "runs" / "circuit", circuit, extract_module(circuit, target), {"criterion": "random"})
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {"model": target.model, "images": pictures()}
    exec(lines, names)
    assert names["circuit"] == circuit
    assert names["about"] == {"criterion": "random"}
    with silence(target.model, ~circuit):
        expected = target.feature_map(pictures())
    assert torch.allclose(names["feature"].flatten(1), expected, atol=1e-5)
