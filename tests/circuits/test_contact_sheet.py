"""The sheet of groups: a row a group, the strongest first, each image cropped to what the feature sees."""

import numpy as np
import torch

from channelscope.circuits.diagram.pictures import GAP, LABEL, MAX_IMAGES, SIDE, PixelNormalization, contact_sheet
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.subfeatures import top_images


class Bright(torch.nn.Module):
    """Looks for a bright pixel of any color, nine pixels at a time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 1, 3, bias=False), torch.nn.Conv2d(1, 1, 1)
        torch.nn.init.ones_(self.a.weight)

    def forward(self, x):
        return self.b(self.a(x))


def test_every_group_is_a_row_of_what_the_feature_sees():
    images = torch.zeros(20, 3, 9, 9)
    color = [0] * 15 + [1] * 5
    for number, channel in enumerate(color):
        images[number, channel, 2 + number % 5, 4] = 1 - number / 40
    target = locate_feature(Bright().eval(), "a:0", images)
    found = top_images(target, images, 20)
    labels = torch.tensor(color)[found.indices]
    pixels = np.asarray(contact_sheet(target, found, labels, PixelNormalization((0.0,) * 3, (1.0,) * 3)))
    assert pixels.shape == (2 * SIDE + GAP, LABEL + MAX_IMAGES * (SIDE + GAP), 3)

    def shown(row: int, column: int) -> np.ndarray:
        top, left = row * (SIDE + GAP), LABEL + column * (SIDE + GAP)
        return pixels[top : top + SIDE, left : left + SIDE].astype(float)

    for row, members in enumerate((15, 5)):
        for column in range(MAX_IMAGES):
            if column >= members:
                assert (shown(row, column) == 255).all()  # no more images in the group
                continue
            patch = shown(row, column)
            assert set(np.flatnonzero(patch.reshape(-1, 3).any(0))) == {row}
            assert (patch[..., row] > 0).mean() == 1 / 9  # one of the nine pixels it sees
        strength = [shown(row, column)[..., row].max() for column in range(min(MAX_IMAGES, members))]
        assert strength == sorted(strength, reverse=True)
    assert (pixels[:SIDE, :LABEL] < 255).any()
