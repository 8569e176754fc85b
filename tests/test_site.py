"""Site: what a layer is unless it says so, how many positions it has, and its plain form on disk."""

from dataclasses import replace

from channelscope.site import Site

SITE = Site("conv", "conv", 2, (2, 4, 5), 0, "conv", "relu", 3, 6, (3, 1))


def test_a_site_is_one_group_and_one_window_without_normalization_unless_it_says_so():
    assert (SITE.groups, SITE.windows, SITE.batchnorm, SITE.activation_is_affine) == (1, 1, None, False)


def test_positions_are_all_axes_but_the_channels_over_all_windows():
    assert SITE.positions == 20
    assert replace(SITE, shape=(7, 5, 2), channel_axis=2).positions == 35
    assert replace(SITE, windows=3).positions == 60
    assert replace(SITE, shape=(2,), kernel_size=()).positions == 1


def test_files_name_its_parts_as_format_2_does():
    assert SITE.as_dict() == {
        "name": "conv",
        "kind": "conv",
        "channels": 2,
        "shape": (2, 4, 5),
        "axis": 0,
        "read": "conv",
        "cut": "relu",
        "depth": 3,
        "inputs": 6,
        "kernel": (3, 1),
        "groups": 1,
        "norm": None,
        "affine": False,
    }
    assert Site.from_dict(SITE.as_dict()) == SITE


def test_windows_are_stored_where_there_are_several():
    several = replace(SITE, windows=4)
    assert several.as_dict() == SITE.as_dict() | {"windows": 4}
    assert Site.from_dict(several.as_dict() | {"shape": [2, 4, 5], "kernel": [3, 1]}) == several
