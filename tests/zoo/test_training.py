"""Training: the steps are those of the book, runs repeat to the bit, and a kill at any moment costs one epoch at most."""

import copy
import dataclasses
import importlib
import itertools
import json
import math
import re
from collections import namedtuple
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import pencil_zoo as pencil
from channelscope import zoo
from channelscope.data.images import read_images
from channelscope.data.sources import ImageSource
from channelscope.errors import DataError, FormatError, InputError, MismatchError, NumericError
from channelscope.evaluation import loss_and_accuracy
from channelscope.network import module_state
from channelscope.progress import Bar, without_bars
from channelscope.zoo import precision as steps
from channelscope.zoo import training_run as log
from channelscope.zoo.training import RESUME, train
from channelscope.zoo.training_run import Epoch, History, Schedule
from image_files import made

training = importlib.import_module("channelscope.zoo.training")  # the package's attribute of that name is the function
SHORT = Schedule(epochs=3, lr=0.05, batch_size=16, pad=1, flip=True)
LABELS = [row % 3 for row in range(60)]


@pytest.fixture(scope="module")
def images():
    return read_images(ImageSource(batch_size=16), found=made(LABELS, classes=3, part="train"))


def net(seed=0, dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )


def run(images, out, schedule=SHORT, **options):
    model = net(**options)
    return model, train(model, images, out, schedule, progress=False)


def same_run(one, two):
    """Equal in everything but folder and time."""

    def timeless(history):
        records = [dataclasses.replace(record, seconds=0.0) for record in history.epochs]
        return repr(
            (history.network, history.start, history.settings, records, history.test_loss, history.test_accuracy, history.test_images)
        )

    assert timeless(one) == timeless(two)
    for epoch, path in one.checkpoints.items():
        assert path.read_bytes() == two.checkpoint(epoch).read_bytes(), f"epoch {epoch}"
    assert one.trained.read_bytes() == two.trained.read_bytes()


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return run(images, folder, dropout=0.3)


def test_what_a_run_leaves(finished):
    model, history = finished
    names = sorted(path.name for path in history.folder.iterdir())
    assert names == [*(f"epoch_{k:03d}.safetensors" for k in range(4)), "trained.safetensors", "training.json"]
    assert [record.epoch for record in history.epochs] == [0, 1, 2, 3]
    assert not model.training
    assert history.network == "Sequential"


def test_epoch_zero_is_the_initialization(finished):
    _, history = finished
    start = net(dropout=0.3)
    assert history.start == module_state.weights_hash(start)
    assert module_state.weights_hash(zoo.load_weights(net(seed=5), history.checkpoint(0))) == history.start
    assert math.isnan(history.epochs[0].train_loss)


def test_few_validation_images_leave_the_weights_of_the_last_epoch(finished, images):
    model, history = finished
    assert len(images.validation) == 5
    assert history.best != history.kept == 3
    assert history.trained.read_bytes() == history.checkpoint(3).read_bytes()
    assert loss_and_accuracy(model, images.validation)[1] == history.epochs[3].validation_accuracy


def test_enough_validation_images_leave_the_weights_of_the_best_epoch(images, tmp_path, monkeypatch):
    monkeypatch.setattr(log, "FEW", 5)
    model, history = run(images, tmp_path, dropout=0.3)
    assert history.best == history.kept < 3
    assert history.trained.read_bytes() == history.checkpoint(history.best).read_bytes()
    best = max(record.validation_accuracy for record in history.epochs)
    assert loss_and_accuracy(model, images.validation)[1] == best == history.epochs[history.best].validation_accuracy


def test_every_checkpoint_is_as_accurate_as_the_log_says(finished, images):
    _, history = finished
    for record in history.epochs:
        model = zoo.load_weights(net().eval(), history.checkpoint(record.epoch))
        assert loss_and_accuracy(model, images.validation) == (record.validation_loss, record.validation_accuracy)


def test_the_test_images_are_used_once_at_the_end(finished, images):
    model, history = finished
    assert (history.test_loss, history.test_accuracy) == loss_and_accuracy(model, images.test)
    assert history.test_images == len(images.test)
    unfinished = json.loads((history.folder / "training.json").read_text())
    assert unfinished["test_accuracy"] == history.test_accuracy


