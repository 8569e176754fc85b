"""Tables: pandas frames whose attrs describe each column; on disk a CSV or Parquet file with a JSON file beside it.

In print, numbers are rounded so that no value looks like zero or like its maximum unless it is.
"""

import importlib.util
import json
import math
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from channelscope.errors import FormatError, InputError
from channelscope.storage import atomic_file
from channelscope.tables.quantities import COLUMNS, Column, Schema

MINUS = "\u2212"

TINIEST_PLAIN = -4
"""decimal exponent below which a number is written in powers of ten"""


def format_number(value: float, digits: int = 3, top: float | None = None) -> str:
    """A number as text with `digits` decimals.

    A value that is not zero never prints as zero: it has more decimals or an exponent. A value below `top` never prints as
    `top`: it is truncated instead of rounded. Whole numbers have thousands separators.

    Parameters
    ----------
    value
        nan is "undefined", infinity is "∞".
    digits
        Decimals; 0 for counts.
    top
        The maximum, 1 for a fraction or a correlation.

    Returns
    -------
    str
        With a minus sign (U+2212) for negative numbers.

    Examples
    --------
    >>> format_number(0.12345), format_number(0.00004), format_number(0.9999, top=1.0), format_number(12345)
    ('0.123', '4e−5', '0.999', '12,345')
    """
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = abs(value)
    if isinstance(value, Integral):
        text = f"{size:,}"
    elif top is not None and size < top and float(f"{size:.{digits}f}") >= top:
        text = _truncated(size, max(digits, 1))
    elif size and float(f"{size:.{digits}f}") == 0:
        text = _tiny(size)
    else:
        text = f"{size:,.{digits}f}"
    return MINUS + text if value < 0 else text


def _truncated(size: float, digits: int) -> str:
    return f"{math.floor(size * 10**digits) / 10**digits:.{digits}f}"


def _tiny(size: float) -> str:
    """One significant digit: 0.0004, or 4e−7 when the zeros would have to be counted."""
    mantissa, exponent = f"{size:.0e}".split("e")
    if int(exponent) >= TINIEST_PLAIN:
        return f"{size:.{-int(exponent)}f}"
    return f"{mantissa}e{MINUS}{-int(exponent)}"


