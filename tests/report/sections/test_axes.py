"""The section with the images that drive channels: a sheet for each layer, the numbers of its channels below."""

from pathlib import Path

import pandas as pd

from channelscope import tables
from channelscope.circuits.pictures import CHANNEL_PICTURES, layer_sheet
from channelscope.report.page import MOST_OPEN, write_report
from channelscope.report.sections.axes import picture_drawings
from channelscope.tables.run_folder import RunFolder
from report.folders import tiny


def pictured(path: Path, layers: dict[str, list[int]]) -> Path:
    """The tiny run with sheets of some channels, of which each has one image."""
    rows = [
        {"site": site, "channel": channel, "place": 1, "image": 7, "activation": 2.0}
        for site, channels in layers.items()
        for channel in channels
    ]
    tables.write(tables.fill(CHANNEL_PICTURES, pd.DataFrame(rows)), tiny(path) / "channel_pictures.csv")
    (path / "channel_pictures").mkdir()
    for site, channels in layers.items():
        (path / "channel_pictures" / f"{site}.svg").write_text(layer_sheet({key: [b""] for key in channels}), encoding="utf-8")
    return path


def test_a_drawing_for_each_layer_says_the_last_stages_numbers(tmp_path):
    found = picture_drawings(RunFolder.read(pictured(tmp_path, {"conv1": [1, 0], "layer1.0.conv1": [5]})))
    assert [each.title for each in found] == ["conv1", "layer1.0.conv1"]
    assert found[0].figure == tmp_path / "channel_pictures" / "conv1.svg"
    assert found[0].caption == (
        "Channel 1: task information 0.1200 nats, input capture 0.500 nats; channel 0: task information 0.1600 nats, "
        "input capture 0.250 nats."
    )


def test_without_the_sheets_there_is_no_drawing(tmp_path):
    run = RunFolder.read(pictured(tmp_path, {"conv1": [1]}))
    (tmp_path / "channel_pictures" / "conv1.svg").unlink()
    assert picture_drawings(run) == []


def test_many_layers_are_folded(tmp_path):
    layers = {f"conv{number}": [0] for number in range(MOST_OPEN + 3)}
    page = write_report(pictured(tmp_path, layers)).read_text(encoding="utf-8")
    assert page.count('<figure class="picture">') == MOST_OPEN + 3
    opened, folded = page.split("<details><summary>3 more pictures</summary>")
    assert opened.count('<figure class="picture">') == MOST_OPEN
    assert folded.split("</details>")[0].count('<figure class="picture">') == 3
