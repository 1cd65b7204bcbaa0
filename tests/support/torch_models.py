"""Randomly initialised models of transformers, of every kind that the encoder covers."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from musicssl.exchange import model_config, state_dict
from musicssl.model.encoder import Encoder

FAMILIES = {
    "data2vec": (Data2VecAudioModel, Data2VecAudioConfig),
    "hubert": (HubertModel, HubertConfig),
    "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config),
}
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "conv_dim": [32] * 7,
    "num_conv_pos_embedding_groups": 4,
}
KINDS = {  # family, and what differs from its base model
    "data2vec": ("data2vec", {}),
    "data2vec-even": ("data2vec", {"conv_pos_kernel_size": 6, "num_conv_pos_embeddings": 2}),
    "hubert": ("hubert", {}),
    "hubert-large": ("hubert", LARGE),
    "hubert-layer": ("hubert", {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 31}),
    "wav2vec2": ("wav2vec2", {}),
    "wav2vec2-large": ("wav2vec2", LARGE | {"conv_bias": False}),
}


def make(family: str, **options) -> torch.nn.Module:
    """A model in evaluation mode whose every parameter is random, biases and norms too."""
    torch.manual_seed(0)
    model_class, config_class = FAMILIES[family]
    model = model_class(config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim == 1 else 0.02
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def small(kind: str) -> torch.nn.Module:
    family, options = KINDS[kind]
    return make(family, **SMALL | options)


def save(model: torch.nn.Module, path: Path, normalize: bool = True) -> Path:
    """A directory as transformers writes it."""
    model.save_pretrained(path)
    Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(path)
    return path


def tensors(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in model.state_dict().items()}


def ours(model: torch.nn.Module) -> tuple[Encoder, dict]:
    """The encoder with the model's weights."""
    config = {k: list(v) if type(v) is tuple else v for k, v in model.config.to_dict().items()}
    encoder = model_config.read_encoder(config, Path("config.json"))
    return encoder, state_dict.from_tensors(encoder, tensors(model), "model")


def hidden_states(model: torch.nn.Module, audio: np.ndarray) -> list[np.ndarray]:
    """Every layer's output [b, t, d]. transformers 5 leaves the last norm of pre-norm models out of
    hidden_states[-1], which version 4 applied: the last is last_hidden_state here."""
    with torch.no_grad():
        output = model(torch.from_numpy(audio), output_hidden_states=True)
    return [x.numpy() for x in (*output.hidden_states[:-1], output.last_hidden_state)]


def noise(samples: int, clips: int = 2) -> np.ndarray:
    """Audio [b, n], the same for the same shape."""
    return np.random.default_rng(samples).standard_normal((clips, samples), dtype=np.float32)
