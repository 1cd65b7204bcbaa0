"""A HuBERT of transformers, in PyTorch: --config.encoder=python:hubert_torch.py:HuBERT

HUBERT_DIRECTORY names a model that transformers has saved; without it, the weights are random.
"""

import os

import torch
from transformers import HubertConfig, HubertModel

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "conv_dim": [32] * 7}


class HuBERT:
    """An encoder like those that musicssl reads itself."""

    sample_rate, frame_rate, normalize = 16_000, 50, True

    def __init__(self):
        torch.manual_seed(0)
        saved = os.environ.get("HUBERT_DIRECTORY")
        random = HubertModel(HubertConfig(**TINY))
        self.model = HubertModel.from_pretrained(saved).eval() if saved else random.eval()
        self.width = self.model.config.hidden_size
        self.layers = self.model.config.num_hidden_layers + 1

    def __call__(self, audio):
        """Return every hidden state [b, t, width] of audio [b, n]."""
        return self.model(torch.from_numpy(audio), output_hidden_states=True).hidden_states
