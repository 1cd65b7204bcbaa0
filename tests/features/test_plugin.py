"""What is said of plug-ins that do not do what they say; their features by hand; their digests."""

import re
from pathlib import Path

import numpy as np
import pytest

from musicssl.features import extract, windows
from musicssl.runtime import sharding
from tests.support.feature_sources import LENGTHS, RATE, SECONDS, get, read

# A plug-in of two layers: energies in bands of 320 samples, centred, in NumPy.
GOOD = """
import numpy as np

class Energies:
    sample_rate, layers, width, frame_rate = 16_000, 2, 3, 50
    scale = 1.0

    def __call__(self, audio):
        self.calls = getattr(self, "calls", 0) + 1
        b, n = audio.shape
        x = np.abs(audio[:, : n // 320 * 320]).reshape(b, -1, 320)[..., :318]
        mean = self.scale * x.reshape(b, -1, 3, 106).mean(-1)
        return [mean, mean**2]
"""
NAME = "Energies"


def write(folder: Path, source: str = GOOD) -> str:
    file = folder / "energies.py"
    file.write_text(source)
    return f"python:{file}:{NAME}"


def changed(*pairs: tuple[str, str]) -> str:
    source = GOOD
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    return source


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("        b, n", "        raise OSError('boom\\nmore')\n        b, n")],
         r"raised OSError at line 10: boom$"),
        ([("    scale = 1.0", "    scale = 1.0\n    def __init__(self): "
           "raise RuntimeError('No CUDA GPUs are available')")],
         r"raised RuntimeError at line 7: No CUDA GPUs are available: if this machine has no GPU"),
        ([("import numpy", "import nowhere_to_be_found")], r"raised ModuleNotFoundError at line 2"),
        ([("class Energies:", "class Energies")], r"raised SyntaxError at line 4"),
        ([("import numpy as np", "raise SystemExit(3)")], r"raised SystemExit at line 2"),
        ([("class Energies", "class Other")], r"has no function or class Energies"),
        ([("def __call__", "def call")], r"has no method __call__"),
        ([(", frame_rate", ", rate")], r"lacks frame_rate \(frames per second\)"),
        ([("2, 3, 50", "0, 3, 50")], r"has layers = 0: give a whole number above 0"),
        ([("2, 3, 50", "2, 'wide', 50")], r"has width = 'wide': give a whole number"),
        ([("2, 3, 50", "float('inf'), 3, 50")], r"has layers = inf: give a whole number"),
        ([("2, 3, 50", "2, 3, 1e-6")], r"has frame_rate = 1e-06: .* at least one in 60 s"),
        ([("16_000", "10**12")], r"has sample_rate = 1000000000000: give Hz, from 1000 to 384000"),
        ([("scale = 1.0", "scale, version = 1.0, property(lambda self: 1 / 0)")],
         r"raised ZeroDivisionError at line 6: division by zero"),
        ([("2, 3, 50", "2, 3, 75")], r"a frame is 213.33 samples, which must be a whole number"),
        ([("2, 3, 50", "3, 3, 50")], r"has layers = 3, but returned 2 arrays"),
        ([("2, 3, 50", "2, 4, 50")],
         r"layer 0 has the shape \[2, 101, 3\] for a batch of 2: \[2, frames, 4\] is expected"),
        ([("[mean, mean**2]", "[mean, mean[:, 1:]]")],
         r"layer 1 has the shape \[2, 100, 3\] .* \[2, 101, 3\] is expected, as in layer 0"),
        ([("[mean, mean**2]", "{'a': mean}")], r"returned dict: return a list of its 2 layers"),
        ([("[mean, mean**2]", "None")], r"returned NoneType"),
        ([("mean**2]", "mean.astype(int)]")],
         r"layer 1 is of int64: floating-point values are expected"),
        ([("mean**2]", "mean.astype(str)]")], r"layer 1 is of <U32: floating-point values"),
        ([("mean**2]", "mean * 1j]")], r"layer 1 is of complex64: floating-point values"),
        ([("2, 3, 50", "2, 3, 25")], r"says 25 frames per second, but returned 100 frames"),
        ([("2, 3, 50", "2, 3, 40")],
         r"says 40 frames per second, .* 200 for 64000: it has about 50 per second"),
        ([("[mean, mean**2]", "[mean[:, :7], mean[:, :7]]")], r"the same number for any length"),
        ([("mean**2]", "mean / 0]")], r"layer 1 of noise is not finite"),
        ([("mean**2]", "np.log(mean)]")], r"layer 1 of silence is not finite"),
        ([("mean**2]", "mean + self.calls]")],
         r"other features for the same audio when called again \(layer 1\): is it in training"),
        ([("mean**2]", "mean - mean.mean(0)]")],
         r"a window other features if the batch holds another one \(layer 1\)"),
        ([("self, audio)", "self, audio, samples)"), ("mean**2]", "mean - mean.mean(1)[:, None]]")],
         r"lets the padding of a window change its features \(layer 1\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path, pairs, message) -> None:
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message) as error:
        extract.open_source(write(tmp_path, changed(*pairs)))
    assert "\n" not in str(error.value)


