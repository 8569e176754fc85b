import math
import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from channelscope import tables
from channelscope.errors import FormatError
from channelscope.report import figures, sections
from channelscope.report.page import render
from channelscope.report.section import COLORS, COLORS_ON_DARK, Chart, Drawing, Section
from channelscope.report.sections.axes import ALIGNMENT, CLUSTERS, by_depth
from channelscope.tables.quantities import Column
from channelscope.tables.run_folder import RunFolder
from report.folders import large, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunFolder.read(tiny(tmp_path_factory.mktemp("run")))


def drawn_axes(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def test_every_chart_is_a_png_and_an_svg(run, tmp_path):
    paths = figures.write(run, tmp_path / "figures")
    names = {"alignment", "by_depth", "groups", "map"}
    assert {path.name for path in paths} == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    for path in paths:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in paths)


def test_the_same_run_gives_the_same_svg(run, tmp_path):
    chart, frame = CLUSTERS.charts[0], run.table("groups")
    for name in ("one", "two"):
        with figures.matplotlib.rc_context(figures.STYLE):
            figures._save(figures.drawn(chart, frame, run.stages), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_alignment_has_four_panels_with_the_numbers_and_intervals_of_the_table(run):
    frame = run.table("alignment")
    figure = figures.drawn(ALIGNMENT.charts[0], frame, run.stages)
    panels = drawn_axes(figure)
    assert [axes.get_title() for axes in panels][:2] == ["input capture with task information", "input capture with target excess"]
    assert len(panels) == 4
    bars = [each for each in panels[0].containers if isinstance(each, ErrorbarContainer)]
    assert [each.get_label() for each in bars] == ["initialization", "trained"]
    np.testing.assert_allclose(bars[1].lines[0].get_ydata().astype(float), [0.25, 0.35])
    segments = bars[1].lines[2][0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in segments], [[0.1, 0.4], [0.1, 0.5]])


def test_the_null_is_a_band(run):
    figure = figures.drawn(CLUSTERS.charts[0], run.table("groups"), run.stages)
    assert len(drawn_axes(figure)) == 2
    band = drawn_axes(figure)[0].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.0, 0.2)


def test_sizes_that_fall_by_factors_lie_on_a_logarithmic_axis():
    frame = tables.table(
        pd.DataFrame({"kept": [0.001, 0.01, 0.1, 0.5], "r": [0.1, 0.2, 0.5, 0.9]}), "sizes", dict.fromkeys(("kept", "r"), Column("", 3, ""))
    )
    (place,) = figures.drawn(Chart("r by size", "kept", "r", log=True), frame).axes
    assert place.get_xscale() == "log"
    place.figure.canvas.draw()
    ticks = {label.get_text() for label in place.get_xticklabels()}
    assert {"0.001", "0.002", "0.005", "0.1", "0.5"} <= ticks


def test_axis_titles_have_units(run):
    figure = figures.drawn(Chart("x", "capture", "relevance", kind="scatter"), run.table("channels"))
    (axes,) = drawn_axes(figure)
    assert axes.get_xlabel() == "input capture [nats]"
    assert axes.get_ylabel() == "task information [nats]"


def test_the_map_counts_what_it_cannot_draw(run):
    figure = figures.two_axis_map(run.table("channels"), "trained")
    titles = [axes.get_title() for axes in drawn_axes(figure)]
    assert titles == ["conv1\nn = 4", "layer1.0.conv1\nn = 5, 1 not finite"]
    points = drawn_axes(figure)[1].collections[0].get_offsets()
    assert len(points) == 5


def test_many_layers_make_rows(tmp_path):
    frame = RunFolder.read(large(tmp_path, widths=(16,) * 13, stages=1)).table("channels")
    assert len(drawn_axes(figures.two_axis_map(frame, "trained"))) == 13


def test_quartiles_span_the_median(run):
    frame = by_depth(run)
    assert frame is not None
    assert (frame["low"] <= frame["median"]).all()
    assert (frame["median"] <= frame["high"]).all()
    first = frame.iloc[0]
    assert (first["quantity"], first["median"], first["n"]) == ("input capture [nats]", 0.625, 4)


def test_what_is_not_finite_is_not_counted_in_quartiles(run):
    frame = by_depth(run)
    overlap = frame[(frame["quantity"] == "peer overlap [nats]") & (frame["stage"] == "initialization") & (frame["site"] == "conv1")]
    assert overlap["n"].item() == 3
    assert math.isfinite(overlap["high"].item())