def test_the_log_is_the_history(finished):
    _, history = finished
    assert repr(History.read(history.folder)) == repr(history)


def test_a_second_run_is_the_same_to_the_bit(finished, images, tmp_path):
    same_run(finished[1], run(images, tmp_path, dropout=0.3)[1])


def test_the_global_generator_is_left_alone_and_does_not_matter(finished, images, tmp_path):
    torch.manual_seed(99)
    expected = torch.rand(2)
    torch.manual_seed(99)
    same_run(finished[1], run(images, tmp_path, dropout=0.3)[1])
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"lr": 0.01},
        {"batch_size": 8},
        {"pad": 0},
        {"flip": False},
        {"warmup": 0.5},
        {"smoothing": 0.1},
        {"erase": 0.5},
        {"small": 0.5},
    ],
)
def test_another_schedule_is_another_run(finished, images, tmp_path, change):
    _, history = run(images, tmp_path, dataclasses.replace(SHORT, **change), dropout=0.3)
    assert history.checkpoint(1).read_bytes() != finished[1].checkpoint(1).read_bytes()
    assert history.checkpoint(0).read_bytes() == finished[1].checkpoint(0).read_bytes()


class Killed(BaseException):
    """What a signal would raise."""


STAGES = ["save_weights", "_write_log_and_best", "_epoch"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("moment", [1, 2, 4, 6, 9])
def test_a_run_that_was_killed_anywhere_goes_on_to_the_same_end(finished, images, tmp_path, monkeypatch, stage, moment):
    calls, real = [], getattr(training, stage)

    def deadly(*args, **options):
        calls.append(stage)
        if len(calls) == moment:
            raise Killed
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, stage, deadly)
        try:
            run(images, tmp_path, dropout=0.3)
        except Killed:
            assert not list(tmp_path.glob("*.partial*"))
        else:
            assert len(calls) < moment
    same_run(finished[1], run(images, tmp_path, dropout=0.3)[1])


EVERYTHING = dataclasses.replace(SHORT, warmup=0.3, smoothing=0.1, erase=0.5, small=0.4)


@pytest.mark.parametrize(("precision", "optimizer"), [("float32", "sgd"), ("bfloat16", "sgd"), ("float32", "adamw")])
@pytest.mark.parametrize("moment", [2, 5])
def test_a_run_that_was_killed_within_an_epoch_goes_on_from_the_last_saved_step(
    images, tmp_path, monkeypatch, precision, optimizer, moment
):
    def go(name):
        model, schedule = net(dropout=0.3), dataclasses.replace(EVERYTHING, optimizer=optimizer)
        return train(model, images, tmp_path / name, schedule, progress=False, precision=precision)

    whole = go("whole")
    real, calls = training._step, []
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)

    def deadly(*args):
        calls.append(args[3])
        if len(calls) == moment:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", deadly)
        with pytest.raises(Killed):
            go("killed")
    calls.clear()
    monkeypatch.setattr(training, "_step", lambda *args: (calls.append(args[3]), real(*args))[1])
    again = go("killed")
    assert len(calls) == 9 - (moment - 1), "three steps an epoch, three epochs; none of the saved ones is taken twice"
    same_run(whole, again)


def test_the_precision_is_stored_and_another_one_is_refused(images, tmp_path):
    history = train(net(), images, tmp_path, SHORT, progress=False, precision="bfloat16")
    assert history.precision == History.read(tmp_path).precision == "bfloat16"
    assert train(net(), images, tmp_path, SHORT, progress=False).precision == "bfloat16", "auto does not choose again"
    trained = zoo.load_weights(net().eval(), history.trained)
    last = history.epochs[-1]
    assert loss_and_accuracy(trained, images.validation, "bfloat16") == (last.validation_loss, last.validation_accuracy)
    assert loss_and_accuracy(trained, images.validation) != (last.validation_loss, last.validation_accuracy)
    assert loss_and_accuracy(trained, images.test) == (history.test_loss, history.test_accuracy)
    with pytest.raises(MismatchError, match="its precision is bfloat16, this one's float32"):
        train(net(), images, tmp_path, SHORT, progress=False, precision="float32")
    with pytest.raises(InputError, match="no precision is called half; there are: auto, float32, bfloat16"):
        train(net(), images, tmp_path / "other", SHORT, progress=False, precision="half")


