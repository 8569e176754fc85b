"""Every score against a twin computed from the images themselves, by definition and in plain numpy."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import pencil
import pencil_stats
from channelscope import scores
from channelscope.errors import InputError
from channelscope.formulas.task_information import sample_triples
from channelscope.network.sites import sites
from channelscope.stats.readout import draw_positions
from measured import CHANNELS, IMAGES, images, maps, margins, network, pooled, positions, profile, target_rho

RIDGE = 1e-3
CEILING = pencil.correlation_information(0.999)


def of(name: str, **options) -> np.ndarray:
    """The score at the first convolution."""
    return scores.REGISTRY[name](profile(), **options).values["0"]


def rho() -> np.ndarray:
    return np.corrcoef(positions().T)


def peer_rho() -> np.ndarray:
    return np.corrcoef(pooled().T)


def filters() -> np.ndarray:
    return network()[0].weight.detach().flatten(1).numpy()


def single() -> np.ndarray:
    return np.array([pencil.correlation_information(r) for r in target_rho()])


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def random() -> np.ndarray:
    return of("random", seed=0)


def rayleigh() -> np.ndarray:
    """From the inputs: the covariance of the patches each filter sees."""
    patches = nn.functional.unfold(images()[0], 3, padding=1).transpose(1, 2).flatten(0, 1).numpy()
    covariance = np.cov(patches.T, bias=True)
    return np.array([pencil.rayleigh(weight, covariance) for weight in filters()])


def capture() -> np.ndarray:
    return pencil.capture(positions().var(0))


def overlap(ceiling: float = np.inf) -> np.ndarray:
    pairs = [[min(pencil.correlation_information(r), ceiling) for r in np.delete(row, i)] for i, row in enumerate(rho())]
    return np.mean(pairs, 1)


def support() -> np.ndarray:
    return pencil.support(rho(), RIDGE)


def compactness() -> np.ndarray:
    sizes = [len(pencil.hull(rho(), i, ridge=RIDGE)[0]) for i in range(CHANNELS)]
    return support() / np.array(sizes)


def relevance() -> np.ndarray:
    return single() - 1 / (2 * IMAGES)


def excess() -> np.ndarray:
    pairs = pencil.excess(target_rho(), peer_rho())
    return np.array([np.mean(np.delete(row, i)) for i, row in enumerate(pairs)])


def unique() -> np.ndarray:
    return pencil.unique(single())


def redundancy() -> np.ndarray:
    return np.array([np.mean([min(single()[i], single()[j]) for j in range(CHANNELS) if j != i]) for i in range(CHANNELS)])


def task_credit() -> np.ndarray:
    return pencil.task_credit(target_rho(), peer_rho(), RIDGE)


def duplicate_task() -> np.ndarray:
    return np.array([information * share for information, share in zip(relevance(), support(), strict=True)])


def nonreplaceable_task() -> np.ndarray:
    return np.array([information * (1 - share) for information, share in zip(relevance(), support(), strict=True)])


def l1() -> np.ndarray:
    return np.array([sum(abs(w) for w in row) for row in filters()])


def l2() -> np.ndarray:
    return np.array([sum(w * w for w in row) ** 0.5 for row in filters()])


def bn_scale() -> np.ndarray:
    return np.abs(network()[1].weight.detach().numpy())


def fpgm() -> np.ndarray:
    return np.array([sum(np.linalg.norm(a - b) for b in filters()) for a in filters()])


def at_cut() -> np.ndarray:
    """What the consumer sees at the sampled positions: images · 16 × channels."""
    where = draw_positions(torch.arange(IMAGES), 25, 16, 0).tolist()
    return np.array([maps(2)[i][:, p] for i in range(IMAGES) for p in where[i]])


def activation_mean() -> np.ndarray:
    return np.abs(at_cut().mean(0))


def activation_rms() -> np.ndarray:
    return np.sqrt((at_cut() ** 2).mean(0))


def products(after: int) -> np.ndarray:
    """Sum over positions of value times gradient of each image's own loss, images × channels."""
    pixels, labels = images()
    model, rows = network(), []
    for number in range(IMAGES):
        value = model[: after + 1](pixels[number : number + 1]).detach().requires_grad_()
        loss = nn.functional.cross_entropy(model[after + 1 :](value), labels[number : number + 1])
        rows.append((value * torch.autograd.grad(loss, value)[0]).flatten(2).sum(2)[0].detach().numpy())
    return np.array(rows)


def taylor_weight() -> np.ndarray:
    pixels, labels = images()
    model, total = network(), 0
    for number in range(IMAGES):
        loss = nn.functional.cross_entropy(model(pixels[number : number + 1]), labels[number : number + 1])
        total = total + (model[0].weight * torch.autograd.grad(loss, model[0].weight)[0]).sum((1, 2, 3)).detach().numpy()
    return np.abs(total) / IMAGES


def taylor_activation() -> np.ndarray:
    return np.abs(products(2)).mean(0)


def fisher() -> np.ndarray:
    return (products(2) ** 2).mean(0) / 2


def squares(after: int = 2) -> np.ndarray:
    return maps(after).reshape(IMAGES, CHANNELS, 5, 5)


def hrank() -> np.ndarray:
    return pencil_stats.rank(squares()) / IMAGES


def chip() -> np.ndarray:
    return pencil_stats.independence(squares()) / IMAGES


def capture_overlap() -> np.ndarray:
    return scaled(capture()) - 0.3 * scaled(overlap(CEILING))


def local_composite() -> np.ndarray:
    return (scaled(capture()) + 1 - scaled(overlap(CEILING))) / 2


def target_composite() -> np.ndarray:
    return (scaled(relevance()) + scaled(excess())) / 2


