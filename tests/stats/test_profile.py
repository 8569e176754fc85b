import re
from dataclasses import replace

import pytest
import torch

import measured
from channelscope.errors import MismatchError, SampleError, SiteError


def test_a_misspelled_site_is_refused_with_the_nearest():
    profile = measured.profile()
    first = profile.sites[0].name
    assert profile.site(first) is profile.sites[0]
    for read in (profile.site, profile.record):
        with pytest.raises(SiteError, match=re.escape(f"no site is called {first}0; near matches: {first}; there are: {first}, ")):
            read(f"{first}0")


def test_printed_it_says_what_was_measured():
    lines = repr(measured.profile()).splitlines()
    assert lines[0] == "Profile(Sequential: 90 images, 11 channels at 2 sites)"
    assert lines[1] == f"  weights {measured.profile().weights_hash[:12]}, input 2 × 5 × 5, 3 classes, 1 layers skipped"
    assert lines[2] == "  readout positions(all), at the cut point positions(16), seed 0, 6 shards"
    assert lines[3].startswith("  targets margin, ")
    assert lines[3].endswith("; " + str(measured.profile().tally))
    assert len(lines) == 4


def test_a_shard_that_was_not_kept_is_refused():
    with pytest.raises(SampleError, match="no shard 6: it was collected with shards=6"):
        measured.profile().record(measured.profile().sites[0], 6)


def test_images_in_common_are_counted_in_the_first_profile():
    one, other = (replace(measured.profile(), fingerprints=torch.tensor(each)) for each in ([1, 2, 2, 3], [2, 9]))
    with pytest.raises(MismatchError, match="no image in common: 2 of the 90 images of one"):
        one + other
    with pytest.raises(MismatchError, match="no image in common: 1 of the 90 images of one"):
        other + one
