"""Models on the Hub of Hugging Face: downloaded into its cache, at one commit, and pushed.

A name is hf:ORG/NAME or hf:ORG/NAME@REVISION, where a revision is a branch, a tag or a commit. The
commit is looked up first and all files are taken from it, so that files of two commits are never
mixed if the branch moves meanwhile. A commit that is in the cache needs no network. Only
config.json, the preprocessor's configuration and the weights are read (model.safetensors if it
exists, else pytorch_model.bin), and never code. HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN and
HF_HUB_OFFLINE are huggingface_hub's own variables.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from musicssl import paths
from musicssl.command import first_line, note

_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is taken
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NETWORK = ("httpx", "httpcore", "requests", "urllib3")  # packages whose errors are the network's
_SECONDS = 20  # within which the Hub has to answer
_REFUSED = 500  # HTTP statuses from here on are the Hub's own errors


class Unreachable(OSError):
    """The Hub does not answer, or only in part: run the same command again later."""

    def __init__(self, said: str):
        super().__init__(errno.ETIMEDOUT, said)

    def __str__(self) -> str:
        return str(self.strerror)


class Snapshot(NamedTuple):
    """A model of the Hub on this machine.

    path: its directory, in which nothing may be changed.
    name: ORG/NAME.
    commit: the commit of its files.
    """

    path: Path
    name: str
    commit: str


def split_name(spec: str) -> tuple[str, str]:
    """Return ORG/NAME and the revision, or "", of hf:ORG/NAME or hf:ORG/NAME@REVISION.

    Raises:
      ValueError: `spec` is not a name.
    """
    name, _, revision = spec.removeprefix(paths.HUB).partition("@")
    if not _is_name(name):
        raise ValueError(f"{spec} is not a name on the Hub: give hf:ORG/NAME[@REVISION]")
    return name, revision


def download(spec: str) -> Snapshot:
    """Download those files that `huggingface.read_directory` reads and the cache lacks.

    Args:
      spec: hf:ORG/NAME or hf:ORG/NAME@REVISION.

    Raises:
      ValueError: `spec` is not a name; or the Hub refuses the model, because it is gated.
      FileNotFoundError: there is no such model or revision, or it has no readable weights.
      Unreachable: the Hub does not answer and the cache does not have the model.
    """
    name, revision = split_name(spec)
    pinned = _cached(name, revision) if _COMMIT.fullmatch(revision) else None
    if pinned:
        return pinned

    # Look up the commit, or use what is in the cache.
    api = _api()
    try:
        with _explained(spec, api.endpoint):
            info = api.model_info(name, revision=revision or None, timeout=_SECONDS)
    except Unreachable as error:
        found = _cached(name, revision or "main")
        if found is None:
            raise
        note(f"{error}: using commit {found.commit} from the cache")
        return found

    commit = str(info.sha)
    files = _chosen(spec, [file.rfilename for file in info.siblings or ()])
    if not revision or not commit.startswith(revision):
        note(f"{spec} is at commit {commit}: {paths.HUB}{name}@{commit} always names this one")
    for file in files:
        with _explained(spec, api.endpoint):
            local = api.hf_hub_download(
                name, file, revision=commit, cache_dir=_cache(), etag_timeout=_SECONDS
            )
    folder = Path(local).parent
    _note_revision(folder, revision or "main", commit)
    return Snapshot(folder, name, commit)


def _note_revision(folder: Path, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch is at, now that all of its files are there.

    huggingface_hub itself does so when it looks up the commit for each file.
    """
    if _COMMIT.fullmatch(revision):
        return
    ref = folder.parent.parent / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    paths.write(ref, commit.encode())


