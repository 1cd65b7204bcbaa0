"""The scripts that start jobs elsewhere, with stand-ins on PATH that record what they are asked."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
TOOLS = ("gcloud", "kubectl", "srun", "scontrol", "docker", "git", "python")
STAND_IN = """#!/usr/bin/env bash
case "${0##*/} $*" in git\\ describe*) echo 0123abc && exit ;; esac  # a question, no act
printf '%s\\0' "${0##*/}" "$@" >> "$RECORDS/calls"
printf '\\n' >> "$RECORDS/calls"
case "${0##*/} $*" in
  kubectl*apply*) cat > "$RECORDS/manifest" ;;
  *describe*) echo "$(head -n 1 "$RECORDS/states")" && sed -i 1d "$RECORDS/states" ;;
  srun*) exit "${CODE:-0}" ;;
esac
"""


class Cloud:
    """Runs launch scripts where every tool only writes its arguments down."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in TOOLS:
            tool = folder / "bin" / name
            tool.parent.mkdir(exist_ok=True)
            tool.write_text(STAND_IN)
            tool.chmod(0o755)

    def __call__(self, script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        (self.folder / "calls").unlink(missing_ok=True)
        kept = {k: v for k, v in os.environ.items() if k != "PYTHON" and "SLURM" not in k}
        kept |= {"PATH": f"{self.folder}/bin:{kept['PATH']}", "RECORDS": str(self.folder)}
        return subprocess.run(
            [LAUNCH / script, *arguments], env=kept | {"POLL": "0"} | more,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        lines = path.read_text().split("\0\n")[:-1] if path.exists() else []
        return [line.split("\0") for line in lines]


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)


TPU = ("--name=mine", "--zone=a-b1", "--type=v5litepod-16", "--nfs=10.0.0.2:/share")
JOB = ("--", "python", "-m", "musicssl.main", "--workdir=/mnt/musicssl/my runs")
GKE = (
    *("run", "--name=mine", "--image=r/i:1", "--accelerator=tpu-v5-lite-podslice"),
    *("--topology=4x4", "--hosts=4", "--chips=4", "--claim=disk"),
)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        *(("tpu.sh", (action, *TPU, *JOB)) for action in ("create", "setup", "run", "delete")),
        ("tpu.sh", ("logs", *TPU)),
        ("tpu.sh", ("stop", *TPU, "--slices=2")),
        ("gke.sh", ("logs", "--name=mine")),
        ("gke.sh", ("delete", "--name=mine")),
        ("image.sh", ("cuda", "r/i:1")),
        ("build_dataset.sh", ("dataflow", "synth_music", "gs://b/d", "--project=p")),
    ],
)
def test_a_dry_run_prints_what_would_be_run_and_runs_nothing(cloud, script, arguments):
    at = {"build_dataset.sh": 0, "image.sh": 2}.get(script, 1)
    dry = cloud(script, *arguments[:at], "--dry_run", *arguments[at:])
    assert dry.returncode == 0 and dry.stderr == "" and cloud.calls == []
    assert cloud(script, *arguments[:at], "--dry-run", *arguments[at:]).stdout == dry.stdout
    assert cloud.calls == []
    assert cloud(script, *arguments).returncode == 0
    printed = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert printed == cloud.calls and printed


