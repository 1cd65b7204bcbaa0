"""What a path may be: homes, addresses, names that look like patterns, owners without a name."""

import functools
import grp
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs import common, music2vec, music2vec2, musichubert, probe
from musicssl import paths
from musicssl.runtime.workdir import flat

NO_PATHS = {  # leaves of text that are names, numbers or choices
    *("name", "variant", "then", "method", "precision", "nonfinite", "profile", "tracker"),
    *("data.name", "data.mix", "data.on_damage", "data.order", "checkpoint.on_damage"),
    *("encoder.stem_norm", "encoder.stem_start", "optim.schedule", "validate.score"),
    *("teacher.feature", "teacher.targets", "tasks", "kind", "layers", "step", "also", "deform"),
    *("probe.tasks", "probe.kind", "probe.layers"),
}


MISSPELT = (
    "gs:abc/x",
    "GS://abc/x",
    "gcs://abc/x",
    " gs://abc/x",
    "'gs://abc/x'",
    "gs:",
    "gs:\\abc",
)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_home_is_written_out(home):
    assert paths.local("~/runs/[x]") == f"{home}/runs/[x]"
    assert paths.local("~root/x") == f"{pwd.getpwnam('root').pw_dir}/x"
    assert paths.local("runs/~x") == "runs/~x"
    with pytest.raises(ValueError, match="~nobody-here/x: its home directory is not known"):
        paths.local("~nobody-here/x")


def test_an_address_is_no_path_on_this_machine():
    for address in ("gs://a/b", "gs:/a/b", "s3:/a/b", "GS:a", "file:/a"):
        with pytest.raises(ValueError, match=f"{address} is not a path on this machine: copy it"):
            paths.local(address)


def test_a_path_may_be_on_a_bucket_of_the_one_kind_that_works(home):
    assert paths.anywhere("gs://abc/b/") == "gs://abc/b" and paths.anywhere("~/a") == f"{home}/a"
    assert paths.is_remote("gs://a") and not paths.is_remote(Path("gs:/a"))
    assert paths.anywhere("gs://abc//a///b//") == "gs://abc/a/b"
    for wrong in ("s3://a/b", "s3:/a/b", "S3A:a"):
        with pytest.raises(ValueError, match=r"s3a?:// is not supported"):
            paths.anywhere(wrong)
    for wrong in ("gs://", "gs:///", "gs:/abc/b", "gs://Big_/x", "gs://a/b", *MISSPELT):
        with pytest.raises(ValueError, match="write gs://BUCKET/FOLDER"):
            paths.anywhere(wrong)
    for wrong in ("file:///a", "file:/a"):
        with pytest.raises(ValueError, match="write a path of this machine without file:"):
            paths.anywhere(wrong)
    assert paths.anywhere("run:1/x") == "run:1/x"  # a colon alone makes no address


def test_a_name_on_a_bucket_can_be_seen_whole():
    for name in ("x ", "x\n", "a\tb", "caf\udce9"):
        with pytest.raises(ValueError, match="sign that cannot be seen") as error:
            paths.anywhere(f"gs://abc/{name}")
        assert "\n" not in str(error.value) and str(error.value).encode()


def test_what_others_stand_beside_is_not_a_whole_bucket():
    """A plan in gs://abc would be written to gs://abc.json, another bucket's."""
    assert paths.folder("gs://abc/b/") == "gs://abc/b" and paths.folder("a") == "a"
    with pytest.raises(ValueError, match=r"gs://abc/ is a whole bucket: name .* gs://abc/FOLDER"):
        paths.folder("gs://abc/")


@pytest.mark.parametrize("name", ["a#b", "a?b", "a[b]", "a*", "a\\b", "x/../y", "."])
def test_a_name_that_orbax_would_not_find_again_is_refused(name):
    with pytest.raises(ValueError, match=r"take for something else.*use another name"):
        paths.anywhere(f"gs://abc/{name}")
    for fine in ("a b", "a%20b", "ü", "a'b", "-x", "a..b", ".hidden"):
        assert paths.anywhere(f"gs://abc/{fine}") == f"gs://abc/{fine}"


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "a.b"
    for content in (b"1", b"2"):
        paths.write(path, content)
        assert path.read_bytes() == content and [*tmp_path.iterdir()] == [path]


def test_several_may_write_a_file_at_once(tmp_path):
    """Of two starts of a command each has a file of its own until it is whole."""
    path = tmp_path / ("x" * 255)  # as long as names may be
    contents = [bytes([number]) * 100_000 for number in range(4)]

    def often(content: bytes) -> None:
        for _ in range(30):
            paths.write(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(often, contents))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        paths.write(tmp_path / "folder", b"")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", path]


def test_a_name_that_is_not_utf_8_is_refused_in_words_that_can_be_printed(tmp_path, monkeypatch):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="is not UTF-8") as error:
        paths.local(name)
    assert r"caf\udce9 is" in str(error.value).encode().decode()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(ValueError, match="is not UTF-8"):
        paths.local("runs")


@pytest.mark.parametrize(
    ("spec", "kind", "path"),
    [
        ("random:runs/a", "random:", "runs/a"),
        ("runs/2026-01-05T10:30/model", "", "runs/2026-01-05T10:30/model"),
        ("random:a:b", "random:", "a:b"),
        ("logmel", "", "logmel"),
    ],
)
def test_a_colon_that_ends_no_known_prefix_is_a_part_of_the_path(spec, kind, path):
    assert paths.split_kind(spec) == (kind, path)


