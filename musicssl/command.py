"""What all commands share: how they read flags, report progress, refuse requests, and end.

A command is a module that ends with `command.run(main, define_flags)`. If it cannot do something,
it says so in one line on stderr that names the flag or field and the remedy.
"""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from data_pipelines import machine
from musicssl import environment, paths, usage

EXIT_REFUSED = 2  # a request that cannot be met
EXIT_STOPPED = 3  # training cannot continue: collapse, or a loss that is not finite
EXIT_PEER = 69  # another process of the job was lost: all have to start again
EXIT_STORAGE = 74  # a disk or a bucket did not answer for minutes: the same command resumes
EXIT_PREEMPTED = 75  # "try again later": saved when asked to end; the same command resumes
EXIT_INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C, when there was nothing to save

PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # a disk or bucket does not answer for now
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN:")  # so tensorstore says it
_OF_BUCKETS = ("requests", "urllib3")  # errors that google-cloud-storage passes on

CONFIGURATION = "a configuration and its variant, such as music2vec:demo or FILE.py:demo"
RENAMED = {"probe": "kind"}  # leaves that once had another name
Main = Callable[[list[str]], None]
# What a leaf or flag accepts, by the words in which Python refuses a value.
WANTED = {
    "invalid literal for int": "give a whole number",
    "could not convert string to float": "give a number",
    "Non-boolean argument": "give true or false",
}


def run(
    main: Main,
    define_flags: Callable[[], None],
    *,
    required: Sequence[str] = (),
    arguments: bool = False,
    verbosity: int = logging.WARNING,
) -> NoReturn:
    """Read the flags and run a command; a wrong flag is refused before the command begins.

    Args:
      main: takes the arguments that are not flags, after the command's name.
      required: names of flags that must have a value.
      arguments: whether there may be arguments that are not flags.
      verbosity: the lowest level that libraries may log, unless --verbosity says otherwise.
    """
    environment.tell_tensorflow()
    machine.keep_streams()

    def begin(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(verbosity)
        if undone := environment.settle():
            print(f"musicssl: these have no effect here: {', '.join(undone)}", file=sys.stderr)
        with refusing():
            environment.require_folders()
        try:
            main(argv)
        except KeyboardInterrupt:
            refuse("interrupted", EXIT_INTERRUPTED)
        except SystemExit as end:
            if end.code == EXIT_STORAGE:  # the threads of a save would wait for storage for minutes
                leave(EXIT_STORAGE)
            raise

    app.run(begin, flags_parser=lambda argv: read(argv, define_flags, required, arguments))


def leave(code: int) -> NoReturn:
    """End at once, without waiting for threads and processes, as sys.exit would."""
    with contextlib.suppress(OSError):  # whoever reads the output may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def define_path(
    name: str,
    what: str,
    values: flags.FlagValues = flags.FLAGS,
    kind: Callable[[str], str] = paths.folder,
) -> None:
    """Define a flag whose value is a path, checked by a function of `paths`."""
    flags.DEFINE(_Path(kind), name, None, what, flag_values=values)


class _Path(flags.ArgumentParser):
    """Reads the value of a flag that is a path."""

    def __init__(self, kind: Callable[[str], str]):
        self.kind = kind

    def parse(self, argument: str) -> str:
        """Return the path with `~` expanded; raise ValueError if it cannot be a path."""
        if not argument:  # as from a variable of the shell that is not set
            raise ValueError("it is empty: give a path, or leave the flag out")
        return self.kind(argument)


def define_config(default: str | None = None, values: flags.FlagValues = flags.FLAGS) -> None:
    """Define --config, and with it --config.LEAF for each of its leaves."""
    config_flags.DEFINE_config_file("config", None, CONFIGURATION, flag_values=values)
    values["config"].parser = _ConfigFile("config")
    if default:
        values.set_default("config", default)


class _ConfigFile(config_flags.config_flags.ConfigFileFlagParser):
    """Reads the value of --config; in ml_collections' own parser the first colon ends the file."""

    def parse(self, path: str) -> ml_collections.ConfigDict:
        """Return the configuration of a file and a variant."""
        file, variant = paths.split_variant(path)
        with contextlib.chdir(Path(file).parent):
            return super().parse(Path(file).name + variant)


def read(
    argv: list[str],
    define_flags: Callable[[], None],
    required: Sequence[str] = (),
    arguments: bool = False,
) -> list[str]:
    """Set the flags from the command line; return the other arguments."""
    values = flags.FLAGS
    argv = _with_config_files(argv)
    try:
        define_flags()  # ml_collections looks at the command line as it defines --config
        if {"--help", "-help", "-h"} & set(argv[1:]):
            print(usage.text(values))
            sys.exit(0)
        rest = values(argv)
        if "config" in values and values["config"].value is not None:
            paths.write_out(values.config)  # errors of loading arise here
    except AttributeError as error:  # raised by ml_collections for a leaf that does not exist
        refuse(_unknown_leaf(argv, str(error)))
    except flags.UnrecognizedFlagError as error:
        refuse(_unknown_flag(error))
    except (flags.Error, OSError) as error:
        refuse(_wrong_value(str(error)))
    except ValueError as error:  # a path was refused
        refuse(error)
    except (SyntaxError, NameError, ImportError, TypeError) as error:
        refuse(f"--config cannot be loaded ({error!r}): give {CONFIGURATION}")
    for name in required:
        if not values[name].value:
            refuse(f"--{name} is missing: give {values[name].help}")
    if not arguments:
        refuse_arguments(rest)
    return rest


