#!/usr/bin/env bash
# Builds and pushes the image of a Dockerfile here: launch/image.sh tpu|cuda IMAGE [--dry_run]
# The image contains the commit of its code, which is recorded in checkpoints.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-} image=${2:-} dry_run=${3:-}
if [[ ! -f launch/$kind.Dockerfile || ! $image || (-n $dry_run && $dry_run != --dry[_-]run) ]]; then
  echo "image.sh: use launch/image.sh tpu|cuda REGISTRY/IMAGE:TAG [--dry_run]" >&2
  exit 2
fi
call() {
  local line
  printf -v line '%q ' "$@"
  if [[ $dry_run ]]; then echo "${line% }"; else "$@"; fi
}
commit=$(git describe --always --dirty --abbrev=40 2>/dev/null || true)
call docker build --platform=linux/amd64 --build-arg "COMMIT=$commit" \
  -f "launch/$kind.Dockerfile" -t "$image" .
call docker push "$image"
