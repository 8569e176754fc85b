"""The headline quantities drawn around one channel of one layer, and all of them as a table for the docs."""

import textwrap
from html import escape

from channelscope.tables.quantities import HEADLINE, QUANTITIES, Quantity

WIDTH, HEIGHT = 1000, 566

ROWS = (94, 142, 190, 238, 286)
"""top of each channel drawn in the layer"""

CHANNEL = 2
"""which of them is the one measured"""

LEFT, RIGHT = 352, 492
"""edges of the channels"""

STYLE = """
.quantities-drawing { --ink: #16191d; --soft: #565d66; --line: #c9cfd6; --paper: #ffffff; --blue: #0a5fb4; --orange: #b8420a; --blue-wash: #eef4fb; --orange-wash: #fcf1ea; }
@media screen and (prefers-color-scheme: dark) { .quantities-drawing { --ink: #e9ebee; --soft: #a9b1bb; --line: #3a434d; --paper: #111417; --blue: #6db3f8; --orange: #ff9d66; --blue-wash: #17222e; --orange-wash: #2a1d16; } }
.quantities-drawing text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; font-size: 13px; fill: var(--ink); }
.quantities-drawing .soft { fill: var(--soft); font-size: 12px; }
.quantities-drawing .name { font-weight: 650; font-size: 15px; }
.quantities-drawing .blue { fill: var(--blue); } .quantities-drawing .orange { fill: var(--orange); }
.quantities-drawing .line { fill: none; stroke-width: 2.5; } .quantities-drawing .local { stroke: var(--blue); } .quantities-drawing .target { stroke: var(--orange); }
.quantities-drawing .box { fill: var(--paper); stroke: var(--line); stroke-width: 1.2; }
""".strip()  # noqa: E501


def svg() -> str:
    """The drawing as one SVG element that stands alone and adapts to light and dark.

    Examples
    --------
    >>> svg()[:4], svg().count("<svg")
    ('<svg', 1)
    """
    quantities = [QUANTITIES[name] for name in HEADLINE]
    parts = [
        *_washes(),
        *_scene(),
        *_links(),
        *(_card(quantity, number + 1, 24 + 242 * number) for number, quantity in enumerate(quantities)),
    ]
    label = "; ".join(f"{each.title}: {each.meaning}" for each in quantities)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="quantities-drawing" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">\n<style>\n{STYLE}\n</style>\n{_arrowheads()}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def markdown() -> str:
    """Every quantity as a table for the docs.

    Examples
    --------
    >>> markdown().splitlines()[0][:36], len(markdown().splitlines()) - 2 == len(QUANTITIES)
    ('| quantity | says | computed from | ', True)
    """
    head = "| quantity | says | computed from | readout | unit, range | kept | reading it | source |\n|---|---|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| **{each.title}** {_cell(each.symbol)} (`{each.name}`) "
        f"| {each.meaning}: {_cell(each.formula)} | {each.computed} | {each.readout} "
        f"| {each.unit}, {each.range} | {each.keeps} | {each.reads} | {each.source} |\n"
        for each in QUANTITIES.values()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _arrowheads() -> str:
    def head(name: str, color: str) -> str:
        return (
            f'<marker id="head-{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6" markerHeight="6" orient="auto-start-reverse">'
            f'<path d="M0 0 10 5 0 10z" fill="var(--{color})"/></marker>'
        )

    return f"<defs>{head('local', 'blue')}{head('target', 'orange')}</defs>"


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:g}" y="{y:g}"{kind} text-anchor="{anchor}">{escape(words, quote=False)}</text>'


def _box(x: float, y: float, width: float, height: float, fill: str = "", radius: float = 8) -> str:
    look = f'fill="var(--{fill})"' if fill else 'class="box"'
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" {look}/>'


def _path(route: str, axis: str, ends: str = "end", dash: str = "") -> str:
    heads = f'marker-end="url(#head-{axis})"' + (f' marker-start="url(#head-{axis})"' if ends == "both" else "")
    return f'<path d="{route}" class="line {axis}" {heads if ends else ""}{f" stroke-dasharray={chr(34)}{dash}{chr(34)}" if dash else ""}/>'


def _washes() -> list[str]:
    return [
        _box(0, 0, 560, 352, "blue-wash", 14),
        _box(572, 0, 428, 352, "orange-wash", 14),
        _text(20, 28, "local axis", "name blue"),
        _text(20, 48, "could its peers stand in for it? · 16 positions per image", "soft"),
        _text(592, 28, "target axis", "name orange"),
        _text(592, 48, "what does it say about the task? · one average per image", "soft"),
    ]