def refuse_arguments(argv: Sequence[str]) -> None:
    """Refuse arguments that are not flags, except the command's name."""
    if len(argv) > 1:
        refuse(f"unexpected arguments {list(argv[1:])}: options are spelt --name=value")


def _with_config_files(argv: Sequence[str]) -> list[str]:
    """Return a command line with --config as a file; refuse a file that does not exist."""
    found = list(argv)
    for i, argument in enumerate(argv[1:], 1):
        name, equals, value = argument.partition("=")
        if name.lstrip("-") != "config" or not name.startswith("-"):
            continue
        place = i if equals else i + 1  # --config=VALUE, or --config VALUE
        if place == len(argv):
            continue
        value = value if equals else argv[place]
        whole = paths.configuration(value)
        path, _ = paths.split_variant(whole)
        if path and not Path(path).is_file():
            refuse(f"--config={value}: there is no file {path}: give {CONFIGURATION}")
        found[place] = f"{name}={whole}" if equals else whole
    return found


def _unknown_leaf(argv: Sequence[str], error: str) -> str:
    named = re.search(r"\w+", error)
    leaf = named.group() if named else error
    spelt = (x.partition("=")[0] for x in argv if x.startswith("--config."))
    name = next((x for x in spelt if leaf in x.split(".")), leaf)
    near = re.search(r'Did you mean "(\w+)"', error)
    meant = RENAMED.get(leaf) or (near and near[1])
    hint = f'. Did you mean "{meant}"?' if meant else ": --help lists its values"
    return f"{name} is not in the configuration{hint}"


def _unknown_flag(error: flags.UnrecognizedFlagError) -> str:
    if error.flagname.startswith("config."):
        return f"--{error.flagname} changes a configuration: give --config=FILE before it"
    near = re.search(r"Did you mean: (\w+)", str(error))
    hint = f": did you mean --{near[1]}?" if near else ": --help lists its flags"
    return f"--{error.flagname} is not a flag of this command{hint}"


def _wrong_value(error: str) -> str:
    reason = error.strip().splitlines()[-1].strip().removeprefix("ValueError: ")
    for words, remedy in WANTED.items():
        if words in reason:
            return f"{reason.removeprefix('flag ').partition(':')[0]}: {remedy}"
    return reason.removeprefix("flag ")


def say(line: str) -> None:
    """Print a line of progress, in the first process of a job only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def note(line: str) -> None:
    """Print a line of progress on stderr, for commands that print results on stdout."""
    if jax.process_index() == 0:
        print(f"musicssl: {line}", file=sys.stderr, flush=True)


def storage_errno(error: BaseException | None) -> int | None:
    """Return the errno if an error or its cause says that storage did not answer; else None.

    Orbax and tensorstore each wrap and word the errors of a disk or a bucket in their own way.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in PASSING:
            return error.errno
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, (TimeoutError, ConnectionError)) or library in _OF_BUCKETS:
            return errno.EIO
        if isinstance(error, (ValueError, RuntimeError)) and str(error).startswith(_AWAY):
            return errno.EIO
        error = error.__cause__ or error.__context__
    return None


def refuse(reason: object, code: int | None = None) -> NoReturn:
    """Say in one line why the command ends, and end it.

    Args:
      code: the exit code; if None, EXIT_STORAGE for a storage error that may pass, else
        EXIT_REFUSED.
    """
    if code is None:
        number = reason.errno if isinstance(reason, OSError) else None
        code = EXIT_STORAGE if number in PASSING else EXIT_REFUSED
    said = str(reason)
    if isinstance(reason, OSError) and reason.filename and said.startswith("[Errno"):
        said = f"{reason.filename}: {reason.strerror}"
    print(f"musicssl: {' '.join(said.splitlines())}", file=sys.stderr, flush=True)
    sys.exit(code)


@contextlib.contextmanager
def refusing(*more: type[Exception]) -> Iterator[None]:
    """Turn ValueError, OSError or one of `more` into a refusal."""
    refused: tuple[type[Exception], ...] = (ValueError, OSError, *more)
    try:
        yield
    except refused as error:
        refuse(error)


def first_line(error: BaseException) -> str:
    """Return an error's first line, since many libraries append pages."""
    return next(iter(str(error).strip().splitlines()), repr(error))
