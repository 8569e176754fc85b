"""The diagram of a circuit as one HTML file that opens offline, and as SVG and PNG."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from channelscope.circuits.diagram_layout import LINE, DiagramLayout, Edge, Node
from channelscope.storage import atomic_file

MAX_INLINE_HEATMAPS = 60
"""Kernels above which their heat maps are shown only where a click has isolated them."""

THICK, THIN = 6.0, 0.6
"""Pixels of the strongest and the weakest kernel's edge."""

RED, BLUE, GREY = (178, 24, 43), (33, 102, 172), (176, 176, 176)

SCALE = 2
"""Pixels of the PNG for each of the drawing."""

POINTS = 24
"""Straight pieces of a curve in the PNG."""

HEAT = 20
"""Pixels of a heat map's side."""

LARGE, SMALL, ROOMY = 12, 10, 32
"""Pixels of letters, and of the pictures from which on numbers are large."""

FILES = ("circuit.html", "circuit.svg", "circuit.png")

Pictures = Mapping[str, tuple[bytes, ...]]


def write_diagram(folder: Path, layout: DiagramLayout, pictures: Pictures, title: str, caption: str) -> Path:
    """Write circuit.html, circuit.svg and circuit.png; returns the page's path.

    Parameters
    ----------
    folder
        An existing folder.
    layout
        Positions of the channels.
    pictures
        Channel → image files, the strongest first.
    title
        Heading of the page.
    caption
        A sentence about what is drawn.

    Returns
    -------
    Path
        Of circuit.html.

    Examples
    --------
    >>> import tempfile
    >>> layout = DiagramLayout([Node("image:0", "image", "image", side=20), Node("conv:2", "channel", "conv", x=90, side=20)],
    ...     [Edge(0, 1, 1.0, 1.0, np.ones((1, 1)))], [(100.0, ("conv",))], 140, 60)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_diagram(Path(folder), layout, {}, "conv:2", "One kernel.").name, len(list(Path(folder).iterdir()))
    ('circuit.html', 3)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (diagram); red raises the feature, blue lowers it, zero and unknown are grey.
    """
    environment = Environment(loader=PackageLoader("channelscope.circuits"), undefined=StrictUndefined, autoescape=True)
    drawing = environment.get_template("circuit.svg.j2").render(_svg(layout, pictures, title))
    page = environment.get_template("circuit.html.j2").render(
        title=title, caption=caption, drawing=Markup(drawing), data=Markup(_data(layout, pictures)), kernels=layout.kernels
    )
    file = io.BytesIO()
    png(layout, pictures).save(file, "png")
    for name, content in zip(FILES, (page.encode(), drawing.encode(), file.getvalue()), strict=True):
        with atomic_file(folder / name) as half:
            half.write_bytes(content)
    return folder / FILES[0]


def effect_color(effect: float) -> tuple[int, int, int]:
    """Color of a kernel: red if it raises the feature, blue if it lowers it, grey at zero; symmetric, by the root of its size.

    Parameters
    ----------
    effect
        Signed effect over the largest, from −1 to 1; nan counts as 0.

    Returns
    -------
    tuple[int, int, int]
        Red, green, blue from 0 to 255.

    Examples
    --------
    >>> effect_color(0.0), effect_color(1.0), effect_color(-1.0), effect_color(0.25)
    ((176, 176, 176), (178, 24, 43), (33, 102, 172), (177, 100, 110))

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (symmetric red-blue colors).
    """
    strength = abs(effect) ** 0.5 if effect == effect else 0.0
    end = RED if effect > 0 else BLUE
    red, green, blue = (round(grey + strength * (full - grey)) for grey, full in zip(GREY, end, strict=True))
    return red, green, blue


def kernel_heatmap(kernel: np.ndarray) -> Image.Image:
    """A kernel's weights as pixels: red is positive, blue negative, white zero; symmetric in its own largest weight.

    Parameters
    ----------
    kernel
        Weights (rows, columns).

    Returns
    -------
    Image
        One pixel for each weight.

    Examples
    --------
    >>> image = kernel_heatmap(np.array([[2.0, 0.0, -2.0]]))
    >>> [image.getpixel((column, 0)) for column in range(3)]
    [(178, 24, 43), (255, 255, 255), (33, 102, 172)]

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (kernel heat maps).
    """
    largest = float(np.abs(kernel).max()) or 1.0
    share = (kernel / largest)[..., None]
    pixels = 255 + np.abs(share) * (np.where(share > 0, np.array(RED), np.array(BLUE)) - 255)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _bezier(layout: DiagramLayout, edge: Edge) -> list[tuple[float, float]]:
    """Start, two control points and end of a curve."""
    source, reader = layout.nodes[edge.source], layout.nodes[edge.reader]
    start, end = (source.x + source.side, source.y + source.side / 2), (reader.x, reader.y + reader.side / 2)
    reach = max(24.0, abs(end[0] - start[0]) / 2)
    return [start, (start[0] + reach, start[1]), (end[0] - reach, end[1]), end]


