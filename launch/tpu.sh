#!/usr/bin/env bash
# Creates one or several TPU slices as a queued resource, runs a job on them, and deletes them.
#
#   launch/tpu.sh COMMAND --name=NAME --zone=ZONE [FLAG ...] [-- COMMAND OF EVERY WORKER]
#
# Commands, in the order in which a job needs them:
#   create   request the machines: --type=v5litepod-16 [--slices=N] [--spot]
#   status   print one word: WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED
#   setup    on every worker: copy this repository's HEAD, install, mount --nfs=HOST:/SHARE if given
#   run      start the command after -- on every worker, detached, and again after every failure
#   logs     follow worker 0's output
#   stop     send SIGTERM to every worker: the run saves and ends
#   resume   after a preemption: delete, create, wait until ACTIVE, set up, run
#   delete   give the machines back
#
# Flags: --project=PROJECT  --runtime=VERSION (default by --type)  --mount=DIR (/mnt/musicssl)
#        --dry_run prints every command and runs none.
# All workers have to share the workdir and the data: --workdir=gs://BUCKET/runs/NAME, or, with --nfs,
# --workdir=/mnt/musicssl/runs/NAME. `resume` ends with exit code 1 if it gets no machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "tpu.sh: $1" >&2
  exit 2
}

action=${1:-}
case $action in
  create | status | setup | run | logs | stop | resume | delete) shift ;;
  *) fail "give a command: create, status, setup, run, logs, stop, resume or delete" ;;
esac
name='' zone='' project='' type='' runtime='' nfs='' slices=1 mount=/mnt/musicssl
spot=false dry_run=false
while (($#)); do
  case $1 in
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --runtime=?*) runtime=${1#*=} ;;
    --slices=?*) slices=${1#*=} ;;
    --nfs=?*) nfs=${1#*=} ;;
    --mount=?*) mount=${1#*=} ;;
    --spot) spot=true ;;
    --dry_run | --dry-run) dry_run=true ;;
    --) shift && break ;;
    *) fail "$1: unknown, or has no value; the job's command comes after --" ;;
  esac
  shift
done
[[ $name && $zone ]] || fail "--name and --zone are needed"
case $action in
  create | resume) [[ $type ]] || fail "$action needs --type, such as v5litepod-16" ;;
esac
case $action in
  run | resume) (($#)) || fail "$action needs the job's command after --" ;;
esac
workdir='' before='' # the job's
for argument in "$@"; do
  [[ $before != --workdir ]] || workdir=$argument
  [[ $argument != --workdir=* ]] || workdir=${argument#*=}
  before=$argument
done
bucket=''
case $workdir in
  gs://?*) bucket=$workdir ;;
  *://* | gs:* | s3:*) fail "--workdir=$workdir: give gs://BUCKET/FOLDER, or a folder" ;;
esac
if [[ $action == resume && ! $nfs && ! $bucket ]]; then
  fail "resume needs --nfs=HOST:/SHARE, a disk for all workers, or a job with --workdir=gs://..."
fi
if [[ ! $runtime ]]; then
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
fi
where=("--zone=$zone")
[[ ! $project ]] || where+=("--project=$project")
nodes=("$name")
if ((slices > 1)); then
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi

call() {
  if $dry_run; then
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
  else
    "$@"
  fi
}

queued() { # verb, then flags
  local verb=$1
  shift
  call gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "$@"
}

on_workers() { # all or a number, then a shell command
  local node
  for node in "${nodes[@]}"; do
    call gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" "--worker=$1" "--command=$2"
  done
}

create() {
  local flags=("--accelerator-type=$type" "--runtime-version=$runtime")
  if ((slices > 1)); then
    flags+=("--node-count=$slices" "--node-prefix=$name")
  else
    flags+=("--node-id=$name")
  fi
  ! $spot || flags+=(--spot)
  queued create "${flags[@]}"
}

status() { queued describe "--format=value(state.state)"; }

await() {
  local state
  if $dry_run; then
    status
    return
  fi
  while true; do
    state=$(status) || state='not known yet'
    echo "$name is $state"
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "tpu.sh: $name is $state: no machines came; delete it, and try another --zone" \
          "or --type, or leave --spot out" >&2
        exit 1
        ;;
    esac
    sleep "${POLL:-60}"
  done
}

setup() {
  local archive=/tmp/musicssl.tar.gz node
  call git archive --format=tar.gz --prefix=musicssl/ "--output=$archive" HEAD
  for node in "${nodes[@]}"; do
    call gcloud compute tpus tpu-vm scp "$archive" "$node:$archive" "${where[@]}" --worker=all
  done
  local machine='sudo apt-get -qq install -y python3-venv nfs-common' share
  # by default it has half of the memory; a v5e host's 192 GB hold 1,000 hours of int16 at 16 kHz
  machine+=' && sudo mount -o remount,size=85% /dev/shm'
  if [[ $nfs ]]; then
    printf -v share 'sudo mkdir -p %q && { mountpoint -q %q || sudo mount -t nfs %q %q; }' \
      "$mount" "$mount" "$nfs" "$mount"
    machine+=" && $share"
  fi
  on_workers all "$machine"
  # the archive's header has the commit; uv brings Python 3.12: the machines' own is 3.10, which jax
  # no longer supports
  local commit="import tarfile; print(tarfile.open(\"$archive\").pax_headers[\"comment\"])"
  on_workers all "tar -xzf $archive && python3 -c '$commit' > musicssl/.commit \
&& python3 -m venv ~/.uv && ~/.uv/bin/pip install -q uv \
&& ~/.uv/bin/uv venv -q --allow-existing --python=3.12 musicssl/.venv \
&& ~/.uv/bin/uv pip install -q --python=musicssl/.venv -r musicssl/requirements.txt 'jax[tpu]'"
}

run() {
  local line cache=''
  printf -v line '%q ' "$@"
  # only worker 0 keeps what it compiles, here for all of them, if they share the workdir
  if [[ $bucket || $workdir == "$mount"/* ]]; then
    printf -v cache 'JAX_COMPILATION_CACHE_DIR=%q ' "${bucket:-$mount}/xla"
  fi
  on_workers all "cd ~/musicssl || exit 2; PATH=\$PWD/.venv/bin:\$PATH \
MUSICSSL_COMMIT=\$(cat .commit) ${cache}nohup launch/again.sh -- \
${line% } > ~/musicssl.log 2>&1 < /dev/null & echo \$! > ~/musicssl.pid"
}

case $action in
  create) create ;;
  status) status ;;
  setup) setup ;;
  run) run "$@" ;;
  logs)
    nodes=("${nodes[0]}")
    on_workers 0 "tail -n 100 -F ~/musicssl.log"
    ;;
  stop) on_workers all "kill -TERM \$(cat ~/musicssl.pid)" ;;
  resume)
    queued delete --force --quiet
    create
    await
    setup
    run "$@"
    ;;
  delete) queued delete --force --quiet ;;
esac
