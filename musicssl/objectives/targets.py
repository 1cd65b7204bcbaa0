"""The targets of masked prediction that a configuration names, each with its codes.

A target is a feature of the audio, a quantiser that turns each of its frames into a code, and the
weight of its loss. The paper's variants have one, named by config.teacher.feature. Several targets
are written in config.teacher.targets, separated by commas, each as FEATURE:QUANTIZER:CODES. CODES
may be left out, and means teacher.clusters; so may QUANTIZER, which means kmeans:

    teacher.targets = "mel:random:4x512,chroma:kmeans:200,onset"    teacher.weights = (1, 0.5, 0.5)

4x512 means four codebooks of 512 codes, each with its own head.
"""

import dataclasses
import math
import re

import ml_collections

from musicssl import spectra

FEATURES = (*spectra.NAMES, "layer")
QUANTIZERS = ("kmeans", "random")
_CODES = re.compile(r"(?:([1-9]\d*)x)?(\d+)")


@dataclasses.dataclass(frozen=True)
class Target:
    """What a head predicts.

    Attributes:
      name: of the head, the codebook and the metrics: the feature's name, followed by a number if
        it has several codebooks.
      feature: one of FEATURES.
      quantizer: "kmeans", which is fitted, or "random", a random projection and codebook.
      clusters: how many codes there are.
      weight: of its cross entropy in the loss.
    """

    name: str
    feature: str
    quantizer: str
    clusters: int
    weight: float


def of(config: ml_collections.ConfigDict) -> tuple[Target, ...]:
    """Return the targets of a HuBERT run, in the order in which they are written.

    Raises:
      ValueError: naming the leaf and the remedy.
    """
    t = config.teacher
    if not t.targets:
        return (_only(config),)
    if t.feature:
        raise ValueError(
            f"teacher.feature is {t.feature!r} and teacher.targets is {t.targets!r}: give one of "
            "them, and leave the other empty (--config.teacher.feature=)"
        )

    # The targets, then their weights.
    made = [_read(word.strip(), t.clusters) for word in t.targets.split(",")]
    features = [codebooks[0].feature for codebooks in made]
    for feature in features:
        if features.count(feature) > 1:
            raise ValueError(
                f"teacher.targets names {feature} twice: name it once; {feature}:random:2x512 has "
                "two codebooks"
            )
    given = [weight for weight in t.weights if weight != ""]  # --config.teacher.weights= gives one
    weights = given or [1.0] * len(made)
    if len(weights) != len(made):
        raise ValueError(
            f"teacher.weights has {len(weights)} numbers for {len(made)} targets in "
            "teacher.targets: give one for each, or none, which means 1 for each"
        )
    if t.projection < 1 and any(x[0].quantizer == "random" for x in made):
        raise ValueError(f"teacher.projection is {t.projection}: use 1 dimension or more")
    for weight in weights:
        if isinstance(weight, str) or not 0 < weight < math.inf:
            raise ValueError(f"teacher.weights has {weight!r}: use numbers above 0")
    return tuple(
        dataclasses.replace(codebook, weight=weight / len(codebooks))
        for codebooks, weight in zip(made, weights, strict=True)
        for codebook in codebooks
    )


def width(config: ml_collections.ConfigDict, target: Target) -> int:
    """Count a target feature's columns; a frozen encoder is taken to be as wide as the student."""
    if target.feature == "layer":
        return config.encoder.width
    return spectra.feature(target.feature, config.teacher.ceps).width


def _only(config: ml_collections.ConfigDict) -> Target:
    """Return the target that teacher.feature names."""
    t = config.teacher
    if t.weights:
        raise ValueError(
            f"teacher.weights is {t.weights}, but there are no teacher.targets: leave it empty, or "
            "name targets"
        )
    if t.feature not in FEATURES:
        raise ValueError(
            f"teacher.feature is {t.feature!r}: use one of {', '.join(FEATURES)}, or name several "
            "in teacher.targets"
        )
    return Target(t.feature, t.feature, "kmeans", _counted(t.clusters, "teacher.clusters"), 1.0)


def _read(word: str, clusters: int) -> list[Target]:
    """Return the targets that a word of teacher.targets stands for, one for each codebook."""
    feature, *rest = word.split(":")
    if feature not in FEATURES:
        raise ValueError(
            f"teacher.targets has a feature {feature!r}: use some of {', '.join(FEATURES)}, "
            "separated by commas"
        )
    quantizer, codes, *more = rest + ["kmeans", str(clusters)][len(rest) :]
    if quantizer not in QUANTIZERS:
        raise ValueError(
            f"teacher.targets has a quantiser {quantizer!r} in {word!r}: use "
            f"{feature}:kmeans or {feature}:random"
        )
    read = _CODES.fullmatch(codes)
    if more or not read:
        raise ValueError(
            f"teacher.targets has {word!r}: write FEATURE:QUANTIZER:CODES, such as mel:random:512, "
            "or mel:random:4x512 for four codebooks"
        )
    codebooks = int(read[1] or 1)
    if quantizer == "kmeans" and codebooks > 1:
        raise ValueError(
            f"teacher.targets has {word!r}: k-means finds one codebook, so {codebooks} would be "
            f"alike; use {feature}:kmeans:{read[2]}, or {feature}:random:{codes}"
        )
    count = _counted(int(read[2]), f"teacher.targets has {word!r}, whose number of codes")
    names = [feature] if codebooks == 1 else [f"{feature}_{i + 1}" for i in range(codebooks)]
    return [Target(name, feature, quantizer, count, 1.0) for name in names]


def _counted(codes: int, what: str) -> int:
    """Return a number of codes.

    Raises:
      ValueError: there are not at least two.
    """
    if codes < 2:
        raise ValueError(f"{what} is {codes}: use 2 or more")
    return codes