def _bezier_point(points: list[tuple[float, float]], share: float) -> tuple[float, float]:
    weights = ((1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share**2 * (1 - share), share**3)
    x, y = (sum(weight * point[axis] for weight, point in zip(weights, points, strict=True)) for axis in (0, 1))
    return x, y


def _width(edge: Edge) -> float:
    return THIN + (THICK - THIN) * max(0.0, edge.score) ** 0.5 if edge.kernel is not None else THIN


def _heat_place(layout: DiagramLayout, place: int) -> tuple[float, float]:
    """Upper left corner of a kernel's heat map; staggered, so that neighbors do not cover each other."""
    x, y = _bezier_point(_bezier(layout, layout.edges[place]), 0.35 + 0.06 * (place % 6))
    return x - HEAT / 2, y - HEAT / 2


def _svg(layout: DiagramLayout, pictures: Pictures, title: str) -> dict[str, Any]:
    edges = []
    for place, edge in enumerate(layout.edges):
        (sx, sy), (ax, ay), (bx, by), (ex, ey) = _bezier(layout, edge)
        x, y = _heat_place(layout, place)
        edges.append(
            {
                "place": place,
                "source": edge.source,
                "target": edge.reader,
                "link": edge.kernel is None,
                "path": f"M{sx:.1f} {sy:.1f}C{ax:.1f} {ay:.1f} {bx:.1f} {by:.1f} {ex:.1f} {ey:.1f}",
                "color": "rgb({},{},{})".format(*effect_color(edge.effect)),
                "width": f"{_width(edge):.2f}",
                "words": _tooltip(layout, edge),
                "heat": _heat(edge) if layout.kernels <= MAX_INLINE_HEATMAPS else "",
                "x": f"{x:.1f}",
                "y": f"{y:.1f}",
            }
        )
    titles = [{"x": f"{x:.0f}", "y": y, "text": text} for x, y, text in _titles(layout)]
    nodes = [_node(node, place, pictures) for place, node in enumerate(layout.nodes)]
    size = {"width": f"{layout.width:.0f}", "height": f"{layout.height:.0f}"}
    return {"title": title, "edges": edges, "nodes": nodes, "titles": titles, "heat": HEAT, **size}


def _titles(layout: DiagramLayout) -> list[tuple[float, float, str]]:
    """Middle, base line and text of every line above a column; the last lines are level."""
    most = max(len(lines) for _, lines in layout.titles)
    return [(x, 20 + LINE * (most - len(lines) + row), text) for x, lines in layout.titles for row, text in enumerate(lines)]


def _heat(edge: Edge) -> str:
    return _coded(kernel_heatmap(edge.kernel), "png") if edge.kernel is not None and edge.kernel.size > 1 else ""


def _node(node: Node, place: int, pictures: Pictures) -> dict[str, Any]:
    own = pictures.get(node.name, ())
    cx, cy, r = node.x + node.side / 2, node.y + node.side / 2, node.side / 2
    return {
        "place": place,
        "kind": node.kind,
        "name": node.name,
        "short": _label(node),
        "feature": node.feature,
        "picture": _coded(_shown(own[0], node), "jpeg") if own else "",
        "font": LARGE if node.side >= ROOMY else SMALL,
        **{name: f"{value:.1f}" for name, value in {"x": node.x, "y": node.y, "side": node.side, "cx": cx, "cy": cy, "r": r}.items()},
        "below": f"{node.y + node.side + 11:.1f}",
        "plus": f"M{cx - r / 2:.1f} {cy:.1f}h{r:.1f}M{cx:.1f} {cy - r / 2:.1f}v{r:.1f}",
    }


def _label(node: Node) -> str:
    """A channel's number, the letter of a color, or nothing."""
    number = node.name.rpartition(":")[2]
    if node.kind == "image":
        return "RGB"[int(number)] if int(number) < 3 else number
    return number


def _tooltip(layout: DiagramLayout, edge: Edge) -> str:
    way = f"{layout.nodes[edge.source].name} → {layout.nodes[edge.reader].name}"
    if edge.kernel is None:
        return way
    return f"{way}: saliency {edge.score:.3g}, effect {edge.effect:+.3g} (of the largest)"


def _coded(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _shown(picture: bytes, node: Node) -> Image.Image:
    """A channel's picture in the size it is drawn in."""
    return Image.open(io.BytesIO(picture)).convert("RGB").resize((round(node.side * SCALE), round(node.side * SCALE)))


def _data(layout: DiagramLayout, pictures: Pictures) -> str:
    """Data of the page's script: names, pictures, and the edges' ranks; safe inside a script element."""
    nodes = [
        {
            "name": node.name,
            "kind": node.kind,
            "feature": node.feature,
            "pictures": [base64.b64encode(picture).decode() for picture in pictures.get(node.name, ())],
        }
        for node in layout.nodes
    ]
    edges = [
        {
            "from": edge.source,
            "to": edge.reader,
            "link": edge.kernel is None,
            "saliency": round(edge.score, 5),
            "effect": round(edge.effect, 5),
            "heat": _heat(edge) if layout.kernels > MAX_INLINE_HEATMAPS else "",
        }
        for edge in layout.edges
    ]
    return json.dumps({"nodes": nodes, "edges": edges}, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def png(layout: DiagramLayout, pictures: Pictures) -> Image.Image:
    """The drawing as an image with two pixels for each pixel of the layout.

    Parameters
    ----------
    layout
        Positions of the channels.
    pictures
        Channel → image files, the strongest first.

    Returns
    -------
    Image
        RGB.

    Examples
    --------
    >>> layout = DiagramLayout([Node("conv:2", "channel", "conv", x=10, y=30, side=20)], [], [(20.0, ("conv",))], 40, 60)
    >>> png(layout, {}).size
    (80, 120)

    References
    ----------
    Hamblin, Konkle, Alvarez 2022 (static drawings).
    """
    page = Image.new("RGB", (round(layout.width * SCALE), round(layout.height * SCALE)), "white")
    pen = ImageDraw.Draw(page)
    for x, y, text in _titles(layout):
        pen.text((x * SCALE, y * SCALE), text, "#444", ImageFont.load_default(LARGE * SCALE), "ms")
    for place, edge in enumerate(layout.edges):
        points = _bezier(layout, edge)
        curve = [tuple(SCALE * part for part in _bezier_point(points, step / POINTS)) for step in range(POINTS + 1)]
        pen.line(curve, effect_color(edge.effect), max(1, round(_width(edge) * SCALE)), joint="curve")
        if edge.kernel is not None and edge.kernel.size > 1 and layout.kernels <= MAX_INLINE_HEATMAPS:
            x, y = (round(part * SCALE) for part in _heat_place(layout, place))
            page.paste(kernel_heatmap(edge.kernel).resize((HEAT * SCALE, HEAT * SCALE), Image.Resampling.NEAREST), (x, y))
            pen.rectangle((x, y, x + HEAT * SCALE, y + HEAT * SCALE), None, "#999")
    for node in layout.nodes:
        _draw_node(page, pen, node, pictures.get(node.name, ()))
    return page


def _draw_node(page: Image.Image, pen: ImageDraw.ImageDraw, node: Node, thumbnails: tuple[bytes, ...]) -> None:
    """One channel as pixels: a circle for a color of the image, a plus for a sum, else its picture with its number below."""
    box = [round(part * SCALE) for part in (node.x, node.y, node.x + node.side, node.y + node.side)]
    across, down = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    font = ImageFont.load_default((LARGE if node.side >= ROOMY else SMALL) * SCALE)
    if node.kind != "channel":
        pen.ellipse(box, "white" if node.kind == "sum" else "#e4e4e4", "#777", SCALE)
        pen.text((across, down), "+" if node.kind == "sum" else _label(node), "#333", font, "mm")
        return
    pen.rectangle(box, "#e4e4e4")
    if thumbnails:
        page.paste(_shown(thumbnails[0], node), (box[0], box[1]))
    pen.rectangle(box, None, "#111" if node.feature else "#444", (3 if node.feature else 1) * SCALE)
    pen.text((across, box[3] + 11 * SCALE), _label(node), "#333", font, "ms", stroke_width=SCALE, stroke_fill="white")
