"""README.md of an exported model: what it is, how to load it, its training and its scores."""

from pathlib import Path
from typing import Any

import ml_collections

from musicssl import audio
from musicssl.exchange import model_config, state_dict
from musicssl.exchange.huggingface import read_json
from musicssl.exchange.loaded import LoadedEncoder
from musicssl.model.encoder import Encoder
from musicssl.runtime.workdir import metrics

_PAPER = (
    '"On the Effectiveness of Speech Self-supervised Learning for Music" '
    "([arXiv:2307.05161](https://arxiv.org/abs/2307.05161))"
)
_METHODS = {
    "data2vec": "music2vec, that is data2vec 1.0 "
    f"([arXiv:2202.03555](https://arxiv.org/abs/2202.03555)) on music,\nafter {_PAPER}",
    "data2vec2": "data2vec 2.0 ([arXiv:2212.07525](https://arxiv.org/abs/2212.07525))\n"
    "on music, with the encoder of data2vec 1.0",
    "hubert": "musicHuBERT, that is HuBERT "
    f"([arXiv:2106.07447](https://arxiv.org/abs/2106.07447)) on music,\nafter {_PAPER}",
}

_CARD = """\
---
library_name: transformers
pipeline_tag: feature-extraction
tags:
- audio
- music
- {model}
---

# {title}

An encoder of music audio with {parameters:,} parameters, pre-trained with musicssl: {method}.

## Use

```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("{directory}").eval()
extractor = AutoFeatureExtractor.from_pretrained("{directory}")
waveform = torch.zeros({sample_rate}).numpy()  # your audio: mono, float, {sample_rate} Hz
inputs = extractor(waveform, sampling_rate={sample_rate}, return_tensors="pt")
with torch.no_grad():
    hidden = model(**inputs, output_hidden_states=True).hidden_states
```

`hidden` holds {states} arrays [clips, frames, {width}]: the transformer's input and the output of
each layer, at {rate:g} frames per second.

{padding}

## Training

{training}

## Health at the end

{health}

## Probes

{probes}
"""


def model_card(
    pretrained: LoadedEncoder,
    config: ml_collections.ConfigDict,
    step: int,
    ema: bool,
    workdir: Path,
    directory: str,
) -> str:
    """Return the card of a run's encoder as Markdown.

    Args:
      step: of the checkpoint.
      ema: whether the weights are the EMA teacher's.
      workdir: metrics.jsonl and probe/results.json are quoted from here where they exist.
      directory: the name that the example loads.
    """
    encoder = pretrained.encoder
    return _CARD.format(
        model=model_config.model_type(encoder),
        title=f"{config.name} {config.variant}".strip() or workdir.name,
        parameters=state_dict.parameter_count(encoder),
        method=_METHODS[config.method],
        directory=directory,
        sample_rate=pretrained.sample_rate,
        states=encoder.layers + 1,
        width=encoder.width,
        rate=pretrained.sample_rate / audio.STEM_HOP,
        padding=padding(encoder),
        training=rows(_training_figures(pretrained, config, step, ema)),
        health=rows(_final_metrics(workdir, step)) or "The run has no metrics.jsonl.",
        probes=_probe_scores(workdir, pretrained.digest),
    )


def padding(encoder: Encoder) -> str:
    """Say what happens to clips of several lengths in one padded batch of transformers."""
    if encoder.stem_norm == "group":
        return (
            "Give clips of different lengths one at a time. In a padded batch, the group norm of "
            "the first convolution includes the padding, whatever `attention_mask` says, and every "
            "frame of a shorter clip changes in every layer."
        )
    if encoder.pos_conv_depth > 1:
        return (
            "Give clips of different lengths one at a time. In a padded batch `attention_mask` "
            "hides the padding from attention, but not from all of the positional convolutions, "
            "and every frame of a shorter clip changes in every layer."
        )
    return (
        "Clips of different lengths can share a batch: call the extractor with `padding=True` and "
        "give the model its `attention_mask`. Each clip's own frames are then the same as without "
        "padding; without the mask they are not."
    )


def _training_figures(
    pretrained: LoadedEncoder, config: ml_collections.ConfigDict, step: int, ema: bool
) -> dict[str, Any]:
    """Describe the run in the terms of its configuration."""
    data, mask = config.data, config.mask
    masks = f"probability {mask.probability}, span {mask.span} frames"
    seconds = audio.crop_samples(data.crop_frames) / data.sample_rate
    return {
        "transformer's weights": "EMA teacher" if ema else "trained encoder",
        "sha256 of architecture and weights": pretrained.digest,
        "data set": data.get("mix") or data.name,
        "sample rate": f"{data.sample_rate} Hz",
        "clips normalised to zero mean, unit variance": "yes" if data.normalize else "no",
        "steps": f"{step:,} of {config.steps:,}",
        "batch": f"{config.batch_size} clips of {seconds:.2f} s",
        "audio-hours seen": f"{step * config.batch_size * seconds / 3600:,.1f}",
        "masks": masks + (f", {mask.copies} copies of each clip" if "copies" in mask else ""),
        **_targets(config),
        "heads that predict targets": "left out; the run's checkpoints have them",
        "peak learning rate": config.optim.learning_rate,
        "precision": config.precision,
        "seed": config.seed,
    }


def _targets(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Name the targets of masked prediction; data2vec has none that could be named."""
    teacher = config.get("teacher", {})
    named = teacher.get("targets", "")  # runs of older versions have one target and no such leaf
    if named:
        weights = ", ".join(map(str, teacher.weights)) or "1 each"
        return {"targets": named.replace(",", ", "), "weights of their losses": weights}
    if "feature" in teacher:
        return {"targets": f"{teacher.feature}:kmeans:{teacher.clusters}"}
    return {}


def _final_metrics(workdir: Path, step: int) -> dict[str, Any]:
    """Return the last line of metrics.jsonl that is not past `step`; empty without one."""
    logged = [line for _, line in metrics(workdir) if line and line["step"] <= step]
    return logged[-1] if logged else {}


def _probe_scores(workdir: Path, digest: str) -> str:
    """Return what probe/results.json says about the encoder with this digest, as Markdown."""
    path = workdir / "probe" / "results.json"
    if not path.is_file():
        return "The run has not been probed."
    results = read_json(path)
    if not results["digest"].startswith(digest):  # the precision of the features comes after it
        return "The run was probed at another step or with other weights."
    lines = ["| task | score | test, x 100 | layer |", "|---|---|---|---|"]
    for task in results["tasks"].values():
        chosen, score = task["chosen"], task["score"]
        value = 100 * chosen["test"][score]["mean"]
        lines.append(f"| {task['title']} | {score} | {value:.1f} | {chosen['source']} |")
    return "\n".join(lines)


def rows(figures: dict[str, Any]) -> str:
    """Return a Markdown table of two columns; "" if there is nothing to show."""
    if not figures:
        return ""
    lines = [f"| {k} | {f'{v:.5g}' if isinstance(v, float) else v} |" for k, v in figures.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
