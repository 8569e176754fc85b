"""Files as they should not be: odd pictures, label columns of every type, and damage to files that the tool writes."""

import datetime
import decimal
import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from image_files import encoded, picture


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _of_mode(mode: str, kind: str, **options) -> bytes:
    return _saved(Image.fromarray(picture(3)).convert(mode), kind, **options)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, depth: int, color: int, data: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(Image.fromarray(picture(4, (8, 5))), "JPEG", exif=exif)


def _animated(kind: str) -> bytes:
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:])


def _flipped(data: bytes, at: float) -> bytes:
    place = int(at * (len(data) - 1))
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


PICTURES = {
    "cmyk.jpg": lambda: _of_mode("CMYK", "JPEG"),
    "gray.jpg": lambda: _of_mode("L", "JPEG"),
    "palette.png": lambda: _of_mode("P", "PNG"),
    "palette.gif": lambda: _of_mode("P", "GIF"),
    "bilevel.png": lambda: _of_mode("1", "PNG"),
    "bilevel.bmp": lambda: _of_mode("1", "BMP"),
    "alpha.png": lambda: _of_mode("RGBA", "PNG"),
    "alpha_gray.png": lambda: _of_mode("LA", "PNG"),
    "lab.tif": lambda: _of_mode("LAB", "TIFF"),
    "cmyk.tif": lambda: _of_mode("CMYK", "TIFF"),
    "ycbcr.jpg": lambda: _of_mode("YCbCr", "JPEG"),
    "pixels16.png": lambda: _saved(Image.fromarray(np.full((8, 8), 40000, np.uint16)), "PNG"),
    "color16.png": lambda: _png(2, 2, 16, 2, (b"\0" + bytes(range(12))) * 2),
    "pixels32.tif": lambda: _saved(Image.fromarray(np.full((8, 8), 2**30, np.int32)), "TIFF"),
    "real.tif": lambda: _saved(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
    "animated.gif": lambda: _animated("GIF"),
    "animated.webp": lambda: _animated("WEBP"),
    "pages.tif": lambda: _animated("TIFF"),
    "rotated.jpg": _rotated,
    "one.png": lambda: encoded(picture(5, (1, 1))),
    "line.png": lambda: encoded(picture(5, (3000, 1))),
    "column.png": lambda: encoded(picture(5, (1, 3000))),
    "huge.png": lambda: _png(60000, 60000, 8, 2, b""),
    "large.png": lambda: _png(9000, 9000, 1, 0, b""),
    "nothing.png": lambda: _png(0, 0, 8, 2, b""),
    "short.png": lambda: encoded(picture(6, (32, 32)))[:300],
    "short.jpg": lambda: _of_mode("RGB", "JPEG")[:-40],
    "head.jpg": lambda: b"\xff\xd8\xff\xe0",
    "flipped.png": lambda: _flipped(encoded(picture(7)), 0.6),
    "flipped.jpg": lambda: _flipped(_of_mode("RGB", "JPEG"), 0.4),
    "bomb.png": lambda: encoded(picture(8))[:-12] + _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**21))) + _chunk(b"IEND", b""),
    "empty.png": lambda: b"",
    "text.png": lambda: b"these are words, not pixels\n",
    "vector.png": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pointer.png": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1\n",
    "named_wrong.jpg": lambda: encoded(picture(9)),
    "icon.png": lambda: _of_mode("RGBA", "ICO"),
    "portable.ppm": lambda: b"P6\n2 2\n65535\n" + bytes(24),
    "portable.pgm": lambda: b"P5\n-1 2\n255\n" + bytes(4),
    "new\nline.png": lambda: encoded(picture(10)),
    "[red]markup[bold].png": lambda: b"no picture",
    os.fsdecode(b"latin\xe9.png"): lambda: b"no picture",
}
"""name of an odd picture → its bytes"""


def photos(folder: Path, odd: list[str], gray: bool = False, count: int = 8) -> Path:
    """A folder of pictures in three classes, odd ones among the first class."""
    for label, name in enumerate(("cat", "dog", "eel")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number:03d}.png").write_bytes(encoded(picture(10 * label + number, gray=gray)))
    for name in odd:
        (folder / "cat" / name).write_bytes(PICTURES[name]())
    return folder


_DAY = datetime.date(2026, 11, 29)

