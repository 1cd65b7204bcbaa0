"""Builds a data set: python -m data_pipelines.build NAME --data_dir=DATA [--manual_dir=DIR].

NAME is a builder's folder beside this file, and NAME/CONFIG is one of its configs. Without other
flags, processes of this machine do the work. Flags that are not listed here are passed to Beam:
--runner=DataflowRunner, FlinkRunner or SparkRunner with their own flags hand it to a cluster. DATA
may be on gs://. Exit codes: 0 built, 2 a request that cannot be met, 74 storage that did not answer
(the same command may do better later), 130 interrupted.
"""

import argparse
import contextlib
import importlib
import io
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

# TensorFlow only writes files here; its messages about its kernels are noise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import batches, bucket_claim, claim, machine, paths, retries
from data_pipelines.shards import SKIPPED, BuildError, ShardedBuilder
from data_pipelines.workers import LOCAL_RUNNER

EXIT_REFUSED = 2  # a request that cannot be met; nothing of it is kept
EXIT_STORAGE = 74  # a disk or a bucket did not answer
SOURCE = "manual_dir.txt"  # beside the shards: the folder that they were built from
# The errors of a disk that takes no more data, and how the message words them.
_FULL = {
    "No space left on device": "is full",
    "Disk quota exceeded": "is full",
    "File too large": "takes no larger file (ulimit -f, or its file system)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 for what it refuses in one line."""
    args, beam_flags = _parser().parse_known_args(arguments)
    try:
        with _silent_decoders():
            _build(args, beam_flags)
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except (OSError, tf.errors.OpError) as error:
        print(f"build: {_in_words(error, args.data_dir)}", file=sys.stderr)
        return EXIT_STORAGE if retries.passes(error) else EXIT_REFUSED
    except KeyboardInterrupt:
        print("build: interrupted; nothing of this build was kept", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _in_words(error: OSError | tf.errors.OpError, data_dir: str) -> str:
    """Return an error of a disk or a bucket in one line."""
    if isinstance(error, retries.FORBIDDEN):
        error = retries.forbidden(str(error), data_dir)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def names() -> list[str]:
    """Return the names of all builders, which are their folders' names."""
    here = Path(__file__).parent
    return sorted(path.parent.name for path in here.glob("*/*_dataset_builder.py"))


def load_builder(name: str, config: str | None, data_dir: str) -> ShardedBuilder:
    """Return the builder of a folder beside this file.

    Raises:
      BuildError: there is no such builder or it has no such config.
    """
    if name not in names():
        raise BuildError(f"there is no builder {name!r}; the builders are {', '.join(names())}")
    module = importlib.import_module(f"data_pipelines.{name}.{name}_dataset_builder")
    configs = list(module.Builder.builder_configs)
    if config is not None and config not in configs:
        raise BuildError(f"{name} has no config {config!r}; it has {', '.join(configs) or 'none'}")
    return module.Builder(data_dir=data_dir, config=config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.build", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("name", metavar="NAME", help=f"one of {', '.join(names())}, or NAME/CONFIG")
    add("--data_dir", required=True, help="where data sets are kept, as NAME/CONFIG/VERSION")
    add("--manual_dir", help="folder of this machine with the files that the builder reads")
    add("--config", help="a config of the builder; the default is its first")
    add("--workers", type=int, help="processes on this machine; the default is one per core")
    add(
        "--max_lost",
        type=float,
        default=ShardedBuilder.max_lost,
        help="share of the files that may be unusable (0.5)",
    )
    add("--wait", action="store_true", help="wait if another process is building this data set")
    return parser


def _build(args: argparse.Namespace, beam_flags: Sequence[str]) -> None:
    """Build what the flags ask for and print the summary."""
    name, _, config = args.name.partition("/")
    if config and args.config not in (None, config):
        raise BuildError(f"{args.name} and --config={args.config} name two configs; give one")
    args.name, args.config = name, args.config or config or None
    _check(args)
    if beam_flags and args.workers:
        raise BuildError("--workers is for this machine; a Beam runner has its own flags")
    beam_options = _beam_options(beam_flags) if beam_flags else {}
    builder = load_builder(args.name, args.config, args.data_dir)
    if _is_built(builder, args):
        return
    with _claimed(builder.data_path, math.inf if args.wait else 0.0):
        builder = load_builder(args.name, args.config, args.data_dir)
        if not _is_built(builder, args):  # others may have built it before this one held it
            _prepare(builder, args, beam_options)


def _is_built(builder: ShardedBuilder, args: argparse.Namespace) -> bool:
    """Return and print whether the data set exists; refuse one built from another folder."""
    folder, given = builder.data_path, _source(args)
    source = folder / SOURCE
    if not _is_complete(folder):
        if folder.exists():
            raise BuildError(f"{folder} exists and holds no complete data set; remove it")
        return False
    before = source.read_text() if source.exists() else given
    if given and before != given:
        raise BuildError(
            f"{folder} was built from {before}: choose another --data_dir for {given}, or "
            "remove it to build it again"
        )
    records = builder.info.splits.total_num_examples
    _index(folder, batches.complete_index)
    print(f"{folder} is already built ({records} records); remove it to build it again")
    return True


def _is_complete(folder: epath.Path) -> bool:
    """Return whether a build is complete; TFDS itself would misread the folder's name as a pattern.

    On gs:// a folder is renamed file by file, so a build that was killed may leave some files out;
    then the source was not written either.
    """
    named = [folder / "dataset_info.json", *[folder / SOURCE] * ("://" in str(folder))]
    return all(path.exists() for path in named)


def _prepare(
    builder: ShardedBuilder, args: argparse.Namespace, beam_options: Mapping[str, Any]
) -> None:
    folder = builder.data_path
    builder.max_lost = args.max_lost
    builder.workers = args.workers or _cores()
    for left in paths.matching(folder.parent, f"incomplete.*_{folder.name}"):
        print(f"{left} is from a build that was killed or is still running", file=sys.stderr)
    start = time.monotonic()
    download = tfds.download.DownloadConfig(manual_dir=args.manual_dir, **beam_options)
    try:
        with _full_disk_named(args.data_dir), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=download)
    except (OSError, tf.errors.OpError):
        # On a disk without claims, another process may have been first.
        other = load_builder(args.name, args.config, args.data_dir)
        if not (_is_complete(other.data_path) and _is_built(other, args)):
            raise
        return
    paths.write(folder / SOURCE, _source(args).encode())
    _index(folder, batches.write_index)
    print(_summary(builder, time.monotonic() - start, "Beam" if beam_options else "processes"))


@contextlib.contextmanager
def _claimed(folder: epath.Path, patience: float) -> Iterator[None]:
    """Keep others from building into a folder."""
    place = folder.parent / f".{folder.name}.claim"

    def waiting(other: claim.Claimed, seconds: float) -> None:
        line = f"{folder} is being built by {other}: waiting, {seconds:.0f} s so far"
        print(line, file=sys.stderr)

    if "://" in str(folder):
        held = bucket_claim.claim(str(place), patience, waiting)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held = claim.claim(Path(place), patience, waiting)
    try:
        with held:
            yield
    except claim.Claimed as other:
        raise BuildError(
            f"{folder} is being built by {other}: wait until that has ended, as --wait does"
        ) from other


def _source(args: argparse.Namespace) -> str:
    """Return the folder that the data set is built from, as it is stored and shown."""
    return machine.shown(Path(args.manual_dir).resolve()) if args.manual_dir else ""


def _cores() -> int:
    """Return the cores that this process may use; macOS does not say which."""
    mine = getattr(os, "sched_getaffinity", None)
    return len(mine(0)) if mine else os.cpu_count() or 1


def _index(folder: epath.Path, write: Callable[[str], None]) -> None:
    """Indexes the records for data_pipelines.batches, which would otherwise do so on first use."""
    try:
        write(str(folder))
    except OSError as error:
        print(f"{folder} is built, but not indexed: {error}", file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    """Raise BuildError for a flag with an impossible value; expand `~` in the paths."""
    copied = "copy it to a disk of this machine, or mount the bucket (gcsfuse), and give that"
    try:
        args.data_dir = machine.anywhere(args.data_dir)
        args.manual_dir = args.manual_dir and paths.local(args.manual_dir, copied)
    except ValueError as error:
        raise BuildError(str(error)) from error
    shown = f"--data_dir={machine.shown(args.data_dir)}"
    if args.manual_dir is not None and not Path(args.manual_dir).is_dir():
        raise BuildError(f"--manual_dir={machine.shown(args.manual_dir)} is not a folder")
    if machine.shown(Path(args.data_dir).absolute()) != str(Path(args.data_dir).absolute()):
        raise BuildError(f"{shown} is not valid UTF-8, which TensorFlow needs; choose another")
    if "://" not in args.data_dir:
        try:
            Path(args.data_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(f"{shown}: {error.strerror}") from error
        if not os.access(args.data_dir, os.W_OK):
            raise BuildError(f"{shown} is not writable; choose another")
    if not 0 <= args.max_lost <= 1:
        raise BuildError(f"--max_lost={args.max_lost:g} is not a share from 0 to 1")
    if args.workers is not None and args.workers < 1:
        raise BuildError(f"--workers={args.workers} is less than 1")


def _beam_options(flags: Sequence[str]) -> dict[str, Any]:
    """Return the DownloadConfig fields for a Beam runner and its flags."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    options = PipelineOptions(list(flags))
    known = options.get_all_options()
    unknown = [
        name for name in options.get_all_options(retain_unknown_options=True) if name not in known
    ]
    runner = options.view_as(StandardOptions).runner
    local = runner in (None, "DirectRunner", "FnApiRunner", LOCAL_RUNNER)
    if not flags[0].startswith("--") or (unknown and local):
        raise BuildError(f"neither this command nor Beam knows {' '.join(flags)}; see --help")
    return {"beam_runner": LOCAL_RUNNER if local else runner, "beam_options": options}


@contextlib.contextmanager
def _full_disk_named(data_dir: str) -> Iterator[None]:
    """Turns any error that a full disk caused into one line."""
    try:
        yield
    except Exception as error:  # TensorFlow, Beam and Python each raise their own
        states = [state for sign, state in _FULL.items() if sign in str(error)]
        if not states:
            raise
        raise BuildError(
            f"the disk of --data_dir={data_dir} {states[0]}; nothing of this build was kept: free "
            "some space, or choose another folder, and build again"
        ) from error


def _summary(builder: ShardedBuilder, elapsed: float, workers: str) -> str:
    """Return what was built, what was left out, and how long it took, in a few lines."""
    splits, summary = builder.info.splits, builder.summary
    shards = sum(split.num_shards for split in splits.values())
    size = sum(split.num_bytes for split in splits.values()) / 1e6
    counts = ", ".join(f"{name} {split.num_examples}" for name, split in splits.items())
    used = summary.files - len(summary.skipped)
    kinds = "".join(f"; {count} {kind}" for kind, count in summary.reasons())
    see = f" (see {SKIPPED})" if kinds else ""
    if workers == "processes":
        workers = f"{builder.workers} workers"
    return "\n".join(
        [
            f"built    {builder.data_path}",
            f"records  {splits.total_num_examples} ({counts}) in {shards} shards, {size:,.1f} MB",
            f"audio    {summary.seconds / 3600:.2f} h of {used} files",
            f"skipped  {len(summary.skipped)} of {summary.files} files{kinds}{see}",
            f"time     {elapsed:.1f} s, {summary.seconds / elapsed:,.0f} x real time, {workers}",
        ]
    )


@contextlib.contextmanager
def _silent_decoders() -> Iterator[None]:
    """Discards what C libraries write to stderr, such as libmpg123's note on every odd header.

    Python's own sys.stderr, which has the progress and the errors, stays as it was.
    """
    python_stderr = sys.stderr
    python_stderr.flush()
    with open(os.dup(2), "w", buffering=1) as saved, open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
        try:
            with contextlib.redirect_stderr(
                saved if python_stderr is sys.__stderr__ else sys.stderr
            ):
                yield
        finally:
            os.dup2(saved.fileno(), 2)


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for asked in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(asked) != signal.SIG_IGN:  # nohup ignores a hang-up
            signal.signal(asked, _leave)  # an exception, so that TFDS removes what is half done
    logging.getLogger().setLevel(logging.ERROR)
    machine.keep_streams()
    sys.exit(main())
