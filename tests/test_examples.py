"""Every example runs as it stands, and so do the lines of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from channelscope import zoo

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
    assert len(path.read_text().splitlines()) <= 40
    result = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


@pytest.mark.parametrize("page", ["README.md", "docs/all-of-channelscope.md"])
def test_the_lines_on_the_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = zoo.load("resnet20", "digits")
    zoo.save_weights(model.state_dict(), tmp_path / "runs/demo/trained.safetensors")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names: dict = {}
    exec(compile("\n".join(blocks), page, "exec"), names)
    assert names["ranking"].unit == "nats"
    assert names["profile"].images == 1294
    assert len(names["frame"]) == 784
    assert (tmp_path / "resnet20.profile").stat().st_size > 1_000_000


def test_the_readme_names_files_that_exist():
    for link in re.findall(r"\]\(((?:src|docs|CITATION)[^)#]*)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link
