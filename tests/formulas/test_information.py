""""""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pencil
from channelscope.errors import InputError, SampleError, ShapeError, SingularError
from channelscope.formulas import information, task_information
from channelscope.formulas.gaussian import FLOAT32_RESOLUTION, Gaussian
from channelscope.formulas.information import cosine, information_step, linear_axes, network_step
from channelscope.formulas.ranks import spearman
from channelscope.stats.moments import Moments
from formulas import laws

SEEDS = st.integers(0, 10_000)
LN2 = math.log(2)


def known(covariance, mean=None):
    mean = torch.zeros(len(covariance), dtype=torch.float64) if mean is None else mean
    return Gaussian(mean, covariance, math.inf)


# ---------------------------------------------------------------- two variables


@given(st.floats(-0.999, 0.999))
def test_correlation_information_twin(rho):
    value = information.correlation_information(torch.tensor([rho], dtype=torch.float64))
    assert float(value) == pytest.approx(pencil.correlation_information(rho), abs=1e-12)
    assert value.dtype == torch.float64
    assert math.copysign(1, float(value)) == 1


def test_an_exact_copy_is_infinite_unless_capped():
    rho = torch.tensor([1.0, -1.0, 1 - FLOAT32_RESOLUTION / 4, 0.999, 0.0, torch.nan], dtype=torch.float64)
    assert information.correlation_information(rho)[:3].tolist() == [math.inf] * 3
    capped = information.correlation_information(rho, information.CEILING)
    assert capped[:4].tolist() == pytest.approx([information.CEILING] * 4)
    assert capped[4] == 0
    assert capped[5].isnan()
    assert pencil.correlation_information(0.999) == pytest.approx(information.CEILING)
    assert information.correlation_information(torch.tensor(1 - 2 * FLOAT32_RESOLUTION, dtype=torch.float64)) < math.inf


def test_a_float32_copy_is_infinite():
    x = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    law = Gaussian.fit(Moments.of(torch.cat([x, 0.37 * x + 11], 1)))
    assert information.correlation_information(law.correlation)[0, 1] == math.inf


def test_impossible_correlations_are_refused():
    with pytest.raises(InputError, match=r"received 1\.5"):
        information.correlation_information(torch.tensor([0.2, -1.5]))


# ---------------------------------------------------------------- two sets


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_information_twin_and_chain_rule(seed):
    law = known(laws.covariance(6, seed))
    a, b, c = [0, 3], [1], [5, 2]
    value = float(information.information(law, a, b))
    assert value == pytest.approx(pencil.information(law.covariance.numpy(), a, b), abs=1e-9)
    conditional = law.given(b)  # coordinates 0 2 3 4 5 are left
    chain = information.information(law, a, b) + information.information(conditional, [0, 2], [4, 1])
    assert float(information.information(law, a, b + c)) == pytest.approx(float(chain), abs=1e-9)
    assert float(information.information(law, b, a)) == pytest.approx(value, abs=1e-12)


def test_information_of_sets_special_cases():
    law = known(laws.covariance(4))
    assert information.information(law[[0, 1]], [0], [1]) == pytest.approx(
        float(information.correlation_information(law.correlation[0, 1]))
    )
    assert information.information(known(torch.eye(3, dtype=torch.float64)), [0], [1, 2]) == 0
    mixing = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, -2, 0.5]], dtype=torch.float64)
    determined = known(mixing @ laws.covariance(3) @ mixing.T)
    assert information.information(determined, [0, 1, 2], [3]) == math.inf
    assert information.information(determined, [0, 1], [3]) < math.inf
    with pytest.raises(ShapeError, match="disjoint"):
        information.information(law, [0, 1], [1])
    with pytest.raises(SingularError):
        information.information(determined, [0, 1, 2, 3], [])


def test_information_of_a_silent_coordinate_is_undefined():
    covariance = laws.covariance(3)
    covariance[1] = covariance[:, 1] = 0
    assert information.information(known(covariance), [0], [1]).isnan()


