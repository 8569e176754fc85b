"""Rules: caps and constraints from the data, and nonsense refused."""

import math

import pytest
import torch

from channelscope.discarding.cid import CIDOptions
from channelscope.discarding.noise import Cells
from channelscope.errors import InputError
from channelscope.stats.moments import Variance
from discarding import small


def test_kappa_follows_the_normalizer():
    assert CIDOptions().fraction == 0.1
    assert CIDOptions(normalizer="local").fraction == 1.5
    assert CIDOptions(kappa=0.3).fraction == 0.3


@pytest.mark.parametrize("bad", [{"kappa": 0.0}, {"kappa": math.nan}, {"noise": 0.0}, {"side": 0}])
def test_nonsense_is_refused(bad):
    with pytest.raises(InputError, match="expected"):
        CIDOptions(**bad)


@pytest.mark.parametrize(("bad", "near"), [({"mode": "exat"}, "exact"), ({"normalizer": "dta"}, "data")])
def test_misspelled_choices_are_refused_with_the_nearest(bad, near):
    with pytest.raises(InputError, match=f"near matches: {near}"):
        CIDOptions(**bad)


def test_a_constraint_takes_the_features_total_variance():
    feature = Variance.of(torch.rand(5, 4, 2))
    constraint = CIDOptions().constraint(feature)
    assert constraint.variance == feature.total
    assert constraint.kappa == 0.1


def test_a_feature_that_never_varies_has_no_cid():
    with pytest.raises(InputError, match="the same for all 5 images"):
        CIDOptions().constraint(Variance.of(torch.ones(5, 4)))


def test_caps_are_root_mean_variances_of_what_varies():
    pixels = small.pixels(20)
    pixels[:, 0, :4] = 0.5
    found = Variance.of(pixels)
    cap, varies = CIDOptions().caps(found, Cells.of((8, 8), 2))
    assert not varies[0, :4].any()
    assert varies[0, 4:].all()
    top = pixels.double().var(0, correction=0)[1:, :4, :4].mean()
    assert math.isclose(float(cap[0]), float(top.sqrt()), rel_tol=1e-6)
    assert CIDOptions(cap=False).caps(found, Cells.of((8, 8), 2))[0].isinf().all()


def test_the_convention_is_what_must_agree():
    assert CIDOptions(mode="exact").convention() == CIDOptions().convention()
    assert CIDOptions(noise=0.5).convention() == CIDOptions().convention()
    for other in (CIDOptions(normalizer="local"), CIDOptions(kappa=0.2), CIDOptions(cap=False), CIDOptions(side=4)):
        assert other.convention() != CIDOptions().convention()
    assert CIDOptions(normalizer="local", noise=0.02).convention() != CIDOptions(normalizer="local").convention()
