"""What Weights & Biases is told, by a module of its name that writes it down.

The real package, in its offline mode, was tried by hand.
"""

import importlib.machinery
import importlib.util
import sys
import types
from unittest import mock

import pytest

from musicssl.training import tracker
from musicssl.training.writer import Writer
from tests.support.sessions import config


class UsageError(Exception):
    pass


class WandbError(Exception):
    pass


class Run:
    """A run as wandb.init returns it; its step is what the server knows of it."""

    def __init__(self, folder: str | None, offline: bool, step: int):
        self.offline, self.step, self.finished = offline, step, False
        self.dir, self.url = f"{folder}/wandb/offline-run-1/files", "https://wandb.invalid/run"
        self.logged: list[tuple[int, dict]] = []

    def log(self, scalars: dict, step: int) -> None:
        self.logged.append((step, scalars))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch) -> types.ModuleType:
    """The module; `fails` is what init raises where it is not told to be offline."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.calls, module.runs, module.fails, module.step = [], [], None, 0
    module.errors = types.SimpleNamespace(UsageError=UsageError, Error=WandbError)
    module.Settings = lambda **given: types.SimpleNamespace(project=None, **given)

    def init(**given: object) -> Run:
        module.calls.append(given)
        if module.fails and given.get("mode") != "offline":
            raise module.fails
        module.runs.append(Run(given["dir"], given.get("mode") == "offline", module.step))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    tensorboard = types.SimpleNamespace(SummaryWriter=mock.MagicMock())  # clu loads TensorFlow
    monkeypatch.setitem(sys.modules, "clu", types.SimpleNamespace(metric_writers=tensorboard))
    return module


def test_a_run_keeps_its_id_over_lives(wandb, tmp_path, capsys):
    tracked = config({"tracker": "wandb"})
    for first, steps in ((0, (4, 8)), (6, (8, 12))):
        wandb.step = first + 2  # of what was sent last, which a restart may take again
        writer = Writer(tmp_path, tracked, first)
        for step in steps:
            writer.write(step, {"loss": 1 / step})
        writer.close()
    ids = [call["id"] for call in wandb.calls]
    assert len(ids) == 2 and len(set(ids)) == 1 and len(ids[0]) == 8
    for call in wandb.calls:
        assert (call["resume"], call["project"], call["name"]) == (
            "allow",
            "musicssl",
            tmp_path.name,
        )
        assert call["dir"] == str(tmp_path) and call["config"]["optim"]["learning_rate"]
        assert "mode" not in call  # WANDB_MODE says
    assert [run.finished for run in wandb.runs] == [True, True]
    assert wandb.runs[0].logged == [(4, {"loss": 0.25}), (8, {"loss": 0.125})]
    assert f"Weights & Biases tracks this as run {ids[0]}: https:" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    tracker.Tracker(tracked, tmp_path / "other")
    assert wandb.calls[-1]["id"] != ids[0]


def test_steps_that_are_taken_again_are_not_sent_again(wandb, tmp_path):
    wandb.step = 9
    run = tracker.Tracker(config(), tmp_path)
    for step in (4, 8, 9, 9, 12):
        run.write(step, {"loss": 1.0})
    assert [step for step, _ in wandb.runs[0].logged] == [9, 9, 12]


def test_a_server_that_is_away_ends_no_run(wandb, tmp_path, capsys):
    wandb.fails = WandbError("no such host\nand more")
    tracker.Tracker(config(), tmp_path).close()
    assert wandb.runs[0].offline and wandb.runs[0].finished
    said = capsys.readouterr().out
    assert "Weights & Biases cannot be reached (no such host): the run is tracked offline\n" in said
    assert said.endswith(f": {tmp_path}/wandb/offline-run-1\n")


def test_a_tracker_that_breaks_ends_no_run(wandb, tmp_path, capsys):
    run = tracker.Tracker(config(), tmp_path)
    wandb.runs[0].log = mock.Mock(side_effect=BrokenPipeError("the service has ended"))
    for step in (2, 4):
        run.write(step, {"loss": 1.0})
    run.close()
    assert wandb.runs[0].log.call_count == 1 and not wandb.runs[0].finished
    said = capsys.readouterr().out
    assert said.endswith("tracking has stopped until the next start (the service has ended)\n")


def test_nobody_logged_in_is_refused_in_one_line(wandb, tmp_path):
    wandb.fails = UsageError("No API key configured. Use `wandb login` to log in.")
    with pytest.raises(
        ValueError, match=r"No API key .* log in, or set WANDB_MODE=offline"
    ) as refused:
        Writer(tmp_path, config({"tracker": "wandb"}), 0)
    assert "\n" not in str(refused.value)


def test_an_id_that_cannot_be_read_is_told(wandb, tmp_path):
    (tmp_path / "tracker.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tracker\.json names no run: delete it"):
        tracker.Tracker(config(), tmp_path)


def test_without_a_tracker_nothing_is_imported_or_opened(wandb, tmp_path):
    Writer(tmp_path, config(), 0).close()
    complete = config({"tracker": "wandb"})
    Writer(tmp_path, complete, complete.steps).close()
    assert wandb.calls == [] and not (tmp_path / "tracker.json").exists()


def test_what_is_not_known_or_not_installed_is_refused(wandb, monkeypatch):
    tracker.check("")
    tracker.check("wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tracker is 'wandb', which is not installed: pip install"):
        tracker.check("wandb")
    with pytest.raises(ValueError, match="tracker is 'mlflow': use 'wandb', or ''"):
        tracker.check("mlflow")
