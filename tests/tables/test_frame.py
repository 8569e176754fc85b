"""Tables describe their columns and are read back the same; numbers as text never look like a bound that they do not reach."""

import json
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelscope import tables
from channelscope.errors import FormatError, InputError
from channelscope.tables import frame
from channelscope.tables.frame import counted, format_interval, format_number, format_percent
from channelscope.tables.quantities import Column, Schema

ROWS = [
    {"site": "nan", "channel": 0, "capture": 0.1 + 0.2, "note": None, "kept": True},
    {"site": 'a,"b"\nc', "channel": 1, "capture": math.inf, "note": "1e3", "kept": False},
    {"site": "conv1", "channel": 2, "capture": math.nan, "note": "silent: no variance", "kept": True},
]
KEPT = {"kept": Column(meaning="whether the channel is kept", source="this test")}


def example() -> pd.DataFrame:
    return tables.table(ROWS, "channels", KEPT, {"network": "toy", "images": 40})


def test_a_table_says_what_its_columns_are():
    frame = example()
    assert frame.attrs["name"] == "channels"
    assert frame.attrs["provenance"] == {"network": "toy", "images": 40}
    capture = frame.attrs["columns"]["capture"]
    assert (capture["unit"], capture["digits"], capture["keeps"]) == ("nats", 3, "high")
    assert "Safaai" in capture["source"]
    assert frame.attrs["columns"]["kept"]["meaning"] == "whether the channel is kept"


def test_missing_text_is_empty_and_missing_numbers_stay_nan():
    frame = example()
    assert list(frame["note"]) == ["", "1e3", "silent: no variance"]
    assert math.isnan(frame["capture"][2])


def test_derived_columns_take_their_unit_from_the_quantity():
    frame = tables.table([{"capture_se": 0.1, "support_low": 0.2, "support_high": 0.3}], "errors")
    assert frame.attrs["columns"]["capture_se"]["unit"] == "nats"
    assert frame.attrs["columns"]["capture_se"]["meaning"].startswith("standard error of how much")
    assert frame.attrs["columns"]["support_low"]["unit"] == "fraction"


def test_a_score_table_brings_its_own_units():
    frame = pd.DataFrame({"site": ["conv1"], "chip": [0.5], "chip_se": [0.1]})
    got = tables.describe(frame, {"name": "scores", "units": {"chip": "rank"}, "keeps": {"chip": "high"}})
    assert got.attrs["columns"]["chip"]["unit"] == "rank"
    assert got.attrs["columns"]["chip_se"]["unit"] == "rank"
    own = tables.describe(
        frame.rename(columns={"chip": "my_own_score"}).drop(columns="chip_se"), {"name": "x", "units": {"my_own_score": "bits"}}
    )
    assert own.attrs["columns"]["my_own_score"] == {"unit": "bits", "digits": 3, "meaning": "my own score"}
    assert got.attrs["provenance"] == {"keeps": {"chip": "high"}}


def test_a_column_that_nobody_describes_is_refused():
    with pytest.raises(InputError, match=r"nothing describes column 'surprise' of table 'x'.*columns="):
        tables.table([{"surprise": 1.0}], "x")


def test_lists_and_mixtures_are_refused():
    with pytest.raises(InputError, match=r"column 'members' of table 'x' holds list: .*write lists as text"):
        tables.table([{"members": [1, 2]}], "x")
    with pytest.raises(InputError, match="holds float, str"):
        tables.table([{"note": "silent"}, {"note": 3.0}], "x")


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(InputError, match="two columns of one name: site"):
        tables.describe(pd.DataFrame([["a", "b"]], columns=["site", "site"]), {"name": "x"})


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, ending):
    frame = example()
    path = tables.write(frame, tmp_path / "deep" / f"channels.{ending}")
    back = tables.read(path)
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert back.attrs == frame.attrs
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([f"channels.{ending}", "channels.columns.json"])


def test_one_json_file_has_the_numbers_and_their_description(tmp_path):
    frame = example()
    path = tables.write(frame, tmp_path / "channels.json")
    back = tables.read(path)
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert back.attrs == frame.attrs
    assert [each.name for each in tmp_path.iterdir()] == ["channels.json"]
    said = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert said["values"]["capture"] == [0.1 + 0.2, "inf", None]
    assert said["values"]["kept"] == [True, False, True]
    assert said["columns"]["capture"]["unit"] == "nats"