# ---------------------------------------------------------------- local axis


def test_rayleigh_twin_and_bounds():
    sigma = laws.covariance(5)
    weights = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    variance = torch.einsum("ci,ij,cj->c", weights, sigma, weights)
    value = information.rayleigh(variance, weights.norm(dim=1))
    expected = [pencil.rayleigh(w, sigma.numpy()) for w in weights.numpy()]
    np.testing.assert_allclose(value, expected)
    extremes = torch.linalg.eigvalsh(sigma)
    assert bool((value >= extremes[0]).all())
    assert bool((value <= extremes[-1]).all())
    torch.testing.assert_close(information.rayleigh(9 * variance, 3 * weights.norm(dim=1)), value)
    assert information.rayleigh(torch.zeros(1), torch.zeros(1)).isnan().item()


def test_capture_of_the_median_channel():
    variance = torch.tensor([0.1, 5.0, 2.0, torch.nan, 0.0, 7.0], dtype=torch.float64)
    value = information.capture(variance)
    assert float(value[2]) == pytest.approx(LN2 / 2)
    assert value[4] == 0
    assert value[3].isnan()
    kept = ~variance.isnan()
    np.testing.assert_allclose(value[kept], pencil.capture(variance[kept].numpy()))
    torch.testing.assert_close(information.capture(1e9 * variance), value, equal_nan=True)


def test_capture_with_fixed_noise():
    variance = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    np.testing.assert_allclose(information.capture(variance, 0.5), pencil.capture(variance.numpy(), 0.5))
    for wrong in (0.0, -1.0, math.nan, "mean"):
        with pytest.raises(InputError, match="positive variance"):
            information.capture(variance, wrong)


