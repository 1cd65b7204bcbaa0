"""Builds a data set: python -m data_pipelines.build NAME --data_dir=DATA [--manual_dir=DIR].

NAME is a builder's folder beside this file, NAME/CONFIG one of its configs. Flags that are not
listed by --help go to Beam: with none of them the work is done by processes of this machine, and
--runner=DataflowRunner, FlinkRunner or SparkRunner with their own flags hand it to a cluster.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from data_pipelines.shards import LOCAL_RUNNER, SKIPPED, BuildError, ShardedBuilder

_FULL = ("No space left on device", "Disk quota exceeded")
_LOCAL = (None, "Direct", "DirectRunner", "FnApiRunner", LOCAL_RUNNER)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 1 for a failure that it explains in one line."""
    args, beam_flags = _parser().parse_known_args(arguments)
    signal.signal(signal.SIGTERM, _leave)  # as an exception, so that TFDS removes what is half done
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with _silent_decoders():
            _build(args, beam_flags)
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


def names() -> list[str]:
    """Returns the builders that there are, by their folders' names."""
    here = Path(__file__).parent
    return sorted(path.parent.name for path in here.glob("*/*_dataset_builder.py"))


def load_builder(name: str, config: str | None, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of a folder beside this file.

    Raises:
      BuildError: there is no such builder or it has no such config.
    """
    if name not in names():
        raise BuildError(f"there is no builder {name!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"data_pipelines.{name}.{name}_dataset_builder")
    configs = sorted(module.Builder.builder_configs)
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
    add("--manual_dir", help="folder of the files that the builder reads")
    add("--config", help="a config of the builder; the default is its first")
    add("--workers", type=int, help="processes on this machine; the default is one per core")
    add("--max_lost", type=float, help="share of unusable files that a build may have (0.5)")
    return parser


def _build(args: argparse.Namespace, beam_flags: Sequence[str]) -> None:
    """Builds what the flags ask for and prints the summary."""
    name, _, config = args.name.partition("/")
    if config and args.config not in (None, config):
        raise BuildError(f"{args.name} and --config={args.config} name two configs; give one")
    runner, options = _beam(args.workers, beam_flags)
    builder = load_builder(name, args.config or config or None, args.data_dir)
    folder = Path(builder.data_path)
    if builder.is_prepared():
        records = builder.info.splits.total_num_examples
        print(f"{folder} is already built ({records} records); remove it to build it again")
        return
    if folder.exists():
        raise BuildError(f"{folder} exists and holds no complete data set; remove it")
    if args.manual_dir is not None and not Path(args.manual_dir).expanduser().is_dir():
        raise BuildError(f"--manual_dir={args.manual_dir} is not a folder")
    if args.max_lost is not None:
        if not isinstance(builder, ShardedBuilder) or not 0 <= args.max_lost <= 1:
            raise BuildError("--max_lost is a share in 0..1, for builders that read audio files")
        builder.max_lost = args.max_lost
    _warn_of_leftovers(folder)
    start = time.monotonic()
    download = tfds.download.DownloadConfig(
        manual_dir=args.manual_dir, beam_runner=runner, beam_options=options
    )
    with _one_line_errors(name, args.data_dir):
        builder.download_and_prepare(download_config=download)
    print(_summary(builder, time.monotonic() - start, options))


def _beam(workers: int | None, flags: Sequence[str]) -> tuple[str, PipelineOptions]:
    """Returns the runner and its options: this machine's processes unless flags say otherwise."""
    options = PipelineOptions(list(flags))
    runner = options.view_as(StandardOptions).runner
    if runner not in _LOCAL:
        if workers is not None:
            raise BuildError(f"--workers is for this machine; {runner} has flags of its own")
        return runner, options
    known = options.get_all_options()
    unknown = [
        flag for flag in options.get_all_options(retain_unknown_options=True) if flag not in known
    ]
    if unknown or any(not flag.startswith("--") for flag in flags[:1]):
        raise BuildError(f"unknown flag {' '.join(flags)}; see --help")
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise BuildError(f"--workers={workers} must be at least 1")
    direct = options.view_as(DirectOptions)
    if not any(flag.startswith("--direct_") for flag in flags):
        direct.direct_num_workers = workers
        direct.direct_running_mode = "multi_processing" if workers > 1 else "in_memory"
    return LOCAL_RUNNER, options


@contextmanager
def _one_line_errors(name: str, data_dir: str) -> Iterator[None]:
    """Turns the failures that a user can mend into BuildError; others keep their traceback."""
    try:
        yield
    except AssertionError as error:
        if not str(error).startswith("Manual directory"):
            raise
        raise BuildError(f"{name} needs --manual_dir=DIR: {_first_line(error)}") from error
    except Exception as error:  # Beam turns a worker's exception into text
        if not any(sign in str(error) for sign in _FULL):
            raise
        raise BuildError(
            f"the disk of --data_dir={data_dir} is full; nothing of this build was kept: free some "
            "space, or choose another, and build again"
        ) from error


def _summary(builder: tfds.core.DatasetBuilder, elapsed: float, options: PipelineOptions) -> str:
    """Returns what was built, what was left out, and how long it took, in a few lines."""
    splits = builder.info.splits
    shards = sum(split.num_shards for split in splits.values())
    size = sum(split.num_bytes for split in splits.values())
    counts = ", ".join(f"{name} {split.num_examples}" for name, split in splits.items())
    lines = [
        f"built     {builder.data_path}",
        f"records   {splits.total_num_examples} ({counts}) in {shards} shards, {size / 1e6:,.1f} MB",
    ]
    speed = ""
    if isinstance(builder, ShardedBuilder):
        summary = builder.summary
        used = summary.files - len(summary.skipped)
        kinds = "".join(f"; {count} {kind}" for kind, count in summary.reasons())
        lines += [
            f"audio     {summary.seconds / 3600:.2f} h of {used} files",
            f"skipped   {len(summary.skipped)} of {summary.files} files{kinds} (see {SKIPPED})",
        ]
        speed = f", {summary.seconds / elapsed:,.0f} x real time"
    workers = options.view_as(DirectOptions).direct_num_workers
    lines.append(f"time      {elapsed:.1f} s{speed}, {workers} workers")
    return "\n".join(lines)


def _warn_of_leftovers(folder: Path) -> None:
    """Names what a killed build left beside the data set; another may be running, so no more."""
    for path in folder.parent.glob(f"incomplete.*_{folder.name}"):
        print(f"{path} is of a build that was killed, or still runs", file=sys.stderr)


@contextmanager
def _silent_decoders() -> Iterator[None]:
    """Discards what C libraries write to stderr, such as libmpg123's note on every odd header.

    Python's own sys.stderr, with the progress and the errors, goes on as it was.
    """
    sys.stderr.flush()
    saved, python_stderr = os.dup(2), sys.stderr
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        if python_stderr.fileno() == 2:
            sys.stderr = open(os.dup(saved), "w", buffering=1)
        yield
    finally:
        sys.stderr = python_stderr
        os.dup2(saved, 2)
        os.close(saved)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
