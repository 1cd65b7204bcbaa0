"""What a path may be, in a flag or in a leaf of a configuration; defined only here.

A path is on this machine's file system or, if `anywhere` accepts it, on gs://. `~` stands for a
home directory, and every other character for itself, even `[`, `*` and a colon. An encoder's path
may begin with one of KINDS; HUB and a name may take the place of the path.
"""

import functools
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections
from etils import epath
from etils.epath.stat_utils import StatResult

from data_pipelines import machine

PRODUCT = Path(__file__).parent.parent  # contains configs/ and the packages
RANDOM = "random:"  # before the path of an encoder: new initial values of its architecture
PYTHON = "python:"  # before FILE:NAME or MODULE:NAME, an encoder in Python
FEATURES = "features:"  # before a directory of features that were computed elsewhere
KINDS = (RANDOM, PYTHON, FEATURES)
HUB = "hf:"  # before ORG/NAME or ORG/NAME@REVISION, a model on the Hub of Hugging Face


def local(path: str, remedy: str = "copy it to a disk, or mount it") -> str:
    """Return a path of this machine's file system with `~` and `~user` written out.

    Raises:
      ValueError: it is an address such as gs:// (the message has the remedy), its home is not
        known, or it is not UTF-8.
    """
    if machine.is_address(path):
        raise ValueError(f"{path} is not a path on this machine: {remedy}")
    return _written_out(path)


def anywhere(path: str) -> str:
    """Return a path that may also be on gs://.

    Raises:
      ValueError: it is an address of another kind or without a bucket; else as `local`.
    """
    whole = machine.anywhere(path)
    return whole if is_remote(whole) else _written_out(path)


def folder(path: str) -> str:
    """Return a path that may also be a folder of a bucket, but not the bucket itself.

    What stands beside it, such as PATH.json, would be in another bucket.

    Raises:
      ValueError: it is a whole bucket; else as `anywhere`.
    """
    whole = anywhere(path)
    if is_remote(whole) and "/" not in whole.removeprefix("gs://"):
        raise ValueError(f"{path} is a whole bucket: name a folder in it, {whole}/FOLDER")
    return whole


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path that `anywhere` accepts is on gs://."""
    return os.fspath(path).startswith("gs://")


def encoder(spec: str) -> str:
    """Return the name of an encoder, a path or one of KINDS and a path, as `anywhere` does.

    The code of PYTHON and the features of FEATURES have to be on a disk.
    """
    kind, path = split_kind(spec)
    return kind + (local(path) if kind in (PYTHON, FEATURES) else anywhere(path))


def weights(path: str) -> str:
    """Return the place of an encoder that training reads: a name on the Hub, or as `anywhere`.

    Raises:
      ValueError: it is one of KINDS, which only probes accept; else as `anywhere`.
    """
    if path.startswith(HUB):
        return path
    if kind := split_kind(path)[0]:
        raise ValueError(f"{path}: {kind} is for probes: give a workdir or a directory of weights")
    return anywhere(path)


def split_kind(spec: str) -> tuple[str, str]:
    """Return one of KINDS or "", and the path, which may contain further colons."""
    kind = next((kind for kind in KINDS if spec.startswith(kind)), "")
    return kind, spec.removeprefix(kind)


def short(spec: str) -> str:
    """Return the last part of an encoder's name, after RANDOM if the name begins with it."""
    kind, path = split_kind(spec)
    name = path.rpartition(":")[2] if kind == PYTHON else Path(path).name
    return f"{kind}{name}" if kind == RANDOM else name


def split_variant(config: str) -> tuple[str, str]:
    """Return a configuration's file, and its variant with the colon before it, or ""."""
    ends = [len(config), *(found.start() for found in re.finditer(":(?!//)", config))]
    files = [end for end in ends if Path(config[:end]).is_file()]
    end = max(files, default=min(ends))
    return config[:end], config[end:]


def several(paths: str) -> str:
    """Return encoders separated by commas, each as `encoder` returns it."""
    return ",".join(encoder(path) for path in paths.split(","))


def _written_out(path: str) -> str:
    whole = machine.written_out(path)
    absolute = os.path.abspath(whole)
    if (shown := machine.shown(absolute)) != absolute:
        raise ValueError(f"{shown} is not UTF-8, which checkpoints need: choose another")
    return whole


# The leaves of configurations that hold paths, and which paths they accept.
LEAVES: dict[str, Callable[[str], str]] = {
    "start_from": weights,
    "teacher.encoder": weights,
    "data.data_dir": anywhere,
    "data.mirror": functools.partial(local, remedy="it is for this machine's own copy of the data"),
    "probe.data_dir": anywhere,
    "data_dir": anywhere,
    "encoder": encoder,
    "beside": several,
    "results": anywhere,
    "cache": functools.partial(local, remedy="features are read from a disk: name a folder there"),
}


def write_out(config: ml_collections.ConfigDict) -> None:
    """Expand `~` in those leaves of a configuration that are paths.

    Raises:
      ValueError: a leaf cannot be a path of its kind; the message names it.
    """
    for name, whole in LEAVES.items():
        section, _, leaf = name.rpartition(".")
        within = config.get(section) if section else config
        value = within.get(leaf) if within is not None else None
        if isinstance(value, str) and value:
            try:
                within[leaf] = whole(value)
            except ValueError as error:
                raise ValueError(f"--config.{name}: {error}") from None


def write(path: Path, content: bytes) -> None:
    """Write a file so that others see all of it or nothing.

    On a disk it is written under a temporary name and then renamed; an object on gs:// appears when
    it is complete. If several processes write the same file at once, the last one wins.
    """
    if is_remote(path):
        path.write_bytes(content)
        return
    aside = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def configuration(value: str) -> str:
    """Return the file and variant that --config names: `music2vec:demo`, or a file and a variant.

    A name without a folder means a file in configs/, whatever the current folder is. So does a path
    such as configs/probe.py if the current folder has no such file.
    """
    name, colon, variant = value.partition(":")
    if name and Path(name).name == name and (PRODUCT / f"configs/{name}.py").is_file():
        return of_product(f"configs/{name}.py") + colon + variant
    if re.fullmatch(r"configs/\w+\.py", name) and not Path(name).is_file():
        return str(PRODUCT / name) + colon + variant
    return value


def of_product(name: str) -> str:
    """Return the path of a file of the product, such as configs/probe.py, from any folder.

    In the product's own folder, where commands are usually started, it is `name` itself.
    """
    here = Path(name).absolute() == PRODUCT / name
    return name if here else str(PRODUCT / name)


class Literal(type(epath.Path("/"))):  # type: ignore[misc]  # the class for this system
    """A path taken literally, for libraries that take etils' paths.

    etils treats a folder's own name as a pattern when it looks into the folder, and expects that a
    file's owner has a name. Orbax would then not find what it has just written into a folder called
    run[1].
    """

    def glob(self, pattern: str) -> Iterator["Literal"]:
        """Yield what is below this folder and matches the pattern."""
        return (type(self)(path) for path in sorted(Path(self).glob(pattern)))

    def stat(self) -> StatResult:
        """Return the size and the times of a file, without its owner."""
        there = os.stat(self)
        return StatResult(Path(self).is_dir(), there.st_size, int(there.st_mtime))


def literal(path: os.PathLike) -> epath.Path:
    """Return a path in the form to give to libraries that take etils' paths."""
    return epath.Path(path) if is_remote(path) else Literal(path)
