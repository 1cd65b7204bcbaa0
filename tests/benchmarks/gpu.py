"""Time the training step on a GPU, check it against the CPU, and run transformers beside it.

    python -m tests.benchmarks.gpu --output=results/gpu
    python -m tests.benchmarks.gpu --rows=agreement-musichubert,musichubert-5s

Besides this repository it needs jax with CUDA, flax, optax, ml_collections, and for the rows of
transformers PyTorch with CUDA; neither TensorFlow nor clu. Each row is a process of its own, and
its result is a file of a few hundred bytes as soon as it is there, so that a machine that goes away
takes one row with it. `--toy` shrinks every model, to rehearse the command on a CPU. Exit codes: 0
all rows ran, or what they need is not installed; 1 one failed, or disagrees with the CPU; 2 a
request that cannot be met. launch/first_hour.sh runs these rows first.

- `agreement-*`: loss and norm of the gradient of a first step on the GPU, over those on the CPU.
  In bfloat16 they are within AGREE of each other; an H200's differed by 0.01 % and 0.2 %.
- `musichubert-*`, `music2vec-*`: the whole training step in bfloat16, on audio that is in memory.
- `transformers-*`: HubertModel under torch.compile in bfloat16 with PyTorch's fused attention and
  fused AdamW, the same head and clips; LayerDrop is off, and labels are given.
"""

import argparse
import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STEPS = {  # configuration, clips, frames
    "musichubert-30s": ("musichubert:k500", 8, 1496),
    "musichubert-5s": ("musichubert:k500", 16, 256),
    "music2vec-5s": ("music2vec:crop5s", 16, 256),
    "music2vec-30s": ("music2vec:vanilla", 8, 1496),
    "musichubert-5s-128": ("musichubert:k500", 128, 256),
}
AGREEMENT = {
    "agreement-musichubert": ("musichubert:k500", 2, 64),
    "agreement-music2vec": ("music2vec:crop5s", 2, 64),
}
TRANSFORMERS = {"transformers-30s": (8, 1496), "transformers-5s": (16, 256)}
AGREE = {"loss": 0.01, "grad_norm": 0.05}
TOY = {"encoder.layers": 2, "encoder.width": 128, "encoder.heads": 2, "encoder.ffn_width": 256}
REPEATS, STEPS_TIMED = 3, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*AGREEMENT, *STEPS, *TRANSFORMERS]
    parser.add_argument("--rows", default=",".join(names), help=f"some of {', '.join(names)}")
    parser.add_argument("--output", default="results/gpu", help="a folder for a file a row")
    parser.add_argument("--toy", action="store_true", help="two narrow layers, and short clips")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print("RESULT", json.dumps(measured(options.row, options.toy)), flush=True)
        return

    rows = options.rows.split(",")
    for name in rows:
        if name not in names:
            parser.error(f"--rows has {name!r}: use some of {', '.join(names)}")
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    if bad := [name for name in rows if not run_row(name, output, options.toy)]:
        sys.exit(f"gpu: failed, or far from the CPU's: {', '.join(bad)}")


def run_row(name: str, output: Path, toy: bool) -> bool:
    """Measure a row in a process of its own and write its result; whether all is well."""
    missing = [x for x in ("torch", "transformers") if importlib.util.find_spec(x) is None]
    if name in TRANSFORMERS and missing:
        print(f"{name}: not run, it needs {' and '.join(missing)}", flush=True)
        return True
    print(f"{name}: running, a minute or two", flush=True)
    worker = [sys.executable, "-m", "tests.benchmarks.gpu", f"--row={name}"]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        worker + ["--toy"] * toy, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        print(f"{name}: failed\n{done.stderr[-2000:]}", flush=True)
        return False
    result = json.loads(done.stdout.rpartition("RESULT")[2])
    (output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()), flush=True)
    return result.get("agrees", True)


def measured(name: str, toy: bool) -> dict:
    """The result of one row."""
    if name in TRANSFORMERS:
        return transformers_step(*((2, 40) if toy else TRANSFORMERS[name]), toy)
    leaves = TOY if toy else {}
    configuration, clips, frames = (STEPS | AGREEMENT)[name]
    config = configured(configuration, *((2, 40) if toy else (clips, frames)), leaves)
    return agreement(config) if name in AGREEMENT else training_step(config)


def configured(name: str, clips: int, frames: int, leaves: dict) -> object:
    """A configuration with so many clips of so many frames."""
    file, variant = name.split(":")
    config = importlib.import_module(f"configs.{file}").get_config(variant).unlock()
    config.data.crop_frames = frames
    config.batch_size = clips
    config.mask.equal_counts = math.gcd(config.mask.equal_counts, clips)
    config.update_from_flattened_dict(leaves)
    if "top_layers" in config.get("data2vec", {}):
        config.data2vec.top_layers = min(config.data2vec.top_layers, config.encoder.layers)
    return config.lock()


