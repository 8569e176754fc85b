"""Which rows of a data set are for training, calibration, validation and testing, and which index each image has."""

from collections.abc import Mapping

import torch

from channelscope.errors import DataError
from channelscope.types import Int, Tensor

CALIBRATION = 5000
VALIDATION_MOST = 5000
SMALL_SET = 1000
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1


def divide(
    sizes: Mapping[str, int], images: int | None = None, seed: int = 0
) -> tuple[dict[str, Int[Tensor, "images"]], Int[Tensor, "all"]]:
    """Rows of the four splits of a data set whose parts have these sizes, in row order.

    One fixed shuffle of all rows gives each image its index. Named parts keep their role; a validation part is for testing
    where there is no test part. What is missing is carved from the training images in index order: the last fifth for
    testing, then the last tenth (at most 5,000) for validation. Calibration images are drawn by `seed` from what remains.
    A set that has held-out images only, or no parts and fewer than 1,000 images, has nothing to train on: it is drawn by
    `seed` into calibration images (half of it, at most 5,000, unless `images` says otherwise) and test images.

    Returns  rows of train, calibration, validation and test (int64), and the index of every row.
    Raises   DataError if more calibration images are asked for than there are.
    """
    total = sum(sizes.values())
    shuffle = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    index = torch.empty_like(shuffle)
    index[shuffle] = torch.arange(total)
    pools: dict[str, Tensor] = {}
    start = 0
    for part, size in sizes.items():
        rows = torch.arange(start, start + size)
        pools[part], start = rows[index[rows].argsort()], start + size
    draw = torch.Generator().manual_seed(seed)
    trains = "train" in pools or len(pools.get("all", ())) >= SMALL_SET
    return (_with_training if trains else _without_training)(pools, images, draw), index


def _with_training(pools: dict[str, Tensor], images: int | None, draw: torch.Generator) -> dict[str, Tensor]:
    train = torch.cat([pools[part] for part in ("train", "all") if part in pools])
    test = pools.get("test", pools.get("validation"))
    validation = pools.get("validation") if "test" in pools else None
    if test is None:
        train, test = _carve(train, round(TEST_SHARE * len(train)))
    if validation is None:
        train, validation = _carve(train, min(VALIDATION_MOST, round(VALIDATION_SHARE * len(train))))
    calibration, _ = _drawn(train, images, min(CALIBRATION, len(train)), draw)
    return {"train": train, "calibration": calibration, "validation": validation, "test": test}


def _without_training(pools: dict[str, Tensor], images: int | None, draw: torch.Generator) -> dict[str, Tensor]:
    pool = torch.cat(list(pools.values()))
    calibration, test = _drawn(pool, images, min(CALIBRATION, len(pool) // 2), draw)
    none = pool[:0]
    return {"train": none, "calibration": calibration, "validation": none, "test": test}


def _carve(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return rows[: len(rows) - count], rows[len(rows) - count :]


def _drawn(pool: Tensor, images: int | None, usual: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    count = usual if images is None else images
    if count > len(pool):
        raise DataError(f"expected at most {len(pool)} calibration images, for that is all there are, asked for {count}")
    order = pool[torch.randperm(len(pool), generator=draw)]
    return order[:count], order[count:]
