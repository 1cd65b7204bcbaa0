"""A plug-in as a source of features: loads it from a file or module, and runs it."""

import collections
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import default_registry

from musicssl.command import note
from musicssl.features import batches, windows
from musicssl.features.plugin import SECONDS, Plugin, blaming, check, check_shapes, in_numpy
from musicssl.features.source import FeatureSource, Outputs, Read

_FIGURES = {
    "sample_rate": "Hz of the audio that it takes",
    "layers": "arrays that it returns",
    "width": "columns of each",
    "frame_rate": "frames per second",
}
_OPTIONAL = {"normalize": False, "version": ""}
_SAMPLE_RATES = 1_000, 384_000  # Hz that sound files have
_LONGEST_FRAME = 60  # seconds


def open_plugin(spec: str) -> FeatureSource:
    """Load and check a plug-in.

    Args:
      spec: FILE.py:NAME or MODULE:NAME.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be loaded, or does not do what it says; the message says which.
    """
    if jax.process_count() > 1:
        raise ValueError(f"{spec}: a plug-in runs in one process only: leave --processes out")
    module, model, name = _load(spec)
    plugin = _described(spec, module, model)
    note(f"{spec}: checking it with {SECONDS:g} s of noise")
    frames, answer = check(plugin)

    # The digest covers the file, the weights that are found, and the version that it states.
    source, weights = _sha256(plugin.file.read_bytes()), _weights(module, model)
    figures = [getattr(plugin, figure) for figure in (*_FIGURES, "normalize", "version")]
    digest = _sha256(repr((source, weights, name, figures, frames)).encode())
    if not weights and not plugin.version:
        note(
            f"{spec}: no weights were found in it, so only its file distinguishes it from other "
            "versions: give it the attribute `version` if it reads weights"
        )
    return FeatureSource(
        f"{name} of {plugin.file.name} ({source[:12]})",
        f"python-{digest}",
        plugin.layers,
        plugin.width,
        plugin.sample_rate,
        plugin.normalize,
        {},
        lambda *_: [],
        frames,
        {"file": str(plugin.file), "sha256": source, "weights": weights, "version": plugin.version},
        functools.partial(_hear, plugin),
        answer=answer,
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _load(spec: str) -> tuple[ModuleType, Callable[..., Any], str]:
    """Return a plug-in's module, the object to call, and the object's name there."""
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"python:{spec} names no plug-in: give python:FILE.py:NAME")
    if place.endswith(".py") or "/" in place:
        module = _load_file(spec, Path(place).absolute())
    else:
        with blaming(spec, None):
            module = importlib.import_module(place)
    model = getattr(module, name, None)
    if not callable(model):
        raise ValueError(f"{spec}: {place} has no function or class {name}")
    if isinstance(model, type):
        with blaming(spec, _file_of(module)):
            model = model()
    if not callable(model):
        raise ValueError(f"{spec}: {name} has no method __call__(self, audio)")
    return module, model, name


def _file_of(module: ModuleType) -> Path:
    return Path(str(getattr(module, "__file__", None)))


