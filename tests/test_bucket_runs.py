"""Runs on a machine that has nothing but a bucket: trained, killed, probed, exported and read."""

import functools
import itertools
import json
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipelines import retries
from musicssl import export, host
from musicssl.exchange.pretrained import load_encoder
from musicssl.probing import report, session
from musicssl.runtime.workdir import steps_on_disk
from musicssl.training.writer import Writer
from tests.faults import bucket as faults
from tests.faults import kill, processes
from tests.support import commands, probes, runs, small_sets
from tests.support.bucket import ROOT, Bucket, Fault
from tests.support.saved_states import config

pytestmark = pytest.mark.slow

OFTEN = {"steps": 12, "checkpoint.every": 4, "log_every": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory, bucket: Bucket) -> Path:
    root = tmp_path_factory.mktemp("bucket")
    runs.write_clips(root / "data")
    bucket.copy(root / "data", "data")
    return root


@pytest.fixture(scope="module")
def study(root) -> kill.Study:
    """A run on a disk that nothing disturbed, to be compared with those on the bucket."""
    start = functools.partial(commands.start, pause=0.02)
    place = host.path(f"{ROOT}/runs"), f"{ROOT}/data"
    return kill.Study(runs.MUSICHUBERT, root, start, OFTEN, *place)


@pytest.fixture(scope="module")
def survived(study, bucket) -> Path:
    """The workdir of a run that was killed in every phase, through errors."""
    study.leaves["data.mirror"] = copy = study.root / "copy"
    study.start, start = faults.start_copying, study.start
    with bucket.suffering(Fault("503", "tfrecord", every=4), rate=faults.RATE):
        life = study.live("run-1", "cache")
        while life.process.poll() is None and faults.copied(copy) < 300_000:
            time.sleep(0.01)
        life.process.kill()
        life.end()
        assert bucket.counts["faults_503"] > 1
    assert 300_000 <= faults.copied(copy) < 1_200_000  # of 1.8 MB
    study.start = start
    befell = Fault("503", "", every=150), Fault("reset", "", skip=7, every=200)
    with bucket.suffering(*befell, Fault("lost", "(POST|PUT) .*upload", every=60)):
        kills, wrong = study.run(1, "cache", ["fitting", "training", "saving"])
        counts = bucket.counts
    del study.leaves["data.mirror"]
    assert not wrong and kills.total() == 3 and not kills["ended before"], (kills, wrong)
    assert counts["faults_503"] > 5 and counts["faults_reset"] > 5 and counts["faults_lost"] > 1
    assert not list(copy.rglob("*.part"))  # the copy was gone on with
    return host.path(f"{ROOT}/runs/run-1")


def test_a_job_of_two_goes_on_after_one_was_killed(study, bucket):
    """With a codebook that one process fitted, as sums over two are in another order."""
    workdir = host.path(f"{ROOT}/runs/two")
    bucket.put("runs/two/codebook.npz", (study.root / "reference/codebook.npz").read_bytes())
    arguments = runs.flags(study.config, workdir, study.data_dir, study.leaves)
    with bucket.suffering(Fault("503", "", every=150), Fault("reset", "", skip=7, every=200)):
        job = commands.Job(2, arguments, study.root / "cache", pause=0.1)
        list(itertools.takewhile(lambda line: not line.startswith("step 10/"), job.stdout))
        job.members[1].kill()
        errors = job.communicate()[1]
        assert job.members[0].returncode == 69, errors
        saved = steps_on_disk(workdir)[-1]
        job = commands.Job(2, arguments, study.root / "cache")
        output, errors = job.communicate()
    assert job.returncode == 0, errors
    assert saved in (4, 8) and f"going on from step {saved}" in output  # its last may be half done
    same, difference = processes.compare(study.root / "reference", workdir)
    assert same and difference < processes.TOLERANCE


def test_a_run_that_was_killed_ends_as_one_on_a_disk_that_was_not(survived, study, bucket):
    assert steps_on_disk(survived) == steps_on_disk(study.root / "reference") == [0, 4, 8, 12]
    held = bucket.files("runs/run-1/")
    assert not [name for name in held if ".claim" in name or ".tmp" in name]
    written = [json.loads(line) for line in held["runs/run-1/metrics.jsonl"].splitlines()]
    assert [line["step"] for line in written] == [2, 4, 6, 8, 10, 12]
    # each life has a file of events; together they have every step
    logged = EventAccumulator(str(survived), size_guidance={"tensors": 0}).Reload()
    steps = {event.step for event in logged.Tensors("loss")}
    assert steps == {2, 4, 6, 8, 10, 12}