@pytest.mark.parametrize("momentum", [0.0003, 0.01, 0.1, 0.5, None])
def test_statistics_of_normalization_follow_within_an_epoch_and_their_momentum_stays(momentum, images, tmp_path, monkeypatch):
    """MNASNet keeps 99.97 % of its statistics at each step: evaluated with them after a few steps it is at chance whatever it learned."""
    usual = run(images, tmp_path / "usual")[1]
    slow, seen = net(), set()
    slow[1].momentum = momentum
    real = training._step
    monkeypatch.setattr(training, "_step", lambda run, *args: (seen.add(run.model[1].momentum), real(run, *args))[1])
    found = train(slow, images, tmp_path / "slow", SHORT, progress=False)
    assert slow[1].momentum == momentum
    if momentum in (0.0003, 0.01, 0.1):
        same_run(usual, found)
    else:
        assert seen == {momentum}


@pytest.mark.parametrize(
    ("steps", "momentum", "expected"), [(3, 0.01, 0.1), (100, 0.0003, 0.03), (1000, 0.01, 0.01), (1000, 0.0003, 0.003)]
)
def test_the_longer_an_epoch_the_slower_statistics_may_be(steps, momentum, expected):
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=momentum))
    with training._statistics_of_an_epoch(model, steps):
        assert model[0].momentum == pytest.approx(expected)
    assert model[0].momentum == momentum


def test_steps_in_bfloat16_are_near_those_in_float32_and_leave_float32_weights_as_they_lay(images, tmp_path):
    one, two = net(), net()
    layout = one[0].weight.stride()
    low = train(one, images, tmp_path / "low", SHORT, progress=False, precision="bfloat16")
    full = train(two, images, tmp_path / "full", SHORT, progress=False, precision="float32")
    assert low.epochs[0].validation_loss == full.epochs[0].validation_loss
    assert low.epochs[-1].train_loss != full.epochs[-1].train_loss
    assert low.epochs[-1].train_loss == pytest.approx(full.epochs[-1].train_loss, abs=0.05)
    assert one[0].weight.stride() == layout
    assert {value.dtype for value in zoo.read_weights(low.trained).values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("slow", "chosen"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("neither", "float32")])
def test_the_trial_takes_what_is_faster_and_changes_nothing(images, tmp_path, monkeypatch, slow, chosen):
    clock, tried = [0.0], []
    monkeypatch.setattr(steps, "SMALL_RUN", 0)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(training.time, name, lambda: clock[0])
    real = steps.loss_and_logits

    def timed(model, x, y, precision, smoothing=0.0):
        clock[0] += 2.0 if precision == slow else 1.0
        tried.append(precision)
        return real(model, x, y, precision, smoothing)

    for module in (steps, training):
        monkeypatch.setattr(module, "loss_and_logits", timed)
    model = net(dropout=0.3)
    history = train(model, images, tmp_path / "auto", SHORT, progress=False)
    assert history.precision == chosen
    assert tried[:4] == ["float32", "float32", "bfloat16", "bfloat16"]
    monkeypatch.undo()
    same_run(history, train(net(dropout=0.3), images, tmp_path / "given", SHORT, progress=False, precision=chosen))


def test_a_network_that_cannot_be_computed_in_bfloat16_is_trained_in_float32(images, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "SMALL_RUN", 0)

    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            if torch.is_autocast_enabled("cpu"):
                raise NotImplementedError("no kernel for bfloat16")
            return self.net(x)

    assert train(Stubborn(), images, tmp_path, SHORT, progress=False).precision == "float32"


