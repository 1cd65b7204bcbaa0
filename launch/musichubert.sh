#!/usr/bin/env bash
# musicHuBERT at full scale, both iterations: 2000 clusters of MFCC for 250k steps, then 2000
# clusters of the first encoder's layer 6 for 400k steps, each with its own codebook.
#
#   launch/musichubert.sh [--dry_run] [--runs=DIR] [FLAG ...]
#
#   --dry_run   print the two commands, run nothing
#   --runs=DIR  where the workdirs are; default runs (from the repository's root)
#   FLAG        a flag of musicssl.main for both iterations, such as --config.data.data_dir=DATA
#
# Run the same command again to resume from what is on disk; on several hosts, run it on each. It ends
# with the exit code of the iteration that did not complete: 2 refused, 3 stopped (a collapse, or
# a loss that is not finite), 75 preempted after saving: run it again. SIGTERM, Ctrl-C and a hang-up
# are passed on to the iteration, which saves and ends.
# Environment: PYTHON, the interpreter, default python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=runs
dry_run=false
flags=()
for argument in "$@"; do
  case $argument in
    --dry_run | --dry-run) dry_run=true ;;
    --runs=?*) runs=${argument#--runs=} ;;
    --config.*=*) flags+=("$argument") ;;
    --config | --config=* | --workdir | --workdir=* | --runs | --runs=)
      echo "musichubert.sh: $argument: each iteration has its own, use --runs=DIR" >&2
      exit 2
      ;;
    *) flags+=("$argument") ;;
  esac
done

child=0
trap '((child == 0)) || kill -TERM "$child" 2>/dev/null || true' TERM INT HUP

iteration() {
  local variant=$1 code=0
  shift
  local command=("${PYTHON:-python}" -m musicssl.main "--config=configs/musichubert.py:$variant"
    "--workdir=$runs/musichubert-$variant" "$@")
  if $dry_run; then
    local line
    printf -v line '%q ' "${command[@]}"
    echo "${line% }"
    return
  fi
  "${command[@]}" &
  child=$!
  wait "$child" || true
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal interrupts a wait
  wait "$child" || code=$? # bash still knows the exit code
  child=0
  if ((code == 75)); then
    echo "musichubert.sh: $variant was preempted after saving: run the same command to resume" >&2
  elif ((code)); then
    echo "musichubert.sh: $variant ended with exit code $code: see above" >&2
  fi
  ((code == 0)) || exit "$code"
}

iteration k2000_iter1 "${flags[@]}"
iteration k2000_iter2 "${flags[@]}" "--config.teacher.encoder=$runs/musichubert-k2000_iter1"