def test_names_that_are_none(tmp_path) -> None:
    for spec, message in (
        ("nowhere.py", "names no plug-in: give python:FILE.py:NAME"),
        ("no_such_module:x", "raised ModuleNotFoundError"),
        (f"{tmp_path}/no.py:x", "there is no file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            extract.open_source(f"python:{spec}")


@pytest.mark.parametrize("told", [False, True])
def test_rows_are_means_of_the_frames_that_the_plug_in_returns(tmp_path, told) -> None:
    """Remainders are heard at their own length, or padded where the plug-in takes their lengths."""
    source = changed(("self, audio)", "self, audio, samples)")) if told else GOOD
    of = extract.open_source(write(tmp_path, source))
    assert of.frames == windows.Frames(320, 320)
    cut = windows.cut(LENGTHS, SECONDS, RATE, frames=of.frames)
    found = extract.extract(
        of, cut, read, (0, 1, 25), tmp_path / "cache", "data", sharding.make_mesh(), batch=3
    )
    whole, single, half = [], [], []
    for window, record in enumerate(cut.record):
        start = cut.start[window]
        x = np.abs(read(record)[start : start + cut.samples[window]] / 32768)
        t = len(x) // 320
        mean = x[: t * 320].reshape(t, 320)[:, :318].reshape(t, 3, 106).mean(-1)
        frames = np.stack([mean, mean**2])
        whole.append(frames.mean(1))
        single += list(frames.transpose(1, 0, 2))
        rows = int(windows.rows_in(cut, 25)[window])
        half += [frames[:, 25 * i : 25 * i + 25].mean(1) for i in range(rows)]
    for pool, rows in ((0, whole), (1, single), (25, half)):
        wanted = np.stack(rows, 1)
        np.testing.assert_allclose(found[pool].astype("f4"), wanted, rtol=2e-3, atol=1e-5)


def test_what_a_plug_in_hears_is_standardised_if_it_says_so(tmp_path) -> None:
    plain = extract.open_source(write(tmp_path))
    of = extract.open_source(write(tmp_path, changed(("scale = 1.0", "normalize = scale = True"))))
    assert of.normalize and not plain.normalize
    loud, quiet = (get(tmp_path / "cache", pools=(0,), of=x)[0].astype("f4") for x in (of, plain))
    assert np.abs(loud[0].mean() - 0.866) < 0.01  # of uniform noise at variance 1
    assert quiet[0].mean() < 0.15


def test_another_file_other_weights_and_another_version_have_another_digest(tmp_path) -> None:
    torch_free = [
        GOOD,
        changed(("1.0", "2.0")),
        changed(("scale = 1.0", "scale = 1.0\n    version = 'b'")),
    ]
    found = [extract.open_source(write(tmp_path, source)) for source in torch_free]
    assert len({x.digest for x in found}) == 3
    assert found[2].origin["version"] == "b"
    assert extract.open_source(write(tmp_path)).digest == found[0].digest

    # Weights that the file reads: the file stays the same.
    reading = changed(("scale = 1.0", f"scale = np.load({str(tmp_path / 'w.npy')!r})"))
    digests = set()
    for value in (1.0, 3.0):
        np.save(tmp_path / "w.npy", np.array([value], np.float32))
        digests.add(extract.open_source(write(tmp_path, reading)).digest)
    assert len(digests) == 2

    # What no digest sees, the answer to noise tells.
    hidden = changed(("scale = 1.0", "scale = float(open(__file__ + '.txt').read())"))
    for value in ("1.0", "1.0", "2.0"):
        (tmp_path / "energies.py.txt").write_text(value)
        of = extract.open_source(write(tmp_path, hidden))
        if value == "1.0":
            get(tmp_path / "cache", pools=(0,), of=of)
            continue
        with pytest.raises(ValueError, match="gives other features than those in"):
            get(tmp_path / "cache", pools=(0,), of=of)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[mean[:, :-1]] * 2", "returned 149 frames for a window of 48000 samples"),
        ("1 / 0", "raised ZeroDivisionError at line 14: division by zero"),
        ("[mean, mean.astype(int)]", "layer 1 is of int64"),
        ("[mean, mean * np.nan]", r"Energies of .*: layer 1 of window 0 is not finite in float16"),
    ],
)
@pytest.mark.parametrize("batches", [0, 2])
def test_what_begins_while_features_are_computed_is_told(
    tmp_path, returned, message, batches
) -> None:
    """In windows of a length that the check does not have, from the first batch or the third."""
    source = changed(
        ("scale = 1.0", "scale, late = 1.0, 0"),
        ("        return", "        self.late += n == 48_000\n        return"),
        ("mean**2]", f"mean**2] if self.late <= {batches} else {returned}"),
    )
    of = extract.open_source(write(tmp_path, source))
    cut = windows.cut(np.full(6, 48_000), 3.0, RATE, frames=of.frames)
    mesh, cache = sharding.make_mesh(), tmp_path / "cache"

    def sound(_: int) -> np.ndarray:
        return np.ones(48_000, np.int16)

    message = message.replace("window 0", f"window {2 * batches}")
    with pytest.raises(ValueError, match=message) as error:
        extract.extract(of, cut, sound, (0,), cache, "data", mesh, 2)
    assert "\n" not in str(error.value)

    # No file has the name of a complete one, and what has nothing in it is gone.
    left = sorted(path.suffix for path in cache.rglob("*") if path.is_file())
    assert left == ([".json", ".npy", ".part"] if batches else [".npy"])
    assert [path.name for path in cache.rglob("*.npy")] == ["answer.npy"]


