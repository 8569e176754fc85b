"""ImageSource: a data set by name or path, opened as partitions.

Digits, CIFAR, folders of pictures, local folders of parquet files, and data sets of the Hugging Face hub.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from channelscope.data import torchvision_cpu
from channelscope.data.decoding import contents, is_gray, open_image
from channelscope.data.splits import ROLES, Partition, PartitionedDataset, from_arrays
from channelscope.errors import DataError, near_paths
from channelscope.lazy import LazyModule

if TYPE_CHECKING:
    import pyarrow as pa

sklearn_datasets = LazyModule("sklearn.datasets")


def digits() -> PartitionedDataset:
    """The 1,797 scanned digits of scikit-learn, 8×8 gray pixels; nothing is downloaded.

    Returns
    -------
    PartitionedDataset
        One part without a role, ten classes.

    Examples
    --------
    >>> len(digits().parts[0]), digits().class_names[-1]
    (1797, '9')
    """
    bunch: Any = sklearn_datasets.load_digits()
    pixels = np.round(np.asarray(bunch["images"]) * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in bunch["target_names"])
    return PartitionedDataset("digits", (from_arrays("all", pixels, bunch["target"], "digits"),), names)


def cifar(name: str, root: Path) -> PartitionedDataset:
    """CIFAR-10 or CIFAR-100, downloaded into `root` once.

    Parameters
    ----------
    name
        cifar10 or cifar100.
    root
        Folder of the archive.

    Returns
    -------
    PartitionedDataset
        A training and a test part.

    Raises
    ------
    DataError
        If the archive is not in `root` and cannot be downloaded.

    Examples
    --------
    >>> cifar("cifar10", Path("~/data").expanduser()).parts[0].role  # doctest: +SKIP
    'train'
    """
    source = torchvision_cpu.datasets.CIFAR10 if name == "cifar10" else torchvision_cpu.datasets.CIFAR100
    try:
        sets = {"train": source(str(root), train=True, download=True), "test": source(str(root), train=False, download=True)}
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name}: not found in {root} and the download failed ({error}). "
            f"Put the archive there, or pass data='hf:FOLDER' for a local folder of parquet files."
        ) from error
    parts = tuple(from_arrays(part, data.data, np.asarray(data.targets), name) for part, data in sets.items())
    return PartitionedDataset(name, parts, tuple(sets["train"].classes))


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


def image_folder(root: Path) -> PartitionedDataset:
    """Data set of a folder of pictures: ROOT/CLASS/, or ROOT/PART/CLASS/ where PART is train, val, validation or test.

    A folder named like a part is a part if it holds folders and no pictures. Where there are parts, other folders beside them
    are ignored with a warning. Classes are numbered in the alphabetical order of their folders, over all parts together.

    Parameters
    ----------
    root
        The folder.

    Returns
    -------
    PartitionedDataset
        Its parts, undecoded; the further column `path` is the path of each picture relative to ROOT.

    Raises
    ------
    DataError
        If the folder is missing, holds no picture in a class folder, or has two folders for one part.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         Path(folder, name).mkdir()
    ...         _ = Path(folder, name, "1.png").write_bytes(b"")
    ...     image_folder(Path(folder)).class_names
    ('cat', 'dog')
    """
    if not root.is_dir():
        found = "a file" if root.exists() else f"nothing{near_paths(root)}"
        raise DataError(f"{root}: expected a folder with one folder per class, found {found}")
    inner = _folders(root)
    bases = [("all", root)]
    named = [(ROLES[path.name.lower()], path) for path in inner if path.name.lower() in ROLES and _of_classes(path)]
    if named:
        bases, strays = named, [path.name for path in inner if path not in {part for _, part in named}]
        if strays:
            known = ", ".join(path.name for _, path in named)
            warnings.warn(f"{root}: the parts are {known}; passed over, for they are none: {', '.join(strays)}", UserWarning, stacklevel=2)
    parts = dict(bases)
    if len(parts) < len(bases):
        part = next(role for role, path in bases if parts[role] != path)
        twice = ", ".join(path.name for role, path in bases if role == part)
        raise DataError(f"{root}: expected one folder of {part} images, found {twice}; put them together, or move one away")
    names = tuple(sorted({path.name for base in parts.values() for path in _folders(base)}))
    partitions = tuple(_folder_partition(part, root, base, names) for part, base in parts.items())
    if not any(len(partition) for partition in partitions):
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{root}: expected pictures ({endings}) in one folder per class, found none in {len(names)} folders")
    return PartitionedDataset(f"folder:{root}", partitions, names)


def _of_classes(base: Path) -> bool:
    """Whether pictures lie in folders below, and none in the folder itself."""
    return bool(_folders(base)) and not any(_is_picture(path) for path in base.iterdir())


def _folder_partition(part: str, root: Path, base: Path, names: tuple[str, ...]) -> Partition:
    files = [(path, label) for label, name in enumerate(names) for path in _image_files(base / name)]
    paths = [path for path, _ in files]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    extra = {"path": lambda row: paths[row].relative_to(root)}
    return Partition(part, labels, lambda row: contents(paths[row]), lambda row: str(paths[row]), extra)


def _folders(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(base: Path) -> Iterable[Path]:
    return sorted(path for path in base.rglob("*") if _is_picture(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


CACHE = Path("~/.cache/channelscope")

Normalization: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ImageSource:
    """A data set, and how it is divided and normalized.

    Examples
    --------
    >>> ImageSource("folder:photos", size=224).batch_size
    128
    """

    data: str = "digits"
    """digits, cifar10, cifar100, folder:PATH (one folder per class) or hf:ID_OR_PATH (hub id or local folder of parquet files)"""
    batch_size: int = 128
    """images per batch"""
    seed: int = 0
    """seed of the calibration sample; the test split does not depend on it"""
    images: int | None = None
    """calibration images; by default 5000, or half of a small set that has no training images"""
    size: int | None = None
    """resize the shorter side to this many pixels and crop the center; by default the network's own input size, if it has one"""
    mean: tuple[float, ...] | None = None
    """subtracted from pixels in 0..1, one number per channel; by default the network's or the data set's own"""
    std: tuple[float, ...] | None = None
    """divides after the subtraction, one number per channel; by default the network's or the data set's own"""
    image_column: str | None = None
    """column of the images in a parquet or hub data set; by default found by type and name"""
    label_column: str | None = None
    """column of the labels in a parquet or hub data set; by default found by type and name"""
    skip_corrupt: bool = False
    """leave out images that cannot be decoded and count them, instead of stopping at the first"""
    root: Path = CACHE
    """folder in which downloaded data sets are kept"""

    def __post_init__(self) -> None:
        """Raise DataError for numbers out of range."""
        for name, value, least in (("batch_size", self.batch_size, 1), ("images", self.images, 1), ("size", self.size, 1)):
            if value is not None and value < least:
                raise DataError(f"expected {name} of at least {least}, received {value}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not (values and all(isinstance(value, int | float) and math.isfinite(value) for value in values)):
                raise DataError(f"{name}: expected finite numbers, one per channel or one for all, received {values}")
        if self.std is not None and min(self.std) <= 0:
            raise DataError(f"expected a positive std, received {self.std}")


def open_dataset(source: ImageSource) -> PartitionedDataset:
    """Data set of a source; nothing is decoded.

    Parameters
    ----------
    source
        Name of the data set, and options of reading it.

    Returns
    -------
    PartitionedDataset
        Its parts and class names.

    Raises
    ------
    DataError
        If the name is unknown, or the data set is missing, empty or ambiguous.

    Examples
    --------
    >>> open_dataset(ImageSource("digits")).name
    'digits'
    """
    kind, _, rest = source.data.partition(":")
    if source.data == "digits":
        return digits()
    if source.data in ("cifar10", "cifar100"):
        return cifar(source.data, source.root.expanduser())
    if kind == "folder" and rest:
        return image_folder(Path(rest).expanduser())
    if kind == "hf" and rest:
        return parquet_or_hub(rest, source.image_column, source.label_column)
    raise DataError(f"unknown data '{source.data}': expected digits, cifar10, cifar100, folder:PATH or hf:ID_OR_PATH")


def native_shape(found: PartitionedDataset) -> tuple[int, int, int]:
    """Shape of the pictures of a data set before resizing.

    Parameters
    ----------
    found
        The data set.

    Returns
    -------
    tuple
        Channels (3 if any picture has color, else 1), and height and width of the first readable picture.

    Raises
    ------
    DataError
        If no picture can be read.

    Examples
    --------
    >>> native_shape(digits())
    (1, 8, 8)
    """
    reason, size = None, None
    for part in found.parts:
        for row in range(len(part)):
            try:
                data = part.read(row)
                gray = is_gray(data, part.location(row))
                size = size or open_image(data, part.location(row)).size
            except DataError as error:
                reason = error
                continue
            if not gray:
                return (3, size[1], size[0])
    if size is None:
        raise DataError(f"{found.name}: no image can be read; the last one: {reason}")
    return (1, size[1], size[0])


IMAGE_NAMES = ("image", "img", "picture", "jpg", "png")

LABEL_NAMES = ("label", "labels", "fine_label", "target", "class", "cls", "y")

FORMS = {"image": "encoded bytes", "label": "whole numbers from 0 or as text"}
"""what a column of images or labels holds"""

MOST_CLASSES = 1_000_000
"""numbers of classes from which on labels are taken for something else, such as ids"""


def parquet_or_hub(name: str, image_column: str | None = None, label_column: str | None = None) -> PartitionedDataset:
    """Data set of a local folder of parquet files, or of the Hugging Face hub where there is no such folder.

    A file belongs to the part that its name starts with (train-00000-of-00003.parquet) or that its folder is named after.
    Encoded pictures of a local folder stay in memory.

    Parameters
    ----------
    name
        Path of the folder, or id of the data set on the hub.
    image_column
        Column of the pictures; by default found by type and name.
    label_column
        Column of the labels; by default found by type and name.

    Returns
    -------
    PartitionedDataset
        Its parts, undecoded.

    Raises
    ------
    DataError
        If there is no such data set, or its columns are ambiguous.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow, pyarrow.parquet
    >>> table = pyarrow.table({"image": [b"encoded", b"pixels"], "label": [0, 1]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pyarrow.parquet.write_table(table, f"{folder}/test-0.parquet")
    ...     dataset = parquet_or_hub(folder)
    >>> dataset.parts[0].role, dataset.parts[0].read(1)
    ('test', b'pixels')
    """
    try:
        tables = _local(Path(name).expanduser()) if Path(name).expanduser().is_dir() else _remote(name)
    except ImportError as error:
        raise DataError(f"hf:{name}: {error.name} is not installed; pip install 'channelscope[hf]'") from error
    first = tables[min(tables, key=("train", "validation", "all", "test").index)]  # test parts often come without labels
    features = _features(first)
    image = _column(first, features, image_column, "image", IMAGE_NAMES, _holds_images)
    label = _column(first, features, label_column, "label", LABEL_NAMES, _holds_labels)
    names = _class_names([first, *tables.values()], features, label)
    parts = tuple(_parquet_partition(name, part, table, (image, label), names) for part, table in tables.items())
    return PartitionedDataset(f"hf:{name}", parts, names)


def _local(root: Path) -> "dict[str, pa.Table]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        words = (path.name.split("-")[0].removesuffix(".parquet").lower(), path.parent.name.lower())
        part = next((ROLES[word] for word in words if word in ROLES), "all")
        files.setdefault(part, []).append(path)
    if not files:
        raise DataError(f"{root}: expected parquet files (train-*.parquet, test-*.parquet, …), found none")
    tables = {}
    for part, paths in files.items():
        try:
            tables[part] = pa.concat_tables([pq.read_table(path) for path in paths])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{root}: cannot read the {part} files {', '.join(path.name for path in paths)} ({error})") from error
    return tables


def _remote(name: str) -> "dict[str, pa.Table]":
    import datasets
    import pyarrow as pa

    try:
        found = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"hf:{name}: neither a local folder nor a data set that can be downloaded ({error}){near_paths(Path(name))}"
        ) from error
    tables: dict[str, list[pa.Table]] = {}
    for part, data in found.items():
        tables.setdefault(ROLES.get(str(part).split(".")[0].lower(), "all"), []).append(data.with_format("arrow").data.table)
    return {part: pa.concat_tables(several) for part, several in tables.items()}


