"""The manners of the commands: what they list, how they refuse, what --help says."""

import errno
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from configs import common, probe
from data_pipelines import build, retries
from musicssl import usage
from musicssl.command import define_config, refusing
from tests.support import commands, full_size, runs

ROOT = Path(__file__).parent.parent
COMMANDS = ("main", "probe", "plan", "benchmark", "export", "study_report")
DEMO = "--config=configs/music2vec.py:demo"
# Flags that a command needs, so that only what is asked about is wrong.
NEEDED = {
    "main": [DEMO],
    "probe": [],
    "plan": [DEMO, "--topology=cpu:8"],
    "benchmark": [DEMO],
    "export": ["--workdir=run", "--output=out"],
    "study_report": ["--workdir=study"],
}


def run(command: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    process = commands.Process(commands.module, f"musicssl.{command}", *arguments)
    said = process.communicate()
    return process.returncode, *said


def refused(command: str, *arguments: str) -> str:
    """The one line with which a command refuses its flags."""
    code, output, errors = run(command, *arguments)
    assert (code, output) == (2, ""), errors
    assert errors.startswith("musicssl: ") and errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag(command):
    line = refused(command, *NEEDED[command], "--nope=1")
    assert "--nope is not a flag of this command: --help lists its flags" in line


def test_a_flag_that_is_nearly_one():
    assert "--wokdir is not a flag of this command: did you mean --workdir?" in refused(
        "export", "--wokdir=run"
    )


@pytest.mark.parametrize("command", ["main", "probe", "plan", "benchmark"])
def test_a_configuration_that_is_not_there(command):
    line = refused(command, "--config=nope.py:demo")
    assert "--config=nope.py:demo: there is no file nope.py: give a configuration" in line


def test_a_configuration_in_a_folder_with_a_colon(tmp_path):
    folder = tmp_path / "2026-01-05T10:30"
    shutil.copytree(ROOT / "configs", folder)
    for default, arguments in (
        (None, [f"--config={folder}/music2vec.py:span5"]),
        (f"{folder}/music2vec.py:span5", []),
    ):
        values = flags.FlagValues()
        define_config(default, values)
        values(["command", *arguments])
        assert (values.config.variant, values.config.mask.span) == ("span5", 5)
    assert os.getcwd() != str(folder)


@pytest.mark.parametrize(
    "command, flag",
    [
        ("main", "config"),
        ("plan", "config"),
        ("benchmark", "config"),
        ("export", "workdir"),
        ("study_report", "workdir"),
    ],
)
def test_a_flag_that_is_needed(command, flag):
    assert f"--{flag} is missing: give " in refused(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_flag(command):
    line = refused(command, *NEEDED[command], "more")
    assert "unexpected arguments ['more']: options are spelt --name=value" in line


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        ("main", ["--config=configs/music2vec.py:nope"], "no variant 'nope' in configs/music2vec"),
        ("main", ["--config=README.md"], "--config cannot be loaded (SyntaxError("),
        ("main", ["--config=nope"], "--config=nope: there is no file nope: give a configuration"),
        ("main", ["--config", "nope"], "--config=nope: there is no file nope: give a config"),
        ("main", ["--config=s3://a/b"], "--config=s3://a/b: there is no file s3://a/b: give a"),
        ("main", ["--config=configs"], "there is no file configs: give a configuration"),
        ("main", ["--config.steps=3"], "--config.steps changes a configuration: give --config"),
        ("plan", [DEMO, "--config.steps=few"], "--config.steps=few: give a whole number"),
        ("main", [DEMO, "--config.mask.span=x"], "--config.mask.span=x: give a whole number"),
        ("main", [DEMO, "--config.data.normalize=5"], "--config.data.normalize=5: give true or"),
        ("benchmark", [DEMO, "--seconds=long"], "--seconds=long: give a number"),
        ("benchmark", [DEMO, "--batch=-1"], "--batch=-1: -1 is not a non-negative integer"),
        (
            "probe",
            ["--config.epoch=3"],
            '--config.epoch is not in the configuration. Did you mean "',
        ),
        ("probe", ["--config.probe=mlp"], 'is not in the configuration. Did you mean "kind"?'),
        ("main", [DEMO, "--config.probe.probe=mlp"], "--config.probe.probe is not in the"),
        (
            "main",
            [DEMO, "--workdir=s3://a/b"],
            "--workdir=s3://a/b: s3://a/b: s3:// is not supported",
        ),
        (
            "main",
            [DEMO, "--workdir=gs:/a/b"],
            "--workdir=gs:/a/b: gs:/a/b is not an address: write gs://B",
        ),
        (
            "main",
            [DEMO, "--workdir="],
            "--workdir=: it is empty: give a path, or leave the flag out",
        ),
        ("plan", ["--output=gs://abc"], "--output=gs://abc: gs://abc is a whole bucket: name a"),
        ("study_report", ["--workdir=gs://a/b"], "gs://a/b is not a path on this machine: copy"),
        ("probe", ["--config.cache=gs://a/b"], "--config.cache: gs://a/b is not a path on this"),
        ("main", [DEMO, "--config.start_from=~nobody-here/x"], "~nobody-here/x: its home"),
        ("export", ["--workdir=run", "--output=s3://a"], "--output=s3://a: s3://a: s3:// is not"),
    ],
)
def test_what_a_flag_does_not_take(command, arguments, message):
    assert message in refused(command, *arguments)