def test_capture_of_a_silent_layer_is_undefined():
    assert bool(information.capture(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).isnan().all())


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_overlap_twin_and_invariances(seed):
    _, rho = laws.correlations(6, seed)
    value = information.overlap(rho)
    np.testing.assert_allclose(value, pencil.overlap(rho.numpy()), atol=1e-12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(information.overlap(rho[order][:, order]), value[order])
    sign = torch.tensor([1.0, -1, 1, -1, -1, 1], dtype=torch.float64)
    torch.testing.assert_close(information.overlap(rho * torch.outer(sign, sign)), value)


def test_overlap_of_copies_silent_and_lonely_channels():
    _, rho = laws.correlations(4)
    double = laws.with_copy(rho, 1, -1)
    value = information.overlap(double)
    assert value[[1, 4]].tolist() == [math.inf, math.inf]
    assert bool(value[[0, 2, 3]].isfinite().all())
    assert bool(information.overlap(double, information.CEILING).isfinite().all())
    quiet = information.overlap(laws.with_silent(rho, 2))
    assert quiet[2].isnan()
    torch.testing.assert_close(quiet[[0, 1, 3, 4]], information.overlap(rho))
    assert information.overlap(torch.ones(1, 1, dtype=torch.float64)).isnan().item()


def test_the_papers_overlap_divides_by_all_channels():
    _, rho = laws.correlations(5)
    torch.testing.assert_close(information.overlap(rho, over="channels"), information.overlap(rho) * 4 / 5)
    torch.testing.assert_close(information.overlap(laws.with_silent(rho, 0), over="channels")[1:], information.overlap(rho) * 4 / 6)


def test_peer_top_twin():
    r, rho = laws.correlations(9, 4)
    pairs = task_information.excess(task_information.pair_information(r, rho), information.correlation_information(r))
    for top, of in ((2, 5), (3, 3), (10, 50)):
        np.testing.assert_allclose(information.mean_of_top_peers(pairs, rho, top, of), pencil.peer_top(pairs.numpy(), rho.numpy(), top, of))
    quiet, silent = laws.with_silent(pairs, 3), laws.with_silent(rho, 3)
    value = information.mean_of_top_peers(quiet, silent, 2, 5)
    assert value[3].isnan()
    torch.testing.assert_close(value[[0, 1, 2, *range(4, 10)]], information.mean_of_top_peers(pairs, rho, 2, 5))
    torch.testing.assert_close(information.mean_of_top_peers(quiet, silent, 50, 50)[4], information.mean_over_peers(pairs)[3])


# ---------------------------------------------------------------- target axis: pairs


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_pair_information_twin_and_order(seed):
    r, rho = laws.correlations(6, seed)
    pair, single = task_information.pair_information(r, rho), information.correlation_information(r)
    np.testing.assert_allclose(pair, pencil.pair_information(r.numpy(), rho.numpy()), atol=1e-9)
    np.testing.assert_allclose(task_information.excess(pair, single), pencil.excess(r.numpy(), rho.numpy()), atol=1e-9)
    assert bool((pair >= torch.maximum(single[:, None], single)).all())
    torch.testing.assert_close(pair, pair.T)
    torch.testing.assert_close(pair.diagonal(), single)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(task_information.pair_information(r[order], rho[order][:, order]), pair[order][:, order])
    sign = torch.tensor([1.0, -1, 1, -1, -1, 1], dtype=torch.float64)
    torch.testing.assert_close(task_information.pair_information(-r * sign, rho * torch.outer(sign, sign)), pair)


def test_independent_channels_add_up():
    r = torch.tensor([0.6, 0.3, 0.0], dtype=torch.float64)
    pair = task_information.pair_information(r, torch.eye(3, dtype=torch.float64))
    assert float(pair[0, 1]) == pytest.approx(-0.5 * math.log(1 - 0.36 - 0.09))
    excess = task_information.excess(pair, information.correlation_information(r))
    assert excess[0, 2] == 0
    assert excess[1, 2] == 0
    assert float(task_information.unique(information.correlation_information(r))[2]) == 0


def test_suppressor_pair():
    """A channel that says nothing about the target but cleans its peer: all of its value is excess."""
    r, rho = torch.tensor([0.6, 0.0], dtype=torch.float64), torch.tensor([[1.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    pair = task_information.pair_information(r, rho)
    excess = task_information.excess(pair, information.correlation_information(r))
    assert float(excess[0, 1]) == pytest.approx(0.5 * math.log((1 - 0.36) / (1 - 0.36 / 0.51)))
    assert task_information.unique(information.correlation_information(r))[1] == 0


def test_two_halves_of_the_target():
    """T = Y0 + Y1 with independent halves: together they determine it, each alone has ½ ln 2."""
    r = torch.full((2,), 0.5**0.5, dtype=torch.float64)
    pair, single = task_information.pair_information(r, torch.eye(2, dtype=torch.float64)), information.correlation_information(r)
    assert pair[0, 1] == math.inf
    assert single.tolist() == pytest.approx([LN2 / 2] * 2)
    assert task_information.excess(pair, single)[0, 1] == math.inf


def test_exclusive_or_is_invisible_to_correlation():
    """The Gaussian reading sees second moments only: for a parity target it reports zero, and is meant to."""
    bits = torch.tensor([[a, b, a ^ b] for a in (0, 1) for b in (0, 1)], dtype=torch.float64)
    rho = Gaussian.fit(Moments.of(bits)).correlation
    pair = task_information.pair_information(rho[2, :2], rho[:2, :2])
    assert float(pair.abs().max()) < 1e-12


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_copy_adds_nothing(sign):
    r, rho = laws.correlations(4)
    double, twice = laws.with_copy(rho, 1, sign), torch.cat([r, sign * r[1:2]])
    pair, single = task_information.pair_information(twice, double), information.correlation_information(twice)
    assert pair[1, 4] == single[1]
    assert task_information.excess(pair, single)[1, 4] == 0
    assert not pair.isnan().any()
    torch.testing.assert_close(pair[0, 4], pair[0, 1])


def test_nearly_a_copy_never_goes_below_its_better_half():
    generator = torch.Generator().manual_seed(3)
    for size in (1e-2, 1e-3, 1e-4, 1e-5):
        x = torch.randn(2000, 1, generator=generator)
        y = x + size * torch.randn(2000, 1, generator=generator)
        t = x + torch.randn(2000, 1, generator=generator)
        rho = Gaussian.fit(Moments.of(torch.cat([x, y, t], 1))).correlation
        pair, single = task_information.pair_information(rho[2, :2], rho[:2, :2]), information.correlation_information(rho[2, :2])
        assert 0 <= float(task_information.excess(pair, single)[0, 1]) < 0.05


def test_the_target_itself_among_the_channels():
    r, rho = laws.correlations(3)
    wider = torch.cat([torch.cat([rho, r[:, None]], 1), torch.cat([r, r.new_ones(1)])[None]], 0)
    all_r = torch.cat([r, r.new_ones(1)])
    pair, single = task_information.pair_information(all_r, wider), information.correlation_information(all_r)
    assert bool(pair[3].isposinf().all())
    excess = task_information.excess(pair, single)
    assert float(excess[3].abs().max()) == 0
    assert bool(excess[:3, :3].isfinite().all())
    assert task_information.unique(single)[3] == math.inf
    assert task_information.unique(torch.full((3,), math.inf, dtype=torch.float64)).tolist() == [0, 0, 0]


def test_silent_channels_stay_undefined_and_touch_no_one():
    r, rho = laws.correlations(4)
    quiet, r_quiet = laws.with_silent(rho, 1), torch.cat([r[:1], r.new_full((1,), torch.nan), r[1:]])
    pair = task_information.pair_information(r_quiet, quiet)
    rest = [0, 2, 3, 4]
    assert bool(pair[1].isnan().all())
    torch.testing.assert_close(pair[rest][:, rest], task_information.pair_information(r, rho))
    excess = task_information.excess(pair, information.correlation_information(r_quiet))
    torch.testing.assert_close(information.mean_over_peers(excess)[rest], information.mean_over_peers(excess[rest][:, rest]))


def test_unique_twin():
    single = torch.tensor([0.5, 0.1, 0.9, 0.0], dtype=torch.float64)
    np.testing.assert_allclose(task_information.unique(single), pencil.unique(single.numpy()))
    assert task_information.redundancy(single)[0].tolist() == [0.5, 0.1, 0.5, 0.0]
    assert task_information.unique(torch.cat([single, single.new_full((1,), torch.nan)]))[4].isnan()


def test_pair_information_needs_matching_sizes():
    with pytest.raises(ShapeError, match="3 target correlations"):
        task_information.pair_information(torch.zeros(3), torch.eye(4))


# ---------------------------------------------------------------- target axis: triples


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_triplet_excess_twin(seed):
    r, rho = laws.correlations(6, seed)
    triples = task_information.sample_triples(torch.arange(6), 12, seed)
    for over in ("pairs", "singles"):
        value = task_information.triplet_excess(r, rho, triples, over)
        np.testing.assert_allclose(value, pencil.triplet_excess(r.numpy(), rho.numpy(), triples.tolist(), over), atol=1e-9)
        assert bool((value >= 0).all())
    ratio = float(task_information.triplet_ratio(r, rho, triples))
    assert ratio == pytest.approx(pencil.triplet_ratio(r.numpy(), rho.numpy(), triples.tolist()), rel=1e-7)


def test_triplet_of_copies_determined_targets_and_silence():
    r, rho = laws.correlations(3)
    double, twice = laws.with_copy(rho, 0, -1), torch.cat([r, -r[:1]])
    triples = torch.tensor([[0, 3, 1], [0, 1, 2]])
    value = task_information.triplet_excess(twice, double, triples)
    assert float(value[0]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(value[1:], task_information.triplet_excess(r, rho, torch.tensor([[0, 1, 2]])))
    halves = torch.tensor([0.5**0.5, 0.5**0.5, 0.0], dtype=torch.float64)
    done = torch.tensor([[0, 1, 2]])
    assert task_information.triplet_excess(halves, torch.eye(3, dtype=torch.float64), done) == 0
    assert task_information.triplet_excess(halves, torch.eye(3, dtype=torch.float64), done, "singles") == math.inf
    thirds = torch.full((3,), 3**-0.5, dtype=torch.float64)
    assert task_information.triplet_excess(thirds, torch.eye(3, dtype=torch.float64), done) == math.inf
    quiet, r_quiet = laws.with_silent(rho, 0), torch.cat([r.new_full((1,), torch.nan), r])
    both = task_information.triplet_excess(r_quiet, quiet, torch.tensor([[0, 1, 2], [1, 2, 3], [1, 2, 0]]))
    assert both.isnan().tolist() == [True, False, True]
    ratio = task_information.triplet_ratio(r_quiet, quiet, torch.tensor([[0, 1, 2], [1, 2, 3]]))
    torch.testing.assert_close(ratio, task_information.triplet_ratio(r, rho, done))


def test_triplet_ratio_without_any_pair_excess_is_undefined():
    r = torch.zeros(3, dtype=torch.float64)
    assert task_information.triplet_ratio(r, torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]])).isnan()
    with pytest.raises(InputError, match="pairs"):
        task_information.triplet_excess(r, torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]]), "all")


