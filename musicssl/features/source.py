"""The contract of everything that features come from: encoders, baselines, plug-ins, files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from musicssl.features import windows

Read = Callable[[int], np.ndarray]  # from a record's number to its int16 audio
Outputs = tuple[list[int], dict[int, np.ndarray]]  # numbers and {pool: [layers, b, r, d]}
# Takes (windows, read, pools, numbers of the wanted windows, windows in a batch).
Hear = Callable[[windows.Windows, Read, Sequence[int], Sequence[int], int], Iterator[Outputs]]


class FeatureSource(NamedTuple):
    """Where features come from: a frozen encoder, or a baseline.

    name: for reports.
    digest: of everything that the features depend on.
    layers: how many arrays `apply` returns; layer 0 of an encoder is the transformer's input.
    width: d.
    sample_rate: of the audio that it takes.
    normalize: whether it takes clips of mean 0 and variance 1.
    params: the first argument of `apply`.
    apply: (params, float audio [b, n]) to `layers` arrays [b, t, d]. A third argument, samples
      [b], holds the lengths of clips that are padded to n with zeros: each clip then begins with
      the frames that it has without padding.
    frames: how many frames `apply` returns for a number of samples.
    origin: where the encoder is from, for results.json: names and values.
    hear: computes the rows of windows in place of `apply`, which is then not called.
    answer: the response to a sound that is always the same, [layers, width], if the digest may
      miss something that features depend on; an answer that has changed is refused.
    bind: returns `hear` for a data set's name, a split and its records, for features that were
      computed elsewhere. It raises ValueError if they are not of that split.
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
        """Return the number of frames per second."""
        return self.sample_rate / self.frames.hop
