"""Compute features by yourself, for --config.encoder=features:DIR

    python -m musicssl.probing.examples.features_elsewhere DIR [DATA_SET [DATA_DIR]]

Here they are 40 mel bands in dB by librosa, 31.25 frames a second. Whatever computes them, the
records are those of the data set as it is built, in that order.
"""

import json
import sys
from pathlib import Path

import librosa
import numpy as np

from data_pipelines import labelled_records

RATE, HOP, BANDS = 16_000, 512, 40


def encode(audio):
    """Return a list of layers, [frames, width] each, of one record's audio."""
    mel = librosa.feature.melspectrogram(y=audio, sr=RATE, hop_length=HOP, n_mels=BANDS)
    return [librosa.power_to_db(mel).T / 20]


def main(folder, dataset="synth_music", data_dir="data"):
    """Write the features of all splits of a data set."""
    for split in ("train", "validation", "test"):
        records = labelled_records.open_labelled(dataset, data_dir, split, RATE)
        features = [encode(records.read(i) / 32768) for i in range(len(records.labels))]
        out = Path(folder) / dataset / split
        out.mkdir(parents=True, exist_ok=True)
        (out / "digest.txt").write_text(records.split_digest)
        np.save(out / "frames.npy", [len(layers[0]) for layers in features])
        for number, layer in enumerate(zip(*features, strict=True)):
            np.save(out / f"layer_{number:02}.npy", np.concatenate(layer).astype(np.float16))
    about = {"name": "mel bands", "sample_rate": RATE, "frame_rate": RATE / HOP}
    about |= {"layers": 1, "width": BANDS}
    (Path(folder) / "features.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main(*sys.argv[1:])
