#!/usr/bin/env bash
# Trains on a Cloud TPU slice: the same `python -m mim_jax.main` line on every one of its hosts.
# `launch/tpu_vm.sh --help` lists the commands; docs/launch.md walks through them.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu_vm.sh COMMAND [OPTION]... [-- TRAINING ARGUMENT...]

Commands
  create    request the slice and wait until it is there
  install   send the commit HEAD to all workers and install it there
  start     start training on all workers; it outlives this connection
  log       follow a worker's log
  status    the slice's state, and each worker's process and last log line
  stop      SIGTERM on all workers: each saves and ends
  delete    delete the slice
  all       create, install, start, log

Options (or the environment variable named in brackets)
  --name=NAME         name of the slice                               [TPU_NAME]
  --zone=ZONE         zone, as in us-west4-a                          [TPU_ZONE]
  --project=PROJECT   project; without it, the one gcloud is set to   [TPU_PROJECT]
  --type=TYPE         accelerator type, by default v5litepod-16       [TPU_TYPE]
  --version=IMAGE     software version, by default the type's         [TPU_VERSION]
  --spot              spot capacity: cheaper, and may be taken away
  --direct            create the slice now or fail, without the queue
  --setup=COMMAND     for install: a shell command for every worker at the end, such as a mount
  --worker=N          for log: the worker, by default 0
  --dry-run           print every command, run none

Training arguments go to `python -m mim_jax.main` as they are. --config and --workdir must be among
them, and the work directory must be one that all workers share.

  launch/tpu_vm.sh all --name=dtm --zone=us-west4-a --type=v5litepod-16 -- \
    --config=configs/dtm_vitb.py --workdir=/mnt/shared/runs/dtm_vitb
TEXT
}

die() {
  echo "launch/tpu_vm.sh: $*" >&2
  exit 2
}

