"""Folders of pictures, one folder per class."""

from collections.abc import Iterable
from pathlib import Path

import torch

from channelscope.errors import DataError
from channelscope.zoo.shelf import ROLES, Shelf, Shelves

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


def folder(root: Path) -> Shelves:
    """Pictures in ROOT/CLASS/, or in ROOT/PART/CLASS/ where PART is train, val, validation or test.

    Classes are numbered in the alphabetical order of their folders, over all parts together. The further column `path` is
    each picture's path below ROOT.

    Raises   DataError if the folder is missing, or holds no picture in a class folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with one folder per class, found {'a file' if root.exists() else 'nothing'}")
    inner = _folders(root)
    by_part = {ROLES[path.name.lower()]: path for path in inner if path.name.lower() in ROLES}
    if not by_part or len(by_part) < len(inner):
        by_part = {"all": root}
    names = tuple(sorted({path.name for base in by_part.values() for path in _folders(base)}))
    parts = tuple(_shelf(part, root, base, names) for part, base in by_part.items())
    if not any(len(part) for part in parts):
        endings = " ".join(sorted(ENDINGS))
        raise DataError(f"{root}: expected pictures ({endings}) in one folder per class, found none in {len(names)} folders")
    return Shelves(f"folder:{root}", parts, names)


def _shelf(part: str, root: Path, base: Path, names: tuple[str, ...]) -> Shelf:
    files = [(path, label) for label, name in enumerate(names) for path in _pictures(base / name)]
    paths = [path for path, _ in files]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    extra = {"path": lambda row: paths[row].relative_to(root)}
    return Shelf(part, labels, lambda row: paths[row].read_bytes(), lambda row: str(paths[row]), extra)


def _folders(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(base: Path) -> Iterable[Path]:
    return sorted(path for path in base.rglob("*") if path.suffix.lower() in ENDINGS)
