"""A distilled network is nearer to the original on other images, or stays as it was."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from channelscope.errors import DataError, InputError, NumericError
from channelscope.network.module_state import weights_hash
from channelscope.pruning.distillation import Distillation, DistillationPlan, distill
from channelscope.zoo import precision as steps


def net(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * width, 4))


def noise(count: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).split(16))


def test_the_student_comes_nearer_and_both_networks_stay_as_they_were():
    teacher, student = net(8, 0).train(), net(4, 1)
    hashes = weights_hash(teacher), weights_hash(student)
    plan = DistillationPlan(epochs=8, lr=0.01, batch_statistics=False)
    found = distill(student, teacher, noise(128, 0), noise(64, 1), plan, progress=False)
    assert not found.harmed
    assert found.after < 0.8 * found.before
    assert found.images == 128
    assert (weights_hash(teacher), weights_hash(student)) == hashes
    assert teacher.training
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert torch.equal(found.model[1].running_mean, student[1].running_mean)


def test_the_network_is_judged_by_the_loss_that_it_learns_by():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(40, 3)  # batches of 16, 16 and 8
    found = distill(student, teacher, images, images, DistillationPlan(epochs=1, temperature=3.0), progress=False)
    x = torch.cat(images)
    p, q = (teacher(x).detach() / 3).softmax(1), (student(x).detach() / 3).softmax(1)
    assert found.before == pytest.approx(9 * float((p * (p / q).log()).sum(1).mean()), rel=1e-5)


def test_one_step_is_adam_on_the_softened_divergence():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(16, 3)
    found = distill(student, teacher, images, images, DistillationPlan(epochs=1, lr=1e-3, temperature=3.0), progress=False)
    x, copied = images[0], net(4, 1).eval()
    p, q = (teacher(x) / 3).softmax(1).detach(), (copied(x) / 3).softmax(1)
    (9 * (p * (p / q).log()).sum(1).mean()).backward()
    change = found.model[5].weight - student[5].weight
    assert torch.allclose(change, -1e-3 * copied[5].weight.grad.sign(), atol=1e-5)


@pytest.mark.parametrize(("scale", "lr", "moved"), [(1.0, None, 5e-4), (0.008, None, 1e-4), (0.0, None, 5e-4), (0.008, 0.03, 0.03)])
def test_a_step_moves_small_weights_less(scale, lr, moved):
    """The first step of Adam moves every weight that has a gradient by the rate of its layer."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).requires_grad_(False)
    student[1].weight.fill_(scale)
    student[1].bias.fill_(0.001)
    plan = DistillationPlan(epochs=1, lr=lr, batch_statistics=False, precision="float32")
    (images,) = noise(16, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "harmed", False)
        found = distill(student, teacher, [images], [images], plan, progress=False).model
    assert float((found[1].weight - student[1].weight).abs().median()) == pytest.approx(moved, rel=1e-3)
    assert float((found[1].bias - student[1].bias).abs().median()) == pytest.approx(lr or 5e-4, rel=1e-3)


@pytest.mark.parametrize("mirror", [True, False])
def test_the_mean_of_the_answers_for_an_image_and_its_mirror_image_is_learned(mirror):
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)) for _ in range(2))
    with torch.no_grad():
        teacher[1].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))  # the left pixel alone
        student[1].weight.copy_(torch.tensor([[-2.0, 0.0], [0.0, 0.0]]))
    images = [torch.randn(256, 1, 1, 2, generator=torch.Generator().manual_seed(0))]
    plan = DistillationPlan(epochs=300, lr=0.1, temperature=1.0, mirror=mirror)
    found = distill(student, teacher, images, images, plan, progress=False)
    left, right = (found.model[1].weight[0] - found.model[1].weight[1]).tolist()
    assert (left, right) == pytest.approx((1.0, 1.0) if mirror else (2.0, 0.0), abs=0.02)
    assert found.after == pytest.approx(0, abs=1e-4)  # from what was taught


@pytest.mark.parametrize("momentum", [0.1, 1e-6])
def test_normalization_has_the_statistics_of_what_it_sees_whatever_its_momentum_is(momentum):
    teacher, student = net(4, 1).eval(), net(4, 1)
    images = [2 * x + 1 for x in noise(128, 0)]
    seen = student[0](torch.cat(images)).detach()
    teacher[1].running_mean.copy_(seen.mean((0, 2, 3)))
    teacher[1].running_var.copy_(seen.var((0, 2, 3)))
    student[1].momentum = momentum
    student[1].running_mean += 3  # far from what it sees
    found = distill(student, teacher, images, images, DistillationPlan(epochs=2, lr=1e-9), progress=False)
    assert torch.allclose(found.model[1].running_mean, seen.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(found.model[1].running_var, seen.var((0, 2, 3)), rtol=0.05)
    assert found.model[1].momentum == momentum


def test_batches_of_one_image_leave_the_statistics_as_they_are():
    teacher, student = net(8, 0).eval(), net(4, 1).eval()
    images = list(torch.cat(noise(32, 0)).split(1))
    found = distill(student, teacher, images, images, DistillationPlan(epochs=3, lr=0.01), progress=False)
    assert found.after < found.before
    assert torch.equal(found.model[1].running_mean, student[1].running_mean)


def test_synchronized_normalization_keeps_its_statistics():
    teacher, student, images = net(8, 0).eval(), nn.SyncBatchNorm.convert_sync_batchnorm(net(4, 1)).eval(), noise(32, 0)
    found = distill(student, teacher, images, images, DistillationPlan(epochs=3), progress=False)
    assert torch.equal(found.model[1].running_mean, student[1].running_mean)


def test_one_image_is_normalized_with_the_running_statistics():
    teacher, student = (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 4)).eval() for _ in range(2))
    images = [*noise(32, 0), *noise(1, 5)]
    found = distill(student, teacher, images, images, DistillationPlan(epochs=3), progress=False)
    assert all(bool(value.isfinite().all()) for value in found.model.state_dict().values())