def test_a_log_from_before_the_new_settings_is_gone_on_with(finished, images, tmp_path, monkeypatch):
    _, history = run(images, tmp_path, dropout=0.3)
    data = json.loads((tmp_path / "training.json").read_text())
    for late in ("warmup", "smoothing", "erase", "small", "optimizer"):
        del data["settings"]["schedule"][late]
    del data["settings"]["precision"]
    (tmp_path / "training.json").write_text(json.dumps(data))
    monkeypatch.setattr(training, "_epoch", None)
    same_run(history, run(images, tmp_path, dropout=0.3)[1])
    with pytest.raises(MismatchError, match="its schedule is"):
        run(images, tmp_path, dataclasses.replace(SHORT, warmup=0.1), dropout=0.3)


def test_images_of_the_first_epochs_are_averaged_to_half_the_size(images, tmp_path):
    shapes = []
    model = net()
    model.register_forward_pre_hook(lambda module, inputs: shapes.append((module.training, tuple(inputs[0].shape[2:]))))
    train(model, images, tmp_path, dataclasses.replace(SHORT, small=0.4), progress=False)
    assert [shape for learning, shape in shapes if learning] == [(4, 4)] * 3 + [(8, 8)] * 6
    assert {shape for learning, shape in shapes if not learning} == {(8, 8)}


def test_the_smoothed_loss_is_the_cross_entropy_with_a_mixed_target():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1, 0])
    loss, _ = steps.loss_and_logits(nn.Identity(), logits, labels, "float32", 0.3)
    target = 0.7 * torch.eye(3)[labels] + 0.1
    assert float(loss) == pytest.approx(float(-(target * logits.log_softmax(1)).sum(1).mean()), abs=1e-6)


def test_a_finished_run_is_not_run_again(finished, images, tmp_path, monkeypatch):
    run(images, tmp_path, dropout=0.3)
    monkeypatch.setattr(training, "_epoch", None)
    model, again = run(images, tmp_path, dropout=0.3)
    same_run(finished[1], again)
    assert loss_and_accuracy(model, images.test)[1] == again.test_accuracy


def test_a_folder_with_another_run_is_refused(images, tmp_path):
    run(images, tmp_path)
    for other, said in (
        (lambda: run(images, tmp_path, seed=1), "its initialization is"),
        (lambda: run(images, tmp_path, dataclasses.replace(SHORT, epochs=9)), "its schedule is"),
        (lambda: train(net(), dataclasses.replace(images, skipped=3), tmp_path, SHORT, progress=False), "its images is"),
    ):
        with pytest.raises(MismatchError, match=f"holds another training run: {said}.* choose another folder"):
            other()


def test_a_damaged_resume_file_is_refused(images, tmp_path):
    run(images, tmp_path)
    (tmp_path / RESUME).write_bytes(b"half")
    with pytest.raises(FormatError, match=r"resume\.safetensors: damaged"):
        run(images, tmp_path)


def test_fewer_checkpoints_can_be_kept(images, tmp_path):
    _, history = run(images, tmp_path, dataclasses.replace(SHORT, epochs=5, every=2))
    assert list(history.checkpoints) == [0, 2, 4, 5]
    assert history.trained.exists()


def test_a_set_without_training_images_is_refused(tmp_path):
    images = read_images(ImageSource(), found=made(LABELS, classes=3, part="validation"))
    with pytest.raises(DataError, match=r"there are no training images: .* give the images to train on as a part named train"):
        train(net(), images, tmp_path / "out", SHORT)
    few = read_images(ImageSource(), found=made([0, 1, 2, 0], classes=3, part="train"))
    with pytest.raises(DataError, match="0 validation images, at least 2 are needed to train"):
        train(net(), few, tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


class Two(nn.Module):
    """A network with a second classifier that answers while it is trained, alone or beside the first one's name."""

    def __init__(self, named):
        super().__init__()
        self.body, self.one, self.two, self.named = nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), nn.Linear(4, 3), nn.Linear(4, 3), named

    def forward(self, x):
        """Logits, or those of both classifiers."""
        x = self.body(x).relu()
        answers = (self.one(x), self.two(x))
        return (Answers(*answers) if self.named else answers) if self.training else answers[0]


Answers = namedtuple("Answers", "logits aux")