def test_a_save_that_was_not_ended_does_not_count(survived, bucket):
    bucket.put("runs/run-1/checkpoints/16/state/manifest.ocdbt", b"")
    assert steps_on_disk(survived)[-1] == 12
    bucket.delete("runs/run-1/checkpoints/16/state/manifest.ocdbt")


def test_a_line_that_was_cut_short_is_set_aside_there_too(bucket, capsys):
    whole, cut = b'{"step": 2, "loss": 1.5}\n', b'{"step": 4, "lo'
    bucket.put("cut/metrics.jsonl", whole + cut)
    Writer(host.path(f"{ROOT}/cut"), config(), 4).write(6, {"loss": 1.0})
    held = bucket.files("cut/metrics")
    assert held["cut/metrics.jsonl"] == whole + b'{"step": 6, "loss": 1.0}\n'
    assert held["cut/metrics.jsonl.damaged"] == cut
    assert "unreadable lines were moved to" in capsys.readouterr().out


def test_probes_read_and_write_there(survived, bucket, tmp_path):
    small_sets.music(tmp_path)
    bucket.copy(tmp_path, "composed")
    given = {"encoder": str(survived), "data_dir": f"{ROOT}/composed", "tasks": "synth_key"}
    with bucket.suffering(Fault("503", "", every=120)):
        table = session.run(probes.config(tmp_path, epochs=1, **given))
        assert bucket.counts["faults_503"] > 2
    held = bucket.files("runs/run-1/probe/")
    assert held["runs/run-1/probe/results.md"].decode() == table
    for name in ("layers", "synth_key-layers"):
        assert held[f"runs/run-1/probe/{name}.png"][:4] == b"\x89PNG"
    results = json.loads(held["runs/run-1/probe/results.json"])
    assert results["run"]["step"] == 12 and results["encoder"] == str(survived)
    table = report.compare([survived / "probe"] * 2, host.path(f"{ROOT}/both"))
    assert bucket.files("both/")["both/compare.md"].decode() == table
    assert "both/compare.png" in bucket.files("both/")


def test_an_export_is_the_run_s_encoder(survived, bucket, tmp_path):
    output = host.path(f"{ROOT}/exported")
    with bucket.suffering(Fault("503", "", every=30)):
        said = export.export(survived, output)
    assert said.startswith(f"{ROOT}/exported: hubert, encoder of {survived} at step 12")
    names = {name.rpartition("/")[2] for name in bucket.files("exported/")}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}
    assert "| 12 of 12 |" in bucket.files("exported/")["exported/README.md"].decode()
    with pytest.raises(FileExistsError, match="is not empty"):
        export.export(survived, output)
    loaded, trained = load_encoder(f"{ROOT}/exported"), load_encoder(str(survived))
    assert loaded.digest == trained.digest
    export.export(survived, tmp_path / "disk")
    assert load_encoder(tmp_path / "disk").digest == loaded.digest


def impatient(*arguments: str) -> None:
    """The main command, which does not bear with a bucket for long."""
    retries.PATIENCE = 0.5
    commands.main(0, *arguments)


def test_a_bucket_that_is_away_ends_a_run_with_the_code_that_launchers_repeat(study, bucket):
    """Its saves stay, and the same command goes on from them."""
    workdir = host.path(f"{ROOT}/runs/away")
    given = runs.flags(study.config, workdir, f"{ROOT}/data", study.leaves)
    bucket.put("runs/away/codebook.npz", (study.root / "reference/codebook.npz").read_bytes())
    # a save's arrays are written, which tensorstore would try for 15 minutes
    with bucket.suffering(Fault("503", "(POST|PUT) .*/checkpoints/8.*/state/")):
        process = commands.Process(impatient, *given, cache=study.root / "cache")
        output, errors = process.communicate()
    assert process.returncode == 74, errors
    saved = steps_on_disk(workdir)
    assert saved and saved[-1] < 12 and "first step" in output, (saved, output)
    assert errors.splitlines()[-1].startswith(f"musicssl: {workdir}/")
    # away from the start
    with bucket.suffering(Fault("503", "")):
        process = commands.Process(impatient, *given, cache=study.root / "cache")
        _, errors = process.communicate()
    assert process.returncode == 74, errors
    assert errors.splitlines()[-1].startswith(f"musicssl: {ROOT}/")
    assert steps_on_disk(workdir) == saved