def _features(table: "pa.Table") -> dict[str, Any]:
    """The hub's metadata of each column; empty for plain parquet, and for metadata of another form."""
    try:
        found = json.loads((table.schema.metadata or {}).get(b"huggingface") or "{}")
    except ValueError:
        return {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    return {name: about for name, about in found.items() if isinstance(about, dict)} if isinstance(found, dict) else {}


def _holds_images(table: "pa.Table", features: dict[str, Any], name: str) -> bool:
    import pyarrow as pa

    kind = table.schema.field(name).type
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        or features.get(name, {}).get("_type") == "Image"
    )


def _holds_labels(table: "pa.Table", features: dict[str, Any], name: str) -> bool:
    import pyarrow as pa

    kind = _value_type(table, name)
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(table, name)


def _value_type(table: "pa.Table", name: str) -> "pa.DataType":
    """Type of a column's values, of a dictionary's too."""
    import pyarrow as pa

    kind = table.schema.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(table: "pa.Table", name: str) -> bool:
    import pyarrow as pa

    kind = _value_type(table, name)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _described(table: "pa.Table") -> str:
    """Columns with their types, for messages."""
    return ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in table.schema)


def _column(
    table: "pa.Table",
    features: dict[str, Any],
    given: str | None,
    what: str,
    usual: Sequence[str],
    fits: "Callable[[pa.Table, dict[str, Any], str], bool]",
) -> str:
    """The column that holds what is wanted: the given one, the one with a usual name, or the only one of that type."""
    columns = table.column_names
    if given is not None:
        if given not in columns or not fits(table, features, given):
            raise DataError(f"expected a column '{given}' of {what}s, found columns {_described(table)}; pass another {what}_column")
        return given
    able = [name for name in columns if fits(table, features, name)]
    named = [name for name in usual if name in able]
    if named or len(able) == 1:
        return (named or able)[0]
    raise DataError(
        f"expected one column of {what}s, found {len(able)} that could be ({', '.join(able) or 'none'}) "
        f"among {_described(table)}; pass {what}_column, or write {what}s as {FORMS[what]}"
    )