def test_sampled_triples_are_uniform_and_seeded():
    channels = torch.tensor([2, 5, 7, 11])
    triples = task_information.sample_triples(channels, 12_000, 1)
    assert torch.equal(triples, task_information.sample_triples(channels, 12_000, 1))
    assert not torch.equal(triples, task_information.sample_triples(channels, 12_000, 2))
    ordered, counts = triples.unique(dim=0, return_counts=True)
    assert len(ordered) == 24
    assert bool((counts > 400).all())
    assert bool((triples.sort(1).values.diff(dim=1) > 0).all())
    with pytest.raises(SampleError, match="3 channels"):
        task_information.sample_triples(channels[:2], 5)


# ---------------------------------------------------------------- label


def labeled(seed=0, n=400, d=5, classes=3):
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % classes
    centers = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = noise @ torch.linalg.cholesky(laws.covariance(d, seed)).T + centers[label]
    total = Moments.of(x).covariance
    within = sum(Moments.of(x[label == k]).scatter for k in range(classes)) / n
    return total, within


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_label_information_twins(seed):
    total, within = labeled(seed)
    t, w = total.numpy(), within.numpy()
    assert float(task_information.label_information(total, within)) == pytest.approx(pencil.label_information(t, w, range(5)), rel=1e-7)
    assert float(task_information.label_information(total, within, [4, 1])) == pytest.approx(
        pencil.label_information(t, w, [4, 1]), rel=1e-7
    )
    single = task_information.label_information_single(total.diagonal(), within.diagonal())
    np.testing.assert_allclose(single, [pencil.label_information(t, w, [i]) for i in range(5)])
    pair = task_information.label_information_pair(total, within)
    for i in range(5):
        for j in range(5):
            assert float(pair[i, j]) == pytest.approx(pencil.label_information(t, w, {i, j}), abs=1e-9)
    assert bool((task_information.excess(pair, single) >= 0).all())
    assert task_information.label_information(total, within) >= pair.max() - 1e-9


