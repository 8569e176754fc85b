"""Where things lie: every kernel is drawn once, from left to right, and nothing lies on anything else."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelscope.circuits.circuit import Circuit, remove_dead_ends
from channelscope.circuits.criteria import baseline_scores, score_kernels, with_signs
from channelscope.circuits.diagram_layout import BETWEEN, HEIGHT, LETTER, LINE, DiagramLayout, lay_out
from channelscope.circuits.feature import locate_feature
from channelscope.circuits.selection import top_k
from channelscope.zoo import toys
from pencil_circuits import LAST, NETWORKS, Planted, network, pictures

IMAGES = pictures(4)
SIGNED = {name: score_kernels(locate_feature(network(name), f"{LAST[name]}:1", IMAGES), IMAGES) for name in NETWORKS}


def drawn(name: str, fraction: float, seed: int) -> tuple[Circuit, DiagramLayout]:
    target = SIGNED[name].feature
    circuit = remove_dead_ends(top_k(baseline_scores(target, "random", seed), fraction), target)
    return circuit, lay_out(circuit, SIGNED[name])


CASES = (st.sampled_from(list(NETWORKS)), st.floats(0.1, 1), st.integers(0, 20))


@settings(max_examples=25, deadline=None)
@given(*CASES)
def test_every_kernel_is_drawn_once_and_leads_to_the_right(name, fraction, seed):
    circuit, page = drawn(name, fraction, seed)
    assert page.kernels == circuit.count
    assert len({node.name for node in page.nodes if node.kind != "sum"}) == sum(node.kind != "sum" for node in page.nodes)
    for edge in page.edges:
        source, reader = page.nodes[edge.source], page.nodes[edge.reader]
        assert source.x + source.side < reader.x
        assert 0 <= edge.score <= 1
        assert -1 <= edge.effect <= 1


@settings(max_examples=25, deadline=None)
@given(*CASES)
def test_nothing_lies_on_anything_else_or_off_the_page(name, fraction, seed):
    _, page = drawn(name, fraction, seed)
    boxes = [(node.x, node.y, node.x + node.side, node.y + node.side, node.kind) for node in page.nodes]
    for number, (left, top_, right, bottom, kind) in enumerate(boxes):
        assert left >= 0
        assert right <= page.width
        assert 0 <= top_ < bottom <= page.height
        for other in boxes[:number]:
            if other[4] == kind:
                assert left >= other[2] or right <= other[0] or top_ >= other[3] or bottom <= other[1]


@settings(max_examples=15, deadline=None)
@given(*CASES)
def test_names_are_those_of_the_circuit(name, fraction, seed):
    circuit, page = drawn(name, fraction, seed)
    channels = {node.name for node in page.nodes if node.kind == "channel"}
    assert {f"{layer}:{row}" for layer in circuit for row in circuit[layer].any(1).nonzero().flatten().tolist()} <= channels
    assert [node.name for node in page.nodes if node.feature] == [f"{LAST[name]}:1"]
    columns = {node.group: node.depth for node in page.nodes if node.kind == "channel" and node.group in circuit}
    for node in page.nodes:
        if node.kind == "channel" and node.group in columns:
            assert node.depth == columns[node.group]  # a layer is one column


def test_the_planted_circuit_as_drawn():
    model = Planted().eval()
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = locate_feature(model, "c:0", images)
    page = lay_out(Circuit.of_feature(target, model.truth), score_kernels(target, images))
    ways = {(page.nodes[e.source].name, page.nodes[e.reader].name): e for e in page.edges}
    assert set(ways) == {("image:0", "a:0"), ("image:1", "a:1"), ("a:0", "b:0"), ("a:1", "b:1"), ("b:0", "c:0"), ("b:1", "c:0")}
    assert ways["b:0", "c:0"].effect > 0 > ways["b:1", "c:0"].effect
    assert ways["b:0", "c:0"].kernel.tolist() == [[1.0]]
    assert ways["a:0", "b:0"].kernel.shape == (3, 3)
    assert [lines for _, lines in page.titles] == [("image",), ("a",), ("b",), ("c",)]
    rows = {node.name: node.y for node in page.nodes}
    assert (rows["a:0"] < rows["a:1"]) == (rows["b:0"] < rows["b:1"])  # ways do not cross


def test_columns_are_in_the_order_of_the_network():
    """A channel that nothing feeds, a constant in this circuit, stands where its layer is, and its readers behind it."""
    target = SIGNED["chain"].feature
    marks = {layer: kernels.clone() for layer, kernels in Circuit.full(target).masks.items()}
    marks["b"][:] = False  # channels of b are constants
    marks["a"][:] = False
    page = lay_out(remove_dead_ends(Circuit.of_feature(target, marks), target), SIGNED["chain"])
    assert [lines for _, lines in page.titles] == [("b",), ("c",), ("head",)]
    marks["a"], marks["b"][0, 0] = target.relevant["a"].clone(), True
    page = lay_out(remove_dead_ends(Circuit.of_feature(target, marks), target), SIGNED["chain"])
    assert [lines for _, lines in page.titles] == [("image",), ("a",), ("b",), ("c",), ("head",)]
    residual = SIGNED["residual"].feature
    marks = {layer: kernels.clone() for layer, kernels in Circuit.full(residual).masks.items()}
    marks["one"][:] = False  # nothing leads into the first branch
    page = lay_out(remove_dead_ends(Circuit.of_feature(residual, marks), residual), SIGNED["residual"])
    columns = {line: place for place, (_, lines) in enumerate(page.titles) for line in lines}
    whole = lay_out(Circuit.full(residual), SIGNED["residual"])
    order = [line for _, lines in whole.titles for line in lines if line in columns]
    assert [columns[line] for line in order] == sorted(columns.values())
    assert columns["stem"] < columns["one"] < columns["two"]


def test_sums_stand_between_columns_only_where_two_members_are_left():
    target = SIGNED["residual"].feature
    whole = lay_out(Circuit.full(target), SIGNED["residual"])
    sums = [node for node in whole.nodes if node.kind == "sum"]
    assert {frozenset(node.name.split(" + ")) for node in sums} >= {frozenset({"stem:0", "two:0"})}
    marks = {layer: kernels.clone() for layer, kernels in Circuit.full(target).masks.items()}
    marks["two"][:] = False
    alone = lay_out(remove_dead_ends(Circuit.of_feature(target, marks), target), SIGNED["residual"])
    assert not any("two" in node.name for node in alone.nodes)
    assert any(alone.nodes[edge.source].name == "stem:0" and alone.nodes[edge.reader].group == "three" for edge in alone.edges)


def test_constant_sums_stand_between_the_columns():
    """Nothing feeds them, and their kernels have room between the columns, also where a column is folded."""
    target = SIGNED["residual"].feature
    for layers in (("stem", "one", "two"), ("stem", "one", "two", "three", "four", "short")):
        marks = {layer: kernels.clone() & (layer not in layers) for layer, kernels in Circuit.full(target).masks.items()}
        page = lay_out(remove_dead_ends(Circuit.of_feature(target, marks), target), SIGNED["residual"])
        sums = [place for place, node in enumerate(page.nodes) if "constant here" in node.name]
        assert sums
        for place in sums:
            node = page.nodes[place]
            readers = [page.nodes[edge.reader] for edge in page.edges if edge.source == place]
            assert node.x + node.side <= min(other.x for other in readers) - BETWEEN / 4
            assert not any(
                other.kind != "sum" and other.x - 1 < node.x + node.side and node.x < other.x + other.side for other in page.nodes
            )


def test_titles_have_room():
    """Every line of a column's title is as wide as its letters, on the page, and beside the next column's."""
    for name in NETWORKS:
        circuit = Circuit.full(SIGNED[name].feature)
        page = lay_out(circuit, SIGNED[name])
        spans = [(x - LETTER * max(map(len, lines)) / 2, x + LETTER * max(map(len, lines)) / 2) for x, lines in page.titles]
        assert spans[0][0] >= 0
        assert spans[-1][1] <= page.width
        assert all(before[1] < after[0] for before, after in pairwise(spans))
        groups = {node.group for node in page.nodes if node.kind != "sum"}
        assert [line for _, lines in page.titles for line in lines if line in groups] == [
            line for _, lines in page.titles for line in lines
        ]
        top = min(node.y for node in page.nodes if node.kind != "sum")
        assert top >= LINE * max(len(lines) for _, lines in page.titles)


def test_high_columns_are_folded():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 90, 1), torch.nn.Conv2d(90, 1, 1)).eval()
    images = torch.randn(2, 2, 4, 4)
    target = locate_feature(model, "1:0", images)
    page = lay_out(Circuit.full(target), score_kernels(target, images))
    assert page.kernels == 270
    assert page.height <= HEIGHT
    assert len({node.x for node in page.nodes if node.group == "0"}) > 1


def test_signs_are_measured_where_a_criterion_has_none():
    target = SIGNED["chain"].feature
    plain = score_kernels(target, IMAGES, "actgrad")
    both = with_signs(plain, IMAGES)
    assert plain.signed_values is None
    for layer in target.layers:
        assert torch.equal(both[layer], plain[layer])
        assert torch.equal(both.signed_values[layer], SIGNED["chain"].signed_values[layer])
    assert with_signs(both, IMAGES) is both
    grey = lay_out(Circuit.full(target), plain)
    assert {edge.effect for edge in grey.edges} == {0.0}


def test_the_strongest_kernel_is_drawn_last():
    toy = toys.independent_channels()
    feature = locate_feature(toy.model, "conv:2", toy.batches[0][0])
    scores = baseline_scores(feature, "random")
    page = lay_out(top_k(scores, 5), scores)
    assert [edge.score for edge in page.edges] == sorted((scores["conv"][2] / scores["conv"][2].max()).tolist())