def test_a_network_that_answers_twice_while_it_is_trained_learns_by_its_logits(images, tmp_path):
    model = Two(named=True)
    model(next(iter(images.train))[0])
    before = copy.deepcopy(model.state_dict())
    train(model, images, tmp_path / "named", SHORT, progress=False)
    assert not torch.equal(model.one.weight, before["one.weight"])
    assert torch.equal(model.two.weight, before["two.weight"]), "it is no part of the loss"
    unnamed = Two(named=False)
    unnamed(next(iter(images.train))[0])
    with pytest.raises(InputError, match="expected logits, a tensor of images × classes, received a tuple"):
        train(unnamed, images, tmp_path / "unnamed", SHORT, progress=False)


def test_a_loss_that_is_no_number_is_refused(images, tmp_path):
    with pytest.raises(NumericError, match=r"epoch 1: the loss is (nan|inf); .* smaller lr than 1e\+30"):
        run(images, tmp_path, dataclasses.replace(SHORT, lr=1e30))
    assert not (tmp_path / RESUME).exists()


def test_measured_is_the_cross_entropy_and_the_share_that_is_right(images):
    model = net()
    loss, accuracy = loss_and_accuracy(model, images.test)
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _, _ in images.test]).double().tolist()
    labels = images.test.labels.tolist()
    assert loss == pytest.approx(pencil.cross_entropy(logits, labels), abs=1e-6)
    right = [max(range(3), key=row.__getitem__) == label for row, label in zip(logits, labels, strict=True)]
    assert accuracy == sum(right) / len(right)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_what_is_measured_does_not_depend_on_the_batches(images, size):
    model = net()
    assert loss_and_accuracy(model, images.test.with_batch_size(size)) == pytest.approx(loss_and_accuracy(model, images.test), abs=1e-6)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adamw", 0.02)])