def test_label_information_can_exceed_the_logarithm_of_the_classes():
    total, within = torch.eye(1, dtype=torch.float64), torch.full((1, 1), 1e-4, dtype=torch.float64)
    assert task_information.label_information(total, within) > math.log(2)


def test_label_edge_cases():
    total, within = labeled()
    perfect = within.clone()
    perfect[2] = perfect[:, 2] = 0
    single = task_information.label_information_single(total.diagonal(), perfect.diagonal())
    assert single[2] == math.inf
    pair = task_information.label_information_pair(total, perfect)
    assert bool(pair[2].isposinf().all())
    assert not pair.isnan().any()
    assert task_information.label_information(total, perfect) == math.inf
    silent_total, silent_within = total.clone(), within.clone()
    for matrix in (silent_total, silent_within):
        matrix[1] = matrix[:, 1] = 0
    assert task_information.label_information_single(silent_total.diagonal(), silent_within.diagonal()).isnan().tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert bool(task_information.label_information_pair(silent_total, silent_within)[1].isnan().all())
    with pytest.raises(SingularError, match="silent"):
        task_information.label_information(silent_total, silent_within)
    with pytest.raises(ShapeError, match="differ in shape"):
        task_information.label_information(total, within[:3, :3])


def test_label_information_of_a_copy():
    total, within = labeled()
    total, within = (laws_scaled_copy(matrix, 1, -2.0) for matrix in (total, within))
    pair, single = (
        task_information.label_information_pair(total, within),
        task_information.label_information_single(total.diagonal(), within.diagonal()),
    )
    assert pair[1, 5] == single[1] == single[5]
    assert task_information.excess(pair, single)[1, 5] == 0