def _scene() -> list[str]:
    pixels = [
        f'<rect x="{34 + 22 * column}" y="{170 + 22 * row}" width="21" height="21" fill="var(--blue)" '
        f'fill-opacity="{0.12 + 0.13 * ((3 * row + 2 * column + row * column) % 6):.2f}"/>'
        for row in range(4)
        for column in range(4)
    ]
    drawn = [*pixels, _text(78, 278, "images", "soft", "middle"), _box(LEFT - 14, 62, RIGHT - LEFT + 28, 274)]
    for row, top in enumerate(ROWS):
        chosen = row == CHANNEL
        drawn.append(_box(LEFT, top, RIGHT - LEFT, 36, "" if not chosen else "blue", 6))
        words, style = ("the channel", "name") if chosen else ("peer", "soft")
        fill = ' style="fill: var(--paper)"' if chosen else ""
        drawn.append(f'<text x="{(LEFT + RIGHT) / 2:g}" y="{top + 23}" class="{style}"{fill} text-anchor="middle">{words}</text>')
    drawn += [
        _text((LEFT + RIGHT) / 2, 82, "one layer", "soft", "middle"),
        _box(800, 168, 172, 72),
        _text(886, 198, "target", "name", "middle"),
        _text(886, 220, "logit margin of the image", "soft", "middle"),
    ]
    return drawn


def _links() -> list[str]:
    middle = ROWS[CHANNEL] + 18
    arcs = [
        _path(f"M{LEFT - 3} {middle + side} C{LEFT - reach} {middle + side} {LEFT - reach} {top + 18} {LEFT - 3} {top + 18}", "local", "")
        for (row, top), reach in zip(enumerate(ROWS), (94, 62, 0, 62, 94), strict=True)
        for side in (9 if row > CHANNEL else -9,)
        if row != CHANNEL
    ]
    peer, meeting = ROWS[CHANNEL + 1] + 18, middle + 42
    return [
        _path(f"M130 {middle} H{LEFT - 5}", "local"),
        _number(190, middle - 20, 1, "blue"),
        _text(190, middle + 26, "how much it takes in", "soft", "middle"),
        *arcs,
        _number(214, 112, 2, "blue"),
        _text(214, 142, "shared with peers", "soft", "middle"),
        _path(f"M{RIGHT + 5} {middle} C640 {middle} 680 {middle} 794 {middle - 14}", "target"),
        _number(676, middle - 26, 3, "orange"),
        _text(676, middle - 48, "what it says alone", "soft", "middle"),
        _path(f"M{RIGHT + 5} {middle + 10} C580 {middle + 12} 570 {meeting} 612 {meeting}", "target", "", "5 4"),
        _path(f"M{RIGHT + 5} {peer} C560 {peer} 570 {meeting} 612 {meeting}", "target", "", "5 4"),
        _path(f"M612 {meeting} C690 {meeting} 720 {middle + 32} 794 {middle + 16}", "target", "end", "5 4"),
        _number(676, middle + 66, 4, "orange"),
        _text(676, middle + 96, "what only the pair says", "soft", "middle"),
    ]


def _number(x: float, y: float, number: int, color: str) -> str:
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="12" fill="var(--{color})"/>'
        f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle" font-weight="650" style="fill: var(--paper)">{number}</text>'
    )


def _name(x: float, y: float, quantity: Quantity, color: str) -> str:
    stem, _, below = quantity.symbol.partition("_")
    lowered = f'<tspan dy="4" font-size="11">{below}</tspan>' if below else ""
    return f'<text x="{x:g}" y="{y:g}" class="name {color}">{quantity.title}  {stem}{lowered}</text>'


def _card(quantity: Quantity, number: int, x: float) -> str:
    color = "blue" if quantity.axis == "local" else "orange"
    top = 372
    lines = [_number(x + 14, top + 16, number, color), _name(x + 34, top + 21, quantity, color)]
    y = top + 48
    for words in textwrap.wrap(quantity.meaning.split(";")[0], 31):
        lines.append(_text(x + 2, y, words))
        y += 18
    y = top + 108
    for words in textwrap.wrap(f"from the {quantity.computed.split(',')[0]}".replace("from the correlation", "from correlation"), 34):
        lines.append(_text(x + 2, y, words, "soft"))
        y += 17
    lines.append(_text(x + 2, top + 154, f"{quantity.unit}, {quantity.range}", "soft"))
    arrow = "▲ high" if quantity.keeps == "high" else "▼ low"
    lines.append(_text(x + 2, top + 178, f"{arrow} is kept", f"name {color}"))
    return "\n".join(lines)