@given(
    st.lists(st.tuples(st.floats(), st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\x00")), st.booleans()), max_size=5)
)
def test_any_values_survive_the_disk(tmp_path_factory, rows):
    frame = tables.table([{"capture": a, "note": b, "kept": c} for a, b, c in rows], "x", KEPT)
    back = tables.read(tables.write(frame, tmp_path_factory.mktemp("t") / "x.csv"))
    assert len(back) == len(rows)
    for column in frame.columns:
        one, other = frame[column].to_numpy(), back[column].to_numpy()
        assert all(a == b or (a != a and b != b) for a, b in zip(one, other, strict=True))


def test_an_empty_table_survives(tmp_path):
    frame = tables.table(pd.DataFrame({"site": pd.Series([], dtype=str), "reason": pd.Series([], dtype=str)}), "skipped")
    back = tables.read(tables.write(frame, tmp_path / "skipped.csv"))
    assert list(back.columns) == ["site", "reason"]
    assert len(back) == 0


def test_a_frame_without_a_name_takes_that_of_its_file(tmp_path):
    assert tables.read(tables.write(pd.DataFrame({"rho": [0.5]}), tmp_path / "pairs.csv")).attrs["name"] == "pairs"


def test_the_index_is_not_data(tmp_path):
    frame = example().iloc[[2, 0]]
    assert list(tables.read(tables.write(frame, tmp_path / "x.csv"))["channel"]) == [2, 0]


def test_a_failed_write_leaves_the_earlier_table_and_nothing_else(tmp_path):
    path = tables.write(example(), tmp_path / "x.csv")
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    broken = example()
    broken.attrs["provenance"] = {("not", "a", "key"): 1}
    with pytest.raises(TypeError):
        tables.write(broken, path)
    with pytest.raises(InputError):
        tables.write(example().assign(surprise=1.0), path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.csv, \.parquet or \.json, not '\.xlsx'"):
        tables.write(example(), tmp_path / "x.xlsx")
    with pytest.raises(InputError, match=r"ends in \.csv, \.parquet or \.json, not '\.xlsx'"):
        tables.read(tmp_path / "x.xlsx")


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'channelscope\[parquet\]', or write x\.csv"):
        tables.write(example(), tmp_path / "x.parquet")


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FormatError, match="no file at"):
        tables.read(tmp_path / "x.csv")
    path = tables.write(example(), tmp_path / "x.csv")
    frame.description_path(path).unlink()
    with pytest.raises(FormatError, match=r"no file at .*x\.columns\.json"):
        tables.read(path)


def test_a_cut_or_foreign_table_is_refused(tmp_path):
    path = tables.write(example(), tmp_path / "x.csv")
    whole = path.read_text()
    path.write_text(whole[: whole.index("conv1")])
    with pytest.raises(FormatError, match=r"has 2 rows, x\.columns\.json says 3"):
        tables.read(path)
    path.write_text(whole.replace("channel", "kanal"))
    with pytest.raises(FormatError, match="damaged or not a table"):
        tables.read(path)
    path.write_text(whole)
    about = frame.description_path(path)
    header = json.loads(about.read_text())
    about.write_text(json.dumps(header | {"format": 99}))
    with pytest.raises(FormatError, match="has table format 99, this version reads 1"):
        tables.read(path)
    about.write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        tables.read(path)


def test_a_damaged_parquet_file_is_refused(tmp_path):
    path = tables.write(example(), tmp_path / "x.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="damaged"):
        tables.read(path)


def test_facts_are_written_whole(tmp_path):
    path = tables.write_json({"accuracy": math.nan, "title": "R̄"}, tmp_path / "run.json")
    assert json.loads(path.read_text()) == {"accuracy": None, "title": "R̄"}
    with pytest.raises(TypeError):
        tables.write_json({"bad": np.ones(2)}, path)
    assert json.loads(path.read_text())["title"] == "R̄"
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]


class TestFill:
    SCHEMA = Schema("hull_curve", "site n", {"accuracy": Column("fraction", 4, "fall of the accuracy", "this test")})

    def test_its_own_meaning_of_a_column_precedes_the_common_one(self):
        frame = tables.fill(self.SCHEMA, [{"site": "conv1", "accuracy": 0.5, "accuracy_se": 0.1}], images=40)
        assert frame.attrs["name"] == "hull_curve"
        assert frame.attrs["provenance"] == {"images": 40}
        assert frame.attrs["columns"]["accuracy"]["meaning"] == "fall of the accuracy"
        assert frame.attrs["columns"]["accuracy_se"]["meaning"] == "standard error of fall of the accuracy"
        assert frame.attrs["columns"]["site"]["meaning"] == "layer, by its module path"

    def test_without_rows_it_has_the_columns_of_the_schema(self):
        assert list(tables.fill(self.SCHEMA, []).columns) == ["site", "n", "accuracy"]

    def test_a_column_outside_the_schema_is_refused_even_if_other_tables_have_it(self):
        with pytest.raises(InputError, match=r"table 'hull_curve': expected the columns site, n, accuracy; received loss, loss_se"):
            tables.fill(self.SCHEMA, [{"loss": 0.5, "loss_se": 0.1}])
        assert tables.fill(self.SCHEMA, [{"loss": 0.5}], units={"loss": "bits"}).attrs["columns"]["loss"]["unit"] == "nats"


def test_columns_of_earlier_versions_have_their_present_names(tmp_path):
    earlier = {"site": ["conv"], "stand_in": ["hull"], "which": ["all"], "repaid": [0.5]}
    text = {name: Column.text("earlier") for name in ("stand_in", "which")} | {"repaid": Column("fraction", 2, "earlier")}
    tables.write(tables.table(pd.DataFrame(earlier), "repaid", text), tmp_path / "repaid.csv")
    again = tables.read(tmp_path / "repaid.csv")
    assert again.attrs["name"] == "recovered"
    assert again.to_dict("records") == [{"site": "conv", "replacement": "hull", "subset": "all", "recovered": 0.5}]
    assert again.attrs["columns"]["recovered"]["unit"] == "fraction"
    outcome = pd.DataFrame({"outcome": ["damage_kl", "repaid_hull_kl"], "which": ["a", "b"]})
    described = {name: Column.text("earlier") for name in outcome}
    tables.write(tables.table(outcome, "lesion_correlations", described), tmp_path / "lesion_correlations.csv")
    again = tables.read(tmp_path / "lesion_correlations.csv")
    assert again.outcome.tolist() == ["damage_kl", "recovered_hull_kl"]
    assert again.which.tolist() == ["a", "b"]  # what is renamed belongs to one table


def number(text: str) -> float:
    """What a reader takes a printed number to be."""
    return float(text.replace("−", "-").replace(",", ""))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.23, 2, "0.23"),
        (-0.23, 2, "−0.23"),
        (0.0, 2, "0.00"),
        (-0.0, 2, "0.00"),
        (0.004, 2, "0.004"),
        (-0.0004, 2, "−0.0004"),
        (0.000_04, 3, "4e−5"),
        (3.2e-9, 3, "3e−9"),
        (5000, 3, "5,000"),
        (-5000, 3, "−5,000"),
        (12345.678, 1, "12,345.7"),
        (math.nan, 3, "undefined"),
        (math.inf, 3, "∞"),
        (-math.inf, 3, "−∞"),
    ],
)
def test_numbers_as_people_read_them(value, digits, text):
    assert format_number(value, digits) == text


