"""The closed forms on a CUDA device give what they give on the processor, and stay on the device."""

import pytest
import torch

from channelscope.formulas import information, task_information
from channelscope.formulas.clustering import communities, kmeans_labels, strongest_edges
from channelscope.formulas.gaussian import Gaussian, correlation
from channelscope.formulas.information import linear_axes
from channelscope.formulas.intervals import holm, jackknife, permutation_p
from channelscope.formulas.ranks import partial_spearman, spearman
from channelscope.formulas.regression import backward_elimination, hulls, peer_regression, replacement_weights, support
from channelscope.stats.moments import Moments
from formulas import laws

pytestmark = pytest.mark.gpu

COVARIANCE = laws.covariance(40, 1)
R, RHO = laws.correlations(40, 1)
TRIPLES = task_information.sample_triples(torch.arange(40), 200)
ROWS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

FORMULAS = {
    "condition": lambda cov, r, rho, rows: Gaussian.fit(Moments.of(rows), "oas").given([1]).covariance,
    "correlation": lambda cov, r, rho, rows: correlation(cov),
    "pair": lambda cov, r, rho, rows: task_information.pair_information(r, rho),
    "unique": lambda cov, r, rho, rows: task_information.unique(information.correlation_information(r)),
    "top": lambda cov, r, rho, rows: information.mean_of_top_peers(rho, rho, 3, 9),
    "overlap": lambda cov, r, rho, rows: information.overlap(rho),
    "triplet": lambda cov, r, rho, rows: task_information.triplet_excess(r, rho, TRIPLES.to(r.device)),
    "label": lambda cov, r, rho, rows: task_information.label_information_pair(2 * cov, cov),
    "capture": lambda cov, r, rho, rows: information.capture(cov.diagonal()),
    "support": lambda cov, r, rho, rows: support(rho),
    "hull": lambda cov, r, rho, rows: hulls(rho).explained.nan_to_num(),
    "peers": lambda cov, r, rho, rows: peer_regression(cov, torch.arange(9, device=cov.device), torch.arange(9, 40, device=cov.device)),
    "replacement": lambda cov, r, rho, rows: replacement_weights(cov, r, 0, [3, 4])[0],
    "elimination": lambda cov, r, rho, rows: backward_elimination(cov, r.square()).cost,
    "axes": lambda cov, r, rho, rows: linear_axes(rho, rho @ cov, cov @ r, 1e3).residual,
    "edges": lambda cov, r, rho, rows: strongest_edges(rho)[1],
    "spearman": lambda cov, r, rho, rows: spearman(rows[:, 0], rows[:, 1]),
    "partial": lambda cov, r, rho, rows: partial_spearman(rows[:, 0], rows[:, 1], rows[:, 2:]),
    "grouping": lambda cov, r, rho, rows: kmeans_labels(rows),
    "jackknife": lambda cov, r, rho, rows: jackknife(rows.mean(0), rows).standard_error,
    "permutation": lambda cov, r, rho, rows: permutation_p(rows[0], rows),
    "holm": lambda cov, r, rho, rows: holm(r.abs()),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_device_and_processor_agree(name):
    given = COVARIANCE, R, RHO, ROWS
    there = FORMULAS[name](*(each.cuda() for each in given))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), FORMULAS[name](*given), rtol=1e-8, atol=1e-10)


def test_communities_on_a_device():
    assert communities(RHO.cuda()) == communities(RHO)
