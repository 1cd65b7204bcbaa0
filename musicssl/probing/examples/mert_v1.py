"""MERT-v1 in PyTorch, at 24 kHz: --config.encoder=python:mert_v1.py:MERT

MERT_DIRECTORY names a copy of m-a-p/MERT-v1-95M or -330M, whose own code then runs (it also needs
nnAudio). Without the variable, this is a random model of the same layout, shrunk: the
stem of HuBERT makes 75 frames a second of 24 kHz. What musicssl can read itself needs no plug-in:
try --config.encoder=hf:m-a-p/MERT-v1-95M first, which refuses what it does not know.
"""

import os

import torch
from transformers import AutoModel, HubertConfig, HubertModel

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "conv_dim": [32] * 7}


class MERT:
    """An encoder of audio that musicssl resamples to 24 kHz."""

    sample_rate, frame_rate, normalize = 24_000, 75, True

    def __init__(self):
        torch.manual_seed(0)
        saved = os.environ.get("MERT_DIRECTORY")
        if saved:
            self.model = AutoModel.from_pretrained(saved, trust_remote_code=True).eval()
        else:
            self.model = HubertModel(HubertConfig(**TINY)).eval()
        self.width = self.model.config.hidden_size
        self.layers = self.model.config.num_hidden_layers + 1
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)

    def __call__(self, audio):
        """Return every hidden state [b, t, width] of audio [b, n]."""
        x = torch.from_numpy(audio).to(self.device)
        return self.model(x, output_hidden_states=True).hidden_states
