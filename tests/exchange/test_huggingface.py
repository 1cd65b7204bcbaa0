"""Hugging Face directories in and out, against transformers itself."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from musicssl import audio
from musicssl.exchange import huggingface, model_card, state_dict
from musicssl.exchange.loaded import with_digest
from tests.support import odd_files, torch_models
from tests.support.saved_models import MASKING, model_type, same_tree


def rewrite(saved: Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, saved / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", torch_models.KINDS)
def test_in_and_out_is_bit_identical(kind, tmp_path):
    model = torch_models.small(kind)
    loaded = huggingface.read_directory(torch_models.save(model, tmp_path / "in"))
    huggingface.write(tmp_path / "out", loaded, model_type(kind), MASKING, "card")
    theirs, ours = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("in", "out")
    )
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    again = huggingface.read_directory(tmp_path / "out")
    assert again.encoder == loaded.encoder and again.digest == loaded.digest
    assert same_tree(again.params, loaded.params)


@pytest.mark.parametrize(
    "kind, normalize",
    [("data2vec", True), ("hubert", False), ("hubert-large", True), ("wav2vec2", True)],
)
def test_our_features_in_transformers(kind, normalize, tmp_path):
    """Our own random parameters, raw audio far from unit variance, the extractor's own rule."""
    encoder, template = torch_models.ours(torch_models.small(kind))
    draw = np.random.default_rng(3)
    params = jax.tree.map(
        lambda x: (x + 0.1 * draw.standard_normal(x.shape)).astype(np.float32), template
    )
    loaded = with_digest(encoder, params, normalize, 16_000, "test")
    huggingface.write(tmp_path / "out", loaded, model_type(kind), MASKING, "card")
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    for samples in (719, 8000):
        pcm = np.round(3000 * torch_models.noise(samples, clips=1) + 400).astype(np.int16)
        raw = np.asarray(audio.to_float(pcm))
        given = audio.normalize(raw) if normalize else raw
        ours = jax.jit(encoder.apply)({"params": params}, given).hidden
        inputs = extractor(raw[0], sampling_rate=16_000, return_tensors="pt")
        assert ("attention_mask" in inputs) == (encoder.stem_norm == "layer")
        with torch.no_grad():
            output = model.eval()(**inputs, output_hidden_states=True)
        theirs = (*output.hidden_states[:-1], output.last_hidden_state)
        for a, b in zip(ours, theirs, strict=True):
            assert b.std() > 0.1
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("kind", ["data2vec", "hubert", "hubert-large"])
def test_padding_in_transformers_does_what_the_model_card_says(kind, tmp_path):
    model = torch_models.small(kind)
    encoder, params = torch_models.ours(model)
    loaded = with_digest(encoder, params, True, 16_000, "test")
    huggingface.write(tmp_path / "out", loaded, model_type(kind), MASKING, "card")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    long, short = (torch_models.noise(n, clips=1)[0] for n in (12_000, 8_001))

    def states(clips: list[np.ndarray], **options) -> tuple[torch.Tensor, ...]:
        inputs = extractor(clips, sampling_rate=16_000, return_tensors="pt", **options)
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
        return (*output.hidden_states[:-1], output.last_hidden_state)

    def moved(**options) -> list[float]:
        """How far the nearest frame of each layer is from where it is when the clip is alone."""
        both = states([long, short], padding=True, **options)
        pairs = zip(both, states([short]), strict=True)
        return [float((x[1, : y.shape[1]] - y[0]).norm(dim=1).min()) for x, y in pairs]

    masked, unmasked = (moved(return_attention_mask=mask) for mask in (True, False))
    said = model_card.padding(encoder)
    assert min(unmasked) > 1e-3
    if kind == "hubert-large":
        assert max(masked) < 1e-5
        assert said.startswith("Clips of different lengths can share a batch")
    else:  # layer 0 is before attention: there a convolution reaches only the last frames
        assert min(masked[kind == "data2vec" :]) > 1e-3
        assert said.startswith("Give clips of different lengths one at a time")


def test_bfloat16_safetensors(saved, weights):
    expected = {name: torch.from_numpy(x).bfloat16() for name, x in weights.items()}
    safetensors.torch.save_file(expected, saved / "model.safetensors", {"format": "pt"})
    loaded = huggingface.read_directory(saved)
    tensors = state_dict.to_tensors(loaded.encoder, loaded.params)
    assert all((tensors[name] == x.float().numpy()).all() for name, x in expected.items())


def test_shards(saved, tmp_path):
    model = torch_models.small("hubert")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    (saved / "preprocessor_config.json").rename(tmp_path / "shards" / "preprocessor_config.json")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    loaded = huggingface.read_directory(tmp_path / "shards")
    assert same_tree(loaded.params, torch_models.ours(model)[1])
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"{shards[1].name} is missing"):
        huggingface.read_directory(tmp_path / "shards")


def test_no_mask_embedding_where_nothing_is_masked(tmp_path):
    options = torch_models.SMALL | {"mask_time_prob": 0.0}
    model = torch_models.make("hubert", **options)
    assert "masked_spec_embed" not in model.state_dict()
    loaded = huggingface.read_directory(torch_models.save(model, tmp_path / "saved"))
    assert not loaded.params["mask_embedding"].any()
    ours = state_dict.to_tensors(loaded.encoder, loaded.params)
    theirs = torch_models.tensors(model)
    assert ours.keys() - theirs.keys() == {"masked_spec_embed"}
    assert all(np.array_equal(ours[name], x) for name, x in theirs.items())


