"""Reads and writes Hugging Face directories of the wav2vec 2.0 family.

A directory holds config.json, preprocessor_config.json (or processor_config.json, as transformers
5 saves a processor) and the weights. `model_config` maps the first two onto the encoder's fields,
and `state_dict` the tensors onto its parameters, each by one table for both directions. Reading
model.safetensors, whole or sharded, needs no PyTorch; reading pytorch_model.bin does. Writing needs
only NumPy.
"""

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from musicssl import host, paths
from musicssl.command import note
from musicssl.exchange import model_config, state_dict, torch_file
from musicssl.exchange.loaded import LoadedEncoder, with_digest

_MASK_EMBEDDING = "masked_spec_embed"


def read_directory(path: str | os.PathLike) -> LoadedEncoder:
    """Read a local directory of a data2vec-audio, HuBERT, wav2vec 2.0 or MERT model.

    Heads are left out (`state_dict.canonical`). feature_grad_mult, which config.json does not have,
    is 1. A model that was saved without its mask embedding, such as facebook/wav2vec2-base-960h,
    gets zeros for it: no feature depends on it.

    Raises:
      FileNotFoundError: a file of the directory is missing.
      ValueError: an unsupported architecture, or files that are damaged or contradict each other.
    """
    path = host.path(path)
    config = read_json(path / "config.json")
    encoder = model_config.read_encoder(config, path / "config.json")
    normalize, sample_rate = read_preprocessor(path)

    # the weights; a model that masks nothing has no mask embedding
    tensors, source = _read_tensors(path)
    if _MASK_EMBEDDING not in tensors:
        if config.get("mask_time_prob", 0.05) or config.get("mask_feature_prob", 0):
            note(
                f"{source} has no mask embedding ({_MASK_EMBEDDING}), so zeros are used. No "
                "feature depends on it; a run that starts from these weights trains it from zeros"
            )
        tensors[_MASK_EMBEDDING] = np.zeros(encoder.width, np.float32)
    params = state_dict.from_tensors(encoder, tensors, str(source))
    return with_digest(
        encoder,
        params,
        normalize,
        sample_rate,
        f"{config['model_type']} in {path}",
    )


def read_preprocessor(path: Path) -> tuple[bool, int]:
    """Return whether a directory's model takes normalised clips, and its sample rate in Hz.

    As in transformers 5, they are looked for in processor_config.json first.
    """
    file = path / "processor_config.json"
    if file.is_file():
        processor = read_json(file)
        inside = processor.get("feature_extractor", processor.get("audio_processor"))
        if isinstance(inside, dict):
            return model_config.read_preprocessor(inside, file)
    file = path / "preprocessor_config.json"
    return model_config.read_preprocessor(read_json(file), file)


def write(
    output: str | os.PathLike,
    pretrained: LoadedEncoder,
    model: str,
    masking: model_config.Masking,
    card: str,
) -> None:
    """Write a directory that AutoModel.from_pretrained and AutoFeatureExtractor read.

    Everything is written beside `output` and then renamed, so that it is complete or absent. On
    gs:// it is copied there from this machine; config.json comes last, since nothing is a model
    without it.

    Args:
      model: a key of model_config.MODELS (`model_config.model_type` for an encoder trained here).
      card: README.md, the model card.

    Raises:
      FileExistsError: `output` is a file, or a directory that is not empty.
      ValueError: the parameters do not fit the encoder, or no transformers model fits the encoder.
    """
    output = host.path(output).absolute()
    refuse_occupied(output)

    # everything that may refuse comes before anything is written
    encoder = pretrained.encoder
    config = model_config.config_json(encoder, model, masking)
    preprocessor = model_config.preprocessor_json(
        encoder, pretrained.normalize, pretrained.sample_rate
    )
    tensors = state_dict.to_tensors(encoder, pretrained.params)

    # written to a temporary folder, then renamed or copied
    is_remote = paths.is_remote(output)
    aside = Path(tempfile.mkdtemp()) if is_remote else _beside(output)
    try:
        safetensors.numpy.save_file(tensors, aside / "model.safetensors", {"format": "pt"})
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (aside / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
        (aside / "README.md").write_text(card, encoding="utf-8")
        # safetensors makes files that only their owner can read; the others follow the umask.
        shutil.copymode(aside / "config.json", aside / "model.safetensors")
        if is_remote:
            _copy(aside, output)
        else:
            os.replace(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _beside(output: Path) -> Path:
    """Make a folder of this process's own beside `output`, to be renamed to it.

    A process of another container, or one that was killed, may have had the same number.
    """
    aside = output.parent / f".{output.name[:40]}.{secrets.token_hex(4)}"
    aside.mkdir(parents=True)
    return aside


def _copy(folder: Path, output: Path) -> None:
    """Copy the files of a model, either all or none."""
    try:
        for file in sorted(folder.iterdir(), key=lambda file: file.name == "config.json"):
            (output / file.name).write_bytes(file.read_bytes())
    except OSError:
        with contextlib.suppress(OSError):
            paths.literal(output).rmtree()
        raise


def refuse_occupied(output: Path) -> None:
    """Raise FileExistsError if `output` holds anything."""
    if output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty: choose another directory")
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file: choose another directory")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of the directory that holds one JSON object."""
    try:
        torch_file.refuse_pointer(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing: a model's directory holds config.json, preprocessor_config.json "
            "(do_normalize, sampling_rate) and model.safetensors or pytorch_model.bin"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: a JSON object is expected")
    return value


def _read_tensors(path: Path) -> tuple[dict[str, np.ndarray], Path]:
    """Read the encoder's tensors under their current names, and name the file that lists them.

    Raises:
      FileNotFoundError: the directory has no weights, or a shard is missing.
      ValueError: a file is damaged, or refused.
    """
    for name, read in (
        ("model.safetensors", _read_safetensors),
        ("pytorch_model.bin", _read_pickle),
    ):
        source, index = path / name, path / f"{name}.index.json"
        if source.is_file():
            tensors = read(source)
        elif index.is_file():
            source, tensors = index, {}
            shards = read_json(index).get("weight_map", {}).values()
            for shard in sorted({Path(shard).name for shard in shards}):
                tensors |= read(path / shard)
        else:
            continue
        names = state_dict.canonical(tensors)
        return {current: tensors[name] for name, current in names.items()}, source
    raise FileNotFoundError(f"{path} holds neither model.safetensors nor pytorch_model.bin")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read one safetensors file, without PyTorch."""
    try:
        torch_file.refuse_pointer(path)
        if paths.is_remote(path):
            return safetensors.numpy.load(path.read_bytes())
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except (safetensors.SafetensorError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read one pytorch_model.bin."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    tensors = torch_file.read(path)
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds no state dict")
    return torch_file.to_numpy(tensors)
