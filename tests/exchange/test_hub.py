"""Models by their names on the Hub, against a server on loopback that speaks its interface."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from musicssl import command
from musicssl.exchange import hub, pretrained
from tests.support import hub_server, torch_models
from tests.support.saved_models import same_tree

NAME = "m-a-p/tiny"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torch_models.save(torch_models.small("hubert"), tmp_path_factory.mktemp("hub") / "saved")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield running


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_cache(tmp_path: Path) -> list[str]:
    return [x.name for x in (tmp_path / "cache").rglob("*") if x.is_symlink()]


def test_a_name_is_the_directory_that_is_there(server, saved, tmp_path) -> None:
    more = {"pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit"}
    commit = server.commit(NAME, files(saved) | more)
    loaded, local = pretrained.load_encoder(f"hf:{NAME}"), pretrained.load_encoder(saved)
    assert (loaded.digest, loaded.revision) == (local.digest, commit)
    assert loaded.source == f"hubert of hf:{NAME}@{commit}"
    assert same_tree(loaded.params, local.params)
    assert sorted(in_cache(tmp_path)) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]

    # The second time nothing is downloaded, and a commit is not even asked for.
    server.asked.clear()
    pretrained.load_encoder(f"hf:{NAME}")
    assert not any(re.match(r"GET .*/resolve/", x) for x in server.asked)
    server.asked.clear()
    pretrained.load_encoder(f"hf:{NAME}@{commit}")
    assert server.asked == []


def test_a_branch_that_moves_is_followed_and_a_commit_stays(server, saved) -> None:
    first = server.commit(NAME, files(saved))
    old = pretrained.load_encoder(f"hf:{NAME}@main")
    other = torch_models.make("hubert", **torch_models.SMALL | {"num_hidden_layers": 1})
    moved = torch_models.save(other, saved.parent / "moved")
    second = server.commit(NAME, files(moved))
    new = pretrained.load_encoder(f"hf:{NAME}")
    assert (old.revision, new.revision) == (first, second) and old.digest != new.digest
    assert pretrained.load_encoder(f"hf:{NAME}@{first}").digest == old.digest
    with pytest.raises(FileNotFoundError, match="has no such branch, tag or commit"):
        pretrained.load_encoder(f"hf:{NAME}@{'0' * 40}")


def test_what_the_hub_refuses_is_said_in_one_line(server, saved, tmp_path) -> None:
    server.commit(NAME, files(saved))
    server.commit("m-a-p/gated", files(saved))
    server.gated.add("m-a-p/gated")
    server.commit("m-a-p/no-weights", {"config.json": b"{}", "preprocessor_config.json": b"{}"})
    for spec, kind, message in (
        ("hf:m-a-p/nowhere", FileNotFoundError, "has no such model, or it is private"),
        (f"hf:{NAME}@v2", FileNotFoundError, "has no such branch, tag or commit"),
        ("hf:m-a-p/gated", ValueError, f"its terms at {server.endpoint}/m-a-p/gated, and"),
        ("hf:m-a-p/no-weights", FileNotFoundError, "lacks files that an encoder needs"),
        ("hf:a/b/c", ValueError, "is not a name on the Hub: give hf:ORG/NAME"),
        ("hf:../x", ValueError, "hf:../x is not a name on the Hub: give hf:ORG/NAME"),
    ):
        with pytest.raises(kind, match=message) as error:
            pretrained.load_encoder(spec)
        assert "\n" not in str(error.value) and not isinstance(error.value, hub.Unreachable)
    with pytest.raises(ValueError, match="so it has no step 3"):
        pretrained.load_encoder(f"hf:{NAME}", 3)
    assert in_cache(tmp_path) == []


def test_without_a_network_the_cache_is_enough(server, saved, monkeypatch, capsys) -> None:
    commit = server.commit(NAME, files(saved))
    online = pretrained.load_encoder(f"hf:{NAME}")
    for unreachable in ("http://127.0.0.1:9", server.endpoint):
        monkeypatch.setenv("HF_ENDPOINT", unreachable)
        server.down = True
        assert pretrained.load_encoder(f"hf:{NAME}").digest == online.digest
        assert f"using commit {commit} from the cache" in capsys.readouterr().err
        with pytest.raises(hub.Unreachable, match="hf:m-a-p/other: http") as error:
            pretrained.load_encoder("hf:m-a-p/other")
        assert "\n" not in str(error.value)


def test_a_download_that_is_cut_leaves_nothing_half_and_goes_on(
    server, saved, tmp_path, monkeypatch
) -> None:
    content = files(saved)
    server.commit(NAME, content)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between tries
    server.cut, server.cuts = 60_000, 1000
    with pytest.raises(hub.Unreachable, match="does not answer") as error:
        pretrained.load_encoder(f"hf:{NAME}")
    assert "\n" not in str(error.value)
    assert "model.safetensors" not in in_cache(tmp_path)
    with pytest.raises(SystemExit) as end, command.refusing():  # the same command goes on
        raise error.value
    assert end.value.code == command.EXIT_STORAGE
    server.cuts = 1
    assert pretrained.load_encoder(f"hf:{NAME}").digest == pretrained.load_encoder(saved).digest


def test_shards_are_taken_and_a_pickle_only_without_them() -> None:
    configs = ["config.json", "preprocessor_config.json"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    pickle = "pytorch_model.bin"
    assert hub._chosen("x", [*configs, *shards, index, pickle]) == [index, *shards, *configs]
    assert hub._chosen("x", [*configs, pickle, "x.py"]) == [pickle, *configs]


def test_a_directory_is_pushed_in_one_commit_and_read_back(server, saved, monkeypatch) -> None:
    said = hub.push(saved, NAME, "Export")
    commit = server.branches[NAME]["main"]
    assert said == f"{server.endpoint}/{NAME}, commit {commit}"
    assert server.models[NAME][commit] == files(saved)
    assert pretrained.load_encoder(f"hf:{NAME}@{commit}").digest
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ValueError, match=r"refuses it \(401\): use another HF_TOKEN"):
        hub.push(saved, NAME, "Export")
    for name in ("tiny", "-a/b", "a/b.git", "a/..", "a/b@main", f"a/{'b' * 120}"):
        with pytest.raises(ValueError, match="is not a name on the Hub: give ORG/NAME"):
            hub.check_push(name)
    server.down = True
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(hub.Unreachable, match=r"has an error \(503\)"):
        hub.push(saved, NAME, "Export")
    assert server.branches[NAME]["main"] == commit
