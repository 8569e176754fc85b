"""sheet: what the groups of a feature's strongest images look like — a row a group, cropped to what the feature sees."""

from PIL import Image, ImageDraw, ImageFont

from channelscope.circuits.picture import Palette, Spot, crop
from channelscope.circuits.receptive import fields
from channelscope.circuits.subfeature import Peaks
from channelscope.circuits.target import Target
from channelscope.types import Int, Tensor

MOST = 12
"""Most images of a group, the strongest first."""
SIDE, GAP, LABEL = 96, 8, 150
"""Pixels of a picture's side, between pictures, and of what stands before a row."""
LETTERS = 18
"""Pixels of letters."""


def sheet(target: Target, found: Peaks, labels: Int[Tensor, "images"], palette: Palette) -> Image.Image:
    """The strongest images of every group, each cropped to what the feature sees at its maximum.

    Source   Hamblin, Konkle, Alvarez 2022 (sub-feature circuits: top-activating images by cluster)
    """
    spot = Spot(target.feature.layer, target.step, target.feature.channels, target.axis, fields(target.graph, target.step)[target.step])
    groups = [(labels == group).nonzero().flatten().tolist() for group in range(int(labels.max()) + 1)]
    columns = min(MOST, max(map(len, groups)))
    page = Image.new("RGB", (LABEL + columns * (SIDE + GAP), len(groups) * (SIDE + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(LETTERS)
    for row, members in enumerate(groups):
        top = row * (SIDE + GAP)
        pen.text((0, top + SIDE / 2), f"group {row}\n{len(members)} images", "#333", font, "lm")
        for column, image in enumerate(members[:MOST]):
            shot = crop(found.images[image], spot, int(found.places[image]), target, palette).convert("RGB")
            how = Image.Resampling.BICUBIC if max(shot.size) > SIDE else Image.Resampling.NEAREST
            page.paste(shot.resize((SIDE, SIDE), how), (LABEL + column * (SIDE + GAP), top))
    return page