LABELS = {
    "int8": lambda n: pa.array(np.arange(n) % 3, pa.int8()),
    "uint64": lambda n: pa.array(np.arange(n) % 3, pa.uint64()),
    "negative": lambda n: pa.array([-2] * n),
    "minus one": lambda n: pa.array([-1] * n),
    "some missing": lambda n: pa.array([None if k % 4 == 0 else k % 3 for k in range(n)]),
    "all missing": lambda n: pa.nulls(n, pa.int64()),
    "null": lambda n: pa.nulls(n),
    "sparse": lambda n: pa.array([1_000_000_000_000 * (k % 3) for k in range(n)]),
    "largest": lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    "whole float": lambda n: pa.array([float(k % 3) for k in range(n)]),
    "float": lambda n: pa.array([k / 7 for k in range(n)]),
    "nan": lambda n: pa.array([float("nan")] * n),
    "bool": lambda n: pa.array([k % 2 == 0 for k in range(n)]),
    "text": lambda n: pa.array([f"kind {k % 3}" for k in range(n)]),
    "large text": lambda n: pa.array([f"kind {k % 3}" for k in range(n)], pa.large_string()),
    "text with none": lambda n: pa.array([None if k % 4 == 0 else f"kind {k % 3}" for k in range(n)]),
    "text view": lambda n: pa.array([f"kind {k % 3}" for k in range(n)], pa.string_view()),
    "dictionary": lambda n: pa.array([f"kind {k % 3}" for k in range(n)]).dictionary_encode(),
    "dictionary of numbers": lambda n: pa.array([k % 3 for k in range(n)]).dictionary_encode(),
    "one-hot": lambda n: pa.array([[float(k % 3 == column) for column in range(3)] for k in range(n)]),
    "lists": lambda n: pa.array([[k % 3] * (k % 3) for k in range(n)]),
    "fixed lists": lambda n: pa.array([[k % 3, 1] for k in range(n)], pa.list_(pa.int64(), 2)),
    "struct": lambda n: pa.array([{"id": k % 3} for k in range(n)]),
    "decimal": lambda n: pa.array([decimal.Decimal(k % 3) for k in range(n)]),
    "date": lambda n: pa.array([_DAY] * n),
    "time": lambda n: pa.array([datetime.datetime(2026, 11, 29, 10)] * n),
    "bytes": lambda n: pa.array([b"cat"] * n),
    "half": lambda n: pa.array(np.arange(n).astype(np.float16) % 3),
    "one class": lambda n: pa.array([0] * n),
    "each its own": lambda n: pa.array(range(n)),
}
"""type of a label column → its values for so many pictures"""

IMAGES = {
    "struct": lambda data: pa.array([{"bytes": each, "path": None} for each in data]),
    "bytes": lambda data: pa.array(data, pa.binary()),
    "large bytes": lambda data: pa.array(data, pa.large_binary()),
    "byte view": lambda data: pa.array(data, pa.binary_view()),
    "paths": lambda data: pa.array([{"bytes": None, "path": f"no/such/{k}.png"} for k in range(len(data))]),
    "text": lambda data: pa.array([f"{k}.png" for k in range(len(data))]),
    "numbers": lambda data: pa.array([list(each) for each in data]),
    "struct of text": lambda data: pa.array([{"bytes": "pixels"}] * len(data)),
    "some missing": lambda data: pa.array([None if k % 3 == 0 else {"bytes": each} for k, each in enumerate(data)]),
    "missing": lambda data: pa.nulls(len(data)),
    "no pictures": lambda data: pa.array([b"words"] * len(data)),
    "words of a struct": lambda data: pa.array([{"data": each} for each in data]),
}
"""type of an image column → its values for these encoded pictures"""

METADATA = {
    "none": None,
    "damaged": b"{",
    "list": b"[1, 2]",
    "number": b"3",
    "empty": b"{}",
    "null info": b'{"info": null}',
    "text features": b'{"info": {"features": "image"}}',
    "text feature": b'{"info": {"features": {"label": "ClassLabel", "image": "Image"}}}',
    "few names": b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a"]}}}}',
    "names of numbers": b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 7}}}}',
    "not utf-8": b"\xff\xfe",
}
"""what the hub's metadata of a parquet file says"""


def parquet(folder: Path, labels: str = "int8", images: str = "struct", metadata: str = "none", count: int = 24) -> Path:
    """A folder with one parquet file."""
    folder.mkdir(parents=True)
    data = [encoded(picture(seed)) for seed in range(count)]
    table = pa.table({"image": IMAGES[images](data), "label": LABELS[labels](count)})
    about = METADATA[metadata]
    pq.write_table(table.replace_schema_metadata(None if about is None else {b"huggingface": about}), folder / "train-0.parquet")
    return folder


