"""A user's own encoder in Python: how it is called, and checks of what it says about itself.

It is a function or an object with the attributes sample_rate, layers, width and frame_rate, called
with a batch of audio, float32 [b, n], at its sample rate. It returns `layers` arrays [b, t, width]
of NumPy, JAX or PyTorch. All windows of a batch have the same length, unless its parameter
`samples` takes the lengths [b] of windows that are padded with zeros. The page for users is
musicssl/probing/own_encoder.md.
"""

import contextlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from musicssl.command import first_line
from musicssl.features import windows

SECONDS = 2.0  # length of the noise that it is checked with
_ALIKE = 0.02  # share of a layer's deviation: more than the order of sums changes in half precision
_GPU = re.compile(r"\b(cuda|gpu|nvidia|mps|rocm)", re.IGNORECASE)


class Plugin(NamedTuple):
    """A plug-in that is ready to be called.

    spec: as the user named it, for messages.
    file: its source.
    model: the object that is called.
    takes_samples: whether it takes the lengths of padded windows.
    """

    spec: str
    file: Path
    model: Callable[..., Any]
    takes_samples: bool
    sample_rate: int
    layers: int
    width: int
    frame_rate: float
    normalize: bool
    version: str

    @property
    def hop(self) -> int:
        """Return the number of samples from one frame to the next."""
        return round(self.sample_rate / self.frame_rate)

    def call(self, x: np.ndarray, samples: np.ndarray | None = None) -> list[Any]:
        """Return the hidden states of audio [b, n], arrays [b, t, d] of any library.

        Raises:
          ValueError: the plug-in raised, or returned something else.
        """
        torch = sys.modules.get("torch")
        told = samples if samples is not None else np.full(len(x), x.shape[1])
        more = {"samples": told} if self.takes_samples else {}
        with (
            blaming(self.spec, self.file),
            torch.no_grad() if torch else contextlib.nullcontext(),
        ):
            states = self.model(x, **more)
        if getattr(states, "ndim", 0) == 3 and self.layers == 1:
            return [states]
        is_array = getattr(states, "ndim", 0) == 4
        if not is_array and not isinstance(states, list | tuple):
            raise ValueError(
                f"{self.spec} returned {type(states).__name__}: return a list of its {self.layers} "
                "layers, arrays [batch, frames, width]"
            )
        return list(states)


