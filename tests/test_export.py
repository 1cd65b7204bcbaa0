"""Runs exported, read back by transformers in its own process, and `load_encoder` of everything."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import torch
import transformers
from absl import flags

from configs import music2vec, music2vec2, musichubert
from musicssl import audio, export
from musicssl.exchange import huggingface, model_card, pretrained
from musicssl.objectives import data2vec, data2vec2
from musicssl.probing import report
from musicssl.runtime import checkpoint
from musicssl.runtime.workdir import claim
from musicssl.training.step import TrainState
from tests.exchange import test_fairseq
from tests.support import commands, hub_server, torch_models

STEPS = (100, 300)


def save_run(workdir: Path, kind: str, method: str = "") -> Path:
    """A workdir of two checkpoints as `main` leaves it, of a small random model."""
    method = method or kind
    encoder, template = torch_models.ours(torch_models.small(kind))
    config = (music2vec2 if method == "data2vec2" else music2vec).get_config("demo").unlock()
    config.steps, config.batch_size, config.data.crop_frames = 300, 16, 128
    config.method = method
    config.data.normalize = encoder.stem_norm == "layer"
    config.encoder.update({name: getattr(encoder, name) for name in config.encoder})
    claim(workdir, config.lock())
    checkpoints = checkpoint.Checkpoints(workdir, config)
    for step in STEPS:
        draw = np.random.default_rng(step)

        def nudged(x: np.ndarray, draw: np.random.Generator = draw) -> np.ndarray:
            return (x + 0.05 * draw.standard_normal(x.shape)).astype(np.float32)

        params = {"encoder": jax.tree.map(nudged, template), "head": {"bias": np.zeros(3)}}
        objective = {"data2vec": data2vec, "data2vec2": data2vec2}.get(method)
        averaged = objective and jax.tree.map(nudged, objective.averaged(template))
        teacher = {"encoder": averaged} if averaged else {}
        count = np.int32(step)
        checkpoints.save(step, TrainState(count, count, params, teacher, {}), force=True)
    checkpoints.close()
    lines = [{"step": step, "loss": step / 7, "grad_norm": 1.0} for step in (50, 100, 300)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "music2vec-demo", "data2vec")


@pytest.fixture(scope="module")
def copies_run(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "music2vec2-demo"
    return save_run(workdir, "data2vec", "data2vec2")


@pytest.fixture(scope="module")
def hubert_run(tmp_path_factory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "musichubert-demo", "hubert")


EXPORT = """
import runpy, sys, warnings
warnings.simplefilter("error")
sys.modules.update(dict.fromkeys(("torch", "transformers", "tensorflow")))
sys.argv = ["export", *arguments]
runpy.run_module("musicssl.export", run_name="__main__", alter_sys=True)
"""
READ = """
import os, sys
sys.modules.update(dict.fromkeys(("jax", "flax", "tensorflow", "musicssl")))
import numpy, torch
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import logging
logging.disable_progress_bar()
folder, *paths = sys.argv[1:]
os.chdir(folder)
for path in paths:
    model, info = AutoModel.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    extractor = AutoFeatureExtractor.from_pretrained(path)
    inputs = extractor(numpy.load("clip.npy"), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        output = model.eval()(**inputs, output_hidden_states=True)
    numpy.save(path + "/features.npy", torch.stack(output.hidden_states).numpy())
"""


@pytest.fixture(scope="module")
def exported(run, hubert_run, tmp_path_factory) -> Path:
    """A folder of both runs' exports and of a clip."""
    folder = tmp_path_factory.mktemp("exported")
    arguments = [f"--workdir={run}", f"--output={folder / 'data2vec'}"]
    process = commands.Process(exec, EXPORT, {"arguments": arguments})
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("\n") == 1 and "at step 300" in output
    assert "at step 300" in export.export(hubert_run, folder / "hubert")
    pcm = np.round(2000 * torch_models.noise(8000, clips=1) + 300).astype(np.int16)
    np.save(folder / "clip.npy", np.asarray(audio.to_float(pcm))[0])
    return folder


@pytest.fixture(scope="module")
def read(exported) -> subprocess.CompletedProcess:
    """Transformers alone: it reads both exports, and runs the example of one's card."""
    example = (exported / "hubert/README.md").read_text().split("```")[1].removeprefix("python\n")
    code = f"{READ}\n{example}\nprint(len(hidden), hidden[0].shape)"
    command = [sys.executable, "-W", "error", "-c", code, exported, "data2vec", "hubert"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_and_transformers_alone(exported, read, run, hubert_run):
    assert (read.returncode, read.stderr) == (0, "")
    raw = np.load(exported / "clip.npy")[None]
    for folder, workdir in ((exported / "data2vec", run), (exported / "hubert", hubert_run)):
        loaded = pretrained.load_encoder(workdir)
        given = audio.normalize(raw) if loaded.normalize else raw
        ours = jax.jit(loaded.encoder.apply)({"params": loaded.params}, given).hidden
        theirs = np.load(folder / "features.npy")
        assert theirs.shape == (3, 1, 24, 48) and theirs.std() > 0.1
        np.testing.assert_allclose(np.stack(ours), theirs, atol=1e-4)


def test_the_cards_example_runs(read):
    assert read.stdout == "3 torch.Size([1, 49, 48])\n"


def test_the_front_pages_two_examples_agree(exported, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = [block.removeprefix("python\n") for block in page.split("```")[1::2]]
    torchs, jaxs = (block for block in blocks if "my-encoder" in block and "import" in block)
    clip = np.load(exported / "clip.npy")
    soundfile.write(tmp_path / "song.mp3", np.repeat(clip, 2), 32_000, format="MP3")
    (tmp_path / "my-encoder").symlink_to(exported / "hubert")
    monkeypatch.chdir(tmp_path)
    first, second = {}, {}
    exec(torchs, first)
    exec(jaxs, second)
    theirs = np.stack([x.numpy() for x in first["hidden"]])
    assert theirs.shape == (3, 1, 24, 48) and theirs.std() > 0.1
    np.testing.assert_allclose(np.stack(second["hidden"]), theirs, atol=1e-4)


def test_a_run_and_its_export_are_the_same_encoder(run, tmp_path):
    export.export(run, tmp_path / "last")
    export.export(run, tmp_path / "first", step=100)
    export.export(run, tmp_path / "teacher", ema=True)
    last, first, teacher = (
        huggingface.read_directory(tmp_path / name) for name in ("last", "first", "teacher")
    )
    assert last.digest == pretrained.load_encoder(run).digest
    assert first.digest == pretrained.load_encoder(run, step=100).digest
    assert len({last.digest, first.digest, teacher.digest}) == 3


def test_ema_is_the_teachers_transformer(run):
    student = pretrained.load_run(run)[0].params
    mixed = pretrained.load_run(run, ema=True)[0].params
    teacher = checkpoint.load_params(run)[1]["encoder"]
    assert mixed.keys() == student.keys()
    assert {"encoder_norm", "layer_0", "layer_1"} <= teacher.keys()
    for name, part in mixed.items():
        source = teacher if name in teacher else student
        assert all(map(np.array_equal, jax.tree.leaves(part), jax.tree.leaves(source[name])))
        differs = not np.array_equal(jax.tree.leaves(part)[0], jax.tree.leaves(student[name])[0])
        assert differs == (name in teacher)


def test_a_run_of_data2vec_2_is_a_model_of_data2vec_1s_kind(copies_run, tmp_path):
    """Read by transformers; its teacher has positional convolutions of its own."""
    export.export(copies_run, tmp_path / "student")
    export.export(copies_run, tmp_path / "teacher", ema=True)
    raw = torch_models.noise(8000, clips=1)
    told = []
    for name, ema in (("student", False), ("teacher", True)):
        loaded = pretrained.load_run(copies_run, ema=ema)[0]
        ours = jax.jit(loaded.encoder.apply)({"params": loaded.params}, raw).hidden
        model = transformers.AutoModel.from_pretrained(tmp_path / name).eval()
        assert isinstance(model, transformers.Data2VecAudioModel)
        assert model.config.mask_time_length == 5 and model.config.mask_time_prob == 0.5
        theirs = torch_models.hidden_states(model, raw)
        np.testing.assert_allclose(np.stack(ours), np.stack(theirs), atol=1e-4)
        told.append(theirs[0])
    assert np.abs(told[0] - told[1]).max() > 0.01  # before the blocks, after the positions
    card = (tmp_path / "teacher" / "README.md").read_text()
    assert "pre-trained with musicssl: data2vec 2.0 ([arXiv:2212.07525]" in card
    assert "| masks | probability 0.5, span 5 frames, 4 copies of each clip |" in card
    assert "2307.05161" not in card


def test_load_encoder_of_everything(run, tmp_path):
    model, fabricated = test_fairseq.fabricate("hubert")
    torch_models.save(model, tmp_path / "saved", normalize=False)
    torch.save(fabricated, tmp_path / "hubert.pt")
    saved = pretrained.load_encoder(tmp_path / "saved")
    assert pretrained.load_encoder(str(tmp_path / "hubert.pt")).digest == saved.digest
    assert pretrained.load_encoder(run).encoder.pos_conv_depth == 5
    with pytest.raises(ValueError, match="has no step 3"):
        pretrained.load_encoder(tmp_path / "saved", step=3)
    for path in (tmp_path / "nothing", tmp_path, "facebook/hubert-base-ls960"):
        with pytest.raises(FileNotFoundError, match="holds no encoder: give a workdir"):
            pretrained.load_encoder(path)


def refused(capsys, **flags) -> str:
    """The one line of a command that ends with code 2."""
    export.flags.FLAGS(["export", *(f"--{name}={value}" for name, value in flags.items())])
    with pytest.raises(SystemExit) as exit_:
        export.main(["export"])
    captured = capsys.readouterr()
    assert exit_.value.code == 2 and captured.out == ""
    assert captured.err.startswith("musicssl: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def fresh_flags(monkeypatch):
    values = export.flags.FlagValues()
    monkeypatch.setattr(export.flags, "FLAGS", values)
    export.define_flags(values)


@pytest.mark.usefixtures("fresh_flags")
def test_what_is_refused(run, hubert_run, tmp_path, capsys):
    output = tmp_path / "out"
    line = refused(capsys, workdir=hubert_run, output=output, ema=True)
    assert "is a hubert run, which has no EMA teacher: leave --ema out" in line
    line = refused(capsys, workdir=run, output=output, ema=False, step=7)
    assert "no checkpoint of step 7: it has [100, 300]" in line
    export.flags.FLAGS.step = None
    assert "holds no checkpoint" in refused(capsys, workdir=tmp_path, output=output)
    assert not output.exists()
    output.mkdir()
    (output / "model.safetensors").write_text("mine")
    assert "is not empty" in refused(capsys, workdir=run, output=output)
    assert [path.read_text() for path in output.iterdir()] == ["mine"]


# Orbax's reader leaves an event loop behind when it fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint(run, tmp_path):
    damaged = shutil.copytree(run, tmp_path / "run")
    files = (damaged / "checkpoints" / "300" / "state").rglob("*")
    largest = max((x for x in files if x.is_file()), key=lambda x: x.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint of .*run cannot be read \(.*another$"):
        export.export(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export.export(damaged, tmp_path / "out", step=100)


def test_the_card_names_the_targets_of_masked_prediction():
    config = musichubert.get_config("demo_multi")
    assert model_card._targets(config) == {
        "targets": "mel:random:64, chroma:kmeans:32, onset:kmeans:16",
        "weights of their losses": "1.0, 1.0, 0.5",
    }
    config.teacher.weights = ()
    assert model_card._targets(config)["weights of their losses"] == "1 each"
    old = musichubert.get_config("k500_mfcc60").unlock()
    del old.teacher.targets
    assert model_card._targets(old) == {"targets": "mfcc:kmeans:500"}
    assert model_card._targets(music2vec.get_config()) == {}


def test_the_card(run, tmp_path):
    export.export(run, tmp_path / "bare", step=100, ema=True)
    card = (tmp_path / "bare" / "README.md").read_text()
    seconds = (320 * 128 + 80) / 16_000
    for said in (
        'AutoModel.from_pretrained("bare")',
        "library_name: transformers",
        "- data2vec-audio",
        "| transformer's weights | EMA teacher |",
        "| data set | synth_music |",
        "| steps | 100 of 300 |",
        f"| batch | 16 clips of {seconds:.2f} s |",
        f"| audio-hours seen | {100 * 16 * seconds / 3600:.1f} |",
        "| loss | 14.286 |",
        "`hidden` holds 3 arrays [clips, frames, 48]",
        "50 frames per second",
        "Give clips of different lengths one at a time.",
        "The run has not been probed.",
        "| heads that predict targets | left out; the run's checkpoints have them |",
    ):
        assert said in card, said
    assert str(run.parent) not in card
    run = shutil.copytree(run, tmp_path / "run")
    test = {"weighted_score": {"mean": 0.50612, "sd": 0.0}, "accuracy": {"mean": 0.4, "sd": 0.0}}
    chosen = {"source": "layer 7", "test": test}
    task = {"task": "gs_key", "title": "Key", "score": "weighted_score", "chosen": chosen}
    digest = pretrained.load_encoder(run).digest
    about = {"features": "a run", "digest": f"{digest}-float32"}
    report.save(run / "probe", task, about)
    (run / "metrics.jsonl").unlink()
    export.export(run, tmp_path / "probed")
    card = (tmp_path / "probed" / "README.md").read_text()
    assert "| Key | weighted_score | 50.6 | layer 7 |" in card
    assert "The run has no metrics.jsonl." in card and "| trained encoder |" in card
    export.export(run, tmp_path / "teacher", ema=True)
    card = (tmp_path / "teacher" / "README.md").read_text()
    assert "probed at another step or with other weights" in card and "50.6" not in card


def test_a_run_is_pushed_with_a_card_that_loads_it_by_its_name(
    run, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    given = flags.FlagValues()
    export.define_flags(given)
    monkeypatch.setattr(flags, "FLAGS", given)
    with hub_server.serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        given(["export", f"--workdir={run}"])
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        for arguments, message in (
            (["--push=org/music2vec"], "needs a token with write access: set HF_TOKEN"),
            (["--push=music2vec"], "is not a name on the Hub: give ORG/NAME"),
            (["--push="], "--output is missing"),
        ):
            given(["export", *arguments])
            with pytest.raises(SystemExit) as end:
                export.main(["export"])
            assert end.value.code == 2 and message in capsys.readouterr().err
        assert server.asked == []

        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: hub_server.TOKEN)
        given["push"].value = "org/music2vec"
        export.main(["export"])
        commit = server.branches["org/music2vec"]["main"]
        assert capsys.readouterr().out.splitlines() == [
            f"data2vec-audio, encoder of {run} at step 300",
            f"{server.endpoint}/org/music2vec, commit {commit}",
        ]
        card = server.models["org/music2vec"][commit]["README.md"].decode()
        assert 'AutoModel.from_pretrained("org/music2vec")' in card
        back = pretrained.load_encoder(f"hf:org/music2vec@{commit}")
    assert back.digest == pretrained.load_encoder(run).digest