def _class_names(tables: "list[pa.Table]", features: dict[str, Any], label: str) -> tuple[str, ...]:
    given = features.get(label, {}).get("names")
    if given and isinstance(given, list):
        return tuple(map(str, given))
    values: set[Any] = set()
    for table in (table for table in tables if label in table.column_names):
        values |= set(table.column(label).unique().to_pylist())
    if _is_text(tables[0], label):
        return tuple(sorted(str(value) for value in values if value is not None))
    largest = max((int(value) for value in values if value is not None), default=-1)
    if largest >= MOST_CLASSES:
        raise DataError(f"column {label}: expected classes numbered from 0, received the number {largest:,}; number them 0, 1, 2, …")
    return tuple(str(number) for number in range(largest + 1))


def _parquet_partition(name: str, part: str, table: "pa.Table", columns: tuple[str, str], names: tuple[str, ...]) -> Partition:
    import pyarrow as pa
    import pyarrow.compute as pc

    image, label = columns
    if image not in table.column_names:
        raise DataError(
            f"{name}: the {part} part has no column '{image}' as the first part has; its columns are {', '.join(table.column_names)}"
        )
    withheld = label not in table.column_names
    pictures, raw = table.column(image), [None] * len(table) if withheld else table.column(label).to_pylist()
    files = None
    if pa.types.is_struct(pictures.type):
        has_path = pictures.type.get_field_index("path") >= 0
        files = pc.call_function("struct_field", [pictures], pc.StructFieldOptions(["path"])) if has_path else None
        pictures = pc.call_function("struct_field", [pictures], pc.StructFieldOptions(["bytes"]))
    if not withheld and _is_text(table, label):
        number = {text: row for row, text in enumerate(names)}
        strange = [text for text in raw if text is not None and text not in number]
        if strange:
            raise DataError(f"{name}: the {part} part has the label '{strange[0]}', which is no class: {', '.join(names[:5])}, …")
        raw = [None if text is None else number[text] for text in raw]
    labels = torch.tensor([-1 if value is None else int(value) for value in raw], dtype=torch.int64)

    def place(row: int) -> str:
        return f"{name}, {part} row {row}, column {image}"

    def fetch(row: int) -> bytes:
        data = pictures[row].as_py()
        if data is None and files is not None and files[row].is_valid:
            return contents(Path(files[row].as_py()))
        if data is None:
            raise DataError(f"{place(row)}: expected an encoded picture, received none")
        if not isinstance(data, bytes):
            raise DataError(f"{place(row)}: expected the bytes of an encoded picture, received a {type(data).__name__}")
        return data

    def reader(column: str) -> Callable[[int], Any]:
        cells = table.column(column)
        return lambda row: cells[row].as_py()

    extra = {column: reader(column) for column in table.column_names if column not in columns}
    return Partition(part, labels, fetch, place, extra)
