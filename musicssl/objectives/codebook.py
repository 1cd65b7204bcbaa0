"""Prepares what makes a HuBERT run's labels: each target's quantiser, and a frozen encoder.

The codebooks are fitted to the run's own input on first use, for all targets in the same passes,
and kept in its workdir. codebook.npz holds them with their features' definitions and a hash, and
codebook.png shows how often each code occurs. Until these are written, codebook.<key>.state.npz
holds the state of the fits after each pass, so that an interrupted run resumes from there.
"""

import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from musicssl import audio, paths, spectra
from musicssl.exchange import pretrained
from musicssl.objectives import codebook_file, hubert, kmeans, random_projection, targets
from musicssl.objectives.targets import Target

_FILE, _PICTURE = "codebook.npz", "codebook.png"
_KINDS: dict[str, Any] = {"kmeans": kmeans, "random": random_projection}  # by quantizer
_State = kmeans.State | random_projection.State


class _Fit(Protocol):
    """Makes a target's quantiser in passes over its feature: `kmeans.Fit`, for instance."""

    settings: Any
    state: Any  # None before the first pass has ended

    @property
    def finished(self) -> bool: ...

    def add(self, features: jax.Array) -> None: ...

    def end_pass(self) -> None: ...


def frozen_encoder(
    config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[dict[str, hubert.FrozenEncoder], str]:
    """Load the encoder that labels come from.

    Returns:
      {"encoder": its parameters, on every device} and its digest; ({}, "") if all features are
      spectral.

    Raises:
      ValueError: no encoder is named, or it does not fit the configuration.
    """
    t = config.teacher
    features = [target.feature for target in targets.of(config)]
    spectral = [name for name in features if name in spectra.NAMES]
    if spectral and config.data.sample_rate != audio.SAMPLE_RATE:
        raise ValueError(
            f"data.sample_rate is {config.data.sample_rate} and teacher.feature {spectral[0]!r} "
            f"needs {audio.SAMPLE_RATE} Hz: use audio of that rate, or the layer of an encoder"
        )
    if "layer" not in features:
        return {}, ""

    # Load the encoder that is named, and check that it fits.
    if not t.encoder:
        raise ValueError(
            "teacher.encoder is empty: give --config.teacher.encoder=DIR, the workdir of iteration "
            "1 or a Hugging Face directory, to take labels from its layers"
        )
    loaded = pretrained.load_encoder(t.encoder)
    if loaded.sample_rate != config.data.sample_rate:
        raise ValueError(
            f"teacher.encoder {t.encoder} takes audio of {loaded.sample_rate} Hz, but "
            f"data.sample_rate is {config.data.sample_rate}: use audio of the encoder's rate"
        )
    if not 0 <= t.layer <= loaded.encoder.layers:
        raise ValueError(
            f"teacher.layer is {t.layer}, but {t.encoder} has layers 0 to {loaded.encoder.layers}: "
            "choose one of these"
        )

    params = jax.device_put(loaded.params, NamedSharding(mesh, PartitionSpec()))
    encoder = loaded.encoder.clone(dtype=jnp.dtype(config.precision))
    frozen = hubert.FrozenEncoder(params, encoder, t.layer, loaded.normalize)
    return {"encoder": frozen}, loaded.digest


def definition(config: ml_collections.ConfigDict, target: Target, digest: str) -> dict:
    """Return, in plain values, what a target's feature is made of and what quantises it.

    Args:
      digest: of the encoder whose layer the feature may be.
    """
    t, hertz = config.teacher, config.data.sample_rate
    rates = {"sample_rate": hertz, "frames_per_second": hertz // audio.STEM_HOP}
    made: dict[str, Any] = {"feature": "layer", "layer": t.layer, "encoder": digest}
    if target.feature != "layer":
        made = spectra.feature(target.feature, t.ceps).definition
    if target.quantizer == "random":
        made = made | {"quantizer": "random", "dimensions": t.projection}
    return made | rates


def get(
    config: ml_collections.ConfigDict,
    workdir: Path,
    mesh: Mesh,
    frozen: dict,
    digest: str,
    open_batches: Callable[[], Iterator[jax.Array]],
    say: Callable[[str], None],
) -> dict[str, dict[str, jax.Array]]:
    """Return the workdir's quantisers on every device; make them if they are missing.

    Args:
      frozen, digest: what `frozen_encoder` returned.
      open_batches: returns the run's global batches of int16 audio on the mesh, from the first on;
        each pass takes config.teacher.batches of them.
      say: prints a line of progress.

    Returns:
      The arrays of each target's quantiser, by target and array: {"mel": {"codebook": [k, f]}}.

    Raises:
      ValueError: the workdir's quantisers are of other features or sizes, there are fewer frames
        than clusters, or a codebook is degenerate.
    """
    wanted = targets.of(config)
    definitions = {target.name: definition(config, target, digest) for target in wanted}
    path = workdir / _FILE
    if path.exists():
        clusters = {target.name: target.clusters for target in wanted}
        quantizers: Any = codebook_file.load(path, definitions, clusters)
    else:
        _check_frames(config)
        state_path = _state_path(config, workdir, definitions)
        states = _fit(config, state_path, mesh, frozen, open_batches, say)
        quantizers = {name: state.quantizer for name, state in states.items()}
        check(states, config)
        if jax.process_index() == 0:
            draw(states, workdir / _PICTURE)
            codebook_file.save(path, quantizers, definitions)
            state_path.unlink(missing_ok=True)  # so that a deleted codebook is fitted anew
    return jax.device_put(quantizers, NamedSharding(mesh, PartitionSpec()))


def _state_path(
    config: ml_collections.ConfigDict, workdir: Path, definitions: dict[str, dict]
) -> Path:
    """Return the path of a fit's states, a different one for each fit and stream."""
    t, settings = config.teacher, _settings(config)
    stream = t.batches, config.batch_size, config.precision, config.data.to_dict()
    what: tuple = definitions, settings, stream
    if len(settings) == 1:
        what = (*definitions.values(), *settings.values(), stream)
    key = hashlib.sha256(repr(what).encode()).hexdigest()
    return workdir / f"codebook.{key[:12]}.state.npz"


def _fit(
    config: ml_collections.ConfigDict,
    state_path: Path,
    mesh: Mesh,
    frozen: dict,
    open_batches: Callable[[], Iterator[jax.Array]],
    say: Callable[[str], None],
) -> dict[str, _State]:
    """Fit all targets' quantisers, starting after the last pass whose states were saved."""
    t, wanted, settings = config.teacher, targets.of(config), _settings(config)
    begun = _load_states(state_path, wanted) if state_path.exists() else {}
    fits: dict[str, _Fit] = {
        x.name: _KINDS[x.quantizer].Fit(settings[x.name], begun.get(x.name)) for x in wanted
    }

    @functools.partial(jax.jit, static_argnames="names")
    def compute(clips: jax.Array, frozen: dict, names: tuple[str, ...]) -> dict[str, jax.Array]:
        waveform = audio.to_float(clips)
        return {name: hubert.features(config, name, frozen, waveform) for name in names}

    # Passes over the stream, each for all targets that are not finished.
    what = ", ".join(f"{x.clusters} codes{_whose(x.name, wanted)}" for x in wanted)
    say(f"fitting {what} to {t.batches} batches" + (", resuming" if begun else ""))
    with jax.set_mesh(mesh):
        while unfinished := [x for x in wanted if not fits[x.name].finished]:
            names = tuple(dict.fromkeys(x.feature for x in unfinished))
            batches = open_batches()
            for _ in range(t.batches):
                features = compute(next(batches), frozen, names)
                for target in unfinished:
                    fits[target.name].add(features[target.feature])
            for target in unfinished:
                fits[target.name].end_pass()
            states = {name: fit.state for name, fit in fits.items()}
            if jax.process_index() == 0:
                codebook_file.save_states(state_path, {x: y._asdict() for x, y in states.items()})
            say(_progress(config, wanted, states))
    return {name: fit.state for name, fit in fits.items()}


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the settings of each target's quantiser, by the target's name."""
    t = config.teacher
    of_kmeans = config.seed, t.sample, t.restarts, t.polish, t.passes, t.tolerance
    return {
        target.name: random_projection.Settings(
            target.name, target.clusters, config.seed, t.projection
        )
        if target.quantizer == "random"
        else kmeans.Settings(target.clusters, *of_kmeans)
        for target in targets.of(config)
    }


def _load_states(path: Path, wanted: Sequence[Target]) -> dict[str, _State]:
    kinds = {target.name: _KINDS[target.quantizer].State for target in wanted}
    saved = codebook_file.load_states(path, {name: kind._fields for name, kind in kinds.items()})
    return {
        name: kinds[name](**arrays | {"finished": bool(arrays["finished"])})
        for name, arrays in saved.items()
    }


def _whose(name: str, wanted: Sized) -> str:
    """Say which of several targets something belongs to; "" if there is only one."""
    return f" of {name}" if len(wanted) > 1 else ""


def _progress(
    config: ml_collections.ConfigDict, wanted: Sequence[Target], states: Mapping[str, _State]
) -> str:
    """Return the line that says how the codes are used after a pass."""
    fitted = any(target.quantizer == "kmeans" for target in wanted)
    done = max(state.passes for state in states.values())
    line = f"codebook pass {done}/{config.teacher.passes if fitted else 1}"
    for target in wanted:
        state = states[target.name]
        line += f"  {target.name}:" if len(wanted) > 1 else ""
        if isinstance(state, kmeans.State):
            line += f"  inertia {state.inertia[-1]:.4f}" if state.passes else "  seeded"
        elif not state.finished:
            line += "  measured"
            continue
        line += (
            f"  {kmeans.usage(state.counts):.0%} of the codes used, "
            f"perplexity {kmeans.perplexity(state.counts):.1f}"
        )
    return line


def _check_frames(config: ml_collections.ConfigDict) -> None:
    """Refuse a pass, or a sample, of fewer frames than clusters.

    Raises:
      ValueError: naming the setting and the remedy.
    """
    t, wanted = config.teacher, targets.of(config)
    frames = t.batches * config.batch_size * config.data.crop_frames
    for target in wanted:
        if target.quantizer != "kmeans":
            continue
        asked = f"teacher.clusters = {target.clusters}"
        if t.targets:
            asked = f"the {target.clusters} codes of {target.name} in teacher.targets"
        for name, count in (("batches", frames), ("sample", t.sample)):
            if count < target.clusters:
                raise ValueError(
                    f"teacher.{name} = {t[name]} gives k-means {count} frames, fewer than "
                    f"{asked}: raise it, or use fewer clusters"
                )


def check(states: Mapping[str, _State], config: ml_collections.ConfigDict) -> None:
    """Refuse a codebook whose labels would be degenerate.

    Args:
      states: of the targets' fits, by name.

    Raises:
      ValueError: with the labels' perplexity and what to check.
    """
    for target in targets.of(config):
        counts = states[target.name].counts
        perplexity = kmeans.perplexity(counts)
        if counts.sum() == 0 or perplexity < config.hubert.min_label_perplexity:
            raise ValueError(
                f"the fitted codebook{_whose(target.name, states)} is degenerate: perplexity "
                f"{perplexity:.2f} over {counts.sum()} frames. The features hardly vary: check "
                "that the audio is music and not silence"
            )


def draw(states: Mapping[str, _State], path: Path) -> None:
    """Draw a histogram of each target's codes, the most frequent first."""
    from matplotlib.figure import Figure

    columns = min(len(states), 2)
    rows = -(-len(states) // columns)
    figure = Figure(figsize=(7 * columns, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for (name, state), axes in zip(states.items(), grid, strict=False):
        share = np.sort(state.counts / state.counts.sum())[::-1]
        axes.bar(np.arange(len(share)), 100 * share, width=1.0, color="#33658a")
        axes.axhline(
            100 / len(share), color="#d1495b", linewidth=1, label="if all were used equally"
        )
        axes.set(
            xlabel="code, most frequent first", ylabel="share of frames (%)", xlim=(-1, len(share))
        )
        whose = f"{name}: " if len(states) > 1 else ""
        used, perplexity = kmeans.usage(state.counts), kmeans.perplexity(state.counts)
        axes.set_title(
            f"{whose}{len(share)} codes, {used:.0%} used, perplexity {perplexity:.0f}", loc="left"
        )
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid:  # places without a target
        axes.remove()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    paths.write(path, drawn.getvalue())
