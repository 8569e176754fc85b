"""Small data sets on disk, for tests that read them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from channelscope.data.splits import Partition, PartitionedDataset


def picture(seed=0, size=(8, 8), gray=False):
    """Random pixels (H, W, 3), or (H, W)."""
    height, width = size[1], size[0]
    shape = (height, width) if gray else (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, kind="PNG"):
    """A picture file's bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_folder(root, counts, gray=False, size=(8, 8)):
    """`counts` is class → number of pictures; seeds run through all of them."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / name / f"{number:03d}.png").write_bytes(encoded(picture(seed, size, gray)))
            seed += 1
    return root


def features(label_names, image="image", label="label"):
    """The hub's metadata for a parquet schema."""
    known = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(label_names)}}
    return {b"huggingface": json.dumps({"info": {"features": known}}).encode()}


def write_parquet(path, labels, image="image", label="label", metadata=None, struct=True, size=(8, 8), **more):
    """A parquet file of random pictures with these labels and further columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [encoded(picture(seed, size)) for seed in range(len(labels))]
    cells = [{"bytes": value, "path": None} for value in data] if struct else data
    table = pa.table({image: cells, label: labels, **more})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def made(labels, classes=2, part="all", size=(8, 8), gray=False, name="made", **extra):
    """Shelves of one part in memory: picture `row` has seed `row`."""
    columns = {key: values.__getitem__ for key, values in extra.items()}
    shelf = Partition(
        part,
        torch.tensor(labels, dtype=torch.int64),
        lambda row: picture(row, size, gray),
        lambda row: f"{name} row {row}",
        columns,
    )
    return PartitionedDataset(name, (shelf,), tuple(f"class {k}" for k in range(classes)))
