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
    """Rows of train, calibration, validation and test (int64, in row order of the data set), and the index of every row.

    One fixed shuffle of all rows gives each image its index. Named parts keep their role; a validation part is for testing
    where there is no test part, and images of no named part are for training. What is missing is carved from the training
    images in index order: the last fifth for testing, then the last tenth (at most 5,000) for validation. Calibration images
    are drawn by `seed` from what remains.
    A set of fewer than 1,000 images without parts, or one that has held-out parts only, has nothing to train on. Its first
    half in index order (more if `images` asks for more) is drawn from by `seed` for calibration, at most 5,000 images unless
    `images` says otherwise. The rest is for testing, or for validation where there is a test part. What is tested on depends
    on no seed, and no calibration image comes from a part named test.

    Parameters
    ----------
    sizes
        Images of each part: train, validation, test, all.
    images
        Calibration images.
    seed
        Which calibration images are drawn.

    Raises
    ------
    DataError
        If more calibration images are asked for than there are, or there is a test part alone.

    Examples
    --------
    >>> splits, index = divide({"validation": 400}, images=100)
    >>> {name: len(rows) for name, rows in splits.items()}
    {'train': 0, 'calibration': 100, 'validation': 0, 'test': 200}
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
    trains = "train" in pools or len(pools.get("all", ())) >= SMALL_SET or ("all" in pools and len(pools) > 1)
    return (_with_training if trains else _without_training)(pools, images, draw), index


def _with_training(pools: dict[str, Tensor], images: int | None, draw: torch.Generator) -> dict[str, Tensor]:
    train = torch.cat([pools[part] for part in ("train", "all") if part in pools])
    test = pools.get("test", pools.get("validation"))
    validation = pools.get("validation") if "test" in pools else None
    if test is None:
        train, test = _carve(train, round(TEST_SHARE * len(train)))
    if validation is None:
        train, validation = _carve(train, min(VALIDATION_MOST, round(VALIDATION_SHARE * len(train))))
    calibration = _drawn(train, min(CALIBRATION, len(train)) if images is None else images, draw)
    return {"train": train, "calibration": calibration, "validation": validation, "test": test}


def _without_training(pools: dict[str, Tensor], images: int | None, draw: torch.Generator) -> dict[str, Tensor]:
    if set(pools) == {"test"}:
        raise DataError(
            "the set has a test part alone, and calibration images never come from one: add a training or validation part, or give "
            "the images without a part"
        )
    test = pools.pop("test", None)
    (whole,) = pools.values()
    half = len(whole) // 2
    count = min(CALIBRATION, half) if images is None else images
    pool, rest = whole[: max(half, count)], whole[max(half, count) :]
    calibration = _drawn(pool, count, draw)
    none = whole[:0]
    held = {"validation": none, "test": rest} if test is None else {"validation": rest, "test": test}
    return {"train": none, "calibration": calibration, **held}


def _carve(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return rows[: len(rows) - count], rows[len(rows) - count :]


def _drawn(pool: Tensor, count: int, draw: torch.Generator) -> Tensor:
    if count > len(pool):
        raise DataError(f"expected at most {len(pool)} calibration images, for that is all there are, asked for {count}")
    return pool[torch.randperm(len(pool), generator=draw)][:count]
