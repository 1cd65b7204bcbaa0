"""A trace of the steps that were asked for, as TensorBoard and xprof read it."""

import jax
import jax.numpy as jnp
import pytest

from musicssl.runtime import profiler


@pytest.mark.parametrize(
    ("spec", "steps"), [("", range(0)), ("0:1", range(1)), ("20:30", range(20, 30))]
)
def test_what_a_specification_names(spec, steps):
    assert profiler.steps(spec) == steps


@pytest.mark.parametrize("spec", ["5", "5:", "a:b", "-1:3", "3:3", "4:3", "1:2:3"])
def test_what_names_no_steps_is_refused(spec):
    with pytest.raises(ValueError, match=r"profile is .* use START:STOP, such as 100:110"):
        profiler.steps(spec)


def take(profile: profiler.Profile, first: int, last: int) -> None:
    """Steps first to last, each a product of matrices."""
    state = jnp.ones((64, 64))
    for step in range(first, last + 1):
        profile.start(step, state)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state = jnp.tanh(state @ state)
        profile.stop(step + 1, state)
    profile.close()


def traced(workdir) -> list[int]:
    """The numbers of the steps in the one trace of a workdir."""
    (path,) = workdir.glob("plugins/profile/*/*.xplane.pb")
    found = set()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name == "train":
                    found.add(int(dict(event.stats)["step_num"]))
    return sorted(found)


@pytest.mark.parametrize(
    ("first", "last", "expected", "told"),
    [
        (0, 8, [3, 4, 5], "steps 3 to 5"),
        (4, 8, [4, 5], "steps 4 to 5"),  # a run that goes on
        (0, 4, [3, 4], "steps 3 to the end"),  # one that is asked to end
    ],
)
def test_a_trace_holds_the_steps_of_this_life(tmp_path, capsys, first, last, expected, told):
    take(profiler.Profile("3:6", tmp_path), first, last)
    assert traced(tmp_path) == expected
    said = capsys.readouterr().out
    assert f"the trace of {told} is in {tmp_path}/plugins/profile" in said


@pytest.mark.parametrize("spec", ["", "3:6"])
def test_other_steps_leave_no_trace(tmp_path, spec):
    take(profiler.Profile(spec, tmp_path), 6, 8)
    assert list(tmp_path.iterdir()) == []


def test_one_process_alone_writes_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    take(profiler.Profile("3:6", tmp_path), 0, 8)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    (tmp_path / "plugins").touch()
    take(profiler.Profile("3:6", tmp_path), 0, 8)
    assert "the trace of steps 3 to 5 could not be written (" in capsys.readouterr().out
