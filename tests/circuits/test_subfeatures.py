"""Sub-features: the polysemantic unit falls apart into its causes, with one circuit for each."""

import math
from dataclasses import replace

import pytest
import torch

from channelscope.circuits.circuit import Circuit
from channelscope.circuits.criteria import CircuitOptions
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.subfeatures import cluster_images, error_at_maximum, subfeature_circuits, top_images
from channelscope.errors import BudgetError, InputError, SampleError
from pencil_circuits import Polysemantic, causes, network, pictures

MODEL = Polysemantic().eval()
IMAGES = causes(24)
TARGET = locate_feature(MODEL, "c:0@max", IMAGES)
PEAKS = top_images(TARGET, IMAGES, 20)
CAUSE = (PEAKS.indices >= 12).long()
"""the cause of each of the strongest images"""


@pytest.fixture(scope="module")
def found():
    return subfeature_circuits(TARGET, PEAKS, cluster_images(PEAKS), CircuitOptions(keep="3"))


@torch.no_grad()
def test_peaks_are_the_strongest_images_at_their_maximum():
    maps = TARGET.feature_map(IMAGES)
    best = maps.amax(1).sort(descending=True)
    assert torch.equal(PEAKS.values, best.values[:20])
    assert torch.equal(PEAKS.images, IMAGES[PEAKS.indices])
    assert torch.equal(maps[PEAKS.indices, PEAKS.positions], PEAKS.values)
    whole = MODEL(IMAGES).flatten(2)
    assert torch.equal(PEAKS.layer_activations, whole[PEAKS.indices, :, PEAKS.positions])


def test_batches_make_no_difference():
    parts = top_images(TARGET, IMAGES.split(5), 20)
    assert torch.equal(parts.indices, PEAKS.indices)
    assert torch.allclose(parts.layer_activations, PEAKS.layer_activations)


def test_groups_are_the_causes():
    for labels in (cluster_images(PEAKS), cluster_images(PEAKS, 2), cluster_images(PEAKS, 2, seed=5)):
        assert labels[0] == 0  # numbered by their strongest image
        agreed = labels == (CAUSE[0] != CAUSE).long()
        assert agreed.all()


def test_one_circuit_for_each_cause(found):
    circuits, _ = found
    truths = [Circuit.of_feature(TARGET, MODEL.truth(cause)) for cause in (0, 1)]
    first = int(CAUSE[0])
    assert circuits["0"] == truths[first]
    assert circuits["1"] == truths[1 - first]
    assert circuits["union"] == truths[0] | truths[1]
    assert set(circuits) == {"0", "1", "mixed", "union", "general"}


def test_circuits_keep_their_own_cause_and_lose_the_other(found):
    circuits, _ = found
    groups = [(CAUSE[0] == CAUSE).nonzero().flatten(), (CAUSE[0] != CAUSE).nonzero().flatten()]
    for own in (0, 1):
        assert error_at_maximum(TARGET, circuits[str(own)], PEAKS, groups[own]) < 0.05
        assert error_at_maximum(TARGET, circuits[str(own)], PEAKS, groups[1 - own]) > 0.8
        assert error_at_maximum(TARGET, circuits["union"], PEAKS, groups[own]) < 0.05


def test_curves_of_every_circuit_on_every_group(found):
    _, frames = found
    curves = frames["subcircuit_curves"]
    assert set(curves["scored_on"]) == {"0", "1", "mixed", "general"}
    assert (curves[curves["scored_on"] == "general"]["peak_error"] < 0.05).all()
    half = curves[curves["kept"] == 0.5].set_index(["scored_on", "judged_on"])["peak_error"]
    assert half["0", 0] < 0.05
    assert half["1", 1] < 0.05
    assert half["mixed", 0] < 0.05
    assert curves["peak_error"].notna().all()
    judged = frames["subcircuits"].query("scored_on == ''").groupby("cluster").size()
    assert curves.drop_duplicates("judged_on").set_index("judged_on")["images"].to_dict() == judged.to_dict()


def test_overlap_by_layer(found):
    circuits, frames = found
    table = frames["subcircuit_overlap"]
    assert table["site"].tolist() == ["", "a", "b", "c"]
    assert (table["shared"] == 0).all()  # the two paths share nothing
    assert circuits["0"].iou(circuits["1"])[""] == 0