def test_a_colon_in_a_configuration_s_path_is_a_part_of_it(tmp_path, monkeypatch):
    folder = tmp_path / "runs:1"
    folder.mkdir()
    (folder / "a.py").touch()
    for variant in ("", ":demo", ":de:mo"):
        assert paths.split_variant(f"{folder}/a.py{variant}") == (f"{folder}/a.py", variant)
    assert paths.split_variant("s3://a/b.py:demo") == ("s3://a/b.py", ":demo")
    assert paths.split_variant("configs/none.py:demo") == ("configs/none.py", ":demo")
    (folder / "a.py:demo").touch()
    assert paths.split_variant(f"{folder}/a.py:demo") == (f"{folder}/a.py:demo", "")


def test_a_configuration_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(paths.PRODUCT)
    assert paths.configuration("music2vec:demo") == "configs/music2vec.py:demo"
    monkeypatch.chdir(tmp_path)
    file = f"{paths.PRODUCT}/configs/probe.py"
    assert paths.configuration("probe") == paths.configuration("configs/probe.py") == file
    assert paths.configuration("configs/probe.py:quick") == f"{file}:quick"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/probe.py").touch()  # one's own comes first
    assert paths.configuration("configs/probe.py:mine") == "configs/probe.py:mine"
    for other in ("nope:demo", "other/music2vec.py:demo", "", ":demo"):
        assert paths.configuration(other) == other


def test_every_leaf_that_is_a_path_is_written_out(home):
    training, evaluation = musichubert.get_config("k2000_iter2"), probe.get_config()
    for config in (training, evaluation):
        for name in paths.LEAVES.keys() & flat(config.to_dict()).keys():
            config.update_from_flattened_dict({name: "~/x"})
        paths.write_out(config)
    found = flat(training.to_dict()) | flat(evaluation.to_dict())
    assert {found[name] for name in paths.LEAVES} == {f"{home}/x"}
    evaluation.encoder, evaluation.beside = "random:~/x", "random,~/x,random:gs://bucket/y"
    paths.write_out(evaluation)
    assert evaluation.encoder == f"random:{home}/x"
    assert evaluation.beside == f"random,{home}/x,random:gs://bucket/y"


def test_every_leaf_of_text_is_a_path_of_a_kind_or_none_at_all():
    """A path that LEAVES does not know would become a folder called s3: or gs:."""
    leaves = paths.LEAVES | {f"probe.{name}": kind for name, kind in paths.LEAVES.items()}
    for module in (music2vec, music2vec2, musichubert, probe):
        for variant in module.VARIANTS:
            text = {x for x, value in flat(module.get_config(variant).to_dict()).items()
                    if isinstance(value, str)}  # fmt: skip
            assert text - leaves.keys() <= NO_PATHS, module
    for name, kind in paths.LEAVES.items():
        with pytest.raises(ValueError, match="s3://a/b"):
            kind("s3://a/b")
        if isinstance(kind, functools.partial):  # it has to be on a disk
            with pytest.raises(ValueError, match="gs://abc/b is not a path on this machine: "):
                kind("gs://abc/b")
        else:
            assert kind("gs://abc/b/") == "gs://abc/b", name


@pytest.mark.parametrize("kind", paths.KINDS)
def test_training_does_not_start_from_what_only_probes_accept(kind):
    with pytest.raises(ValueError, match=f"{kind}gs://abc/b: {kind} is for probes: give a work"):
        paths.weights(f"{kind}gs://abc/b")
    assert paths.weights("hf:a/b@main") == "hf:a/b@main"


@pytest.mark.parametrize(
    ("leaf", "value", "why"),
    [
        ("start_from", "s3://a", "s3:// is not supported"),
        (
            "data.mirror",
            "gs://a/b",
            "is not a path on this machine: it is for this machine's own copy",
        ),
    ],
)
def test_a_leaf_that_cannot_be_a_path_is_named(leaf, value, why):
    config = common.get_config()
    config.update_from_flattened_dict({leaf: value})
    with pytest.raises(ValueError, match=f"--config.{leaf}: {value}.*{why}"):
        paths.write_out(config)


def test_code_and_features_are_on_a_disk():
    config = probe.get_config()
    for spec in ("features:gs://abc/b", "python:gs://abc/b.py:Model"):
        config.encoder = spec
        with pytest.raises(ValueError, match=r"--config\.encoder: gs://abc/b.* is not a path"):
            paths.write_out(config)
    config.encoder = ""
    config.cache = "gs://a/b"
    with pytest.raises(ValueError, match=r"--config\.cache: gs://a/b .*: features are read"):
        paths.write_out(config)


def test_the_product_s_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(paths.PRODUCT)
    assert paths.of_product("configs/probe.py") == "configs/probe.py"
    monkeypatch.chdir(tmp_path)
    found = Path(paths.of_product("configs/probe.py"))
    assert found.is_file() and found.is_absolute()


def test_a_folder_s_own_name_is_no_pattern(tmp_path):
    for name in ("run[1]", "run1", "a*", "ab"):
        (tmp_path / name / "part.0").mkdir(parents=True)
    for name in ("run[1]", "a*"):
        folder = paths.Literal(tmp_path / name)
        assert [str(x) for x in folder.glob("part.*")] == [f"{tmp_path}/{name}/part.0"]
        assert all(type(x) is paths.Literal for x in (*folder.glob("*"), folder / "x"))


def test_a_file_s_owner_needs_no_name(tmp_path, monkeypatch):
    def nobody(number: int) -> None:
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(grp, "getgrgid", nobody)
    (tmp_path / "x").write_text("abc")
    assert paths.Literal(tmp_path / "x").stat().length == 3
