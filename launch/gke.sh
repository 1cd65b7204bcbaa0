#!/usr/bin/env bash
# A TPU job on a GKE cluster that has the JobSet controller and a node pool of TPU slices.
#
#   launch/gke.sh run --name=NAME --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4
#                     --hosts=4 --chips=4 [--slices=N] [--claim=PVC] [--bucket=BUCKET]
#                     [--queue=QUEUE] [--service_account=NAME] -- --config=... --workdir=...
#   launch/gke.sh logs --name=NAME       follow the first worker
#   launch/gke.sh delete --name=NAME     send SIGTERM to every worker, which saves; remove the job
#
# --hosts counts the hosts of a slice, --chips the chips of a host. The workdir is in a bucket,
# --workdir=gs://BUCKET/..., or on a ReadWriteMany volume, --claim, mounted at /mnt/musicssl. --bucket
# mounts a bucket for reading at /mnt/bucket, by Cloud Storage FUSE; not for workdirs, whose folders
# cannot be renamed there. --queue names a LocalQueue of Kueue, and --service_account a Kubernetes
# service account that may use the bucket. The flags after -- are musicssl.main's. --dry_run prints
# the manifest and the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "gke.sh: $1" >&2
  exit 2
}

action=${1:-}
case $action in
  run | logs | delete) shift ;;
  *) fail "give a command: run, logs or delete" ;;
esac
declare -A given=([SLICES]=1)
dry_run=false
while (($#)); do
  case $1 in
    --dry_run | --dry-run) dry_run=true ;;
    --) shift && break ;;
    --name=?* | --image=?* | --accelerator=?* | --topology=?* | --hosts=?* | --chips=?* | \
      --claim=?* | --slices=?* | --bucket=?* | --queue=?* | --service_account=?*)
      flag=${1%%=*}
      flag=${flag#--}
      given[${flag^^}]=${1#*=}
      ;;
    *) fail "$1: unknown, or has no value; the job's flags come after --" ;;
  esac
  shift
done

call() {
  if $dry_run; then
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
  else
    "$@"
  fi
}

[[ ${given[NAME]:-} ]] || fail "--name is needed"
case $action in
  logs) # those of the process that writes; job/NAME-worker-0 would be any of the slice's hosts
    labels=jobset.sigs.k8s.io/jobset-name=${given[NAME]},jobset.sigs.k8s.io/job-index=0
    labels+=,batch.kubernetes.io/job-completion-index=0
    call kubectl logs --follow --tail=100 "--selector=$labels"
    ;;
  delete) call kubectl delete jobset "${given[NAME]}" ;;
  run)
    (($#)) || fail "run needs musicssl.main's flags after --"
    arguments=''
    [[ ! ${given[CLAIM]:-} ]] || given[CACHE]=/mnt/musicssl/xla
    for argument in "$@"; do
      argument=${argument//\\/\\\\}
      argument=${argument//\"/\\\"}
      arguments+=", \"$argument\""
      case $argument in
        --workdir=gs://?*) given[CACHE]=${argument#--workdir=}/xla ;;
        --workdir=*://* | --workdir=gs:* | --workdir=s3:*)
          fail "$argument: give gs://BUCKET/FOLDER, or a folder of the volume"
          ;;
      esac
    done
    given[ARGS]="[${arguments#, }]"
    manifest=$(<launch/jobset.yaml)
    for key in NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS SLICES; do
      [[ ${given[$key]:-} ]] || fail "run needs --${key,,}"
    done
    [[ ${given[CACHE]:-} ]] || fail "run needs --claim, or --workdir=gs://BUCKET/... after --"
    for key in CLAIM BUCKET QUEUE SERVICE_ACCOUNT; do # remove the lines of flags not given
      [[ ${given[$key]:-} ]] || manifest=$(grep -v "@$key@" <<<"$manifest")
    done
    for key in "${!given[@]}"; do
      manifest=${manifest//"@$key@"/"${given[$key]}"}
    done
    ! $dry_run || echo "$manifest"
    call kubectl apply -f - <<<"$manifest"
    ;;
esac