def test_a_scatter_of_categories_is_drawn():
    frame = pd.DataFrame({"score": ["L1", "random"], "rho": [0.2, 0.1], "low": [0.1, 0.0], "high": [0.3, 0.2]})
    columns = {name: Column(meaning=name, source="this test") for name in frame.columns}
    figure = figures.drawn(Chart("x", "score", "rho", low="low", high="high"), tables.table(frame, "x", columns))
    assert [label.get_text() for label in drawn_axes(figure)[0].get_xticklabels()] == ["L1", "random"]


def test_a_drawing_is_a_picture_in_the_page_and_two_files(run, tmp_path, monkeypatch):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    file = tmp_path / "dot.png"
    figure.savefig(file)
    section = Section("groups", "G", "?", drawings=lambda run: [Drawing("own", "A line", figure), Drawing("dot", "The same", file)])
    monkeypatch.setattr(sections, "SECTIONS", (section,))
    paths = figures.write(run, tmp_path / "figures")
    assert {"own.png", "own.svg"} <= {path.name for path in paths}
    page = render(run, plotly="")
    assert page.count('<img src="data:image/svg+xml;base64,') == 1
    assert page.count('<img src="data:image/png;base64,') == 1
    assert 'alt="A line"' in page


def test_a_drawing_has_the_colors_of_the_page_in_the_light_and_in_the_dark():
    css = (Path(figures.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    for colors, place in ((COLORS, 0), (COLORS_ON_DARK, 1)):
        assert colors == tuple(re.findall(rf"--s{number}: (#\w+);", css)[place] for number in range(len(colors)))
    drawing = b64decode(figures.embedded(Figure()).removeprefix("data:image/svg+xml;base64,")).decode()
    assert all(
        f'[style*="fill: {color}"] {{ fill: {light} !important }}' in drawing for color, light in zip(COLORS, COLORS_ON_DARK, strict=True)
    )
    assert drawing.index("</style></svg>") == len(drawing.rstrip()) - len("</style></svg>")


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"expected \.svg or \.png"):
        figures.embedded(tmp_path / "picture.pdf")


def named_values() -> pd.DataFrame:
    """Three scores under two rules, in opposite orders."""
    frame = pd.DataFrame({"score": ["a", "b", "c"] * 2, "rule": ["x"] * 3 + ["y"] * 3, "value": [1.0, 2.0, 3.0, 30.0, 20.0, 10.0]})
    column = Column("", 2, "a value", "this test")
    described = {name: Column("", None, name, "this test") for name in ("score", "rule")} | {"value": column}
    return tables.describe(frame, {"name": "values", "columns": described})


def test_rows_of_every_panel_lie_at_their_own_names():
    figure = figures.drawn(Chart("Values", x="score", y="value", kind="rows", panels=("rule",)), named_values())
    first, second = drawn_axes(figure)
    at = {label.get_text().lower(): place for place, label in zip(first.get_yticks(), first.get_yticklabels(), strict=True)}
    for axes, expected in ((first, {"a": 1, "b": 2, "c": 3}), (second, {"a": 30, "b": 20, "c": 10})):
        points = dict(zip(axes.lines[-1].get_ydata(), axes.lines[-1].get_xdata(), strict=True))
        assert {name: points[at[name]] for name in expected} == expected


def test_panels_with_scales_of_their_own_show_them():
    frame = named_values().assign(depth=[0, 1, 2] * 2)
    frame.attrs = named_values().attrs
    figure = figures.drawn(Chart("Values", x="depth", y="value", kind="line", panels=("rule",), free=True), frame)
    figure.canvas.draw()
    assert all(any(label.get_text() for label in axes.get_yticklabels()) for axes in drawn_axes(figure))


@pytest.mark.parametrize("kind", ["points", "rows"])
def test_zero_is_a_line_across_the_values(kind):
    frame = pd.DataFrame({"depth": [0, 1], "rho": [0.5, -0.3], "n": [4, 4]})
    (axes,) = figures.drawn(Chart("Correlation", "depth", "rho", kind, zero=True), frame).axes
    lines = [line.get_xdata() if kind == "rows" else line.get_ydata() for line in axes.lines if line.get_color() == "#8a929c"]
    assert [list(line) for line in lines] == [[0, 0]]
