#!/usr/bin/env bash
# Runs a command again until it is complete or would only fail again.
#
#   launch/again.sh [--restarts=N] [--wait=SECONDS] -- python -m musicssl.main --config=...
#
# Ends when the command's exit code is 0 (complete), 2 (refused), 3 (stopped) or 130 (ended by
# Ctrl-C). After any other, such as a lost process of the job (69, 134), storage that did not answer
# (74) or a preemption (75), it waits --wait seconds (10) and runs the command again, at most
# --restarts times (1000). SIGTERM, a hang-up and Ctrl-C ask the command to save and end, and stop the
# restarts; a second Ctrl-C kills the command.
set -euo pipefail

restarts=1000 pause=10
while (($#)); do
  case $1 in
    --restarts=*) restarts=${1#*=} ;;
    --wait=*) pause=${1#*=} ;;
    --) shift && break ;;
    *) echo "again.sh: $1: use --restarts=N, --wait=SECONDS, then -- and the command" >&2 && exit 2 ;;
  esac
  shift
done
(($#)) || { echo "again.sh: give a command after --" >&2 && exit 2; }

asked=false child=0
forward() {
  asked=true
  ((child == 0)) || kill -TERM "$child" 2>/dev/null || true
}
interrupted=false
interrupt() { # sends no SIGINT: bash makes the command ignore it
  if $interrupted && ((child)); then kill -KILL "$child" 2>/dev/null || true; fi
  interrupted=true
  forward
}
trap forward TERM HUP
trap interrupt INT

while true; do
  "$@" &
  child=$!
  if $asked; then forward; fi # the signal came while the command started
  wait "$child" || true
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal interrupts a wait
  code=0
  wait "$child" || code=$? # bash still knows the exit code
  child=0
  case $code in 0 | 2 | 3 | 130) exit "$code" ;; esac
  if $asked || ((restarts == 0)); then exit "$code"; fi
  restarts=$((restarts - 1))
  echo "again.sh: exit code $code: running it again in $pause s ($restarts more times)" >&2
  sleep "$pause" &
  wait $! || true
  if $asked; then exit "$code"; fi
done
