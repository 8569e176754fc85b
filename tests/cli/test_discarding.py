"""discard as a user runs it, and what is refused."""

import json

import pandas as pd
import pytest

from channelscope import tables, zoo
from cli.commands import boxed, refused, run

FEW = ("--images", "60", "--test", "4")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A small network on digits with two sets of weights."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "net.py").write_text(
        "from channelscope.zoo.models import SmallResNet\n\n\nclass Net(SmallResNet):\n    def __init__(self):\n"
        "        super().__init__(8, classes=10, channels=1, width=4)\n"
    )
    name = f"{folder / 'net.py'}:Net"
    for seed in (0, 1):
        model, _ = zoo.load(name, "digits", seed=seed)
        zoo.save_weights(model.state_dict(), folder / f"{seed}.safetensors")
    return name, folder


@pytest.fixture(scope="module")
def done(network, tmp_path_factory):
    name, folder = network
    out = tmp_path_factory.mktemp("done") / "out"
    other = ("--against", name, "--against-weights", folder / "1.safetensors")
    assert run("discard", name, "--weights", folder / "0.safetensors", *FEW, "--layers", "layer1,layer3", *other, "--out", out) == 0
    return out


class TestDiscard:
    def test_tables_maps_and_report(self, done):
        assert {path.stem for path in done.glob("*.csv")} == {"discarded", "discarded_layers", "discarded_difference", "discarded_edges"}
        frame = tables.read(done / "discarded.csv")
        assert len(frame) == 2 * 2 * 4
        assert frame.passes.max() <= 20
        assert {path.parent.name for path in (done / "maps").rglob("*.safetensors")} == {"layer1", "layer3"}
        page = (done / "report.html").read_text()
        assert "What layers throw away" in page
        assert (done / "figures" / "discarded_maps.png").exists()
        assert "κ = 0.1" in json.loads((done / "run.json").read_text())["rule"]

    def test_differences_are_paired_and_have_intervals(self, done):
        frame = tables.read(done / "discarded_difference.csv")
        assert frame.layer.tolist() == ["layer1", "layer3"]
        assert frame.n.tolist() == [4, 4]
        assert (frame.difference_low < frame.difference).all()
        assert (frame.network != frame.other).all()

    def test_the_answer_is_printed(self, network, tmp_path, capsys):
        name, _ = network
        assert run("discard", name, *FEW, "--layers", "layer2", "--normalizer", "local", "--out", tmp_path / "out") == 0
        said = capsys.readouterr()
        assert "layer2: CID" in said.err
        assert "(n = 4 images)" in said.err
        assert said.out.strip().endswith("report.html")

    def test_an_interrupted_run_goes_on(self, network, done, tmp_path, monkeypatch):
        name, folder = network
        out = tmp_path / "out"
        arguments = ("discard", name, "--weights", folder / "0.safetensors", *FEW, "--layers", "layer1,layer3", "--out", out)
        from channelscope.discarding import cid as module

        with monkeypatch.context() as patch:
            calls, optimum = [], module.optimal_noise

            def failing(*given):
                if calls:
                    raise KeyboardInterrupt
                calls.append(1)
                return optimum(*given)

            patch.setattr(module, "optimal_noise", failing)
            assert run(*arguments) == 130
        assert [path.name for path in out.iterdir()] == ["maps"]
        assert run(*arguments) == 0
        mine = tables.read(out / "discarded.csv")
        whole = tables.read(done / "discarded.csv")
        whole = whole[whole.network == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=False, rtol=1e-6)

    def test_an_earlier_run_can_be_compared_with(self, network, done, tmp_path):
        name, folder = network
        arguments = ("discard", name, "--weights", folder / "1.safetensors", *FEW, "--layers", "layer1,layer3", "--mode", "fast")
        assert run(*arguments, "--against", done, "--out", tmp_path / "out") == 0
        mine = tables.read(tmp_path / "out" / "discarded_difference.csv")
        other = tables.read(done / "discarded_difference.csv")
        assert mine.difference.to_numpy() == pytest.approx(-other.difference.to_numpy(), abs=1e-4)

    def test_exact_mode_and_a_grid(self, network, tmp_path):
        name, _ = network
        few = ("--images", "60", "--test", "1", "--layers", "layer3")
        assert run("discard", name, *few, "--mode", "exact", "--grid-side", "2", "--out", tmp_path / "out") == 0
        frame = tables.read(tmp_path / "out" / "discarded.csv")
        assert frame.passes.max() <= 600


