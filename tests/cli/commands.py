"""The command line run in this process, as a user would."""

import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from channelscope import cli, data, zoo


def run(*arguments) -> int:
    """Exit status."""
    before = sys.argv
    sys.argv = ["channelscope", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def refused(capsys, *arguments) -> str:
    """What is said when the input is at fault: one message, no traceback, status 2."""
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


def small_network(folder):
    """The arguments that name a small residual network with its weights, and its profile."""
    (folder / "net.py").write_text(
        "from channelscope.zoo.models import SmallResNet\n\n\nclass Net(SmallResNet):\n    def __init__(self):\n"
        "        super().__init__(8, classes=10, channels=1, width=4)\n"
    )
    name = f"{folder / 'net.py'}:Net"
    model, _ = zoo.load(name, "digits")
    zoo.save_weights(model.state_dict(), folder / "net.safetensors")
    given = (name, "--weights", folder / "net.safetensors")
    assert run("profile", *given, "--images", "80", "--sensitivity", "--out", folder / "net.profile") == 0
    return given, folder / "net.profile"


def boxed(folder, count=18, empty=True, outside=False):
    """A data set of squares on noise with their boxes and masks, one image without a box, or with one outside, where wanted."""
    pictures = []
    outline, stream = np.zeros((16, 16), np.uint8), io.BytesIO()
    outline[4:10, 5:12] = 1
    Image.fromarray(outline).save(stream, "PNG")
    masks = [{"bytes": stream.getvalue(), "path": "mask.png"}] * count
    for number in range(count):
        array = np.random.default_rng(number).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        array[4:10, 5:12] = 40 * (number % 5)
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        pictures.append({"bytes": stream.getvalue(), "path": f"{number}.png"})
    boxes = [[[5.0, 4.0, 12.0, 10.0]] for _ in range(count)]
    (folder / "set").mkdir()
    made = pa.table({"image": pictures, "label": [number % 2 for number in range(count)], "boxes": boxes, "mask": masks})
    pq.write_table(made, folder / "set" / "validation.parquet")
    (folder / "net.py").write_text(
        "from channelscope.zoo.models import SmallResNet\n\n\nclass Net(SmallResNet):\n    def __init__(self):\n"
        "        super().__init__(8, classes=2, channels=3, width=4)\n"
    )
    name = f"{folder / 'net.py'}:Net"
    model, images = zoo.load(name, data.ImageSource(f"hf:{folder / 'set'}", images=12))
    zoo.save_weights(model.state_dict(), folder / "w.safetensors")
    if empty:
        boxes[int(images.test.rows[0])] = []
    if outside:
        boxes[int(images.test.rows[1])] = [[20.0, 20.0, 30.0, 30.0]]
    pq.write_table(made.set_column(2, "boxes", pa.array(boxes, pa.list_(pa.list_(pa.float64())))), folder / "set" / "validation.parquet")
    return name, folder / "w.safetensors"
