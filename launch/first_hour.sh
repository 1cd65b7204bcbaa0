#!/usr/bin/env bash
# The first hour on a GPU: is the training step right there, how fast is it, and does a run learn?
#
#   launch/first_hour.sh [--minutes=25] [--config=FILE:VARIANT] [--output=DIR] [--work=DIR]
#                        [--only=PART,...] [--toy] [--dry_run] [-- FLAG ...]
#
#   --minutes=25  for all parts: no benchmark begins after six tenths of the time, and training ends
#                 after five sixths of it
#   --config=...  what is trained; default configs/musichubert.py:reference
#   --output=DIR  where results go as soon as they exist, a few kB each: results/first_hour
#   --work=DIR    where the data, the run and the exported model go: runs/first_hour
#   --only=...    some of the parts below
#   --toy         rehearse it on a CPU, with small models, for 6 minutes unless --minutes says
#                 otherwise; no row is left out for lack of time, and training has 5 minutes, so
#                 that one start is enough even on a busy machine
#   --dry_run     print the commands, run nothing
#   FLAG          a flag of musicssl.main
#
# Parts: check (compares a first step with the CPU's), benchmark (times the steps of both methods on
# clips of 5.1 and 29.9 s, and transformers' HubertModel, compiled), compose (music, on all cores),
# train (saving every two minutes), probe (with random initial values and log-mel for comparison),
# export. The first two need jax for CUDA, flax, optax, ml_collections and tqdm, and PyTorch and
# transformers for the rows of HubertModel; the others need requirements.txt. For a machine without
# a network, run `pip download -d wheels ...` elsewhere and
# `pip install --no-index --find-links=wheels ...` there.
#
# Parts that have a result are skipped when the same command is run again. Exit codes: 0 all parts
# ran; 1 a part failed, as its PART.txt says, and the others ran; 2 refused; 75 asked to end (SIGTERM,
# Ctrl-C). Environment: PYTHON, the interpreter, default python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python}
minutes='' config=configs/musichubert.py:reference output=results/first_hour work=runs/first_hour
all=check,benchmark,compose,train,probe,export
only=$all toy=false dry_run=false flags=() data=synth_music/16khz_varied

refuse() {
  echo "first_hour.sh: $*" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --minutes=?*) minutes=${1#*=} ;;
    --config=?*) config=${1#*=} ;;
    --output=?*) output=${1#*=} ;;
    --work=?*) work=${1#*=} ;;
    --only=?*) only=${1#*=} ;;
    --toy) toy=true ;;
    --dry_run | --dry-run) dry_run=true ;;
    --) shift && flags=("$@") && break ;;
    *) refuse "$1: unknown, or has no value; flags of musicssl.main go after --" ;;
  esac
  shift