def format_percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent; 100 % is printed only when it is true.

    Parameters
    ----------
    fraction
        0..1; nan is "undefined".
    digits
        Decimals.

    Returns
    -------
    str
        Such as "99.9 %".

    Examples
    --------
    >>> format_percent(0.9996), format_percent(1.0)
    ('99.9 %', '100.0 %')
    """
    if math.isnan(fraction):
        return "undefined"
    return f"{format_number(100 * fraction, digits, top=100.0)} %"


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1.

    Parameters
    ----------
    count
        The number.
    noun
        The noun, in the singular.

    Returns
    -------
    str
        With a thousands separator.

    Examples
    --------
    >>> counted(1200, "kernel"), counted(1, "kernel")
    ('1,200 kernels', '1 kernel')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_interval(
    value: float, low: float, high: float, n: int | None = None, of: str = "", digits: int = 2, top: float | None = None
) -> str:
    """A number with its interval and sample size as text.

    Parameters
    ----------
    value
        The estimate; nan is "undefined".
    low, high
        Ends of the interval; nan for "[no interval]".
    n
        Number of independent units; None to leave it out.
    of
        What n counts, in the plural.
    digits, top
        As for `format_number`.

    Returns
    -------
    str
        Such as "0.23 [0.18, 0.28] (n = 19 layers)".

    Examples
    --------
    >>> format_interval(0.234, 0.18, 0.281, 19, "layers")
    '0.23 [0.18, 0.28] (n = 19 layers)'
    """
    text = format_number(value, digits, top)
    if math.isnan(value):
        bounds = ""
    elif math.isnan(low) or math.isnan(high):
        bounds = " [no interval]"
    else:
        bounds = f" [{format_number(low, digits, top)}, {format_number(high, digits, top)}]"
    if n is None:
        return text + bounds
    unit = of[:-1] if n == 1 and of.endswith("s") else of
    return f"{text}{bounds} (n = {n:,}{' ' + unit if unit else ''})"


FORMAT = 1

EARLIER_NAMES = {
    "ablations": "lesions",
    "ablated_channels": "lesioned_channels",
    "ablation_correlations": "lesion_correlations",
    "ablation_matched": "lesion_matched",
    "ablation_partial": "lesion_partial",
    "communities": "graphs",
    "community_depth": "graph_depth",
    "community_nodes": "graph_nodes",
    "community_edges": "graph_edges",
    "gradients": "theory",
    "gradient_layers": "theory_layers",
    "gradient_skipped": "theory_skipped",
    "explanation": "why",
    "explanation_scores": "why_scores",
    "recovered": "repaid",
    "consumers": "readers",
    "notes": "said",
}
"""table → its name in run folders of earlier versions, which are still read"""

EARLIER_COLUMNS = {
    "recovered": {"repaid": "recovered", "stand_in": "replacement", "which": "subset"},
    "ablated_channels": {
        f"repaid_{replacement}_{quantity}": f"recovered_{replacement}_{quantity}"
        for replacement in ("hull", "random", "mean")
        for quantity in ("loss", "kl")
    },
    "consumers": {"readers": "consumers"},
    "notes": {"said": "note"},
    "explanation": {"said": "sentence"},
    "propagation": {"reader": "consumer"},
}
"""table → column of earlier versions → its name now"""

DERIVED = {"_se": "standard error of", "_low": "lower end of the 95 % interval of", "_high": "upper end of the 95 % interval of"}

Columns = Mapping[str, Column | Mapping[str, Any]]


def table(
    rows: pd.DataFrame | Iterable[Mapping[str, Any]], name: str, columns: Columns | None = None, provenance: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """A frame that describes itself: attrs["name"], attrs["columns"][column] = {unit, digits, meaning, source, …}, attrs["provenance"].

    Parameters
    ----------
    rows
        The rows, as dictionaries or as a frame.
    name
        Name of the table.
    columns
        Descriptions of columns that are not in `COLUMNS`; NAME_se, NAME_low and NAME_high take theirs from NAME.
    provenance
        What the numbers were made from.

    Returns
    -------
    DataFrame
        A copy, with one plain type per column.

    Raises
    ------
    InputError
        For a column without a description, or one that holds lists or mixed types.

    Examples
    --------
    >>> frame = table([{"site": "conv1", "accuracy": 0.5, "accuracy_low": 0.4}], "layers")
    >>> frame.attrs["columns"]["accuracy"]["unit"], frame.attrs["columns"]["accuracy_low"]["meaning"]
    ('fraction', "lower end of the 95 % interval of share of images whose label is the network's first choice")
    """
    frame = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows)).copy()
    return describe(frame, {"name": name, "columns": columns or {}, "provenance": dict(provenance or {})})


def fill(schema: Schema, rows: pd.DataFrame | Iterable[Mapping[str, Any]], **facts: Any) -> pd.DataFrame:
    """Table of a schema: a frame under the schema's name with every column described.

    Parameters
    ----------
    schema
        Name and columns.
    rows
        The rows, as a frame or as mappings from column to value. Without rows the table has the schema's columns.
    **facts
        Provenance of the table, such as the number of images; `units` describes further columns by their unit.

    Returns
    -------
    DataFrame
        The rows, with `attrs` as `table` gives them.

    Raises
    ------
    InputError
        For a column that neither the schema nor `units` describes.

    Examples
    --------
    >>> curve = Schema("hull_curve", "site", {"size": Column.count("members of the hull", "members")})
    >>> frame = fill(curve, [{"site": "conv1", "size": 2}], images=100)
    >>> frame.attrs["name"], frame.attrs["columns"]["size"]["unit"], frame.attrs["provenance"]
    ('hull_curve', 'members', {'images': 100})
    >>> list(fill(curve, []).columns)
    ['site', 'size']
    """
    frame = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows))
    if not len(frame.columns):
        frame = pd.DataFrame(columns=list(schema.names))
    units = facts.get("units", {})
    known = {*schema.names, *units}
    unknown = [name for name in map(str, frame.columns) if not {name, *(name.removesuffix(ending) for ending in DERIVED)} & known]
    if unknown:
        raise InputError(
            f"table '{schema.name}': expected the columns {', '.join(schema.names)}; received {', '.join(unknown)}: add to its schema"
        )
    return describe(frame, {"name": schema.name, "columns": schema.columns, **facts})


def describe(frame: pd.DataFrame, attrs: Mapping[Any, Any]) -> pd.DataFrame:
    """A frame with every column described, from attrs["columns"], from attrs["units"], or by its name.

    Parameters
    ----------
    frame
        Any frame with unique column names.
    attrs
        "name", "columns" (descriptions), "units" and "provenance"; all other entries become provenance.

    Returns
    -------
    DataFrame
        A copy, with one plain type per column.

    Raises
    ------
    InputError
        For a column without a description, one that holds lists or mixed types, or two columns of one name.

    Examples
    --------
    >>> frame = describe(pd.DataFrame({"speed": [1.0]}), {"name": "runs", "units": {"speed": "m/s"}, "seed": 3})
    >>> frame.attrs["columns"]["speed"]["unit"], frame.attrs["provenance"]
    ('m/s', {'seed': 3})
    """
    name = str(attrs.get("name", "table"))
    if not frame.columns.is_unique:
        raise InputError(f"table '{name}' has two columns of one name: {', '.join(map(str, frame.columns[frame.columns.duplicated()]))}")
    given, units = attrs.get("columns", {}), attrs.get("units", {})
    rest = {key: value for key, value in attrs.items() if key not in ("name", "columns", "units", "provenance")}
    clean = pd.DataFrame({column: _clean(values, name) for column, values in frame.items()}, index=frame.index)
    clean.attrs = {
        "name": name,
        "columns": {str(column): _description(str(column), given, units, name) for column in frame.columns},
        "provenance": {**attrs.get("provenance", {}), **rest},
    }
    return clean


def _description(column: str, given: Columns, units: Mapping[str, str], table_name: str) -> dict[str, Any]:
    if column in given:
        stated = given[column]
        return stated.as_dict() if isinstance(stated, Column) else dict(stated)
    if column in COLUMNS:
        return COLUMNS[column].as_dict()
    for ending, words in DERIVED.items():
        stem = column.removesuffix(ending)
        if stem != column and (stem in COLUMNS or stem in given or stem in units):
            described = _description(stem, given, units, table_name)
            return {"unit": described["unit"], "digits": described.get("digits", 3), "meaning": f"{words} {described['meaning'] or stem}"}
    if column in units:
        return Column(units[column], meaning=column.replace("_", " ")).as_dict()
    raise InputError(
        f"nothing describes column '{column}' of table '{table_name}': "
        f'pass columns={{"{column}": Column(unit="…", digits=3, meaning="…", source="…")}}'
    )


def _clean(values: pd.Series, table_name: str) -> pd.Series:
    """One plain type per column: numbers, whole numbers, truth values or text (missing text is '')."""
    if types.is_bool_dtype(values) or types.is_numeric_dtype(values):
        return values
    present = values.dropna()
    if all(isinstance(value, str) for value in present):
        return values.astype(object).where(values.notna(), "").astype("str")
    kinds = sorted({type(value).__name__ for value in present})
    raise InputError(
        f"column '{values.name}' of table '{table_name}' holds {', '.join(kinds)}: "
        "a column is either numbers or text; write lists as text, such as '3 17 44'"
    )


def write(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a frame and its description, and return the path.

    Numbers come back to the bit from `read`. Both files appear completely or not at all.

    Parameters
    ----------
    frame
        A described frame, or one whose columns are all in `COLUMNS`.
    path
        Ends in .csv or .parquet, with the description beside it as NAME.columns.json; or in .json, with the description in the same
        file and under `values` a list a column, where nan is null and infinities are the texts inf and -inf.

    Returns
    -------
    Path
        The file of the numbers.

    Raises
    ------
    InputError
        For another suffix, an undescribed column, or Parquet without pyarrow.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = write(table([{"site": "conv1", "channels": 16}], "layers"), Path(folder) / "layers.csv")
    ...     [path.name, description_path(path).is_file(), int(read(path).channels[0])]
    ['layers.csv', True, 16]
    """
    path = Path(path)
    frame = describe(frame, {"name": path.stem, **frame.attrs})
    _suited(path)
    plain = frame.reset_index(drop=True)
    header = {
        "format": FORMAT,
        **frame.attrs,
        "rows": len(frame),
        "types": {str(column): _kind(values) for column, values in frame.items()},
    }
    plain.attrs = {}
    if path.suffix == ".json":
        whole = {**header, "values": {str(column): _jsonable(values) for column, values in plain.items()}}
        with atomic_file(path) as half:
            half.write_text(json.dumps(whole, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        return path
    with atomic_file(path) as half, atomic_file(description_path(path)) as half_beside:
        if path.suffix == ".parquet":
            plain.to_parquet(half, index=False)
        else:
            plain.to_csv(half, index=False, na_rep="nan")
        half_beside.write_text(json.dumps(header, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path


def read(path: str | Path) -> pd.DataFrame:
    """A described frame from the files that `write` wrote.

    Parameters
    ----------
    path
        The file of the numbers.

    Returns
    -------
    DataFrame
        With its description in attrs.

    Raises
    ------
    FormatError
        If either file is missing, damaged, of another version, or the two do not belong together.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = write(table([{"seed": 1, "accuracy": 0.1}], "runs"), Path(folder) / "runs.csv")
    ...     float(read(path).accuracy[0])
    0.1
    """
    path = Path(path)
    _suited(path)
    description = path if path.suffix == ".json" else description_path(path)
    for needed in (path, description):
        if not needed.is_file():
            raise FormatError(
                f"no file at {needed}: a table is {path.name} and {description_path(path).name}, written together by tables.write"
            )
    try:
        header = json.loads(description.read_text(encoding="utf-8"))
        if header.get("format") != FORMAT:
            raise FormatError(f"{path} has table format {header.get('format')}, this version reads {FORMAT}: write it again")
        frame = _parsed(path, header["types"], header.get("values", {}))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise FormatError(f"{path} is damaged or not a table: {error}") from error
    if len(frame) != header["rows"] or list(frame.columns) != list(header["types"]):
        raise FormatError(
            f"{path} has {len(frame):,} rows, {description_path(path).name} says {header['rows']:,}: one of them is cut short or changed"
        )
    frame.attrs = {key: header[key] for key in ("name", "columns", "provenance")}
    return _present(frame)


def _present(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of an earlier version under the names of this one."""
    given = str(frame.attrs["name"])
    name = {earlier: now for now, earlier in EARLIER_NAMES.items()}.get(given, given)
    columns = EARLIER_COLUMNS.get(name, {})
    renamed = frame.rename(columns=columns)
    described = {columns.get(column, column): facts for column, facts in frame.attrs["columns"].items()}
    renamed.attrs = {**frame.attrs, "name": name, "columns": described}
    if "outcome" in renamed:
        renamed["outcome"] = renamed["outcome"].replace(r"^repaid_", "recovered_", regex=True)
    return renamed


def write_json(facts: Mapping[str, Any], path: str | Path) -> Path:
    """Write facts as a JSON file, completely or not at all, and return its path.

    Parameters
    ----------
    facts
        Values that `plain_values` can bring into the types of JSON; nan becomes null.
    path
        The file.

    Returns
    -------
    Path
        The file.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_json({"loss": float("nan"), "seed": 1}, Path(folder) / "run.json").read_text(encoding="utf-8").split()
    ['{', '"loss":', 'null,', '"seed":', '1', '}']
    """
    path = Path(path)
    with atomic_file(path) as half:
        half.write_text(json.dumps(plain_values(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def plain_values(value: Any) -> Any:
    """The value in the types that JSON has.

    Parameters
    ----------
    value
        Frames become lists of rows, paths become text; numbers that are not finite become None.

    Returns
    -------
    Any
        Dictionaries, lists, text, numbers, truth values and None.

    Raises
    ------
    TypeError
        For a value of another kind.

    Examples
    --------
    >>> plain_values({"losses": pd.DataFrame({"loss": [0.5, float("inf")]}), "file": Path("a.csv")})
    {'losses': [{'loss': 0.5}, {'loss': None}], 'file': 'a.csv'}
    """
    if isinstance(value, pd.DataFrame):
        return [plain_values(row) for row in value.to_dict("records")]
    if isinstance(value, Mapping):
        return {str(key): plain_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_values(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str | Path):
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    raise TypeError(f"expected a plain value, received {type(value).__name__}")


def description_path(path: Path) -> Path:
    """The file that describes the columns of a table on disk.

    Parameters
    ----------
    path
        The file of the numbers.

    Returns
    -------
    Path
        NAME.columns.json in the same folder.

    Examples
    --------
    >>> description_path(Path("layers.csv")).name
    'layers.columns.json'
    """
    return path.with_name(path.stem + ".columns.json")


def _kind(values: pd.Series) -> str:
    if types.is_bool_dtype(values):
        return "truth"
    if types.is_integer_dtype(values):
        return "integer"
    return "number" if types.is_numeric_dtype(values) else "text"


def _jsonable(values: pd.Series) -> list:
    """The values of a column, with null in the place of nan and text in that of infinities."""
    if _kind(values) != "number":
        return values.tolist()
    return [None if value != value else value if math.isfinite(value) else str(value) for value in values.astype(float)]


def _parsed(path: Path, kinds: Mapping[str, str], values: Mapping[str, list]) -> pd.DataFrame:
    if path.suffix == ".json":
        types_of = {"truth": "bool", "integer": "int64", "number": "float64", "text": "str"}
        return pd.DataFrame({column: pd.Series(values[column], dtype=types_of[kind]) for column, kind in kinds.items()})
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if not kinds:
        return pd.DataFrame()
    # every cell arrives as text, so that a note that reads "nan" or "1e3" stays a note
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    return pd.DataFrame({column: _typed(values, kinds[str(column)]) for column, values in cells.items()})


def _typed(values: pd.Series, kind: str) -> pd.Series:
    if kind == "truth":
        return values == "True"
    return values if kind == "text" else values.astype("int64" if kind == "integer" else "float64")


def _suited(path: Path) -> None:
    if path.suffix not in (".csv", ".parquet", ".json"):
        raise InputError(f"a table ends in .csv, .parquet or .json, not '{path.suffix}': {path}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path.name} needs pyarrow: pip install 'channelscope[parquet]', or write {path.stem}.csv")