class TestDiscardRefuses:
    def test_mixed_normalizers_and_kappas(self, network, done, tmp_path, capsys):
        name, _ = network
        arguments = ("discard", name, *FEW, "--layers", "layer1,layer3", "--against", done)
        said = refused(capsys, *arguments, "--normalizer", "local", "--out", tmp_path / "a")
        assert "differ in normalizer (local and data), kappa (1.5 and 0.1)" in said
        assert "kappa (0.2 and 0.1)" in refused(capsys, *arguments, "--kappa", "0.2", "--out", tmp_path / "b")
        assert not list(tmp_path.rglob("*.csv"))

    def test_a_folder_of_another_rule_or_other_weights(self, network, done, capsys):
        name, folder = network
        before = (done / "discarded.csv").read_bytes()
        own = ("discard", name, "--weights", folder / "0.safetensors", *FEW, "--layers", "layer1,layer3", "--out", done)
        assert "differ in rule" in refused(capsys, *own, "--kappa", "0.3")
        other = ("discard", name, "--weights", folder / "1.safetensors", *FEW, "--out", done)
        assert "holds a run of" in refused(capsys, *other)
        assert (done / "discarded.csv").read_bytes() == before

    def test_layers_that_are_none(self, network, tmp_path, capsys):
        name, _ = network
        assert "near matches: layer" in refused(capsys, "discard", name, *FEW, "--layers", "layer9", "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_numbers_that_make_no_sense(self, network, tmp_path, capsys):
        name, _ = network
        for flags, said in (
            (("--kappa", "0"), "κ above zero"),
            (("--probe-noise", "-1"), "noise level above zero"),
            (("--grid-side", "0"), "at least one cell"),
            (("--test", "0"), "--test of at least 1"),
            (("--test", "99999"), "asked for 99999"),
            (("--images", "1", "--test", "2"), "at least 2 images"),
        ):
            assert said in refused(capsys, "discard", name, *flags, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestDiscardFurther:
    def test_a_decoder_gives_reconstruction_uncertainty(self, network, tmp_path):
        name, _ = network
        arguments = ("--images", "60", "--test", "2", "--layers", "layer1,layer2", "--grid-side", "4", "--decoder", "ridge")
        assert run("discard", name, *arguments, "--out", tmp_path / "out") == 0
        frame = tables.read(tmp_path / "out" / "reconstruction.csv")
        assert frame.layer.tolist() == ["layer1", "layer2"]
        assert (frame.ru >= frame.ru_clean).all()

    def test_boxes_where_there_are_none(self, network, tmp_path, capsys):
        name, _ = network
        said = refused(capsys, "discard", name, *FEW, "--boxes", "--out", tmp_path / "out")
        assert "expected a column 'boxes'" in said
        assert not (tmp_path / "out").exists()

    def test_boxes_of_a_data_set(self, tmp_path):
        name, weights = boxed(tmp_path, outside=True)
        few = ("--images", "12", "--test", "6", "--layers", "layer1", "--grid-side", "4")
        assert (
            run("discard", name, "--weights", weights, "--data", f"hf:{tmp_path / 'set'}", *few, "--boxes", "--out", tmp_path / "out") == 0
        )
        frame = tables.read(tmp_path / "out" / "concentration.csv")
        assert frame.concentration.notna().sum() == 4
        notes = sorted(frame[frame.concentration.isna()].note)
        assert "lies outside the image of 16×16 pixels" in notes[0]
        assert "no foreground" in notes[1]
        assert tables.read(tmp_path / "out" / "concentration_layers.csv").n.item() == 4

    def test_masks_of_a_data_set_say_what_boxes_of_the_same_pixels_say(self, tmp_path, capsys):
        name, weights = boxed(tmp_path, empty=False)
        few = ("--data", f"hf:{tmp_path / 'set'}", "--images", "12", "--test", "4", "--layers", "layer1", "--grid-side", "4")
        own = ("discard", name, "--weights", weights, *few)
        assert run(*own, "--boxes", "--out", tmp_path / "boxes") == 0
        assert run(*own, "--masks", "mask", "--out", tmp_path / "masks") == 0
        one, other = (tables.read(tmp_path / folder / "concentration.csv") for folder in ("boxes", "masks"))
        pd.testing.assert_frame_equal(one, other)
        assert other.concentration.notna().all()
        assert "an object has one outline" in refused(capsys, *own, "--boxes", "--masks", "mask", "--out", tmp_path / "no")
        assert "expected a column 'outline'" in refused(capsys, *own, "--masks", "outline", "--out", tmp_path / "no")
        assert not (tmp_path / "no").exists()

    def test_a_pruned_network_beside_its_original(self, network, tmp_path):
        name, folder = network
        own = (name, "--weights", folder / "0.safetensors", "--images", "60")
        assert run("prune", *own, "--score", "l2", "--macs", "0.6", "--out", tmp_path / "small") == 0
        few = ("--test", "2", "--layers", "layer1,layer3", "--grid-side", "4", "--against", tmp_path / "small")
        assert run("discard", *own, *few, "--out", tmp_path / "out") == 0
        frame = tables.read(tmp_path / "out" / "discarded_difference.csv")
        assert frame.other.unique().tolist() == [f"{name} pruned to small"]
        assert frame.difference.notna().all()


class TestFaithfulness:
    def test_tables_and_report(self, tmp_path, capsys):
        name, weights = boxed(tmp_path, empty=False)
        own = (
            name,
            "--weights",
            weights,
            "--data",
            f"hf:{tmp_path / 'set'}",
            "--images",
            "9",
            "--layers",
            "layer2,layer1",
            "--grid-side",
            "4",
        )
        assert run("faithfulness", *own, "--test", "4", "--tuning", "4", "--out", tmp_path / "out") == 0
        found = tables.read(tmp_path / "out" / "localization.csv")
        assert found.method.tolist() == [
            "cid layer1",
            "cid layer2",
            "gradient",
            "integrated_gradients",
            "gradcam",
            "lrp",
            "random",
            "center",
        ]
        assert found.iou.between(0, 1).all()
        curves = tables.read(tmp_path / "out" / "descriptive_accuracy.csv")
        assert curves.groupby("baseline").size().to_dict() == {"zero": 8, "blur": 8}
        assert found.converged[:2].between(0, 1).all()
        assert found.converged[2:].isna().all()
        told = capsys.readouterr().err
        for row in found[:2].itertuples():
            assert (f"{row.converged:.0%} of the images converged" in told) == (row.converged < 1)
        assert "cid layer1: mean IoU" in told
        said = refused(capsys, "faithfulness", *own, "--test", "1", "--out", tmp_path / "no")
        assert "at least 2" in said

    def test_an_image_without_a_box_is_refused(self, tmp_path, capsys):
        name, weights = boxed(tmp_path)
        own = (name, "--weights", weights, "--data", f"hf:{tmp_path / 'set'}", "--images", "9", "--layers", "layer2")
        said = refused(capsys, "faithfulness", *own, "--test", "9", "--tuning", "9", "--out", tmp_path / "out")
        assert "1 of 9" in said
        assert "images have no box inside the image" in said
        assert not (tmp_path / "out").exists()

    def test_data_without_boxes(self, network, tmp_path, capsys):
        name, _ = network
        assert "column 'boxes'" in refused(capsys, "faithfulness", name, "--test", "4", "--tuning", "4", "--out", tmp_path / "out")
