"""Constraints: what leaves them undefined is refused."""

import math

import pytest

from channelscope.discarding.optimum import BUDGETS, Constraint
from channelscope.errors import InputError


def test_defaults_and_normalizers():
    assert not Constraint("data", 0.1, 3.0).local
    assert Constraint("local", 1.5).local
    assert Constraint("local", 1.5).noise == 0.01


@pytest.mark.parametrize("kappa", [0.0, -1.0, math.nan])
def test_kappa_must_be_positive(kappa):
    with pytest.raises(InputError, match="κ"):
        Constraint("local", kappa)


@pytest.mark.parametrize("variance", [None, 0.0, math.nan])
def test_a_feature_without_variance_has_no_cid(variance):
    with pytest.raises(InputError, match="does not vary has no CID"):
        Constraint("data", 0.1, variance)


def test_unknown_normalizers_are_refused():
    with pytest.raises(InputError, match='"data" or "local", received \'global\''):
        Constraint("global", 0.1, 1.0)  # type: ignore[arg-type]


def test_plans_keep_their_promise_of_passes():
    """A clean pass and one for the level; a forward pass and its probes; three a draw; rescaling and check, the audit one more each."""

    def cost(plan):
        start = 2 + plan.start * (1 + plan.probes)
        return start + 3 * sum(plan.rounds) + plan.final + plan.check * (2 if plan.audit else 1)

    assert cost(BUDGETS["fast"]) == 20
    assert cost(BUDGETS["exact"]) <= 30 * cost(BUDGETS["fast"])
