"""The command line run in this process, as a user would."""

import sys

from channelscope import cli, zoo


def run(*arguments) -> int:
    """Exit status."""
    before = sys.argv
    sys.argv = ["channelscope", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def refused(capsys, *arguments) -> str:
    """What is said when the input is at fault: one message, no traceback, status 2."""
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


def small_network(folder):
    """The arguments that name a small residual network with its weights, and its profile."""
    (folder / "net.py").write_text(
        "from channelscope.zoo.models import SmallResNet\n\n\nclass Net(SmallResNet):\n    def __init__(self):\n"
        "        super().__init__(8, classes=10, channels=1, width=4)\n"
    )
    name = f"{folder / 'net.py'}:Net"
    model, _ = zoo.load(name, "digits")
    zoo.save_weights(model.state_dict(), folder / "net.safetensors")
    given = (name, "--weights", folder / "net.safetensors")
    assert run("profile", *given, "--images", "80", "--sensitivity", "--out", folder / "net.profile") == 0
    return given, folder / "net.profile"