def test_a_module_may_hold_anything_beside_the_weights(tmp_path) -> None:
    """Keys that cannot be sorted, a dictionary in itself, text, random keys, bfloat16."""
    held = """
import jax
import jax.numpy as jnp
import numpy as np

TABLE = {1: "one", "a": 2, None: 3}
TABLE["itself"] = TABLE
NAMES, ANY, KEY = np.array(["c", "d"]), np.array([None, 1]), jax.random.key(0)
HALF = jnp.full(3, VALUE, jnp.bfloat16)
"""
    digests = set()
    for value in ("1.0", "2.0", "1.0"):
        (tmp_path / "value.txt").write_text(value)
        read_value = f"float(open({str(tmp_path / 'value.txt')!r}).read())"
        source = held.replace("VALUE", read_value) + GOOD
        digests.add(extract.open_source(write(tmp_path, source)).digest)
    assert len(digests) == 2


def test_layers_may_be_arrays_of_several_libraries(tmp_path) -> None:
    source = "import jax.numpy as jnp\n" + changed(("mean**2]", "jnp.square(mean)]"))
    found = get(tmp_path / "a", pools=(0, 25), of=extract.open_source(write(tmp_path, source)))
    wanted = get(tmp_path / "b", pools=(0, 25), of=extract.open_source(write(tmp_path)))
    for pool, rows in wanted.items():
        np.testing.assert_allclose(found[pool].astype("f4"), rows.astype("f4"), rtol=2e-3)
