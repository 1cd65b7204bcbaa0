"""Where a HuBERT run's labels come from: a codebook, and in iteration 2 a frozen encoder.

The codebook is fitted to the run's own input on first use and kept in its workdir. codebook.npz
holds it with its feature's definition and a hash, and codebook.png shows how often each code
occurs. Until these are written, codebook.<key>.state.npz holds the fit after each pass, so that a
run that was interrupted goes on from there.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from musicssl import audio
from musicssl.exchange import pretrained
from musicssl.objectives import hubert, kmeans

_FILE, _PICTURE = "codebook.npz", "codebook.png"


def frozen_encoder(
    config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[dict[str, hubert.FrozenEncoder], str]:
    """Load the encoder that labels come from.

    Returns:
      {"encoder": it, on every device} and its digest; ({}, "") where the features are spectral.

    Raises:
      ValueError: no encoder is named, or it does not fit.
    """
    t = config.teacher
    if t.feature in audio.SPECTRAL:
        if config.data.sample_rate != audio.SAMPLE_RATE:
            raise ValueError(
                f"data.sample_rate is {config.data.sample_rate} and teacher.feature {t.feature!r} "
                f"is for {audio.SAMPLE_RATE} Hz: use audio of that rate, or the layer of an encoder"
            )
        return {}, ""

    # The settings of a feature that is a layer, then the encoder that they name.
    if t.feature != "layer":
        raise ValueError(f"teacher.feature is {t.feature!r}: use 'mfcc', 'partials' or 'layer'")
    if not t.encoder:
        raise ValueError(
            "teacher.encoder is empty: give --config.teacher.encoder=DIR, the workdir of iteration "
            "1 or a Hugging Face directory, to take labels from its layers"
        )
    loaded = pretrained.load_encoder(t.encoder)
    if loaded.sample_rate != config.data.sample_rate:
        raise ValueError(
            f"teacher.encoder {t.encoder} hears {loaded.sample_rate} Hz and data.sample_rate is "
            f"{config.data.sample_rate}: use audio of the same rate"
        )
    if not 0 <= t.layer <= loaded.encoder.layers:
        raise ValueError(
            f"teacher.layer is {t.layer}, but {t.encoder} has layers 0 to {loaded.encoder.layers}: "
            "choose one of those"
        )

    params = jax.device_put(loaded.params, NamedSharding(mesh, PartitionSpec()))
    encoder = loaded.encoder.clone(dtype=jnp.dtype(config.precision))
    frozen = hubert.FrozenEncoder(params, encoder, t.layer, loaded.normalize)
    return {"encoder": frozen}, loaded.digest


def definition(config: ml_collections.ConfigDict, digest: str) -> dict:
    """Return what the codebook's columns are, in plain values."""
    t, hertz = config.teacher, config.data.sample_rate
    rates = {"sample_rate": hertz, "frames_per_second": hertz // audio.STEM_HOP}
    if t.feature in audio.SPECTRAL:
        return audio.spectral_definition(t.feature, t.ceps) | rates
    return {"feature": "layer", "layer": t.layer, "encoder": digest, **rates}


def get(
    config: ml_collections.ConfigDict,
    workdir: Path,
    mesh: Mesh,
    frozen: dict,
    digest: str,
    open_batches: Callable[[], Iterator[jax.Array]],
    say: Callable[[str], None],
) -> jax.Array:
    """Return the workdir's codebook [k, f] on every device, fitted if it is not there.

    Args:
      frozen, digest: what `frozen_encoder` returned.
      open_batches: returns the run's global batches of int16 audio on the mesh, from the first on;
        each pass takes config.teacher.batches of them.
      say: prints a line of progress.

    Raises:
      ValueError: the codebook is of another feature or size, there are fewer frames than clusters,
        or the fitted codebook is degenerate.
    """
    feature = definition(config, digest)
    path = workdir / _FILE
    everywhere = NamedSharding(mesh, PartitionSpec())
    if path.exists():
        codebook = kmeans.load_codebook(path, feature, config.teacher.clusters)
        return jax.device_put(codebook, everywhere)

    # The stream of features that is to be quantised.
    t = config.teacher
    _check_frames(config)
    settings = kmeans.Settings(
        t.clusters, config.seed, t.sample, t.restarts, t.polish, t.passes, t.tolerance
    )
    compute = jax.jit(lambda x, frozen: hubert.features(config, frozen, audio.to_float(x)))

    def one_pass(_: int) -> Iterator[jax.Array]:
        batches = open_batches()
        for _ in range(t.batches):
            yield compute(next(batches), frozen)

    # The fit, which goes on from the last pass that is on disk.
    stream = t.batches, config.batch_size, config.precision, config.data.to_dict()
    key = hashlib.sha256(repr((feature, settings, stream)).encode())
    state_path = workdir / f"codebook.{key.hexdigest()[:12]}.state.npz"

    def on_pass(state: kmeans.State) -> None:
        if jax.process_index() == 0:
            kmeans.save_state(state_path, state)
        inertia = f"inertia {state.inertia[-1]:.4f}  " if state.passes else "seeded  "
        say(
            f"codebook pass {state.passes}/{t.passes}  {inertia}"
            f"{state.usage:.0%} of the codes used, perplexity {state.perplexity:.1f}"
        )

    begun = kmeans.load_state(state_path) if state_path.exists() else None
    say(f"fitting {t.clusters} codes to {t.batches} batches" + (", going on" if begun else ""))
    with jax.set_mesh(mesh):
        state = kmeans.fit(one_pass, settings, begun, on_pass)

    # The codebook takes the place of the state.
    check(state, config)
    if jax.process_index() == 0:
        draw(state, workdir / _PICTURE)
        kmeans.save_codebook(path, state.codebook, feature)
        state_path.unlink(missing_ok=True)  # a codebook that is deleted is to be fitted anew
    return jax.device_put(state.codebook, everywhere)


def _check_frames(config: ml_collections.ConfigDict) -> None:
    """Refuse a pass, or a sample, of fewer frames than clusters.

    Raises:
      ValueError: naming the setting and the remedy.
    """
    t = config.teacher
    frames = t.batches * config.batch_size * config.data.crop_frames
    for name, count in (("batches", frames), ("sample", t.sample)):
        if count < t.clusters:
            raise ValueError(
                f"teacher.{name} = {t[name]} gives k-means {count} frames, fewer than "
                f"teacher.clusters = {t.clusters}: raise it, or ask for fewer clusters"
            )


def check(state: kmeans.State, config: ml_collections.ConfigDict) -> None:
    """Refuse a codebook whose labels would be degenerate.

    Raises:
      ValueError: with the labels' perplexity and what to look at.
    """
    if state.counts.sum() == 0 or state.perplexity < config.hubert.min_label_perplexity:
        raise ValueError(
            f"the fitted codebook is degenerate: perplexity {state.perplexity:.2f} over "
            f"{state.counts.sum()} frames. The features hardly vary: check that the audio is "
            "music and not silence"
        )


def draw(state: kmeans.State, path: Path) -> None:
    """Draw a histogram of the codes, the most frequent first."""
    from matplotlib.figure import Figure

    share = np.sort(state.counts / state.counts.sum())[::-1]
    figure = Figure(figsize=(7, 3.5), layout="constrained")

    axes = figure.subplots()
    axes.bar(np.arange(len(share)), 100 * share, width=1.0, color="#33658a")
    axes.axhline(100 / len(share), color="#d1495b", linewidth=1, label="if all were used equally")
    axes.set(
        xlabel="code, most frequent first", ylabel="share of frames (%)", xlim=(-1, len(share))
    )
    axes.set_title(
        f"{len(share)} codes, {state.usage:.0%} used, perplexity {state.perplexity:.0f}", loc="left"
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