done
least=60 # seconds that training has
if $toy; then minutes=${minutes:-6} data=synth_music least=300; else minutes=${minutes:-25}; fi
if [[ ! $minutes =~ ^[1-9][0-9]*$ ]]; then refuse "--minutes=$minutes: give a whole number"; fi
[[ -f ${config%%:*} ]] || refuse "--config=$config: there is no file ${config%%:*}"
for folder in "$output" "$work"; do
  if [[ $folder == *://* || $folder == gs:/* ]]; then
    refuse "$folder is not a path on this machine: copy the results to a bucket afterwards"
  fi
done
for part in ${only//,/ }; do
  [[ ,$all, == *,$part,* ]] || refuse "--only=$only: there is no part $part, use some of $all"
done
seconds=$((minutes * 60))
family=$(basename "${config%%:*}" .py)

wanted() { [[ ,$only, == *,$1,* ]]; }

# Refuses, before anything runs, if this machine lacks a package or GPU that the parts need.
look_around() {
  local modules=(jax flax optax ml_collections tqdm)
  if wanted compose; then modules+=(tensorflow tensorflow_datasets); fi
  if wanted train || wanted probe || wanted export; then
    modules+=(tensorflow tensorflow_datasets orbax.checkpoint clu safetensors)
    modules+=(sklearn matplotlib mir_eval)
  fi
  "$python" - "$toy" "${modules[@]}" <<'END'
import importlib.util
import sys

toy, *modules = sys.argv[1:]
packages = {
    "tensorflow": "tensorflow-cpu",
    "tensorflow_datasets": "tensorflow-datasets",
    "orbax.checkpoint": "orbax-checkpoint",
    "sklearn": "scikit-learn",
}


def there(name: str) -> bool:
    parent = name.rpartition(".")[0]
    return (not parent or there(parent)) and importlib.util.find_spec(name) is not None


if missing := [packages.get(name, name) for name in dict.fromkeys(modules) if not there(name)]:
    sys.exit(
        f"first_hour.sh: pip install {' '.join(missing)} first; --only=check,benchmark needs jax, "
        "flax, optax, ml_collections and tqdm alone"
    )
import jax

if toy != "true" and jax.default_backend() != "gpu":
    sys.exit(
        f"first_hour.sh: jax sees no GPU here, only {jax.devices()[0]}: pip install 'jax[cuda13]', "
        "or rehearse on a CPU with --toy"
    )
END
}

child=0 asked=false failed=()
forward() {
  asked=true
  ((child == 0)) || kill -TERM "$child" 2>/dev/null || true
}
trap forward TERM INT

# Runs a part's command, its output to the terminal and to <output>/<part>.txt; sets `code`.
run() {
  local part=$1
  shift
  code=0
  if $dry_run; then
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
    return
  fi
  echo "first_hour.sh: $part, after $((SECONDS / 60)) of $minutes minutes" >&2
  local told=$output/$part.txt before showing
  touch "$told"
  before=$(wc -c <"$told")
  "$@" >>"$told" 2>&1 &
  child=$!
  tail -c "+$((before + 1))" -s 0.1 --pid="$child" -f "$told" &
  showing=$!
  wait "$child" || true
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal interrupts a wait
  wait "$child" || code=$? # bash still knows the exit code
  child=0
  wait "$showing" || true
  sed -i 's/.*\r//' "$told" # keep the last state of a progress bar
  if $asked; then
    echo "first_hour.sh: asked to end; the same command resumes" >&2
    exit 75
  fi
}

fail() {
  failed+=("$1")
  echo "first_hour.sh: $1 failed: ${2:-see $output/$1.txt}" >&2
}

# A part of tests.benchmarks.gpu: rows that have no result yet, as long as there is time for them.
rows() {
  local part=$1 row extra=() most=$((seconds / 5 > 120 ? seconds / 5 : 120))
  shift
  if $toy; then extra=(--toy) most=900; fi
  for row in "$@"; do
    if [[ -e $output/$row.json ]]; then continue; fi
    if ! $toy && ((SECONDS > seconds * 6 / 10)); then
      echo "$row: left out, since no time is left for it" | tee -a "$output/$part.txt" >&2
      continue
    fi
    run "$part" timeout "$most" "$python" -m tests.benchmarks.gpu "--rows=$row" "--output=$output" \
      ${extra[@]+"${extra[@]}"}
    if ((code == 124)); then
      echo "$row: given up after $most s" | tee -a "$output/$part.txt" >&2
    fi
    if ((code)); then fail "$part"; fi
  done
}

# Prints how many milliseconds a training step takes. If the benchmark has timed clips of 5.1 s,
# that time is scaled to the audio in this configuration's batch.
step_milliseconds() {
  "$python" - "$output/$family-5s.json" "$config" "$toy" <<'END'
import importlib
import json
import pathlib
import sys

path, (file, _, variant), toy = pathlib.Path(sys.argv[1]), sys.argv[2].partition(":"), sys.argv[3]
name = file.removesuffix(".py").replace("/", ".")
config = importlib.import_module(name).get_config(*[variant] * bool(variant))
row = json.loads(path.read_text()) if path.exists() else {"ms a step": 100.0, "clips": 16}
clips = 4 if toy == "true" else config.batch_size * config.data.crop_frames / 256
print(max(1, round(row["ms a step"] * clips / row["clips"])))
END
}

# Prints the run's flags, one a line. Its steps depend on the time left, so the flags are kept.
train_flags() {
  local each=100 left steps
  if ! $dry_run; then each=$(step_milliseconds); fi
  left=$((seconds * 5 / 6 - SECONDS - seconds / 20)) # less the codebook and the first compilation
  steps=$((left * 1000 / each > 20 ? left * 1000 / each : 20))
  printf -- '--config.%s\n' "data.name=$data" "data.data_dir=$work/data" "steps=$steps" \
    "checkpoint.every=$((120000 / each + 1))" "log_every=$((steps / 100 + 1))"
  if [[ $family == musichubert ]]; then
    printf -- '--config.%s\n' "optim.warmup_steps=$((steps / 12 + 1))"
  fi
  if $toy; then
    printf -- '--config.%s\n' batch_size=4 data.crop_frames=40 encoder.layers=2 encoder.width=96 \
      encoder.heads=2 encoder.ffn_width=192 encoder.stem_width=32 encoder.pos_conv_kernel=16
    if [[ $family == musichubert ]]; then
      printf -- '--config.%s\n' teacher.targets=mel:kmeans:16,onset:kmeans:8 teacher.batches=4 \
        teacher.sample=2000
    fi
  fi
}

# Whether the run has saved anything.
has_run() { [[ -n $(compgen -G "$work/run/checkpoints/[0-9]*") ]]; }

train() {
  local left code=0 own
  if $dry_run; then
    mapfile -t own < <(train_flags)
  else
    [[ -s $work/train.flags ]] || train_flags >"$work/train.flags"
    mapfile -t own <"$work/train.flags"
  fi
  left=$((seconds * 5 / 6 - SECONDS))
  run train timeout --preserve-status --signal=TERM --kill-after=120 $((left > least ? left : least)) \
    "$python" -m musicssl.main "--config=$config" "--workdir=$work/run" "${own[@]}" \
    ${flags[@]+"${flags[@]}"}
  if $dry_run; then return; fi
  if ((code == 75)) && has_run; then
    echo "the time is over; the run is saved" | tee -a "$output/train.txt" >&2
  elif ((code)); then
    fail train
  fi
  if [[ -e $work/run/metrics.jsonl ]]; then
    tail -n 1 "$work/run/metrics.jsonl" >"$output/train.json"
  fi
}

probe() {
  local extra=("--config.layers=0,4,8,12")
  if $toy; then extra=(--config.limit=8); fi
  if [[ -e $output/probe/results.json ]]; then return; fi
  if ! $dry_run && ! has_run; then
    fail probe "there is no save of the run"
    return
  fi
  run probe "$python" -m musicssl.probe --config=configs/probe.py:ridge \
    "--config.encoder=$work/run" "--config.data_dir=$work/data" "--config.beside=random,logmel" \
    "--config.cache=$work/features" "--config.results=$output/probe" ${extra[@]+"${extra[@]}"}
  if ((code)); then fail probe; fi
}

export_model() {
  if [[ -e $work/model ]]; then return; fi
  if ! $dry_run && ! has_run; then
    fail export "there is no save of the run"
    return
  fi
  run export "$python" -m musicssl.export "--workdir=$work/run" "--output=$work/model"
  if ((code)); then fail export; fi
}

if ! $dry_run; then
  look_around || exit 2
  mkdir -p "$output" "$work"
fi
if wanted check; then rows check agreement-musichubert agreement-music2vec; fi
if wanted benchmark; then
  rows benchmark musichubert-5s transformers-5s musichubert-30s transformers-30s \
    music2vec-5s music2vec-30s
fi
if wanted compose; then
  for name in "$data" synth_music; do # the clips to train on, and those of the probes
    run compose "$python" -m data_pipelines.build "$name" "--data_dir=$work/data" \
      "--workers=$(nproc)"
    if ((code)); then fail compose; fi
    if [[ $data == synth_music ]]; then break; fi
  done
fi
if wanted train; then train; fi
if wanted probe; then probe; fi
if wanted export; then export_model; fi
if $dry_run; then exit; fi

echo "first_hour.sh: results are in $output" >&2
if ((${#failed[@]})); then
  echo "first_hour.sh: failed: ${failed[*]}" >&2
  exit 1
fi
