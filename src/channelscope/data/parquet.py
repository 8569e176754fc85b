"""Tables of images: local folders of parquet files, and data sets of the Hugging Face hub."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from channelscope.data.decoding import contents
from channelscope.data.splits import ROLES, Partition, PartitionedDataset
from channelscope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

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
        raise DataError(f"hf:{name}: neither a local folder nor a data set that can be downloaded ({error})") from error
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