VALUES = (None, True, -1, 0, 3.5, 10**30, "", "words", [], [None], {}, {"a": 1}, float("nan"))
"""what an entry of a JSON file becomes"""


def damage(path: Path, how: str, number: int) -> None:
    """Damage one file, or put something else in its place.

    `how` is cut, flip, zeros, empty, text, json, header, table, gone, folder, link, closed or latin; `number` says where or how much.
    """
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: number % max(len(data), 1)])
    elif how == "flip" and data:
        places = np.random.default_rng(number).integers(0, len(data), 1 + number % 5)
        changed = bytearray(data)
        for place in places:
            changed[place] ^= 1 << (number % 8)
        path.write_bytes(bytes(changed))
    elif how == "zeros":
        start = number % max(len(data), 1)
        path.write_bytes(data[:start] + bytes(len(data) - start))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("these are words\n" * (1 + number % 5), encoding="utf-8")
    elif how == "latin":
        path.write_bytes(b"\xe9\xff" + data)
    elif how == "json":
        _change_json(path, data, number)
    elif how == "header":
        _change_header(path, data, number)
    elif how == "table":
        _change_table(path, data, number)
    elif how in ("gone", "folder", "link"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "link":
            path.symlink_to(path.name if number % 2 else "no such file")
    elif how == "closed":
        path.chmod(0)


def _change_json(path: Path, data: bytes, number: int) -> None:
    """Give one entry of a JSON file another value, or take it away."""
    try:
        whole = json.loads(data)
    except ValueError:
        return
    path.write_text(json.dumps(_changed(whole, np.random.default_rng(number))), encoding="utf-8")


def _changed(whole, dice: np.random.Generator):
    """A JSON value with one entry changed; most entries are as near to the top as to the leaves."""
    if not isinstance(whole, dict | list) or not whole or dice.random() < 0.2:
        return VALUES[dice.integers(len(VALUES))]
    keys = list(whole) if isinstance(whole, dict) else list(range(len(whole)))
    key = keys[dice.integers(len(keys))]
    if dice.random() < 0.2:
        del whole[key]
    else:
        whole[key] = _changed(whole[key], dice)
    return whole


def _change_header(path: Path, data: bytes, number: int) -> None:
    """Change the JSON header of a safetensors file, the JSON texts in its metadata included."""
    dice = np.random.default_rng(number)
    length = int.from_bytes(data[:8], "little")
    try:
        head = json.loads(data[8 : 8 + length])
    except ValueError:
        return
    about = head.get("__metadata__", {})
    if about and dice.random() < 0.7:
        key = list(about)[dice.integers(len(about))]
        try:
            about[key] = json.dumps(_changed(json.loads(about[key]), dice))
        except ValueError:
            about[key] = ["", "words", "-1", "10000000000000000000000"][dice.integers(4)]
    else:
        name = list(head)[dice.integers(len(head))]
        entry = head.pop(name)
        if name != "__metadata__" and dice.random() < 0.7:
            if dice.random() < 0.5:
                head[name + "x"] = entry
            else:
                head[name] = entry | {"shape": [int(np.prod(entry["shape"])), 1]}
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _change_table(path: Path, data: bytes, number: int) -> None:
    """Change one cell of a CSV file, or drop a line or a column of it."""
    dice = np.random.default_rng(number)
    lines = [line.split(",") for line in data.decode("utf-8", "replace").splitlines()]
    if not lines:
        return
    row = int(dice.integers(len(lines)))
    column = int(dice.integers(len(lines[row])))
    kind = dice.integers(4)
    if kind == 0:
        del lines[row]
    elif kind == 1:
        lines = [line[:column] + line[column + 1 :] for line in lines]
    else:
        lines[row][column] = ["", "words", "nan", "-1", "1e400", '"'][dice.integers(6)]
    path.write_text("\n".join(map(",".join, lines)) + "\n", encoding="utf-8")


SHOWN = {".html", ".png", ".svg"}
"""endings of files that are only looked at"""


def files(place: Path) -> list[Path]:
    """The files in a folder that a command may read; the file itself where it is none."""
    return [path for path in place.rglob("*") if path.is_file() and path.suffix not in SHOWN] if place.is_dir() else [place]


DAMAGE = ("cut", "flip", "zeros", "empty", "text", "json", "header", "table", "gone", "folder", "link", "closed", "latin")


def copy(source: Path, target: Path) -> Path:
    """A copy of a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    return target
