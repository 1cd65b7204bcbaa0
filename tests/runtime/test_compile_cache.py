"""Where compiled programs are kept."""

import pwd
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from musicssl.runtime import compile_cache

DIRECTORY, LEAST = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(autouse=True)
def settings(monkeypatch) -> Iterator[None]:
    """As in a process that has set nothing, and as before afterwards."""
    before = {name: getattr(jax.config, name) for name in (DIRECTORY, LEAST)}
    jax.config.update(DIRECTORY, None)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_they_are_in_the_users_cache_by_kind_of_processor(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache.keep()
    folder = Path(getattr(jax.config, DIRECTORY))
    assert folder == tmp_path / "musicssl/xla" / compile_cache.machine()
    assert getattr(jax.config, LEAST) == 0.1


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)

    def nobody(number: int) -> None:
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    compile_cache.keep()
    assert getattr(jax.config, DIRECTORY) is None


def test_a_cache_that_cannot_be_made_is_done_without(monkeypatch, tmp_path, capsys):
    (tmp_path / "musicssl").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache.keep()
    assert getattr(jax.config, DIRECTORY) is None
    said = capsys.readouterr().err
    assert "are not kept: " in said and "(Not a directory)" in said and said.count("\n") == 1


def test_what_the_user_has_set_stays(monkeypatch, tmp_path):
    jax.config.update(DIRECTORY, str(tmp_path))
    jax.config.update(LEAST, 7)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    compile_cache.keep()
    assert getattr(jax.config, DIRECTORY) == str(tmp_path)
    assert getattr(jax.config, LEAST) == 7


def test_processors_of_other_features_do_not_share(monkeypatch):
    def named(flags: str) -> str:
        info = f"processor\t: 0\nflags\t\t: {flags}\nprocessor\t: 1\nflags\t\t: {flags}\n"
        monkeypatch.setattr(Path, "read_text", lambda _: info)
        return compile_cache.machine()

    assert named("sse avx2") == named("avx2 sse") != named("sse avx2 avx512f")
