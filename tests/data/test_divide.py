"""Division: disjoint splits, and an index that has nothing to do with the class."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelscope.data.splits import divide
from channelscope.errors import DataError

layouts = st.one_of(
    st.fixed_dictionaries({"train": st.integers(20, 3000)}),
    st.fixed_dictionaries({"train": st.integers(20, 3000), "test": st.integers(1, 500)}),
    st.fixed_dictionaries({"train": st.integers(20, 3000), "validation": st.integers(1, 500)}),
    st.fixed_dictionaries({"train": st.integers(20, 3000), "validation": st.integers(1, 300), "test": st.integers(1, 300)}),
    st.fixed_dictionaries({"validation": st.integers(2, 2000)}),
    st.fixed_dictionaries({"all": st.integers(20, 2000), "test": st.integers(1, 500)}),
    st.fixed_dictionaries({"all": st.integers(20, 2000), "validation": st.integers(1, 500)}),
    st.fixed_dictionaries({"validation": st.integers(2, 500), "test": st.integers(2, 500)}),
    st.fixed_dictionaries({"all": st.integers(2, 3000)}),
)


def as_sets(splits):
    sets = {name: set(rows.tolist()) for name, rows in splits.items()}
    assert all(len(sets[name]) == len(rows) for name, rows in splits.items()), "an image twice"
    return sets


@given(layouts, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_splits_are_disjoint_and_calibration_is_for_training(sizes, seed):
    splits, index = divide(sizes, seed=seed)
    sets = as_sets(splits)
    assert not sets["train"] & sets["validation"]
    assert not sets["train"] & sets["test"]
    assert not sets["validation"] & sets["test"]
    assert not sets["calibration"] & (sets["validation"] | sets["test"])
    assert sets["calibration"] <= sets["train"] or not sets["train"]
    assert sets["calibration"]
    everything = set(range(sum(sizes.values())))
    used = sets["train"] | sets["calibration"] | sets["validation"] | sets["test"]
    assert used == everything if sets["train"] else used <= everything
    assert set(index.tolist()) == everything


@given(layouts, st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_seed_moves_calibration_only(sizes, one, two):
    first, index = divide(sizes, seed=one)
    second, again = divide(sizes, seed=two)
    assert torch.equal(index, again)
    for name in ("train", "validation", "test"):
        assert torch.equal(first[name], second[name])
    assert torch.equal(first["calibration"], second["calibration"]) == (one == two) or len(first["calibration"]) < 8


@given(layouts)
@settings(max_examples=40, deadline=None)
def test_named_parts_keep_their_role(sizes):
    splits, _ = divide(sizes)
    start, ranges = 0, {}
    for part, size in sizes.items():
        ranges[part] = set(range(start, start + size))
        start += size
    sets = as_sets(splits)
    assert not (sets["train"] | sets["calibration"] | sets["validation"]) & ranges.get("test", set())
    if "test" in sizes:
        assert sets["test"] == ranges["test"]
    if "train" in sizes:
        held = ranges.get("test", ranges.get("validation"))
        assert held is None or sets["test"] == held
        assert sets["train"] <= ranges["train"]
        if "test" in sizes and "validation" in sizes:
            assert sets["validation"] == ranges["validation"]
            assert sets["train"] == ranges["train"]


def test_the_published_sizes():
    def sizes(**parts):
        return [len(rows) for rows in divide(parts)[0].values()]

    assert sizes(train=50_000, test=10_000) == [45_000, 5000, 5000, 10_000]  # CIFAR
    assert sizes(all=1797) == [1294, 1294, 144, 359]  # digits
    assert sizes(validation=400) == [0, 200, 0, 200]
    assert sizes(validation=50_000) == [0, 5000, 0, 25_000]  # ImageNet's
    assert sizes(validation=100, test=50) == [0, 50, 50, 50]
    assert sizes(test=100, all=300) == [270, 270, 30, 100]
    assert sizes(all=999) == [0, 499, 0, 500]
    assert sizes(all=1000) == [720, 720, 80, 200]
    assert sizes(train=100_000, validation=10_000) == [95_000, 5000, 5000, 10_000]  # Tiny-ImageNet


def test_the_order_of_every_split_but_calibration_is_the_index():
    splits, index = divide({"train": 3000, "test": 400})
    for name in ("train", "validation", "test"):
        assert (index[splits[name]].diff() > 0).all()
    drawn = index[splits["calibration"]]
    assert not (drawn.diff() > 0).all()


def test_the_index_is_not_confounded_with_a_sorted_class():
    """Digits, folders and many archives come sorted: index mod 10 must spread every class over all shards."""
    labels = torch.arange(10).repeat_interleave(180)
    _, index = divide({"all": 1800})
    table = np.zeros((10, 10))
    np.add.at(table, (labels.numpy(), (index % 10).numpy()), 1)
    expected = 18
    assert ((table - expected) ** 2 / expected).sum() < 126  # chi-squared with 81 degrees of freedom, p = .001
    counts = torch.bincount(labels[divide({"all": 1800})[0]["test"]], minlength=10)
    assert counts.min() > 20


def test_the_index_does_not_depend_on_what_is_asked_for():
    one, two = divide({"all": 1200}, images=10, seed=3)[1], divide({"all": 1200})[1]
    assert torch.equal(one, two)


def test_the_number_of_calibration_images_can_be_chosen():
    for sizes in ({"train": 300, "test": 10}, {"validation": 300}, {"all": 300}):
        few, some = divide(sizes, images=20)[0], divide(sizes, images=50)[0]
        assert len(few["calibration"]) == 20
        assert torch.equal(few["calibration"], some["calibration"][:20]), "more images are the same and more"
    halves, _ = divide({"validation": 400}, images=300)
    assert len(halves["test"]) == 100


@pytest.mark.parametrize(("sizes", "most"), [({"train": 100, "test": 10}, 90), ({"validation": 100}, 100), ({"all": 1000}, 720)])
def test_more_calibration_images_than_there_are_is_an_error_that_says_how_many(sizes, most):
    with pytest.raises(DataError, match=f"at most {most} calibration images"):
        divide(sizes, images=most + 1)
    assert len(divide(sizes, images=most)[0]["calibration"]) == most


def test_a_test_part_alone_gives_no_calibration_images():
    with pytest.raises(DataError, match="a test part alone, and calibration images never come from one"):
        divide({"test": 100})


def test_what_is_tested_on_depends_on_neither_seed_nor_number():
    wanted = divide({"all": 80})[0]["test"]
    assert len(wanted) == 40
    for seed, images in ((0, 30), (1, 30), (2, 5), (3, 40)):
        found = divide({"all": 80}, images, seed)[0]
        assert torch.equal(found["test"], wanted)
        assert len(found["calibration"]) == images
    draws = [set(divide({"all": 80}, 30, seed)[0]["calibration"].tolist()) for seed in (0, 1)]
    assert draws[0] != draws[1]


def test_a_set_of_one_image_divides_into_nothing_to_calibrate_on():
    splits, _ = divide({"all": 1})
    assert len(splits["calibration"]) == 0
    assert len(splits["test"]) == 1