def test_classes_that_differ_along_a_line_only():
    """Total correlation below 1, within-class correlation 1: the difference of the channels names the class."""
    total = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    within = torch.ones(2, 2, dtype=torch.float64)
    assert task_information.label_information_pair(total, within)[0, 1] == math.inf
    assert task_information.label_information(total, within) == math.inf


def laws_scaled_copy(matrix, of, factor):
    mixing = torch.eye(len(matrix), dtype=torch.float64)
    mixing = torch.cat([mixing, factor * mixing[of : of + 1]], 0)
    return mixing @ matrix @ mixing.T


# ---------------------------------------------------------------- finite samples


def test_bias_of_a_continuous_target():
    generator = torch.Generator().manual_seed(0)
    n, values, pairs = 50, [], []
    for _ in range(600):
        rho = Gaussian.fit(Moments.of(torch.randn(n, 3, generator=generator, dtype=torch.float64))).correlation
        values.append(float(information.correlation_information(rho[2, 0])))
        pairs.append(float(task_information.pair_information(rho[2, :2], rho[:2, :2])[0, 1]))
    assert np.mean(values) == pytest.approx(information.gaussian_bias(1, n), rel=0.15)
    assert np.mean(pairs) == pytest.approx(information.gaussian_bias(2, n), rel=0.15)
    assert information.gaussian_bias(2, 100) == pytest.approx(0.01)


def test_bias_of_a_label():
    generator = torch.Generator().manual_seed(0)
    n, classes, values = 200, 4, []
    label = torch.arange(n) % classes
    for _ in range(300):
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        within = sum(Moments.of(x[label == k]).scatter for k in range(classes)) / n
        values.append(float(task_information.label_information(Moments.of(x).covariance, within)))
    assert np.mean(values) == pytest.approx(information.gaussian_bias(2, n, classes), rel=0.1)