@contextlib.contextmanager
def blaming(spec: str, file: Path | None) -> Iterator[None]:
    """Turn what a plug-in raises into one line that names the line of its file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        own = [
            x for x in traceback.extract_tb(error.__traceback__) if file and x.filename == str(file)
        ]
        line = f" at line {own[-1].lineno}" if own else ""
        if isinstance(error, SyntaxError) and error.lineno:
            line = f" at line {error.lineno}"
        said = first_line(error)
        remedy = ""
        if _GPU.search(said):
            remedy = ": if this machine has no GPU for it, let it use the CPU"
        raise ValueError(f"{spec} raised {type(error).__name__}{line}: {said}{remedy}") from error


def check(plugin: Plugin) -> tuple[windows.Frames, np.ndarray]:
    """Run a plug-in on noise; return its frames and its answer, [layers, width].

    Raises:
      ValueError: shapes, rate or values are wrong; the message is one line that says what.
    """
    spec, hop = plugin.spec, plugin.hop
    n = max(round(SECONDS * plugin.sample_rate), 4 * hop)
    more = round(n / hop)  # frames that as much noise again should add: a wrong rate shows there
    noise = np.random.default_rng(0).standard_normal((2, n + more * hop)).astype(np.float32) / 10
    x = noise[:, : n + hop]

    # Shapes and values.
    together = _checked(plugin, x)
    lengths = n, n + hop, n + more * hop
    shorter, longer, longest = (_frames(plugin, noise[:1, :samples]) for samples in lengths)
    expected = n / hop
    steady = longer == shorter + 1 and longest == shorter + more
    if not steady or not 0.5 * expected < shorter < 1.5 * expected + 4:
        found = (longest - shorter) * plugin.frame_rate / more
        rate = shorter * plugin.sample_rate / n if longest == shorter else found
        raise ValueError(
            f"{spec} says {plugin.frame_rate:g} frames per second, but returned {shorter} frames "
            f"for {n} samples ({n / plugin.sample_rate:g} s) and {longest} for {lengths[-1]}: "
            f"it has about {rate:g} per second, or the same number for any length"
        )
    _checked(plugin, np.zeros_like(x), "silence")

    # The same window gives the same answer, when repeated and whatever else is in the batch.
    if worst := _unlike(_checked(plugin, x), together):
        raise ValueError(
            f"{spec} gives other features for the same audio when called again (layer {worst}): "
            "is it in training mode? Call eval(), and draw nothing at random"
        )
    if worst := _unlike(_checked(plugin, x[:1]), [h[:1] for h in together]):
        raise ValueError(
            f"{spec} gives a window other features if the batch holds another one (layer {worst}): "
            "normalise each window by itself, and call eval()"
        )
    frames = windows.Frames(_first_window(plugin, x[:1], n, shorter), hop)
    if plugin.takes_samples:
        _check_padding(plugin, x, frames)
    return frames, np.stack([h.mean((0, 1)) for h in together])


def _first_window(plugin: Plugin, x: np.ndarray, n: int, count: int) -> int:
    """Return `windows.Frames.window`, from the length at which the next frame appears."""
    without, enough = n, x.shape[1]
    while enough - without > 1:
        middle = (without + enough) // 2
        if _frames(plugin, x[:, :middle]) > count:
            enough = middle
        else:
            without = middle
    return enough - count * plugin.hop


def _check_padding(plugin: Plugin, x: np.ndarray, frames: windows.Frames) -> None:
    """Check that a padded window has the same frames as without padding."""
    samples = np.array([x.shape[1] * 2 // 3, x.shape[1]])
    padded = np.where(np.arange(x.shape[1]) < samples[:, None], x, np.float32(0))
    count = int(frames.count(samples)[0])
    together = [h[:1, :count] for h in _checked(plugin, padded, samples=samples)]
    alone = _checked(plugin, x[:1, : samples[0]], samples=samples[:1])
    if worst := _unlike(alone, together):
        raise ValueError(
            f"{plugin.spec} lets the padding of a window change its features (layer {worst}): mask "
            "what follows `samples`, or leave out that parameter, so that no window is padded"
        )


def _frames(plugin: Plugin, x: np.ndarray) -> int:
    return int(plugin.call(x.copy())[0].shape[1])


def _checked(
    plugin: Plugin, x: np.ndarray, what: str = "noise", samples: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return the hidden states in NumPy, checked for their shapes and values."""
    spec, states = plugin.spec, plugin.call(x.copy(), samples)
    check_shapes(plugin, states, len(x))
    with blaming(spec, plugin.file):
        arrays = [in_numpy(h) for h in states]
    for number, h in enumerate(arrays):
        if not np.isfinite(h).all():
            raise ValueError(f"{spec}: layer {number} of {what} is not finite")
    return arrays


def check_shapes(plugin: Plugin, states: Sequence[Any], b: int) -> None:
    """Raise ValueError if hidden states are not `layers` arrays [b, t, width] of floats."""
    if len(states) != plugin.layers:
        raise ValueError(
            f"{plugin.spec} has layers = {plugin.layers}, but returned {len(states)} arrays"
        )
    shapes = [tuple(getattr(h, "shape", ())) for h in states]
    for number, shape in enumerate(shapes):
        frames = shapes[0][1] if number and len(shapes[0]) == 3 else "frames"
        if shape != (b, *shapes[0][1:2], plugin.width):
            raise ValueError(
                f"{plugin.spec}: layer {number} has the shape {list(shape)} for a batch of {b}: "
                f"[{b}, {frames}, {plugin.width}] is expected{', as in layer 0' if number else ''}"
            )
    for number, h in enumerate(states):
        if not is_float(h):
            raise ValueError(
                f"{plugin.spec}: layer {number} is of {h.dtype}: floating-point values are expected"
            )


def is_float(h: Any) -> bool:
    """Return whether an array of NumPy, JAX or PyTorch holds real floating-point values."""
    torch = sys.modules.get("torch")
    if torch and torch.is_tensor(h):
        return h.is_floating_point()
    return hasattr(h, "dtype") and jnp.issubdtype(h.dtype, jnp.floating)


def _unlike(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> str:
    """Return the number of the first layer that differs by more than rounding; "" for none."""
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a.shape != b.shape or np.sqrt(np.mean((a - b) ** 2)) > _ALIKE * (b.std() + 1e-9):
            return str(number)
    return ""


def in_numpy(h: Any) -> np.ndarray:
    torch = sys.modules.get("torch")
    if torch and torch.is_tensor(h):
        h = h.detach().float().cpu().numpy()
    return np.asarray(h, np.float32)
