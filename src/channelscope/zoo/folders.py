"""Folders of pictures, one folder per class."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from channelscope.errors import DataError
from channelscope.zoo.pictures import contents
from channelscope.zoo.shelf import ROLES, Shelf, Shelves

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


def folder(root: Path) -> Shelves:
    """All parts of a folder of pictures: ROOT/CLASS/, or ROOT/PART/CLASS/ where PART is train, val, validation or test.

    A folder named like a part is one if it has a folder of pictures for each class and no pictures of its own. Where there is
    one, what lies beside the parts is passed over, and a warning names it.
    Classes are numbered in the alphabetical order of their folders, over all parts together. The further column `path` is
    each picture's path below ROOT.

    Raises
    ------
    DataError
        If the folder is missing, holds no picture in a class folder, or has two folders for one part.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with one folder per class, found {'a file' if root.exists() else 'nothing'}")
    inner = _folders(root)
    bases = [("all", root)]
    named = [(ROLES[path.name.lower()], path) for path in inner if path.name.lower() in ROLES and _of_classes(path)]
    if named:
        bases, strays = named, [path.name for path in inner if path not in {own for _, own in named}]
        if strays:
            known = ", ".join(path.name for _, path in named)
            warnings.warn(f"{root}: the parts are {known}; passed over, for they are none: {', '.join(strays)}", UserWarning, stacklevel=2)
    parts = dict(bases)
    if len(parts) < len(bases):
        part = next(role for role, path in bases if parts[role] != path)
        twice = ", ".join(path.name for role, path in bases if role == part)
        raise DataError(f"{root}: expected one folder of {part} images, found {twice}; put them together, or move one away")
    names = tuple(sorted({path.name for base in parts.values() for path in _folders(base)}))
    shelves = tuple(_shelf(part, root, base, names) for part, base in parts.items())
    if not any(len(shelf) for shelf in shelves):
        endings = " ".join(sorted(ENDINGS))
        raise DataError(f"{root}: expected pictures ({endings}) in one folder per class, found none in {len(names)} folders")
    return Shelves(f"folder:{root}", shelves, names)


def _of_classes(base: Path) -> bool:
    """Whether pictures lie in folders below, and none in the folder itself."""
    return bool(_folders(base)) and not any(_is_picture(path) for path in base.iterdir())


def _shelf(part: str, root: Path, base: Path, names: tuple[str, ...]) -> Shelf:
    files = [(path, label) for label, name in enumerate(names) for path in _pictures(base / name)]
    paths = [path for path, _ in files]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    extra = {"path": lambda row: paths[row].relative_to(root)}
    return Shelf(part, labels, lambda row: contents(paths[row]), lambda row: str(paths[row]), extra)


def _folders(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(base: Path) -> Iterable[Path]:
    return sorted(path for path in base.rglob("*") if _is_picture(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.is_dir()
