#!/usr/bin/env bash
#SBATCH --job-name=musicssl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=musicssl-%j.log
#
# Several GPU machines under Slurm, one task per GPU:
#
#   sbatch [--nodes=4 --time=... ...] launch/slurm.sh --config=configs/music2vec.py --workdir=...
#   launch/slurm.sh --dry_run --config=...        print the command that the job would run
#
# Flags are those of musicssl.main; the workdir has to be on a disk that all nodes share. Three
# minutes before the time limit, and at a preemption, Slurm sends SIGTERM: the run saves and ends,
# and this job goes back to the queue, as it does when a process is lost. Exit codes 0 (complete),
# 2 (refused) and 3 (stopped) end it. Environment: PYTHON, the interpreter, default python.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"

dry_run=false
if [[ ${1:-} == --dry[_-]run ]]; then
  dry_run=true
  shift
fi
(($#)) || { echo "slurm.sh: give musicssl.main's flags, --config=... first" >&2 && exit 2; }
# all tasks see all of a node's GPUs and take their own; the first that fails ends the others
command=(srun --kill-on-bad-exit=1 --gpu-bind=none "${PYTHON:-python}" -m musicssl.main "$@")
if $dry_run; then
  printf -v line '%q ' "${command[@]}"
  echo "${line% }"
  exit
fi
code=0
"${command[@]}" || code=$?
case $code in 0 | 2 | 3) exit "$code" ;; esac
echo "slurm.sh: exit code $code: back to the queue" >&2
scontrol requeue "$SLURM_JOB_ID"