def prepared(config: object, device: object) -> tuple[Callable, tuple]:
    """The jitted step for one device, and what it takes: state, frozen teacher, audio."""
    import jax
    import numpy as np

    from musicssl import audio
    from musicssl.planning import benchmark
    from musicssl.runtime import sharding
    from musicssl.training import step

    mesh = sharding.make_mesh(1, [device])
    shape = config.batch_size, audio.crop_samples(config.data.crop_frames)
    sound = np.random.default_rng(0).integers(-8000, 8000, shape, dtype=np.int16)
    with jax.set_mesh(mesh):
        frozen = jax.device_put(benchmark.random_frozen(config), device)
        clips = sharding.place_clips(mesh, config.batch_size, np.arange(shape[0]), sound)
        return step.make_step(config, mesh), (step.sharded_init(config, mesh), frozen, clips)


def agreement(config: object) -> dict:
    """A first step on this machine's first device and on its CPU, from the same values."""
    import jax

    first = {}
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        step, arguments = prepared(config, device)
        with jax.set_mesh(arguments[2].sharding.mesh):
            metrics = step(*arguments)[1]
        first[device.platform] = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
    here = jax.devices()[0]
    ratios = {n: round(first[here.platform][n] / x, 5) for n, x in first["cpu"].items()}
    agrees = all(abs(ratio - 1) <= AGREE[n] for n, ratio in ratios.items())
    told = {f"{n} over the CPU's": ratio for n, ratio in ratios.items()}
    return {"device": here.device_kind, **told, "agrees": agrees}


def training_step(config: object) -> dict:
    """Seconds of a step, and what they are of the device's peak."""
    import jax

    from musicssl import audio
    from musicssl.training import flops

    device = jax.devices()[0]
    step, (state, frozen, clips) = prepared(config, device)
    begin = time.perf_counter()
    with jax.set_mesh(clips.sharding.mesh):
        program = step.lower(state, frozen, clips).compile()
    compiling = time.perf_counter() - begin

    def run(steps: int) -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = program(state, frozen, clips)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - begin) / steps

    run(3)
    seconds = min(run(STEPS_TIMED) for _ in range(REPEATS))
    peak, operations = flops.peak(device), flops.train_step(config)
    length = audio.crop_samples(config.data.crop_frames) / config.data.sample_rate
    return {
        "device": device.device_kind,
        "clips": config.batch_size,
        "seconds a clip": length,
        "ms a step": round(1e3 * seconds, 2),
        "TFLOP/s": round(operations / seconds / 1e12, 1),
        "of peak": round(operations / seconds / peak, 3) if peak else None,
        "audio-seconds a second": round(config.batch_size * length / seconds),
        "GB of temporaries": round(program.memory_analysis().temp_size_in_bytes / 1e9, 2),
        "seconds to compile": round(compiling, 1),
        "jax": jax.__version__,
    }


def transformers_step(clips: int, frames: int, toy: bool) -> dict:
    """Seconds of a step of HubertModel with HuBERT's head."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    sizes = {
        **{"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2},
        **{"intermediate_size": 256, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16},
    }
    model = transformers.HubertModel(
        transformers.HubertConfig(
            layerdrop=0.0, attn_implementation="sdpa", **(sizes if toy else {})
        )
    )
    model = model.to(device).train()
    head = torch.nn.Linear(model.config.hidden_size, 256).to(device)
    embeddings = torch.nn.Parameter(torch.rand(500, 256, device=device))
    parameters = [*model.parameters(), *head.parameters(), embeddings]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=device == "cuda")
    sound = torch.randn(clips, 320 * frames + 80, device=device)
    mask = torch.rand(clips, frames, device=device) < 0.5
    labels = torch.randint(0, 500, (clips, frames), device=device)

    def loss(sound: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = model(sound, mask_time_indices=mask).last_hidden_state
        units = torch.nn.functional.normalize(embeddings, dim=-1)
        logits = torch.nn.functional.normalize(head(hidden), dim=-1) @ units.T / 0.1
        surprise = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), reduction="none"
        )
        return (surprise.view_as(mask) * mask).sum() / mask.sum()

    compiled = torch.compile(loss)

    def run(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                value = compiled(sound, mask, labels)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
        value.item()
        return (time.perf_counter() - begin) / steps

    run(3)
    seconds = min(run(STEPS_TIMED) for _ in range(REPEATS))
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "clips": clips,
        "ms a step": round(1e3 * seconds, 2),
        "audio-seconds a second": round(sound.numel() / 16_000 / seconds),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