@pytest.mark.parametrize(("value", "text"), [(np.int64(1234), "1,234"), (np.float32(0.5), "0.500"), (np.float64(math.nan), "undefined")])
def test_numpy_numbers_read_the_same(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (1.0, "100.0 %"),
        (0.9996, "99.9 %"),
        (0.99999999, "99.9 %"),
        (0.0, "0.0 %"),
        (0.0004, "0.04 %"),
        (0.5, "50.0 %"),
        (math.nan, "undefined"),
    ],
)
def test_all_and_none_are_printed_only_when_true(fraction, text):
    assert format_percent(fraction) == text


def test_a_percentage_without_decimals_cannot_claim_all_either():
    assert format_percent(0.999, 0) == "99.9 %"
    assert format_percent(1.0, 0) == "100 %"


def test_a_correlation_of_almost_one_is_not_one():
    assert format_number(0.9999, 2, top=1) == "0.99"
    assert format_number(-0.9999, 2, top=1) == "−0.99"
    assert format_number(1.0, 2, top=1) == "1.00"


def test_a_plain_number_may_round_to_one():
    assert format_number(0.9999, 2) == "1.00"


@given(st.floats(-1, 1), st.integers(1, 5))
def test_rounding_never_lies_about_zero_sign_or_the_top(value, digits):
    said = number(format_number(value, digits, top=1))
    assert (said == 0) == (value == 0)
    assert (abs(said) == 1) == (abs(value) == 1)
    assert said * value >= 0


@given(st.floats(-1e9, 1e9), st.integers(0, 6))
def test_the_printed_number_is_within_one_last_digit(value, digits):
    said = number(format_number(value, digits))
    assert abs(Decimal(said) - Decimal(value)) <= Decimal(10) ** -digits


def test_a_number_comes_with_how_sure_it_is():
    assert format_interval(0.23, 0.18, 0.28, 19, "layers") == "0.23 [0.18, 0.28] (n = 19 layers)"
    assert format_interval(0.23, 0.18, 0.28) == "0.23 [0.18, 0.28]"
    assert format_interval(-0.5, -0.6, 0.004, 5000, "images") == "−0.50 [−0.60, 0.004] (n = 5,000 images)"


def test_a_count_has_its_noun_in_the_right_number():
    assert [counted(count, "kernel") for count in (0, 1, 1_200)] == ["0 kernels", "1 kernel", "1,200 kernels"]


def test_a_missing_interval_is_said():
    assert format_interval(0.23, math.nan, math.nan, 1, "layers") == "0.23 [no interval] (n = 1 layer)"
    assert format_interval(0.23, 0.1, math.nan, 4) == "0.23 [no interval] (n = 4)"


def test_an_undefined_number_has_no_interval():
    assert format_interval(math.nan, math.nan, math.nan, 0, "layers") == "undefined (n = 0 layers)"