def test_slices_are_asked_for_together(cloud):
    assert cloud("tpu.sh", "create", *TPU, "--slices=2", "--spot").returncode == 0
    (call,) = cloud.calls
    assert call[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
    assert {"--node-count=2", "--node-prefix=mine", "--spot", "--zone=a-b1"} <= set(call)
    assert "--runtime-version=v2-alpha-tpuv5-lite" in call
    cloud("tpu.sh", "stop", *TPU, "--slices=2")
    assert [call[5] for call in cloud.calls] == ["mine-0", "mine-1"]


def test_a_preempted_job_is_created_awaited_and_run_again(cloud):
    (cloud.folder / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    done = cloud("tpu.sh", "resume", *TPU, *JOB)
    assert done.returncode == 0, done.stderr
    verbs = [call[4] for call in cloud.calls if call[0] == "gcloud"]
    assert verbs == ["delete", "create", *["describe"] * 3, "scp", *["ssh"] * 3]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDING", "SUSPENDED"])
def test_machines_that_do_not_come_end_the_wait(cloud, state):
    (cloud.folder / "states").write_text(f"PROVISIONING\n{state}\n")
    done = cloud("tpu.sh", "resume", *TPU, *JOB)
    assert done.returncode == 1
    assert done.stderr.startswith(f"tpu.sh: mine is {state}: no machines came; delete it, and try")
    assert done.stderr.count("\n") == 1
    verbs = [call[4] for call in cloud.calls]
    assert verbs == ["delete", "create", "describe", "describe"]


def test_a_bucket_takes_the_place_of_a_shared_disk(cloud):
    where = ("--name=mine", "--zone=a-b1", "--type=v5litepod-16")
    job = ("--", "python", "-m", "musicssl.main", "--workdir=gs://b/my runs")
    assert cloud("tpu.sh", "setup", *where).returncode == 0
    said = " ".join(word for call in cloud.calls for word in call)
    assert "python3-venv" in said and "mount -t nfs" not in said and "remount" in said
    (cloud.folder / "states").write_text("ACTIVE\n")
    assert cloud("tpu.sh", "resume", *where, *job).returncode == 0
    assert "JAX_COMPILATION_CACHE_DIR=gs://b/my\\ runs/xla " in cloud.calls[-1][-1]
    assert cloud("tpu.sh", "run", *where, *job[:-1], "--workdir", "gs://b/x").returncode == 0
    assert "JAX_COMPILATION_CACHE_DIR=gs://b/x/xla " in cloud.calls[-1][-1]
    # a workdir of the machine's own: the folder for all of them is not there
    assert cloud("tpu.sh", "run", *where, *job[:-1], "--workdir=runs/a").returncode == 0
    assert "JAX_COMPILATION_CACHE_DIR" not in cloud.calls[-1][-1]
    on_disk = cloud("tpu.sh", "resume", *TPU[:3], *JOB)
    assert on_disk.returncode == 2 and cloud.calls == []
    assert "resume needs --nfs=HOST:/SHARE" in on_disk.stderr


def test_workers_know_the_commit_that_they_were_given(cloud, tmp_path):
    """What `setup` has every worker do with the archive, in a shell."""
    archive, home = tmp_path / "musicssl.tar.gz", tmp_path / "home"
    home.mkdir()
    git = ["git", "-C", str(LAUNCH.parent)]
    command = [*git, "archive", "--format=tar.gz", "--prefix=musicssl/", f"--output={archive}"]
    subprocess.run([*command, "HEAD", "requirements.txt"], check=True)
    assert cloud("tpu.sh", "setup", *TPU).returncode == 0
    told = cloud.calls[-1][-1].removeprefix("--command=").split(" && ")
    told = " && ".join(told[:2]).replace("/tmp/musicssl.tar.gz", str(archive))
    subprocess.run(["bash", "-c", told], cwd=home, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert (home / "musicssl/.commit").read_text() == head.stdout


def test_what_a_worker_is_told_runs_and_stops_there(cloud, tmp_path):
    """The commands of `run` and `stop`, in a shell, with a stand-in for the repetition."""
    again = tmp_path / "home/musicssl/launch/again.sh"
    again.parent.mkdir(parents=True)
    again.write_text(
        "#!/usr/bin/env bash\ntrap 'echo asked; exit 75' TERM\n"
        'printf \'%s\\n\' "$PWD" "$@"\nwhile true; do sleep 0.02; done\n'
    )
    again.chmod(0o755)
    log, home = tmp_path / "home/musicssl.log", {"HOME": str(tmp_path / "home")}

    def worker(action: str, end: str) -> list[str]:
        cloud("tpu.sh", action, *TPU, *JOB)
        command = cloud.calls[-1][-1].removeprefix("--command=")
        assert "--worker=all" in cloud.calls[-1]
        subprocess.run(["bash", "-c", command], env=os.environ | home, check=True)
        late = time.monotonic() + 30
        said = ""
        while end not in said and time.monotonic() < late:
            time.sleep(0.02)
            said = log.read_text() if log.exists() else ""
        return said.splitlines()

    assert worker("run", "my runs") == [str(tmp_path / "home/musicssl"), *JOB]
    assert worker("stop", "asked")[-1] == "asked"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu.sh", (), "give a command: create, status"),
        ("tpu.sh", ("create", "--name=x"), "--name and --zone are needed"),
        ("tpu.sh", ("create", "--name=x", "--zone=z"), "create needs --type"),
        ("tpu.sh", ("run", "--name=x", "--zone=z"), "run needs the job's command after --"),
        ("tpu.sh", ("resume", *TPU[:3], *JOB), "resume needs --nfs=HOST:/SHARE"),
        ("tpu.sh", ("create", "--zones=z"), "--zones=z: unknown, or has no value"),
        ("tpu.sh", ("resume", *TPU, *JOB, "--workdir=gs:/b/x"), "--workdir=gs:/b/x: give gs://"),
        ("gke.sh", (*GKE, "--", "--workdir=s3://b/x"), "--workdir=s3://b/x: give gs://BUCKET"),
        ("gke.sh", (*GKE[:-1], "--", "--config=a"), "run needs --claim, or --workdir=gs://"),
        ("gke.sh", (*GKE[:2], "--", "--config=a"), "run needs --image"),
        ("gke.sh", GKE, "run needs musicssl.main's flags after --"),
        ("slurm.sh", (), "give musicssl.main's flags"),
        ("image.sh", ("rocm", "i"), "use launch/image.sh tpu|cuda"),
        ("build_dataset.sh", ("flink", "a", "b", "--x"), "flink needs HOST:PORT after DATA_DIR"),
        ("again.sh", ("--restarts=2",), "give a command after --"),
    ],
)
def test_what_is_missing_is_named_in_one_line_before_anything_runs(
    cloud, script, arguments, message
):
    done = cloud(script, *arguments)
    assert done.returncode == 2 and cloud.calls == []
    assert done.stderr.startswith(f"{script}: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_the_manifest_is_filled_in(cloud):
    flags = ["--config=configs/music2vec.py", '--workdir=/mnt/musicssl/"my" runs']
    assert cloud("gke.sh", *GKE, "--slices=2", "--", *flags).returncode == 0
    assert cloud.calls == [["kubectl", "apply", "-f", "-"]]
    text = (cloud.folder / "manifest").read_text()
    assert "@" not in text
    manifest = yaml.safe_load(text)
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert manifest["metadata"]["name"] == "mine" and job["replicas"] == 2
    assert spec["parallelism"] == spec["completions"] == 4 and spec["backoffLimit"] == 0
    (container,) = spec["template"]["spec"]["containers"]
    assert container["image"] == "r/i:1" and container["args"] == flags
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    final = spec["podFailurePolicy"]["rules"][0]
    assert final["onExitCodes"]["values"] == [2, 3]
    assert json.dumps(manifest).count("tpu-v5-lite-podslice") == 1
    names = [volume["name"] for volume in spec["template"]["spec"]["volumes"]]
    assert names == [mount["name"] for mount in container["volumeMounts"]] == ["memory", "disk"]
    assert container["env"][0]["value"] == "/mnt/musicssl/xla"
    for absent in ("gcsfuse", "kueue", "serviceAccount"):
        assert absent not in text


def test_the_manifest_of_a_bucket_a_queue_and_an_account(cloud):
    more = ("--bucket=clips", "--queue=night", "--service_account=trainer")
    flags = ["--config=configs/music2vec.py", '--workdir=gs://b/"my" runs']
    assert cloud("gke.sh", *GKE[:-1], *more, "--", *flags).returncode == 0
    text = (cloud.folder / "manifest").read_text()
    assert "@" not in text and "persistentVolumeClaim" not in text
    manifest = yaml.safe_load(text)
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "night"}
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["spec"]["serviceAccountName"] == "trainer"
    (container,) = pod["spec"]["containers"]
    assert container["args"] == flags
    assert container["env"][0]["value"] == 'gs://b/"my" runs/xla'
    memory, bucket = pod["spec"]["volumes"]
    assert memory == {"name": "memory", "emptyDir": {"medium": "Memory"}}
    assert bucket["csi"]["driver"] == "gcsfuse.csi.storage.gke.io" and bucket["csi"]["readOnly"]
    assert bucket["csi"]["volumeAttributes"]["bucketName"] == "clips"
    assert [x["mountPath"] for x in container["volumeMounts"]] == ["/dev/shm", "/mnt/bucket"]


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, 0), (2, 0), (3, 0), (69, 1), (74, 1), (75, 1), (137, 1)]
)
def test_slurm_puts_a_job_back_that_can_go_on(cloud, code, requeued):
    done = cloud("slurm.sh", "--config=a", "--workdir=my runs", CODE=str(code), SLURM_JOB_ID="7")
    assert done.returncode == (0 if requeued else code)
    command = ["python", "-m", "musicssl.main", "--config=a", "--workdir=my runs"]
    assert cloud.calls[0] == ["srun", "--kill-on-bad-exit=1", "--gpu-bind=none", *command]
    assert cloud.calls[1:] == [["scontrol", "requeue", "7"]] * requeued