def _load_file(spec: str, file: Path) -> ModuleType:
    """Import a file, which may import others that lie beside it."""
    if not file.is_file():
        raise FileNotFoundError(f"python:{spec}: there is no file {file}")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    found = importlib.util.spec_from_file_location(f"plugin_{file.stem}", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    with blaming(spec, file):
        found.loader.exec_module(module)
    return module


def _described(spec: str, module: ModuleType, model: Callable[..., Any]) -> Plugin:
    """Read a plug-in's attributes."""
    file = _file_of(module)
    with blaming(spec, file):
        given: dict[str, Any] = {name: getattr(model, name, None) for name in _FIGURES}
        optional = {name: getattr(model, name, value) for name, value in _OPTIONAL.items()}
        takes_samples = "samples" in inspect.signature(getattr(model, "forward", model)).parameters
    missing = [name for name, value in given.items() if value is None]
    if missing:
        wanted = ", ".join(f"{name} ({_FIGURES[name]})" for name in missing)
        raise ValueError(f"{spec} lacks {wanted}: give it attributes of these names")
    figures: dict[str, Any] = {}
    for name, value in given.items():
        whole = name != "frame_rate"
        try:
            figures[name] = int(value) if whole else float(value)
        except (TypeError, ValueError, OverflowError):
            figures[name] = 0
        if figures[name] <= 0 or figures[name] != value:
            raise ValueError(
                f"{spec} has {name} = {value!r}: give a {'whole ' if whole else ''}number above 0"
            )
    plugin = Plugin(
        spec,
        file,
        model,
        takes_samples,
        **figures,
        normalize=bool(optional["normalize"]),
        version=str(optional["version"]),
    )
    least, most = _SAMPLE_RATES
    if not least <= plugin.sample_rate <= most:
        raise ValueError(
            f"{spec} has sample_rate = {plugin.sample_rate}: give Hz, from {least} to {most}"
        )
    if plugin.frame_rate * _LONGEST_FRAME < 1:
        raise ValueError(
            f"{spec} has frame_rate = {plugin.frame_rate:g}: give frames per second, at least "
            f"one in {_LONGEST_FRAME} s"
        )
    hop = plugin.sample_rate / plugin.frame_rate
    if hop < 1 or abs(hop - plugin.hop) > 1e-3:
        raise ValueError(
            f"{spec} has {plugin.sample_rate} Hz and {plugin.frame_rate:g} frames per second, so a "
            f"frame is {hop:.2f} samples, which must be a whole number. Give frame_rate as "
            "sample_rate / hop, and as sample_rate the rate that the model itself takes"
        )
    return plugin


def _weights(module: ModuleType, model: Callable[..., Any]) -> str:
    """Return the digest of all weights in a plug-in and in its module; "" if none are found."""
    torch = sys.modules.get("torch")
    digest, found = hashlib.sha256(), False
    own = dict(vars(model)) if hasattr(model, "__dict__") else {}
    for value in _leaves([vars(module), dict(vars(type(model))), own, model]):
        if torch and isinstance(value, torch.nn.Module):
            tensors = list(value.state_dict().items())
        elif isinstance(value, np.ndarray | jax.Array) or (torch and torch.is_tensor(value)):
            tensors = [("", value)]
        else:
            continue
        for name, tensor in tensors:
            try:
                content = _bytes_of(tensor)
            except (TypeError, ValueError, RuntimeError):
                continue  # such as random keys or arrays of objects: the answer shows them
            digest.update(name.encode())
            digest.update(content.data)
            found = True
    return digest.hexdigest() if found else ""


def _bytes_of(tensor: Any) -> np.ndarray:
    """Return the bytes of an array of NumPy, JAX or PyTorch."""
    torch = sys.modules.get("torch")
    if torch and torch.is_tensor(tensor):
        return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)


def _leaves(value: Any, above: tuple[int, ...] = ()) -> Iterator[Any]:
    """Yield what lists, dictionaries and JAX's trees hold; they may hold themselves.

    Args:
      above: the identities of what holds `value`.
    """
    if id(value) in above:
        return
    if isinstance(value, dict):
        inner: Sequence[Any] = [value[key] for key in sorted(value, key=str)]
    elif (node := default_registry.flatten_one_level(value)) is not None:
        inner = list(node[0])
    else:
        yield value
        return
    for one in inner:
        yield from _leaves(one, (*above, id(value)))


# Extraction.

Rows = Callable[[], np.ndarray]  # fetches [layers, b, r, d] from where it was computed