def test_the_steps_are_those_of_the_book(images, tmp_path, optimizer, lr):
    """Logistic regression, whole-set steps: every epoch is one step whose gradient is known in closed form."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with torch.no_grad():
        model[1].weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        model[1].bias.fill_(0.5)
    start = copy.deepcopy(model).double()
    schedule = Schedule(epochs=4, lr=lr, batch_size=1000, pad=0, flip=False, optimizer=optimizer)
    history = train(model, images, tmp_path, schedule, progress=False)
    x, y, _ = images.train.batch(torch.arange(len(images.train)))
    x, y = x.flatten(1).double().numpy(), y.numpy()
    flat = np.concatenate([start[1].weight.detach().numpy(), start[1].bias.detach().numpy()[:, None]], 1)

    def gradient(weights):
        _, dw, db = pencil.softmax_gradient(weights[:, :-1], weights[:, -1], x, y)
        return np.concatenate([dw, db[:, None]], 1)

    rates = [pencil.cosine(lr, done, 4) for done in range(4)]
    if optimizer == "sgd":
        expected = pencil.nesterov(flat, [gradient] * 4, rates, 0.9, 5e-4)
    else:
        decay = np.full(flat.shape, 0.05)
        decay[:, -1] = 0  # biases are not drawn to zero
        expected = pencil.adamw(flat, [gradient] * 4, rates, decay)
    last = zoo.read_weights(history.checkpoint(4))
    np.testing.assert_allclose(last["1.weight"].numpy(), expected[:, :-1], atol=1e-5)
    np.testing.assert_allclose(last["1.bias"].numpy(), expected[:, -1], atol=1e-5)
    assert [record.lr for record in history.epochs[1:]] == pytest.approx(rates)
    first = pencil.softmax_gradient(flat[:, :-1], flat[:, -1], x, y)[0]
    assert history.epochs[1].train_loss == pytest.approx(first, abs=1e-5)


def test_an_epoch_shows_every_training_image_once(images, tmp_path, monkeypatch):
    shown, real = [], type(images.train).pixels

    def watched(split, places):
        if split.name == "train":
            shown.append(places.tolist())
        return real(split, places)

    monkeypatch.setattr(type(images.train), "pixels", watched)
    run(images, tmp_path, dataclasses.replace(SHORT, epochs=2))
    assert [len(places) for places in shown] == [15, 14, 14] * 2, "divided evenly, no batch of one image"
    for epoch in (shown[:3], shown[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(43))
    assert shown[:3] != shown[3:]


def test_the_card_names_the_run(images, tmp_path):
    model = zoo.build("resnet20(width=2)", 3, 3, 8)
    assert train(model, images, tmp_path, dataclasses.replace(SHORT, epochs=1), progress=False).network == "resnet20(width=2)"


def test_a_network_learns_what_can_be_learned(tmp_path):
    """Brightness is the label; a small network finds it in a few epochs."""
    shelves = made([row % 2 for row in range(120)], part="train")
    bright = dataclasses.replace(shelves.parts[0], read=lambda row: np.full((8, 8, 3), 60 + 100 * (row % 2) + row % 30, np.uint8))
    images = read_images(ImageSource(), found=dataclasses.replace(shelves, parts=(bright,)))
    history = train(net(), images, tmp_path, dataclasses.replace(SHORT, epochs=6, lr=0.2), progress=False)
    assert history.test_accuracy == 1
    assert history.epochs[-1].train_loss < history.epochs[1].train_loss


def test_progress_is_shown_on_standard_error(images, tmp_path, capsys):
    train(net(), images, tmp_path, dataclasses.replace(SHORT, epochs=1))
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"training epoch 1/1  [\d,]+ images/s  0:00:00 left  loss \d\.\d{3}  validation .*% of 5\n", said.err)


def test_quiet_commands_show_no_progress(images, tmp_path, capsys):
    with without_bars():
        train(net(), images, tmp_path, dataclasses.replace(SHORT, epochs=1))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_digits_are_learned(tmp_path):
    model, images = zoo.load("resnet20", "digits")
    history = train(model, images, tmp_path, zoo.default_schedule("resnet20", "digits"), progress=False)
    assert history.test_accuracy > 0.97


@pytest.mark.gpu
def test_training_on_a_gpu_learns_in_bfloat16(tmp_path):
    model, images = zoo.load("resnet20", "digits", device="cuda")
    history = train(model, images, tmp_path, zoo.default_schedule("resnet20", "digits"), "cuda", progress=False, precision="bfloat16")
    assert history.test_accuracy > 0.95
    assert next(model.parameters()).is_cuda
    assert zoo.read_weights(history.trained)["conv1.weight"].dtype == torch.float32


def test_the_bar_goes_on_by_the_images_of_each_step():
    class Seen(Bar):
        seen: ClassVar[list] = []

        def __call__(self, steps=1):
            self.seen.append(steps)

        def describe(self, note, more=""):
            self.seen.append((note, more))

        def line(self, text):
            self.seen.append(re.sub(r"\d:\d\d:\d\d", "TIME", text))

    line = training._Line(Schedule(epochs=4, small=0.5), 40, 10, 1, Seen())
    line.advance(2, 10, 0.5, 10)
    line.epoch_ended(Epoch(2, 0.1, 1.25, 0.5, 1.5, 0.75, 4.0))
    line.advance(3, 30, 0.5, 20)
    quarter, whole = ("training epoch 2/4", "20 images/s"), ("training epoch 3/4", "loss 1.250  validation 75.0% of 10  60 images/s")
    ended = "training epoch 2/4  10 images/s  TIME left  loss 1.250  validation 75.0% of 10"
    assert Seen.seen == [2.5, quarter, ended, 20, whole]
    assert line.left == 10 + 40 + 40 - 22.5


def test_the_training_accuracy_is_that_of_the_images_as_they_were_seen(images, tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    history = train(model, images, tmp_path, Schedule(epochs=1, lr=1e-9, batch_size=16, pad=0, flip=False), progress=False)
    loss, accuracy = loss_and_accuracy(model, images.train)
    assert history.epochs[-1].train_accuracy == pytest.approx(accuracy)
    assert history.epochs[-1].train_loss == pytest.approx(loss, abs=1e-5)


def test_images_lie_channels_last_in_steps_and_validation(images, tmp_path):
    model, seen = net(), []
    model[0].register_forward_pre_hook(
        lambda module, given: seen.append((module.training, given[0].is_contiguous(memory_format=torch.channels_last)))
    )
    train(model, images, tmp_path, dataclasses.replace(SHORT, epochs=1), progress=False)
    assert {last for training, last in seen if training} == {True}
    assert [last for training, last in seen if not training][-1]