def test_images_say_where_they_belong(found):
    _, frames = found
    table = frames["subcircuits"]
    assert table["image"].tolist() == PEAKS.indices.tolist()
    assert table["activation"].is_monotonic_decreasing
    assert all(len(spot.split(",")) == 2 for spot in table["position"])


def test_labels_of_the_user():
    own = subfeature_circuits(TARGET, PEAKS, CAUSE, CircuitOptions(keep="3"))[0]
    assert own["0"] == Circuit.of_feature(TARGET, MODEL.truth(0))
    with pytest.raises(InputError, match="one label from 0 on"):
        subfeature_circuits(TARGET, PEAKS, CAUSE[:5])
    with pytest.raises(InputError, match="without a gap"):
        subfeature_circuits(TARGET, PEAKS, CAUSE * 2)


def test_clusters_that_would_be_empty_or_too_small():
    with pytest.raises(SampleError, match="received 21: a cluster would be empty"):
        cluster_images(PEAKS, 21)
    with pytest.raises(SampleError, match="received 1"):
        cluster_images(PEAKS, 1)
    alone = torch.zeros(20, dtype=torch.long)
    alone[3] = 1
    with pytest.raises(InputError, match="cluster 1 is too small"):
        subfeature_circuits(TARGET, PEAKS, alone)
    with pytest.raises(SampleError, match="at least 25 images"):
        top_images(TARGET, IMAGES, 25)
    with pytest.raises(InputError, match="at least 2 images"):
        top_images(TARGET, IMAGES, 1)
    with pytest.raises(InputError, match=r"feature c:0@center: its strongest images are told by its maximum"):
        top_images(locate_feature(MODEL, "c:0@center", IMAGES), IMAGES, 4)
    with pytest.raises(SampleError, match="never activates"):
        top_images(TARGET, torch.zeros(4, 2, 8, 8), 2)


def test_groups_are_scored_inside_the_general_circuit():
    circuits, frames = subfeature_circuits(TARGET, PEAKS, CAUSE, CircuitOptions(keep="3"), general_share=0.4)
    general = circuits["general"]
    assert general.count <= round(0.4 * TARGET.relevant_count)
    for name in ("0", "1", "mixed", "union"):
        assert circuits[name] & general == circuits[name]
    curves = frames["subcircuit_curves"]
    assert curves.query("scored_on != 'general'")["kept"].max() <= 0.4
    assert frames["subcircuit_curves"].attrs["provenance"]["general"] == 0.4
    whole, _ = subfeature_circuits(TARGET, PEAKS, CAUSE, CircuitOptions(keep="3"), general_share=1.0)
    assert whole["0"] == circuits["0"]  # the planted paths are found either way


def test_peaks_of_nothing_have_no_error():
    silent = replace(PEAKS, values=torch.zeros_like(PEAKS.values))
    assert math.isnan(error_at_maximum(TARGET, Circuit.full(TARGET), silent, torch.arange(3)))


def test_grown_circuits_stay_inside_the_general_circuit():
    """Kernels outside score zero like many inside, and growing took them."""
    model, images = network("residual"), pictures(24)
    target = locate_feature(model, "last:1", images)
    found = top_images(target, images, 16)
    labels = torch.arange(16) % 2
    circuits, _ = subfeature_circuits(target, found, labels, CircuitOptions(keep="0.2", live=True), general_share=0.3)
    for name in ("0", "1", "mixed", "union"):
        assert circuits[name] & circuits["general"] == circuits[name]


@pytest.mark.parametrize("general", [0.05, 0.0, 1.5, float("nan")])
def test_a_general_circuit_has_room_for_the_groups(general):
    with pytest.raises(BudgetError, match="expected a share from keep=3 of the relevant kernels to 1"):
        subfeature_circuits(TARGET, PEAKS, CAUSE, CircuitOptions(keep="3"), general_share=general)


def test_every_other_image_of_a_cluster_scores_and_the_rest_evaluate():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 1, 1, bias=False), torch.nn.Conv2d(1, 1, 1)).eval()
    torch.nn.init.constant_(model[0].weight, 1.0)
    images = torch.tensor([[4.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 1.0]])[:, :, None, None]
    feature = locate_feature(model, "0:0", images)
    top = top_images(feature, images, 4)
    _, frames = subfeature_circuits(feature, top, torch.tensor([0, 1, 0, 1]), CircuitOptions(keep="1"), general_share=1.0)
    assert frames["subcircuits"]["scored_on"].tolist() == ["0", "1", "", ""]