def problem(seed=0, channels=4, inputs=6, variance_left=0.5):
    """Weights, input covariance, cross-covariance and a possible target variance."""
    generator = torch.Generator().manual_seed(seed)
    sigma = laws.covariance(inputs, seed)
    beta = torch.randn(inputs, generator=generator, dtype=torch.float64)
    weights = torch.randn(channels, inputs, generator=generator, dtype=torch.float64)
    return weights, sigma, sigma @ beta, float(beta @ sigma @ beta) * (1 + variance_left)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_gradients_are_slopes(seed):
    weights, sigma, cross, variance = problem(seed)
    axes = linear_axes(weights, weights @ sigma, cross, variance, noise=0.7)
    for i, w in enumerate(weights.numpy()):
        capture, relevance, up, along = pencil.linear_axes(w, sigma.numpy(), cross.numpy(), variance, 0.7)
        assert float(axes.capture[i]) == pytest.approx(capture)
        assert float(axes.relevance[i]) == pytest.approx(relevance)
        np.testing.assert_allclose(axes.capture_gradient[i], up, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(axes.task_gradient[i], along, rtol=1e-4, atol=1e-6)


def test_gradients_are_autograds():
    weights, sigma, cross, variance = problem(3)
    weights.requires_grad_()
    power, shared = (weights @ sigma * weights).sum(1), weights @ cross
    noise = float(power.detach().quantile(0.5))
    (up,) = torch.autograd.grad((power / noise).log1p().sum() / 2, weights, retain_graph=True)
    (along,) = torch.autograd.grad(-torch.log1p(-shared.square() / (power * variance)).sum() / 2, weights)
    axes = linear_axes(weights.detach(), weights.detach() @ sigma, cross, variance)
    torch.testing.assert_close(axes.capture_gradient, up)
    torch.testing.assert_close(axes.task_gradient, along)


@given(SEEDS, st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_both_identities(seed, scale):
    weights, sigma, cross, variance = problem(seed)
    axes = linear_axes(scale * weights, scale * weights @ sigma, cross, variance)
    size = axes.residual.norm(dim=1) * weights.norm(dim=1)
    assert float(((weights * axes.residual).sum(1) / size).abs().max()) < 1e-10
    inverse = torch.linalg.inv(sigma)
    assert float(cosine(axes.capture_gradient, axes.residual, inverse).abs().max()) < 1e-8
    assert float(cosine(axes.capture_gradient, axes.task_gradient, inverse).abs().max()) < 1e-8


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_euclidean_cosine_is_zero_for_isotropic_inputs_and_eigenvectors(seed):
    weights, sigma, cross, variance = problem(seed)
    isotropic = linear_axes(weights, 3.0 * weights, cross, float(cross @ cross))
    assert float(isotropic.cosine.abs().max()) < 1e-8
    vectors = torch.linalg.eigh(sigma).eigenvectors.T.contiguous()
    assert float(linear_axes(vectors, vectors @ sigma, cross, variance).cosine.abs().max()) < 1e-6


def test_euclidean_cosine_measures_anisotropy():
    weights = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    cross, values = torch.tensor([1.0, 0.0], dtype=torch.float64), []
    for ratio in (1.0, 3.0, 30.0):
        sigma = torch.diag(torch.tensor([ratio, 1.0], dtype=torch.float64))
        values.append(float(linear_axes(weights, weights @ sigma, cross, 5.0).cosine.abs()))
    assert values[0] < 1e-12
    assert values[0] < values[1] < values[2]


def test_cosine_twin():
    a, b = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    metric = laws.covariance(5)
    for i in range(3):
        assert float(cosine(a, b, metric)[i]) == pytest.approx(pencil.cosine(a[i].numpy(), b[i].numpy(), metric.numpy()))
        assert float(cosine(a, b)[i]) == pytest.approx(pencil.cosine(a[i].numpy(), b[i].numpy(), np.eye(5)))
    assert cosine(torch.zeros(1, 2), torch.ones(1, 2)).isnan().item()


def test_undefined_where_a_channel_is_silent_or_is_the_target():
    weights, sigma, cross, variance = problem(variance_left=0.0)
    beta = torch.linalg.solve(sigma, cross)
    weights = torch.stack([torch.zeros(6, dtype=torch.float64), beta, weights[0]])
    axes = linear_axes(weights, weights @ sigma, cross, variance)
    assert axes.relevance.isnan().tolist() == [True, False, False]
    assert axes.relevance[1] == math.inf
    assert bool(axes.capture[0].isnan())
    assert bool(axes.task_gradient[0].isnan().all())
    assert bool(axes.task_gradient[1].isnan().all())
    assert bool(axes.task_gradient[2].isfinite().all())


def test_an_uncorrelated_channel_is_at_a_saddle_of_the_task_axis():
    sigma, cross = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    axes = linear_axes(torch.tensor([[0.0, 2.0]], dtype=torch.float64), torch.tensor([[0.0, 2.0]]), cross, 2.0)
    assert axes.task_gradient.abs().sum() == 0
    assert axes.residual[0].tolist() == [1.0, 0.0]
    assert sigma.trace() == 2


def test_shapes_must_fit():
    weights, sigma, cross, variance = problem()
    with pytest.raises(ShapeError, match="cross-covariance"):
        linear_axes(weights, weights @ sigma, cross[:3], variance)
    with pytest.raises(ShapeError):
        linear_axes(weights, sigma, cross, variance)


# ---------------------------------------------------------------- flows


def spiked(seed, inputs=24, channels=64, share=0.6):
    """An input with one strong direction that also carries most of the target: capture and relevance start out coupled."""
    generator = torch.Generator().manual_seed(seed)
    values = 1 / torch.arange(inputs, dtype=torch.float64).clamp(min=1)
    values[0] = 10
    basis = torch.linalg.qr(torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)).Q
    sigma = basis * values @ basis.T
    rest = torch.randn(inputs, generator=generator, dtype=torch.float64)
    rest[0] = 0
    beta = rest * ((1 - share) / (rest.square() * values).sum()).sqrt()
    beta[0] = (share / values[0]).sqrt()
    weights = torch.randn(channels, inputs, generator=generator, dtype=torch.float64)
    return weights / weights.norm(dim=1, keepdim=True), sigma, sigma @ (basis @ beta), 2.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_information_flow_separates_axes_that_began_together(seed):
    weights, sigma, cross, variance = spiked(seed)
    start = linear_axes(weights, weights @ sigma, cross, variance)
    lengths = weights.norm(dim=1)
    for _ in range(200):
        weights = information_step(weights, sigma, cross, variance, 0.02)
    end = linear_axes(weights, weights @ sigma, cross, variance)
    assert float(spearman(start.capture, start.relevance)) > 0.6
    assert float(spearman(end.capture, end.relevance)) < 0.2
    assert float(end.cosine.abs().mean()) < 0.5 * float(start.cosine.abs().mean())
    assert float(end.relevance.mean()) > 2 * float(start.relevance.mean())
    torch.testing.assert_close(weights.norm(dim=1), lengths, rtol=0.05, atol=0)


def test_information_flow_ends_at_the_regression():
    weights, _, beta, _ = problem(5)
    sigma = torch.diag(torch.linspace(0.5, 2, 6, dtype=torch.float64))
    cross = sigma @ beta
    for _ in range(600):
        weights = information_step(weights, sigma, cross, 1.5 * float(beta @ cross), 0.2)
    assert float(cosine(weights, beta.expand_as(weights)).abs().min()) > 0.999


def test_network_step_is_autograds_and_keeps_the_balance():
    weights, sigma, cross, variance = problem(2)
    readout = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    w, a = weights.clone().requires_grad_(), readout.clone().requires_grad_()
    total = w.T @ a
    loss = (variance - 2 * total @ cross + total @ sigma @ total) / 2
    loss.backward()
    new_w, new_a = network_step(weights, readout, sigma, cross, 1e-3)
    torch.testing.assert_close(new_w, weights - 1e-3 * w.grad)
    torch.testing.assert_close(new_a, readout - 1e-3 * a.grad)
    before = weights @ weights.T - torch.outer(readout, readout)
    for _ in range(2000):
        weights, readout = network_step(weights, readout, sigma, cross, 1e-4)
    torch.testing.assert_close(weights @ weights.T - torch.outer(readout, readout), before, rtol=0, atol=0.05)
    error = variance - 2 * (weights.T @ readout) @ cross + (weights.T @ readout) @ sigma @ (weights.T @ readout)
    least = variance - cross @ torch.linalg.solve(sigma, cross)
    assert float(least) < float(error) < float(least) + 0.1 * float(2 * loss.detach() - least)
