"""A small HuBERT configuration, and MFCC as Kaldi computes them."""

import kaldi_native_fbank
import ml_collections
import numpy as np

from configs import musichubert

CLUSTERS, FINAL, PENALTY, STEM_SHARE = 11, 16, 10.0, 0.1


def config_of(**leaves: object) -> ml_collections.ConfigDict:
    config = musichubert.get_config("demo")
    config.update_from_flattened_dict(
        {
            "teacher.clusters": CLUSTERS,
            "hubert.final_dim": FINAL,
            "hubert.feature_penalty": PENALTY,
            "hubert.unmasked_accuracy": True,
        }
        | {name.replace("__", "."): value for name, value in leaves.items()}
    )
    return config


def kaldi_mfcc(clips: np.ndarray, ceps: int) -> np.ndarray:
    """Every second frame of Kaldi's MFCC with slopes over five frames: [b, t, 3 * ceps]."""
    options = kaldi_native_fbank.MfccOptions()
    options.frame_opts.dither = 0
    options.num_ceps = ceps
    options.use_energy = False

    def slopes(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((2, 2), (0, 0)), "edge")
        return sum(w * padded[2 + w : len(x) + 2 + w] for w in (-2, -1, 1, 2)) / 10

    rows = []
    for clip in clips:
        computer = kaldi_native_fbank.OnlineMfcc(options)
        computer.accept_waveform(16_000, clip.tolist())
        computer.input_finished()
        static = np.array([computer.get_frame(i) for i in range(computer.num_frames_ready)])
        rows.append(np.concatenate([static, slopes(static), slopes(slopes(static))], 1)[::2])
    return np.stack(rows)[:, : (clips.shape[1] - 400) // 320 + 1]