def _hear(
    plugin: Plugin,
    cut: windows.Windows,
    read: Read,
    pools: Sequence[int],
    waiting: Sequence[int],
    batch: int,
) -> Iterator[Outputs]:
    """Compute the rows of windows, as FeatureSource.hear.

    A thread reads and scales audio ahead. The rows of a batch are fetched while the next one is
    computed, so that a GPU does not wait for the host.
    """
    exact = not plugin.takes_samples
    filled = batches.batches(plugin.normalize, cut, read, waiting, batch, exact)
    heard = ((one.numbers, one.heard(), one.samples[: len(one.numbers)]) for one in filled)
    counts = {pool: windows.rows_in(cut, pool) for pool in pools}
    running: collections.deque[tuple[list[int], dict[int, Rows]]] = collections.deque()

    def fetch() -> Outputs:
        numbers, rows = running.popleft()
        with blaming(plugin.spec, plugin.file):
            return numbers, {pool: _in_half(values()) for pool, values in rows.items()}

    for numbers, x, samples in batches.ahead(heard):
        n = x.shape[1]
        states = plugin.call(x, samples)
        check_shapes(plugin, states, len(numbers))
        frames = cut.frames.count(np.maximum(samples, cut.frames.window))
        returned, wanted = states[0].shape[1], int(cut.frames.count(np.array(n)))
        if returned < frames.max() or (exact and returned != wanted):
            raise ValueError(
                f"{plugin.spec} returned {returned} frames for a window of {n} samples, but its "
                f"frame_rate makes {wanted} of them"
            )
        with blaming(plugin.spec, plugin.file):
            rows = {p: _pooled(plugin, states, frames, counts[p][numbers], p) for p in pools}
        running.append((numbers, rows))
        del states
        if len(running) > 1:
            yield fetch()
    while running:
        yield fetch()


def _in_half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # values that are too large are refused when they are written
        return values.astype(np.float16)


def _pooled(
    plugin: Plugin, states: Sequence[Any], frames: np.ndarray, rows: np.ndarray, pool: int
) -> Rows:
    """Average frames by `windows.parts`; windows with fewer rows are filled up with zeros."""
    kinds = list(zip(frames.tolist(), rows.tolist(), strict=True))
    parts = [windows.parts(pool, r, t, plugin.frame_rate) for t, r in kinds]
    if len(set(kinds)) == 1:
        return _means(states, parts[0])
    each = [_means([h[i : i + 1] for h in states], own) for i, own in enumerate(parts)]

    def filled() -> np.ndarray:
        values = np.zeros((len(states), len(frames), rows.max(), plugin.width), np.float32)
        for i, own in enumerate(each):
            values[:, i : i + 1, : rows[i]] = own()
        return values

    return filled


def _means(states: Sequence[Any], parts: Sequence[tuple[int, int]]) -> Rows:
    """Begin to average parts of frames on the arrays' own device: [b, t, d] of each layer."""
    single = all(end - first == 1 for first, end in parts) and parts[-1][1] == len(parts)
    torch = sys.modules.get("torch")
    if torch and all(torch.is_tensor(h) for h in states):
        floats = [h.detach().float() for h in states]
        if single:
            layers = [h[:, : len(parts)] for h in floats]
        else:
            layers = [torch.stack([h[:, a:z].mean(1) for a, z in parts], 1) for h in floats]
        together = torch.stack(layers)
        return lambda: together.cpu().numpy()
    if all(isinstance(h, jax.Array) for h in states):
        computed = _jax_means(tuple(states), None if single else tuple(parts))
        return lambda: np.asarray(computed)
    arrays = [in_numpy(h) for h in states]
    if single:
        found = np.stack([h[:, : len(parts)] for h in arrays])
    else:
        found = np.stack([np.stack([h[:, a:z].mean(1) for a, z in parts], 1) for h in arrays])
    return lambda: found


@functools.partial(jax.jit, static_argnums=1)
def _jax_means(
    states: tuple[jax.Array, ...], parts: tuple[tuple[int, int], ...] | None
) -> jax.Array:
    floats = [h.astype(jnp.float32) for h in states]
    if parts is None:
        return jnp.stack(floats)
    return jnp.stack([jnp.stack([h[:, a:z].mean(1) for a, z in parts], 1) for h in floats])