def test_no_mask_embedding_though_masks_are_configured(saved, weights, capsys):
    """As in facebook/wav2vec2-base-960h."""
    expected = huggingface.read_directory(saved).params
    assert capsys.readouterr().err == ""
    rewrite(saved, {k: v for k, v in weights.items() if k != "masked_spec_embed"})
    params = huggingface.read_directory(saved).params
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has no mask embedding (masked_spec_embed), so zeros" in said
    assert expected["mask_embedding"].any()
    assert same_tree(params, expected | {"mask_embedding": np.zeros(48, np.float32)})


def test_a_processor_as_transformers_5_saves_it(saved):
    """With the extractor inside, which goes before a file of its own; without, that file counts."""
    own = saved / "preprocessor_config.json"
    inside = json.loads(own.read_text()) | {"do_normalize": False, "sampling_rate": 24_000}
    processor = saved / "processor_config.json"
    for name in ("feature_extractor", "audio_processor"):
        processor.write_text(json.dumps({name: inside, "processor_class": "Wav2Vec2Processor"}))
        loaded = huggingface.read_directory(saved)
        assert (loaded.normalize, loaded.sample_rate) == (False, 24_000)
    processor.write_text('{"processor_class": "Wav2Vec2Processor"}')  # as version 4 did
    assert huggingface.read_directory(saved).sample_rate == 16_000
    own.unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json is missing"):
        huggingface.read_directory(saved)
    saved_by_5 = Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(do_normalize=False), Wav2Vec2CTCTokenizer(vocabulary(saved))
    )
    saved_by_5.save_pretrained(saved)
    assert not own.exists() and huggingface.read_directory(saved).normalize is False


def vocabulary(folder: Path) -> str:
    path = folder / "letters.json"
    path.write_text('{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5}')
    return str(path)


def test_heads_in_shards_of_their_own_are_left_out(saved, weights):
    """A shard of heads alone has no name that begins with the model's."""
    expected = huggingface.read_directory(saved).params
    (saved / "model.safetensors").unlink()
    shards = {
        "a.safetensors": {f"hubert.{name}": x for name, x in weights.items()},
        "b.safetensors": {"regressor.weight": np.zeros((3, 48), np.float32)},
    }
    for name, tensors in shards.items():
        safetensors.numpy.save_file(tensors, saved / name, {"format": "pt"})
    listed = {name: shard for shard, tensors in shards.items() for name in tensors}
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    assert same_tree(huggingface.read_directory(saved).params, expected)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_called_one(saved, name):
    (saved / "model.safetensors").rename(saved / "weights")
    if name == "config.json":
        (saved / "weights").rename(saved / "model.safetensors")
    (saved / name).write_bytes(odd_files.LFS_POINTER)
    with pytest.raises(ValueError, match=f"{name} is a pointer of Git LFS .*: run git lfs pull"):
        huggingface.read_directory(saved)


def test_damaged_tensors(saved, weights):
    name = "encoder.layer_norm.bias"
    for changed, message in (
        ({name: weights[name][:-1]}, r"is \(47,\) and should be \(48,\)"),
        ({name: weights[name].astype(np.int32)}, "holds int32"),
        ({"extra.weight": weights[name]}, r"extra\.weight is unexpected"),
    ):
        rewrite(saved, weights | changed)
        with pytest.raises(ValueError, match=message):
            huggingface.read_directory(saved)
    rewrite(saved, {k: v for k, v in weights.items() if k != name})
    with pytest.raises(ValueError, match=f"{name} is missing"):
        huggingface.read_directory(saved)


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_truncated_safetensors(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        huggingface.read_directory(saved)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_and_broken_files(saved, name):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(b"{" + whole[1:10])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        huggingface.read_directory(saved)
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        huggingface.read_directory(saved)


def test_an_occupied_output_is_refused(saved, tmp_path):
    loaded = huggingface.read_directory(saved)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(FileExistsError, match="is not empty"):
        huggingface.write(saved, loaded, "hubert", MASKING, "card")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        huggingface.write(tmp_path / "file", loaded, "hubert", MASKING, "card")
    (tmp_path / "empty").mkdir()
    huggingface.write(tmp_path / "empty", loaded, "hubert", MASKING, "card")
    assert (tmp_path / "empty" / "README.md").read_text() == "card"
    assert len({path.stat().st_mode for path in (tmp_path / "empty").iterdir()}) == 1


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(saved, tmp_path):
    """In a container every start has the same number."""
    loaded = huggingface.read_directory(saved)
    (tmp_path / f".out.{os.getpid()}").mkdir()
    huggingface.write(tmp_path / "out", loaded, "hubert", MASKING, "card")
    assert (tmp_path / "out/README.md").read_text() == "card"


def test_a_failed_write_leaves_nothing(saved, tmp_path, monkeypatch):
    loaded = huggingface.read_directory(saved)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        huggingface.write(tmp_path / "out", loaded, "hubert", MASKING, "card")
    assert sorted(tmp_path.iterdir()) == before