def flags_of_text(name: str) -> None:
    """Print a command's flags of text, and what those that are paths say to an address."""
    importlib.import_module(f"musicssl.{name}").define_flags()
    defined = flags.FLAGS.flags_by_module_dict()
    for flag in (x for module in defined if module.startswith("musicssl") for x in defined[module]):
        if flag.flag_type() in ("string", "comma separated list of strings"):
            try:
                print(f"{flag.name} takes {flag.parser.parse('s3://a/b')}")
            except ValueError as error:
                print(f"{flag.name} {error}")


@pytest.mark.parametrize(
    ("command", "paths", "others"),
    [
        ("main", "workdir", ""),
        ("probe", "", "compare"),  # which are looked at one by one
        ("plan", "output", "batch topology"),
        ("benchmark", "output", "backend only"),
        ("export", "output workdir", "push step"),
        ("study_report", "workdir", ""),
    ],
)
def test_every_flag_of_text_is_a_path_of_a_kind_or_none_at_all(command, paths, others):
    output, errors = commands.Process(flags_of_text, command).communicate()
    said = dict(line.split(None, 1) for line in output.splitlines())
    said.pop("coordinator", None)  # HOST:PORT, of several processes
    assert {x for x, line in said.items() if line.startswith("s3://a/b")} == {*paths.split()}
    assert said.keys() == {*paths.split(), *others.split()}, errors


@pytest.mark.parametrize(
    ("config", "leaf"),
    [("music2vec:demo", "start_from"), ("musichubert:demo_iter2", "teacher.encoder")],
)
def test_an_encoder_that_is_not_there_is_told_before_data_are_composed(config, leaf, tmp_path):
    places = f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={tmp_path / 'data'}"
    line = refused("main", f"--config={config}", f"--config.{leaf}={tmp_path / 'gone'}", *places)
    assert "gone holds no encoder: give a workdir" in line and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "leaf, value, message",
    [
        ("batch_size", 0, "config.probe.batch_size is 0: use 1 or more"),
        ("kind", "forest", "config.probe.kind is 'forest': use 'mlp', 'linear' or 'ridge'"),
        ("tasks", "chords", "config.probe.tasks is not possible: there is no 'chords'"),
        ("layers", "9", "config.probe.layers is not possible: there is no '9'"),
    ],
)
def test_the_probe_of_a_run_names_the_leaf_that_was_typed(leaf, value, message, tmp_path):
    runs.write_clips(tmp_path, 8)
    line = refused(
        "main", DEMO, f"--config.probe.{leaf}={value}", f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={tmp_path}", "--config.data.name=clips",
        "--config.data.crop_frames=16",
    )  # fmt: skip
    assert message in line


