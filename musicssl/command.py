"""What all commands share: how they read flags, what they say, how they refuse and how they end.

A command is a module that ends with `command.run(main, define_flags)`. Whatever it cannot do, it
says in one line on stderr that names the flag or field and the remedy.
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
EXIT_STOPPED = 3  # training cannot go on: collapse, or a loss that is not finite
EXIT_PEER = 69  # another process of the job was lost: all start again
EXIT_STORAGE = 74  # a disk or a bucket that did not answer for minutes: the same command goes on
EXIT_PREEMPTED = 75  # "try again later": saved when asked to end, the same command goes on
EXIT_INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C, where there is nothing to save

PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # what a disk or bucket says that is away
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN:")  # tensorstore's words for it
_OF_BUCKETS = ("requests", "urllib3")  # by which google-cloud-storage asks: no answer came

CONFIGURATION = "a configuration and its variant, such as music2vec:demo or FILE.py:demo"
RENAMED = {"probe": "kind"}  # leaves that had another name once
Main = Callable[[list[str]], None]
# What a leaf or flag of a type takes, by the words in which Python refuses a value.
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
    """Read the flags and run a command; a wrong flag is refused before it begins.

    Args:
      main: takes what stands beside the flags, the command's name first.
      required: names of flags that must have a value.
      arguments: whether anything may stand beside the flags.
      verbosity: the least that libraries may log, unless --verbosity says otherwise.
    """
    environment.tell_tensorflow()
    machine.keep_streams()

    def begin(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(verbosity)
        if undone := environment.settle():
            print(f"musicssl: these have no effect here: {', '.join(undone)}", file=sys.stderr)
        try:
            main(argv)
        except KeyboardInterrupt:
            refuse("interrupted", EXIT_INTERRUPTED)
        except SystemExit as end:
            if end.code == EXIT_STORAGE:  # threads of a save would wait for it for minutes
                leave(EXIT_STORAGE)
            raise

    app.run(begin, flags_parser=lambda argv: read(argv, define_flags, required, arguments))


def leave(code: int) -> NoReturn:
    """End at once, without the threads and processes that sys.exit would wait for."""
    with contextlib.suppress(OSError):  # a launcher that is gone reads nothing
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def define_path(
    name: str,
    what: str,
    values: flags.FlagValues = flags.FLAGS,
    kind: Callable[[str], str] = paths.anywhere,
) -> None:
    """Define a flag that is a path, of a kind of `paths`."""
    flags.DEFINE(_Path(kind), name, None, what, flag_values=values)


class _Path(flags.ArgumentParser):
    """Reads the value of a flag that is a path."""

    def __init__(self, kind: Callable[[str], str]):
        self.kind = kind

    def parse(self, argument: str) -> str:
        """Return the path written out; what cannot be one raises ValueError."""
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
    """Set the flags to what the command line says; return what stands beside them."""
    values = flags.FLAGS
    argv = _with_config_files(argv)
    try:
        define_flags()  # ml_collections looks at the command line as it defines --config
        if {"--help", "-help", "-h"} & set(argv[1:]):
            print(usage.text(values))
            sys.exit(0)
        rest = values(argv)
        if "config" in values and values["config"].value is not None:
            paths.write_out(values.config)  # what cannot be loaded is told when it is used
    except AttributeError as error:  # ml_collections' word for a leaf that is not there
        refuse(_unknown_leaf(argv, str(error)))
    except flags.UnrecognizedFlagError as error:
        refuse(_unknown_flag(error))
    except (flags.Error, OSError) as error:
        refuse(_wrong_value(str(error)))
    except ValueError as error:  # of a path
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
    """Refuse what stands beside the flags, a command's name apart."""
    if len(argv) > 1:
        refuse(f"unexpected arguments {list(argv[1:])}: options are spelt --name=value")


def _with_config_files(argv: Sequence[str]) -> list[str]:
    """Return a command line whose --config is a file; refuse one that there is not."""
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
    hint = f'. Did you mean "{meant}"?' if meant else ": its values are listed in configs/"
    return f"{name} is not in the configuration{hint}"


def _unknown_flag(error: flags.UnrecognizedFlagError) -> str:
    if error.flagname.startswith("config."):
        return f"--{error.flagname} changes a configuration: give --config=FILE before it"
    near = re.search(r"Did you mean: (\w+)", str(error))
    hint = f": did you mean --{near[1]}?" if near else ": --help lists those that there are"
    return f"--{error.flagname} is no flag of this command{hint}"


def _wrong_value(error: str) -> str:
    reason = error.strip().splitlines()[-1].strip().removeprefix("ValueError: ")
    for words, remedy in WANTED.items():
        if words in reason:
            return f"{reason.removeprefix('flag ').partition(':')[0]}: {remedy}"
    return reason.removeprefix("flag ")


def say(line: str) -> None:
    """Print a line of progress, from the first process of a job only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def note(line: str) -> None:
    """Print a line of progress on stderr, where stdout is for results."""
    if jax.process_index() == 0:
        print(f"musicssl: {line}", file=sys.stderr, flush=True)


def storage_errno(error: BaseException | None) -> int | None:
    """Return what storage that is away says, in an error or in one that it stems from; else None.

    Orbax and tensorstore wrap and word what a disk or a bucket says, each in its own way.
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
      code: the exit code; if None, EXIT_STORAGE for an error of storage that passes, else
        EXIT_REFUSED.
    """
    if code is None:
        number = reason.errno if isinstance(reason, OSError) else None
        code = EXIT_STORAGE if number in PASSING else EXIT_REFUSED
    print(f"musicssl: {' '.join(str(reason).splitlines())}", file=sys.stderr, flush=True)
    sys.exit(code)


@contextlib.contextmanager
def refusing(*more: type[Exception]) -> Iterator[None]:
    """Refuse what raises ValueError or OSError, or one of `more`."""
    refused: tuple[type[Exception], ...] = (ValueError, OSError, *more)
    try:
        yield
    except refused as error:
        refuse(error)


def first_line(error: BaseException) -> str:
    """Return an error's first line, to which many libraries append pages."""
    return next(iter(str(error).strip().splitlines()), repr(error))
