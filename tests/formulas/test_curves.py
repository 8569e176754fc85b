import math

import pytest
import torch

import pencil
from channelscope.errors import InputError, ShapeError
from channelscope.formulas.curves import flops_auc


def test_flops_auc_twin_and_constants():
    removed = [0.0, 0.1, 0.35, 0.7]
    accuracy = [0.9, 0.88, 0.6, 0.1]
    assert flops_auc(torch.tensor(removed), torch.tensor(accuracy)) == pytest.approx(pencil.flops_auc(removed, accuracy), rel=1e-6)
    assert flops_auc(torch.tensor(removed), torch.full((4,), 0.5)) == pytest.approx(0.5)
    shuffled = [2, 0, 3, 1]
    again = flops_auc(torch.tensor(removed)[shuffled], torch.tensor(accuracy)[shuffled])
    assert again == pytest.approx(pencil.flops_auc(removed, accuracy), rel=1e-6)


def test_flops_auc_to_a_common_budget():
    removed, accuracy = torch.tensor([0.0, 0.4, 0.8]), torch.tensor([1.0, 0.6, 0.2])
    assert flops_auc(removed, accuracy, 0.4) == pytest.approx(0.8)
    assert flops_auc(removed, accuracy, 0.6) == pytest.approx(0.7)
    for wrong in (0.0, 0.9, -1):
        with pytest.raises(InputError, match="upto"):
            flops_auc(removed, accuracy, wrong)


@pytest.mark.parametrize("removed", [[0.1, 0.4, 0.8], [0.0, 0.4, 0.4], [0.0, math.nan, 0.4]])
def test_flops_auc_refuses_a_curve_without_its_start(removed):
    with pytest.raises(InputError, match="unpruned"):
        flops_auc(torch.tensor(removed), torch.tensor([1.0, 0.6, 0.2]))


def test_flops_auc_needs_pairs():
    with pytest.raises(InputError, match="unpruned"):
        flops_auc(torch.tensor([0.0]), torch.tensor([1.0]))
    with pytest.raises(ShapeError, match="2 budgets"):
        flops_auc(torch.tensor([0.0, 0.1]), torch.tensor([1.0]))