@pytest.mark.parametrize(
    "arguments", [["nope", "--data_dir=D"], ["music_folder", "--data_dir=D", "--workers=0"], []]
)
def test_a_build_refuses_alike(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = build.main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2 and "build: " in capsys.readouterr().err


def interrupted() -> None:
    """A command whose work Ctrl-C ends, begun where the environment asks for 64 bits."""
    from musicssl import command

    def work(argv: list[str]) -> None:
        raise KeyboardInterrupt

    jax.config.update("jax_enable_x64", True)
    sys.argv = ["command"]
    command.run(work, lambda: None)


def test_ctrl_c_is_told_in_a_line_and_so_is_a_setting_without_effect():
    process = commands.Process(interrupted)
    output, errors = process.communicate()
    assert (process.returncode, output) == (130, "")
    assert errors.splitlines() == [
        "musicssl: these have no effect here: JAX_ENABLE_X64=True",
        "musicssl: interrupted",
    ]


def test_the_commands_are_listed_with_a_line_each():
    done = subprocess.run(
        [sys.executable, "-m", "musicssl"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines[:-1]] == [
        "data_pipelines.build",
        *(
            f"musicssl.{name}"
            for name in ("main", "probe", "export", "plan", "benchmark", "study_report")
        ),
    ]
    assert all(len(line) < 120 and len(line.split()) > 5 for line in lines[:-1])


def test_nobody_need_read_the_list():
    """A pipe whose reader is gone, and a disk that takes no more."""
    read, gone = os.pipe()
    os.close(read)
    with open("/dev/full", "wb") as full:
        for place, told in ((gone, ""), (full, "some of the output is lost: ")):
            done = subprocess.run(
                [sys.executable, "-m", "musicssl"],
                cwd=ROOT,
                stdout=place,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 0 and done.stderr.startswith(told)
            assert done.stderr.count("\n") == bool(told)
    os.close(gone)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (retries.Unreachable("the bucket does not answer"), 74),
        (OSError(errno.ESTALE, "stale"), 74),
        (OSError(errno.ENOSPC, "full"), 2),
        (ValueError("no such layer"), 2),
    ],
)
def test_storage_that_is_away_has_an_exit_code_of_its_own(error, code):
    with pytest.raises(SystemExit) as left, refusing():
        raise error
    assert left.value.code == code


def test_an_error_of_a_file_is_told_in_words(capsys):
    with pytest.raises(SystemExit), refusing():
        raise PermissionError(errno.EACCES, "Permission denied", "/a/b")
    assert capsys.readouterr().err == "musicssl: /a/b: Permission denied\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_flag(command):
    code, output, errors = run(command, "--help")
    assert (code, errors) == (0, "")
    for flag in NEEDED[command]:
        assert flag.partition("=")[0] in output
    assert f"python -m musicssl.{command}" in output
    assert "Exit codes:" in " ".join(output.split())


def test_help_shows_variants_and_leaves_with_their_comments():
    _, output, _ = run("main", "--help")
    for name in full_size.leaves(common.get_config()):
        assert f"--config.{name}=" in output
    assert "configs/musichubert.py" in output and ":k2000_iter2," in output
    assert "--config.accumulate=1               parts in which a batch is computed" in output
    _, output, _ = run("probe", "--help")
    assert "full by default, :quick, :ridge, :polyphony" in output
    for name in full_size.leaves(probe.get_config()):
        assert f"--config.{name}=" in output
    assert "--coordinator=" in output and "--config.method" not in output


def test_comments_are_those_beside_the_leaves():
    said = usage.comments("common")
    assert said["data.name"] == "a builder of data_pipelines/, or builder/config"
    assert said["mesh"] == "devices that share one copy of the state"
    assert usage.comments("probe")["epochs"] == "the most epochs; 0 for the task's own number"