def norm_capture() -> np.ndarray:
    return scaled(l2()) + 0.5 * scaled(capture())


def peer_residual() -> np.ndarray:
    outgoing = network()[3].weight.detach().square().sum((0, 2, 3)).numpy()
    return pencil.backward_elimination(np.cov(at_cut().T, bias=True), outgoing, RIDGE)[1]


@pytest.mark.parametrize("name", sorted(scores.REGISTRY))
def test_a_score_is_its_twin(name):
    np.testing.assert_allclose(of(name), globals()[name](), rtol=2e-4, atol=1e-6, err_msg=name)


def test_the_label_target():
    labels, pairs = images()[1].numpy(), list(itertools.combinations(range(CHANNELS), 2))
    total, within = np.cov(pooled().T, bias=True), pencil_stats.within_scatter(pooled(), labels) / IMAGES
    alone = np.array([pencil.label_information(total, within, [i]) for i in range(CHANNELS)])
    together = np.zeros((CHANNELS, CHANNELS))
    for i, j in pairs:
        together[i, j] = together[j, i] = pencil.label_information(total, within, [i, j]) - max(alone[i], alone[j])
    bias = (3 - 1) / (2 * IMAGES)
    np.testing.assert_allclose(of("relevance", target="label"), alone - bias, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of("excess", target="label"), together.sum(1) / (CHANNELS - 1), rtol=1e-4, atol=1e-6)


def test_other_targets():
    pixels, labels = images()
    with torch.no_grad():
        logits = network()(pixels)
    correct = logits.gather(1, labels[:, None])[:, 0].numpy()
    expected = [pencil.correlation_information(np.corrcoef(column, correct)[0, 1]) for column in pooled().T]
    np.testing.assert_allclose(of("relevance", target="correct_logit", corrected=False), expected, rtol=1e-4)


def test_the_papers_conventions():
    """|ρ| clipped at 0.999, division by C, no bias correction, repeated targets, the ten largest of the fifty most overlapping."""
    wide = np.column_stack([positions(), np.repeat(margins(), 25)])
    joint = np.corrcoef(wide.T)
    rho, target = joint[:-1, :-1], joint[-1, :-1]
    overlaps = [sum(min(pencil.correlation_information(r), CEILING) for r in np.delete(row, i)) / CHANNELS for i, row in enumerate(rho)]
    np.testing.assert_allclose(of("overlap", preset="paper"), overlaps, rtol=1e-4)
    np.testing.assert_allclose(of("relevance", preset="paper"), [pencil.correlation_information(r) for r in target], rtol=1e-4)
    best = pencil.peer_top(pencil.excess(target, rho), rho, 10, 50)
    np.testing.assert_allclose(of("excess", preset="paper"), best, rtol=1e-4, atol=1e-7)


def test_triplets():
    site = profile().site("0")
    layer = scores.LayerStatistics(profile(), site, profile().record(site), scores.ScoreOptions())
    mean, ratio = scores.triplet_excess_by_layer(layer, n=60, seed=4)
    triples = sample_triples(torch.arange(CHANNELS), 60, 4).tolist()
    assert mean == pytest.approx(np.mean(pencil.triplet_excess(target_rho(), peer_rho(), triples)), rel=1e-3)
    assert ratio == pytest.approx(pencil.triplet_ratio(target_rho(), peer_rho(), triples), rel=1e-3)


def test_the_twins_sites_are_the_networks():
    assert [site.name for site in sites(network(), images()[0][:1])] == ["0", "3"]


def test_the_label_target_with_the_largest_excesses():
    """The peers that overlap most are found in the pooled samples, which need no target."""
    labels = images()[1].numpy()
    total, within = np.cov(pooled().T, bias=True), pencil_stats.within_scatter(pooled(), labels) / IMAGES
    alone = np.array([pencil.label_information(total, within, [i]) for i in range(CHANNELS)])
    pairs = np.zeros((CHANNELS, CHANNELS))
    for i, j in itertools.permutations(range(CHANNELS), 2):
        pairs[i, j] = pencil.label_information(total, within, [i, j]) - max(alone[i], alone[j])
    best = pencil.peer_top(pairs, peer_rho(), 2, 4)
    np.testing.assert_allclose(of("excess", target="label", top=2, of=4), best, rtol=1e-4, atol=1e-6)


def test_triplets_refuse_the_label():
    site = profile().site("0")
    layer = scores.LayerStatistics(profile(), site, profile().record(site), scores.ScoreOptions(target="label"))
    with pytest.raises(InputError, match=r"needs a continuous one, received target='label': use target='margin' or target='correct_logit'"):
        scores.triplet_excess_by_layer(layer)


@pytest.mark.parametrize(("target", "classes"), [("margin", 2), ("label", 3)])
@pytest.mark.parametrize("readout", ["pooled", "positions"])
def test_the_bias_counts_images_whatever_the_readout(target, classes, readout):
    plain, corrected = (of("relevance", target=target, target_readout=readout, corrected=flag) for flag in (False, True))
    np.testing.assert_allclose(plain - corrected, (classes - 1) / (2 * IMAGES), rtol=1e-9)


def test_shrinkage_by_oas_counts_images_whatever_the_readout():
    wide = np.column_stack([positions(), np.repeat(margins(), 25)])
    joint = np.corrcoef(wide.T)
    shrunk = joint[-1, :-1] * (1 - pencil.oas(joint, IMAGES))
    expected = [pencil.correlation_information(r) for r in shrunk]
    np.testing.assert_allclose(of("relevance", target_readout="positions", shrinkage="oas", corrected=False), expected, rtol=1e-4)