@pytest.mark.parametrize(
    "arguments",
    [
        ("dataflow", "synth_music", "gs://b/d", "--project=p", "--region=r"),
        ("flink", "synth_music", "/d", "host:8081"),
        ("spark", "synth_music", "/d", "host:8099", "--environment_type=DOCKER"),
    ],
)
def test_beam_knows_the_options_of_a_cluster(cloud, arguments):
    from apache_beam.options.pipeline_options import PipelineOptions

    assert cloud("build_dataset.sh", *arguments).returncode == 0
    (call,) = cloud.calls
    assert call[:5] == ["python", "-m", "data_pipelines.build", "synth_music", call[4]]
    options = PipelineOptions(call[5:])
    assert options.get_all_options(retain_unknown_options=True) == options.get_all_options()


@pytest.mark.parametrize(
    ("code", "lives"), [(0, 1), (2, 1), (3, 1), (130, 1), (69, 3), (74, 3), (75, 3), (134, 3)]
)
def test_a_command_is_run_again_where_that_can_help(tmp_path, code, lives):
    count = tmp_path / "count"
    command = ["--restarts=2", "--wait=0", "--", "bash", "-c", f"echo >> {count}; exit {code}"]
    done = subprocess.run(
        [LAUNCH / "again.sh", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert len(count.read_text().splitlines()) == lives
    assert done.stderr.count("running it again") == lives - 1


def repeated(inner: str) -> subprocess.Popen:
    """A shell command that is run again, once it is ready."""
    process = subprocess.Popen(
        [LAUNCH / "again.sh", "--wait=0", "--", "bash", "-c", inner],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_command_that_is_run_again_is_asked_to_end_by_sigterm(number):
    process = repeated(
        "trap 'echo asked; exit 75' TERM; echo ready; while true; do sleep 0.02; done"
    )
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "asked\n" and process.returncode == 75


def test_a_second_ctrl_c_kills_a_command_that_is_run_again():
    process = repeated("trap 'echo asked' TERM; echo ready; while true; do sleep 0.02; done")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        if process.stdout.readline() != "asked\n":
            break
    assert process.wait(timeout=30) == 128 + signal.SIGKILL


def test_shellcheck_has_nothing_to_say():
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert len(scripts) > 5
    shellcheck = Path(sys.executable).with_name("shellcheck")  # the environment may not be active
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_an_image_holds_what_the_command_imports(kind):
    lines = (LAUNCH / f"{kind}.Dockerfile").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY")}
    assert copied == {"requirements.txt", "configs", "data_pipelines", "musicssl", "launch"}
    assert all((LAUNCH.parent / name).exists() for name in copied)
    assert {'ARG COMMIT=""', "ENV MUSICSSL_COMMIT=$COMMIT"} <= set(lines)
    ignored = (LAUNCH.parent / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*" and {x[1:] for x in ignored if x.startswith("!")} == copied


def test_an_image_is_given_its_commit(cloud):
    assert cloud("image.sh", "tpu", "r/i:1").returncode == 0
    assert "COMMIT=0123abc" in cloud.calls[0] and cloud.calls[1] == ["docker", "push", "r/i:1"]
