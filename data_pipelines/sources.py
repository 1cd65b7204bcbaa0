"""Where the files of a published data set come from: the user's own folder, or a public URL.

TFDS's checksums.tsv wants a file's exact size beside its SHA-256. The publishers of these data
sets (and the public repositories that list them) state digests, some only MD5, and no sizes, so
the digests stand beside the URLs in each builder and are checked here.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping

import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from data_pipelines import paths
from data_pipelines.shards import BuildError

_BLOCK = 1 << 20  # bytes read at a time while hashing and joining
_BIG = 256 << 20  # bytes; hashing or joining more than this shows progress


@dataclasses.dataclass(frozen=True)
class DownloadSource:
    """A public file: its published name, its URL, and its digest if one is published.

    `digest` is "sha256:<hex>" or "md5:<hex>", or None where the publisher states none; it is
    never one that we computed. For a folder of a git repository, whose archives GitHub may repack,
    it is "git-tree:<hex>", the name that git derives from the folder's contents.
    """

    filename: str
    url: str
    digest: str | None = None


def manual_dir(dl_manager: tfds.download.DownloadManager) -> epath.Path | None:
    """Return the user's own folder, or None if there is none or it is empty."""
    try:
        return epath.Path(dl_manager.manual_dir)
    except AssertionError:  # how TFDS says that the folder is not there
        return None


def placed(folder: epath.Path | None, *names: str) -> epath.Path | None:
    """Return the first of `names` (relative paths, globs allowed) that exists in `folder`."""
    if folder is None:
        return None
    for name in names:
        if matches := paths.matching(folder, name):
            return matches[0]
    return None


def fetch(
    dl_manager: tfds.download.DownloadManager, sources: Mapping[str, DownloadSource]
) -> dict[str, epath.Path]:
    """Find each source in manual_dir under its published name, or download it.

    A download with a wrong digest is an error. A file that the user placed by hand is used anyway,
    with a warning: it may be a corrected copy, and the built sizes are compared with the published
    ones in any case.
    """
    folder = manual_dir(dl_manager)
    by_hand = {name: placed(folder, source.filename) for name, source in sources.items()}
    wanted = {name: sources[name].url for name, path in by_hand.items() if path is None}
    downloaded = download(dl_manager, wanted) if wanted else {}

    # each is checked, wherever it came from
    chosen = {}
    for name, source in sources.items():
        path = by_hand[name] or downloaded[name]
        problem = mismatch(path, source.digest)
        if problem and name in downloaded:
            raise BuildError(
                f"{source.url}: {problem}; delete {path} and run again, or place a good "
                f"{source.filename} in --manual_dir"
            )
        if problem:
            print(f"{path}: {problem}; it is used anyway", file=sys.stderr)
        chosen[name] = path
    return chosen


def download(
    dl_manager: tfds.download.DownloadManager, urls: Mapping[str, str]
) -> dict[str, epath.Path]:
    """Download `urls` with TFDS; an unreachable host becomes one line with the remedy."""
    try:
        files = dl_manager.download(dict(urls))
    except Exception as error:  # requests, urllib3, ssl and TFDS each raise their own
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise BuildError(
            f"download failed ({first}); get the files as the data set's README.md says and "
            "pass their folder as --manual_dir"
        ) from error
    return {name: epath.Path(path) for name, path in files.items()}


def mismatch(path: epath.Path, digest: str | None) -> str | None:
    """Return what is wrong with a file's or a folder's digest in words, or None."""
    if digest is None:
        return None
    algorithm, _, expected = digest.partition(":")
    actual = git_tree(path) if algorithm == "git-tree" else _digest(path, algorithm)
    if actual == expected:
        return None
    return f"its {algorithm} is {actual}, but the published one is {expected}"


def _digest(path: epath.Path, algorithm: str) -> str:
    hasher = hashlib.new(algorithm)
    for block in _blocks([path], f"checking {path.name}"):
        hasher.update(block)
    return hasher.hexdigest()


def git_tree(folder: epath.Path) -> str:
    """Return what git calls a folder of plain files, by their contents (SHA-1)."""

    def name(kind: bytes, content: bytes) -> bytes:
        return hashlib.sha1(b"%s %d\0%s" % (kind, len(content), content)).digest()

    files = sorted((f.name.encode(), f) for f in paths.matching(folder, "*") if not f.is_dir())
    entries = [b"100644 %s\0%s" % (file, name(b"blob", f.read_bytes())) for file, f in files]
    return name(b"tree", b"".join(entries)).hex()


def join(parts: list[epath.Path], target: epath.Path) -> epath.Path:
    """Concatenate `parts` into `target`, unless a whole one is there from an earlier run."""
    whole = sum(paths.size(part) for part in parts)
    if target.exists() and paths.size(target) == whole:
        return target
    partial = target.parent / f"{target.name}.partial"
    with partial.open("wb") as out:
        for block in _blocks(parts, f"joining {target.name}"):
            out.write(block)
    return partial.replace(target)


def unpack(
    dl_manager: tfds.download.DownloadManager,
    archive: epath.Path,
    method: tfds.download.ExtractMethod,
) -> epath.Path:
    """Extract an archive once, below TFDS's download folder, and return the new folder.

    The method is given explicitly: TFDS guesses it from the extension, which `?download=1` and
    `.tar_.gz` hide.
    """
    resource = tfds.download.Resource(path=archive, extract_method=method)
    return epath.Path(dl_manager.extract(resource))


def _blocks(files: list[epath.Path], what: str) -> Iterator[bytes]:
    """Yield the bytes of `files` in order, with a bar if that takes a while."""
    size = sum(paths.size(file) for file in files)
    with tqdm(total=size, unit="B", unit_scale=True, desc=what, disable=size < _BIG) as bar:
        for path in files:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    bar.update(len(block))
                    yield block
