"""Loads an encoder from a workdir, a Hugging Face directory, the Hub, or a fairseq file."""

import os
from pathlib import Path

import ml_collections

from musicssl import host, paths
from musicssl.command import first_line, storage_errno
from musicssl.exchange import fairseq, hub, huggingface
from musicssl.exchange.loaded import LoadedEncoder, with_digest
from musicssl.model.encoder import Encoder
from musicssl.runtime import checkpoint


def require(path: str | os.PathLike) -> None:
    """Check that something is there for `load_encoder`, without reading it or asking the Hub.

    Raises:
      FileNotFoundError: there is nothing at `path`, or not the expected files.
      ValueError: it is not a name on the Hub.
    """
    if os.fspath(path).startswith(paths.HUB):
        hub.split_name(os.fspath(path))
        return
    path = host.path(path)
    of_fairseq = path.suffix == ".pt" and path.is_file()
    if of_fairseq or (path / "checkpoints").is_dir() or (path / "config.json").is_file():
        return
    raise FileNotFoundError(
        f"{path} holds no encoder: give a workdir (with checkpoints/), a local Hugging Face "
        "directory (with config.json), hf:ORG/NAME or a fairseq .pt file; probes also accept "
        "python:FILE.py:NAME, features:DIRECTORY, logmel, mfcc, cqt and chroma"
    )


def load_encoder(path: str | os.PathLike, step: int | None = None) -> LoadedEncoder:
    """Load a pre-trained encoder.

    Args:
      path: a workdir of `main` (its student), a local directory of transformers' data2vec-audio,
        HuBERT, wav2vec 2.0 or MERT, "hf:ORG/NAME" or "hf:ORG/NAME@REVISION" for one on the Hub, or
        a fairseq .pt file.
      step: a checkpoint of a workdir; None for the last. Only a workdir has steps.

    Raises:
      FileNotFoundError: there is nothing at `path`, or not the expected files.
      ValueError: what is there is damaged or not supported; the message says what.
      hub.Unreachable: the Hub does not answer.
    """
    if os.fspath(path).startswith(paths.HUB):
        _refuse_step(path, step)
        return _load_from_hub(os.fspath(path))
    require(path)
    path = host.path(path)
    if (path / "checkpoints").is_dir():
        return load_run(path, step)[0]
    _refuse_step(path, step)
    if path.suffix == ".pt" and path.is_file():
        return fairseq.read_checkpoint(path)
    return huggingface.read_directory(path)


def _refuse_step(path: str | os.PathLike, step: int | None) -> None:
    if step is not None:
        raise ValueError(f"{path} is not a workdir, so it has no step {step}: leave the step out")


def _load_from_hub(spec: str) -> LoadedEncoder:
    """Load a model of the Hub, at the current commit of its revision."""
    snapshot = hub.download(spec)
    loaded = huggingface.read_directory(snapshot.path)
    kind = loaded.source.partition(" ")[0]
    source = f"{kind} of {paths.HUB}{snapshot.name}@{snapshot.commit}"
    return loaded._replace(source=source, revision=snapshot.commit)


def load_run(
    workdir: Path, step: int | None = None, ema: bool = False
) -> tuple[LoadedEncoder, ml_collections.ConfigDict, int]:
    """Load the encoder of a run, with the run's configuration and the step of the checkpoint.

    Args:
      step: None for the last checkpoint.
      ema: load data2vec's teacher instead of the student's transformer. Parts that the teacher does
        not average, such as the stem, are the student's, as in training.

    Raises:
      FileNotFoundError: there is no run, or no checkpoint of that step.
      ValueError: the checkpoint is damaged, `ema` is set for a run without an EMA teacher, or a
        field of the encoder is unknown.
    """
    try:
        params, teacher, config, step = checkpoint.load_params(workdir, step)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # Orbax and tensorstore raise many kinds
        if storage_errno(error):
            raise
        raise ValueError(
            f"the checkpoint of {workdir} cannot be read ({first_line(error)}): give the step of "
            "another"
        ) from error

    # the student's parameters, or the teacher's if it has its own
    tree = params["encoder"]
    if ema:
        if "encoder" not in teacher:
            raise ValueError(
                f"{workdir} is a {config.method} run, which has no EMA teacher: leave --ema out"
            )
        tree = tree | teacher["encoder"]

    try:
        encoder = Encoder(**config.encoder)
    except TypeError as error:
        raise ValueError(f"{workdir} was trained by another version: {error}") from None
    source = f"{'EMA teacher' if ema else 'encoder'} of {workdir} at step {step}"
    data = config.data
    return with_digest(encoder, tree, data.normalize, data.sample_rate, source), config, step
