"""K-means beside scikit-learn's MiniBatchKMeans at fairseq's settings, on MFCC of synthetic music.

    python -m tests.benchmarks.kmeans [--seconds=3000] [--clusters 500 100]

Ours runs before and after scikit-learn's and compiles anew each time; the slower run and the higher
inertia of the two count. Limits: inertia no higher, time at most a third, all cores for both.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import sklearn
from sklearn.cluster import MiniBatchKMeans
from tqdm import tqdm

from data_pipelines.composer import synth
from musicssl import audio
from musicssl.objectives import kmeans

CLIP_SECONDS = 15.0
BATCH = 10_000  # frames in a batch, for both
SAMPLE = 65_536  # frames to seed from
LEAST_RATIO = 3.0


def mfcc_frames(seconds: float) -> np.ndarray:
    """MFCC with differences at 100 Hz of that much synthetic music, clips in order: [n, 39]."""
    clips = range(int(np.ceil(seconds / CLIP_SECONDS)))
    sounds = (synth.clip(seed, CLIP_SECONDS).audio for seed in tqdm(clips, "composing", delay=5))
    return np.concatenate([audio.mfcc(audio.to_float(sound[None]))[0] for sound in sounds])


def ours(frames: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    def next_pass(index: int) -> Iterator[np.ndarray]:
        return (frames[start : start + BATCH] for start in range(0, len(frames), BATCH))

    settings = kmeans.Settings(
        clusters, seed, sample=SAMPLE, restarts=3, polish=20, passes=20, tolerance=1e-3
    )
    state = kmeans.fit(next_pass, settings)
    print(
        f"    {state.passes} passes, usage {state.usage:.3f}, perplexity {state.perplexity:.1f}, "
        f"inertia by pass {' '.join(f'{value:.1f}' for value in state.inertia)}"
    )
    return state.codebook


def theirs(frames: np.ndarray, clusters: int) -> np.ndarray:
    """Fits as fairseq's learn_kmeans.py does."""
    np.random.seed(0)
    model = MiniBatchKMeans(
        n_clusters=clusters,
        init="k-means++",
        max_iter=100,
        batch_size=BATCH,
        tol=0.0,
        max_no_improvement=100,
        n_init=20,
        reassignment_ratio=0.0,
        compute_labels=False,
    )
    return model.fit(frames).cluster_centers_


def inertia(codebook: np.ndarray, frames: np.ndarray) -> float:
    """Mean squared distance to the nearest row, in float64."""
    codebook = codebook.astype(np.float64)
    total = 0.0
    for start in range(0, len(frames), BATCH):
        part = frames[start : start + BATCH].astype(np.float64)
        distances = np.square(codebook).sum(1) - 2 * part @ codebook.T  # [n, k]
        total += distances.min(1).sum() + np.square(part).sum()
    return total / len(frames)


def timed(name: str, fit: Callable[[], np.ndarray], frames: np.ndarray) -> tuple[float, float]:
    """Returns the seconds of a fit and the inertia of what it found, and prints both."""
    jax.clear_caches()
    wall, processor = time.perf_counter(), time.process_time()
    codebook = fit()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    found = inertia(codebook, frames)
    print(f"  {name:13} inertia {found:8.2f}  {wall:6.1f} s, {processor:6.1f} s of processor time")
    return wall, found


def compare(frames: np.ndarray, clusters: int) -> None:
    print(f"{clusters} clusters of {len(frames)} frames, {frames.shape[1]} features")
    first = timed("musicssl", lambda: ours(frames, clusters, seed=0), frames)
    other = timed("scikit-learn", lambda: theirs(frames, clusters), frames)
    second = timed("musicssl", lambda: ours(frames, clusters, seed=1), frames)
    slower, higher = np.maximum(first, second)
    print(f"  inertia: {higher / other[1]:.4f} of scikit-learn's (limit 1)")
    print(f"  speed: {other[0] / slower:.1f} times scikit-learn's (limit {LEAST_RATIO:.0f})")


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="K-means beside scikit-learn's.")
    parser.add_argument("--seconds", type=float, default=3_000, help="of music")
    parser.add_argument("--clusters", type=int, nargs="+", default=[500, 100])
    options = parser.parse_args()
    frames = mfcc_frames(options.seconds)
    print(
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {processor_name()}, "
        f"load {os.getloadavg()[0]:.1f}, jax {jax.__version__}, scikit-learn {sklearn.__version__}"
    )
    for clusters in options.clusters:
        compare(frames, clusters)


if __name__ == "__main__":
    main()