def test_a_student_that_would_get_worse_stays_as_it_was():
    teacher, student = net(8, 0).eval(), net(4, 1).eval()
    found = distill(student, teacher, noise(16, 0), noise(64, 1), DistillationPlan(epochs=3, lr=3.0), progress=False)
    assert found.harmed
    assert found.after - found.before > 2 * found.error
    assert weights_hash(found.model) == weights_hash(student)


@pytest.mark.parametrize(("after", "harmed"), [(0.9, False), (1.1, False), (1.13, True), (math.nan, True)])
def test_harm_is_a_loss_that_rises_beyond_chance(after, harmed):
    assert Distillation(nn.Identity(), 1.0, after, 0.06, 10, 16, "float32").harmed == harmed


@pytest.mark.parametrize(("hidden", "epochs"), [(20, 16), (9, 16), (8, 40), (1, 40)])
def test_a_student_that_is_much_smaller_is_taught_longer(hidden, epochs):
    """Multiply-adds kept: 1, .45, .4 and .05."""
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.Linear(width, 2)) for width in (20, hidden))
    images = [torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))]
    found = distill(student, teacher, images, images, progress=False)
    assert found.epochs == epochs
    assert f"8 images, {epochs} epochs" in repr(found)
    assert distill(student, teacher, images, images, DistillationPlan(epochs=3), progress=False).epochs == 3


def test_the_error_is_that_of_the_difference_over_images():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(40, 3)
    found = distill(student, teacher, images, images, DistillationPlan(2, 1e-4, 1.0, batch_statistics=False), progress=False)
    x = torch.cat(images)
    p, q, r = (each(x).detach().log_softmax(1) for each in (teacher, student, found.model))
    change = ((p.exp() * (p - r)).sum(1) - (p.exp() * (p - q)).sum(1)).numpy()
    assert found.error == pytest.approx(change.std(ddof=1) / len(change) ** 0.5, rel=1e-3)


def test_labels_are_not_read():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(32, 3)
    first = distill(student, teacher, images, images, progress=False)
    labeled = [(x, torch.full((len(x),), -7)) for x in images]
    assert weights_hash(distill(student, teacher, labeled, labeled, progress=False).model) == weights_hash(first.model)


def test_bfloat16_teaches_nearly_the_same_and_leaves_float32_weights():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(32, 3)
    low, full = (
        distill(student, teacher, images, images, DistillationPlan(lr=0.01, precision=precision), progress=False)
        for precision in ("bfloat16", "float32")
    )
    assert (low.precision, full.precision) == ("bfloat16", "float32")
    assert low.before == full.before
    assert 0 < abs(low.after - full.after) < 0.1 * (full.before - full.after)
    assert {value.dtype for value in low.model.state_dict().values()} == {torch.float32, torch.int64}


def test_the_precision_is_tried_without_a_trace(monkeypatch):
    """A long run tries both; the draws of a loader that shuffles, and so the result, are those of the precision that is chosen."""
    teacher, student = net(8, 0).eval(), net(4, 1).eval()
    loader = DataLoader(torch.cat(noise(64, 3)), batch_size=16, shuffle=True)
    monkeypatch.setattr(steps, "SMALL_RUN", 0)
    monkeypatch.setattr(steps, "TRIAL_SECONDS", 0.0)
    results = {}
    for precision in ("auto", "float32", "bfloat16"):
        torch.manual_seed(0)
        results[precision] = distill(student, teacher, loader, noise(32, 4), DistillationPlan(precision=precision), progress=False)
    tried = results.pop("auto")
    assert weights_hash(tried.model) == weights_hash(results[tried.precision].model)


def test_a_classifier_that_returns_a_mapping_is_taught():
    class Named(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return {"logits": self.inner(x)}

    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(32, 3)
    plain = distill(student, teacher, images, images, progress=False)
    named = distill(Named(student), Named(teacher), images, images, progress=False)
    assert named.after == plain.after


def test_what_cannot_be_distilled_is_refused():
    teacher, student, images = net(8, 0).eval(), net(4, 1).eval(), noise(32, 3)
    with pytest.raises(InputError, match="not a generator"):
        distill(student, teacher, iter(images), images)
    with pytest.raises(InputError, match="received 0 epochs"):
        distill(student, teacher, images, images, DistillationPlan(epochs=0))
    with pytest.raises(InputError, match="T -1"):
        distill(student, teacher, images, images, DistillationPlan(temperature=-1))
    with pytest.raises(InputError, match="no precision is called half; there are: auto, float32, bfloat16"):
        DistillationPlan(precision="half")
    with pytest.raises(DataError, match="expected images, received none"):
        distill(student, teacher, [], images)
    with pytest.raises(DataError, match="validation images, received none"):
        distill(student, teacher, images, [])
    with torch.no_grad():
        student[5].bias[0] = math.nan
    with pytest.raises(NumericError, match="nan at step 1 of epoch 1"):
        distill(student, teacher, images, images, progress=False)


def test_both_networks_are_given_images_channels_last():
    student, teacher, seen = net(4, 0), net(8, 1), []
    for network in (student, teacher):
        network[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last)))
    images = noise(2, 0)
    distill(student, teacher, images, images, DistillationPlan(epochs=1), progress=False)
    assert seen.count(False) == 2  # the trial of each, which finds the order
