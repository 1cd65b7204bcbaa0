#!/usr/bin/env bash
# Builds a data set: with processes of this machine, or with Beam on a cluster.
#
#   launch/build_dataset.sh local NAME DATA_DIR [FLAG ...]
#   launch/build_dataset.sh dataflow NAME gs://BUCKET/DATA --project=P --region=R [FLAG ...]
#   launch/build_dataset.sh flink|spark NAME DATA_DIR HOST:PORT [FLAG ...]
#
# HOST:PORT is Flink's REST address, or the job endpoint of Beam's Spark job server. FLAGs go to
# data_pipelines.build (--manual_dir=...) and to Beam. --dry_run, as the first argument, only prints
# the command. Workers have to see --manual_dir and DATA_DIR, and need a Beam image that contains the
# packages of requirements.txt and data_pipelines/: --sdk_container_image=IMAGE on Dataflow,
# --environment_type=DOCKER --environment_config=IMAGE elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry_run=false
if [[ ${1:-} == --dry[_-]run ]]; then
  dry_run=true
  shift
fi
if (($# < 3)); then
  echo "build_dataset.sh: use local|dataflow|flink|spark NAME DATA_DIR [FLAG ...]" >&2
  exit 2
fi
runner=$1 name=$2 data_dir=$3
shift 3
command=("${PYTHON:-python}" -m data_pipelines.build "$name" "--data_dir=$data_dir")
case $runner in
  local) ;;
  dataflow)
    command+=(--runner=DataflowRunner "--temp_location=$data_dir/beam")
    command+=("--job_name=${name//[_\/]/-}")
    ;;
  flink | spark)
    if [[ ${1:-} != *:* || ${1:-} == --* ]]; then
      echo "build_dataset.sh: $runner needs HOST:PORT after DATA_DIR" >&2
      exit 2
    fi
    if [[ $runner == flink ]]; then
      command+=(--runner=FlinkRunner "--flink_master=$1")
    else
      command+=(--runner=PortableRunner "--job_endpoint=$1")
    fi
    shift
    ;;
  *)
    echo "build_dataset.sh: $runner: use local, dataflow, flink or spark" >&2
    exit 2
    ;;
esac
command+=("$@")
if $dry_run; then
  printf -v line '%q ' "${command[@]}"
  echo "${line% }"
else
  exec "${command[@]}"
fi