# The arguments as one line that any POSIX shell reads back as the same arguments.
quoted() {
  local word line=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/\'\\\'\'}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() {
  if [[ $dry_run = yes ]]; then
    quoted "$@"
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

gcloud_tpu() {
  run gcloud compute tpus "$@" --zone="$zone" ${project:+"--project=$project"}
}

# Runs the shell commands on standard input on a worker, or on all.
on_worker() {
  gcloud_tpu tpu-vm ssh "$name" --worker="$1" --command="$(cat)"
}

create() {
  local spot_flag=''
  if [[ $spot = yes ]]; then
    spot_flag=--spot
  fi
  if [[ $direct = yes ]]; then
    gcloud_tpu tpu-vm create "$name" --accelerator-type="$type" --version="$version" \
      ${spot_flag:+"$spot_flag"}
    return
  fi
  gcloud_tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${spot_flag:+"$spot_flag"}
  if [[ $dry_run = yes ]]; then
    echo '# every 30 s, until it prints ACTIVE:'
    state
    return
  fi
  local now
  while true; do
    now=$(state)
    echo "$name: $now" >&2
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        die "the request for $name is $now; delete it (launch/tpu_vm.sh delete), then create again."
        ;;
    esac
    sleep 30
  done
}

state() {
  if [[ $direct = yes ]]; then
    gcloud_tpu tpu-vm describe "$name" --format='value(state)'
  else
    gcloud_tpu queued-resources describe "$name" --format='value(state.state)'
  fi
}

install() {
  local archive=${TMPDIR:-/tmp}/mim_jax-$name.tar.gz
  if [[ -n $(git -C "$root" status --porcelain 2>/dev/null) ]]; then
    echo 'launch/tpu_vm.sh: uncommitted changes are not sent; HEAD is.' >&2
  fi
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  gcloud_tpu tpu-vm scp "$archive" "$name:mim_jax.tar.gz" --worker=all
  run rm -f "$archive"
  # The image may bring a Python older than 3.11; uv brings its own.
  on_worker all <<'TEXT'
set -e
mkdir -p ~/mim_jax
tar -xzf ~/mim_jax.tar.gz -C ~/mim_jax
cd ~/mim_jax
test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
test -x .venv/bin/python || ~/.local/bin/uv venv --python 3.12 .venv
~/.local/bin/uv pip install --python .venv/bin/python -e ".[tpu]"
TEXT
  if [[ -n $setup ]]; then
    on_worker all <<<"$setup"
  fi
}

# `pgrep -F train.pid -f mim_jax.main` is the process that `start` left, and not another one that
# has been given its number since.
start() {
  on_worker all <<TEXT
cd ~/mim_jax || exit 1
if pgrep -F train.pid -f mim_jax.main >/dev/null 2>&1; then
  echo "already running on this worker" >&2
  exit 1
fi
nohup .venv/bin/python -m mim_jax.main $(quoted "$@") >>train.log 2>&1 </dev/null &
echo \$! >train.pid
TEXT
}

log() {
  on_worker "$worker" <<<'tail -n 100 -F ~/mim_jax/train.log'
}

status() {
  state
  on_worker all <<'TEXT'
cd ~/mim_jax || exit 1
if pid=$(pgrep -F train.pid -f mim_jax.main 2>/dev/null); then
  echo "running, process $pid"
else
  echo "not running"
fi
tail -n 1 train.log 2>/dev/null || true
TEXT
}

stop() {
  on_worker all <<'TEXT'
cd ~/mim_jax || exit 1
pid=$(pgrep -F train.pid -f mim_jax.main 2>/dev/null) || { echo "not running"; exit 0; }
kill -TERM "$pid"
for _ in $(seq 600); do
  kill -0 "$pid" 2>/dev/null || { echo "stopped"; exit 0; }
  sleep 0.5
done
echo "still running after 300 s" >&2
exit 1
TEXT
}

delete() {
  if [[ $direct = yes ]]; then
    gcloud_tpu tpu-vm delete "$name" --quiet
  else
    gcloud_tpu queued-resources delete "$name" --force --quiet
  fi
}

image_of() {
  case $1 in
    v6e*) echo v2-alpha-tpuv6e ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v5lite* | v5e*) echo v2-alpha-tpuv5-lite ;;
    v2* | v3* | v4*) echo tpu-ubuntu2204-base ;;
  esac
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-}
type=${TPU_TYPE:-v5litepod-16} version=${TPU_VERSION:-}
spot=no direct=no setup='' worker=0 dry_run=no command=''

while (($#)); do
  case $1 in
    --name=* | --zone=* | --project=* | --type=* | --version=* | --setup=* | --worker=*)
      option=${1%%=*}
      printf -v "${option#--}" '%s' "${1#*=}"
      ;;
    --spot) spot=yes ;;
    --direct) direct=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    create | install | start | log | status | stop | delete | all)
      [[ -z $command ]] || die "two commands, $command and $1; give one."
      command=$1
      ;;
    *) die "$1 is neither a command nor an option; training arguments follow a --. See --help." ;;
  esac
  shift
done

[[ -n $command ]] || die 'no command; see --help.'
[[ -n $name ]] || die 'the slice has no name; give --name=NAME.'
[[ -n $zone ]] || die 'there is no zone; give --zone=ZONE, as in us-west4-a.'
version=${version:-$(image_of "$type")}
[[ -n $version ]] || die "the software version of type $type is not known; give --version=IMAGE."
[[ $worker =~ ^[0-9]+$ ]] || die "--worker=$worker must be a number."
case $command in
  start | all)
    for needed in config workdir; do
      [[ " $* " = *" --$needed="* ]] ||
        die "$command needs --$needed=... among the training arguments, which follow a --."
    done
    ;;
  *) (($# == 0)) || die "$command takes no training arguments." ;;
esac
if [[ $dry_run = no ]] && ! command -v gcloud >/dev/null; then
  die 'gcloud is not installed; see https://cloud.google.com/sdk/docs/install, or use --dry-run.'
fi

case $command in
  start) start "$@" ;;
  all)
    create
    install
    start "$@"
    log
    ;;
  *) "$command" ;;
esac