def push(folder: Path, name: str, message: str) -> str:
    """Upload a directory as a model, in one commit; return its address.

    Args:
      name: ORG/NAME; it is created if it does not exist.

    Raises:
      ValueError: the Hub refuses it.
      Unreachable: the Hub does not answer, and nothing has changed there.
    """
    api = _api()
    with _explained(f"{paths.HUB}{name}", api.endpoint):
        if not api.repo_exists(name):
            api.create_repo(name, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return f"{api.endpoint}/{name}, commit {done.oid}"


def check_push(name: str) -> None:
    """Check that a push can be tried, before any work is done.

    Raises:
      ValueError: it is not a name, or there is no token.
    """
    import huggingface_hub

    if "/" not in name or not _is_name(name):
        raise ValueError(f"--push={name} is not a name on the Hub: give ORG/NAME")
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"--push={name} needs a token with write access: set HF_TOKEN, or run hf auth login"
        )


def _is_name(name: str) -> bool:
    """Return whether it is ORG/NAME, or the NAME alone that few old models have."""
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


def _api() -> Any:
    """Return the interface of the Hub; its address is read at each call."""
    import huggingface_hub
    from huggingface_hub import constants

    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
    return huggingface_hub.HfApi(endpoint=endpoint, library_name="musicssl")


def _cache() -> str | None:
    return os.environ.get("HF_HUB_CACHE")


def _cached(name: str, revision: str) -> Snapshot | None:
    """Return a model that is complete in the cache; None if it is not."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(
        name, _CONFIGS[0], cache_dir=_cache(), revision=revision
    )
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    there = [path.name for path in folder.iterdir()]
    try:
        _chosen(name, there)
    except FileNotFoundError:
        return None
    shards = [re.search(r"-of-(\d+)\.", file) for file in there]
    if any(match and int(match[1]) > sum(map(bool, shards)) for match in shards):
        return None
    return Snapshot(folder, name, folder.name)


def _chosen(spec: str, files: Sequence[str]) -> list[str]:
    """Return which of a model's files are read.

    Raises:
      FileNotFoundError: there are no weights, or no config.json.
    """
    configs = [name for name in _CONFIGS if name in files]
    for weights in _WEIGHTS:
        stem, _, ending = weights.rpartition(".")
        if weights in files:
            found = [weights]
        elif f"{weights}.index.json" in files:
            shards = re.compile(rf"{stem}-\d+-of-\d+\.{ending}")
            found = [f"{weights}.index.json", *filter(shards.fullmatch, files)]
        else:
            continue
        if _CONFIGS[0] in configs and len(configs) > 1:
            return [*found, *configs]
    wanted = "config.json, preprocessor_config.json and model.safetensors or pytorch_model.bin"
    raise FileNotFoundError(f"{spec} lacks files that an encoder needs ({wanted})")


@contextlib.contextmanager
def _explained(spec: str, endpoint: str) -> Iterator[None]:
    """Raise one line that says what the Hub answered, or that it did not."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise ValueError(
            f"{spec} is gated: accept its terms at {endpoint}/{split_name(spec)[0]}, and set "
            "HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{spec}: {endpoint} has no such model, or it is private: if so, set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"{spec}: the model has no such branch, tag or commit; it may have been removed"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status < _REFUSED and status != 429:
            said = "use another HF_TOKEN" if status in (401, 403) else first_line(error)
            raise ValueError(f"{spec}: {endpoint} refuses it ({status}): {said}") from None
        raise Unreachable(f"{spec}: {endpoint} has an error ({status}): try again") from None
    except errors.OfflineModeIsEnabled:
        raise Unreachable(
            f"{spec}: HF_HUB_OFFLINE is set, and the cache lacks it: unset it to download"
        ) from None
    except Exception as error:
        cause: BaseException | None = error
        while isinstance(cause, errors.LocalEntryNotFoundError) and cause.__cause__:
            cause = cause.__cause__
        network = type(cause).__module__.startswith(_NETWORK) or isinstance(
            cause, ConnectionError | TimeoutError | errors.LocalEntryNotFoundError
        )
        if not network and "onsistency check" not in str(error):
            raise
        raise Unreachable(
            f"{spec}: {endpoint} does not answer ({first_line(cause or error)}): try again"
        ) from None
