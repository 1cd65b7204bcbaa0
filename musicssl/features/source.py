"""What features come from, whoever computes them: the contract of encoders and baselines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from musicssl.features import windows

Read = Callable[[int], np.ndarray]  # from a record's number to its int16 audio
Outputs = tuple[list[int], dict[int, np.ndarray]]  # numbers and {pool: [layers, b, r, d]}
# Of (windows, read, pools, numbers of the windows that are wanted, windows in a batch).
Hear = Callable[[windows.Windows, Read, Sequence[int], Sequence[int], int], Iterator[Outputs]]


class FeatureSource(NamedTuple):
    """Where features come from: a frozen encoder, or a baseline.

    name: for reports.
    digest: of all that the features depend on.
    layers: how many arrays `apply` gives; layer 0 of an encoder is the transformer's input.
    width: d.
    sample_rate: of the audio that it takes.
    normalize: whether it takes clips of mean 0 and variance 1.
    params: the first argument of `apply`.
    apply: (params, float audio [b, n]) to `layers` arrays [b, t, d]. A third argument, samples
      [b], tells the lengths of clips that are padded to n with zeros: each then has the frames that
      it has alone, and others after them.
    frames: of which `apply` gives as many as this says.
    origin: where the encoder is from, for results.json: names and values.
    hear: computes the rows of windows in place of `apply`, which is then not called.
    answer: to a sound that is always the same, [layers, width], where the digest may miss something
      that features depend on; an answer that has changed is refused.
    bind: gives `hear` of a data set's name, a split and its records, for features that were
      computed elsewhere. It raises ValueError where they are not of that split.
    """

    name: str
    digest: str
    layers: int
    width: int
    sample_rate: int
    normalize: bool
    params: dict
    apply: Callable[..., Sequence[jax.Array]]
    frames: windows.Frames = windows.STEM
    origin: Mapping[str, str] = MappingProxyType({})
    hear: Hear | None = None
    answer: np.ndarray | None = None
    bind: Callable[[str, str, Any], Hear] | None = None

    @property
    def frame_rate(self) -> float:
        """Return frames a second."""
        return self.sample_rate / self.frames.hop
