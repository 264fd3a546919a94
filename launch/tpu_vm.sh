#!/usr/bin/env bash
# Trains on Cloud TPU: the same `python -m mim_jax.main` line on every host of one or more slices.
# `launch/tpu_vm.sh --help` lists the commands; docs/launch.md walks through them.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu_vm.sh COMMAND [OPTION]... [-- TRAINING ARGUMENT...]

Commands
  create    request the slice and wait until it is there
  install   send a commit to all workers and install it there
  start     start training on all workers; it outlives this connection
  watch     until training has ended: request a slice that was taken away again, and resume
  all       create, install, start, watch
  log       follow a worker's log
  status    the state of the request, and each worker's process and last log line
  stop      SIGTERM on all workers: each saves and ends
  delete    delete the slice

Options (or the environment variable named in brackets)
  --name=NAME         name of the request, and of the slice           [TPU_NAME]
  --zone=ZONE         zone, as in us-west4-a                          [TPU_ZONE]
  --project=PROJECT   project; without it, the one gcloud is set to   [TPU_PROJECT]
  --type=TYPE         accelerator type, by default v5litepod-16       [TPU_TYPE]
  --version=IMAGE     software version, by default the type's         [TPU_VERSION]
  --slices=N          so many slices of the type, by default 1
  --spot              spot capacity: cheaper, and may be taken away
  --gcloud=FLAG       a flag more for `queued-resources create`; may be repeated
  --ssh=FLAG          a flag more for every `ssh` and `scp` of gcloud; may be repeated
  --commit=REVISION   what install sends, by default HEAD
  --extras=LIST       what is installed with it, by default tpu,gcs
  --setup=COMMAND     for install: a shell command for every worker at the end, such as a mount
  --env=NAME[=VALUE]  a variable for training (without a value: this shell's); may be repeated
  --env-file=FILE     a file of NAME=VALUE lines for training, sent by install: for secrets
  --slice=N           for log: the slice, by default 0
  --worker=N          for log: the worker of the slice, by default 0
  --poll=SECONDS      between two looks at the state, by default 30
  --patience=N        looks in a row that may fail, by default 120
  --restarts=N        for watch: starts on one slice after errors of training, by default 3
  --dry-run           print every command, run none

Training arguments go to `python -m mim_jax.main` as they are. --config and --workdir must be among
them, and the work directory must be one that all workers share.

  launch/tpu_vm.sh all --name=dtm --zone=us-west4-a --type=v5litepod-16 --spot -- \
    --config=configs/dtm_vitb.py --workdir=gs://BUCKET/runs/dtm_vitb
TEXT
}

say() {
  echo "launch/tpu_vm.sh: $*" >&2
}

die() {
  say "$@"
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
    [[ $quiet = yes ]] || echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

queued() {
  run gcloud compute tpus queued-resources "$@" --zone="$zone" ${project:+"--project=$project"}
}

# Runs the shell commands on standard input: `on_worker SLICE WORKER`, either may be "all".
on_worker() {
  queued ssh "$name" --node="$1" --worker="$2" ${ssh_flags[@]+"${ssh_flags[@]}"} \
    --command="$(cat)"
}

# Copies a file to the home of all workers: `send FILE NAME`.
send() {
  queued scp "$1" "$name:$2" --node=all --worker=all ${ssh_flags[@]+"${ssh_flags[@]}"}
}

request() {
  local nodes=--node-id=$name
  if ((slices > 1)); then
    nodes=--node-count=$slices
  fi
  queued create "$name" "$nodes" --accelerator-type="$type" --runtime-version="$version" \
    ${spot:+"$spot"} ${create_flags[@]+"${create_flags[@]}"}
}

delete() {
  queued delete "$name" --force --quiet
}

# One of the states of a queued resource.
state() {
  local quiet=yes
  queued describe "$name" --format='value(state.state)'
}

# The states of the slices themselves, a line each.
slice_states() {
  local quiet=yes
  run gcloud compute tpus tpu-vm list --filter="queuedResource~/$name\$" \
    --format='value(state)' --zone="$zone" ${project:+"--project=$project"}
}

# Counts a look that failed, says so, and waits for the next one.
missed() {
  ((failed += 1))
  ((failed <= patience)) || die "$1, $failed times in a row; what runs there is left alone."
  say "$1; trying again."
  sleep "$poll"
}

# A slice that was taken away leaves its request behind, which keeps its name and uses up quota.
renew() {
  say "$name was taken away; it is requested again."
  stage=setup left=$restarts
  until
    delete || say "$name could not be deleted; it may be gone already."
    request
  do
    missed "$name could not be requested"
  done
}

# Returns once the slice is there.
await() {
  local now before=''
  while true; do
    if ! now=$(state) || [[ -z $now ]]; then
      missed "the state of $name could not be read"
      continue
    fi
    case $now in
      ACTIVE)
        [[ -z $before ]] || say "$name: ACTIVE"
        return
        ;;
      FAILED)
        die "the request for $name is FAILED; launch/tpu_vm.sh delete, then create again."
        ;;
      SUSPENDED) renew ;;
      "$before") ;;
      *) say "$name: $now" ;;
    esac
    before=$now failed=0
    sleep "$poll"
  done
}

create() {
  request
  if [[ $dry_run = yes ]]; then
    echo "# every $poll s, until it prints ACTIVE:"
    state
  else
    await
  fi
}

install() {
  local archive=${TMPDIR:-/tmp}/mim_jax-$name.tar.gz
  run git -C "$root" archive --format=tar.gz --output="$archive" "$commit" || return
  send "$archive" mim_jax.tar.gz || return
  run rm -f "$archive"
  # The image may bring an older Python; uv brings that of the constraints.
  on_worker all all <<TEXT || return
set -e
umask 077
touch ~/mim_jax.env
mkdir -p ~/mim_jax
tar -xzf ~/mim_jax.tar.gz -C ~/mim_jax
cd ~/mim_jax
test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/0.13.9/install.sh | sh
test -x .venv/bin/python || ~/.local/bin/uv venv --python 3.11 .venv
~/.local/bin/uv pip install --python .venv/bin/python -c launch/constraints.txt -e ".[$extras]"
TEXT
  if [[ -n $env_file ]]; then
    send "$env_file" mim_jax.env || return
  fi
  if [[ -n $setup ]]; then
    on_worker all all <<<"$setup"
  fi
}

# `pgrep -F train.pid -f mim_jax.main` is the process that `start` left, and not another one that
# has been given its number since.
start() {
  local variable variables=''
  for variable in ${env[@]+"${env[@]}"}; do
    variables="$variables${variable%%=*}=$(quoted "${variable#*=}")"$'\n'
  done
  on_worker all all <<TEXT
cd ~/mim_jax || exit 1
if pgrep -F train.pid -f mim_jax.main >/dev/null 2>&1; then
  echo "already running on this worker" >&2
  exit 1
fi
rm -f train.pid train.status train.stopped
set -a
test ! -e ~/mim_jax.env || . ~/mim_jax.env
${variables}set +a
nohup bash -c '"\$@" & echo \$! >train.pid; wait \$!; echo \$? >train.status' start \\
  .venv/bin/python -m mim_jax.main --stopped_status=75 $(quoted "$@") >>train.log 2>&1 </dev/null &
until test -s train.pid; do sleep 0.1; done
TEXT
}

# Prints running, stopped (by `stop`), the exit status, or gone; then the last line of the log.
# Worker 0 of slice 0 stands for all: a process that ends ends the others.
look() {
  local quiet=yes
  on_worker 0 0 <<'TEXT'
cd ~/mim_jax || exit 1
if pgrep -F train.pid -f mim_jax.main >/dev/null 2>&1; then
  echo running
elif test -e train.stopped; then
  echo stopped
else
  test -s train.status || sleep 2
  cat train.status 2>/dev/null || echo gone
fi
tail -n 1 train.log 2>/dev/null || true
TEXT
}

# Says that training is not under way, and that all is set up again, if it may be.
again() {
  ((left > 0)) || die "$1; see launch/tpu_vm.sh log, then start or delete."
  left=$((left - 1)) stage=setup
  say "$1; trying again."
  sleep "$poll"
}

watch() {
  local seen
  while true; do
    await
    case $stage in
      setup) # of other attempts some processes may be left
        if stop && install && start "$@"; then
          stage=look
        else
          again "training could not be started on $name"
        fi
        ;;
      look)
        # gcloud may reach no worker at all and still report success.
        if seen=$(look) && [[ -n $seen ]]; then
          failed=0
          say "training: ${seen//$'\n'/: }"
          case ${seen%%$'\n'*} in
            running) sleep "$poll" ;;
            0 | stopped)
              say "training has ended; $name costs until launch/tpu_vm.sh delete."
              return
              ;;
            *) again 'training ended before its last step' ;;
          esac
        elif [[ $(slice_states) =~ PREEMPTED|TERMINATED ]]; then
          renew
        else
          missed "worker 0 of $name could not be asked"
        fi
        ;;
    esac
  done
}

# The commands of watch, which of them are run depending on what they say.
show_watch() {
  echo "# every $poll s, until training has ended:"
  state
  look
  echo '# where worker 0 does not answer:'
  slice_states
  echo '# where the slice was taken away:'
  delete
  request
  echo '# then, and where training ended before its last step:'
  stop
  install
  start "$@"
}

log() {
  on_worker "$slice" "$worker" <<<'tail -n 100 -F ~/mim_jax/train.log'
}

status() {
  state
  on_worker all all <<'TEXT'
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
  on_worker all all <<'TEXT'
cd ~/mim_jax 2>/dev/null && pid=$(pgrep -F train.pid -f mim_jax.main 2>/dev/null) ||
  { echo "not running"; exit 0; }
touch train.stopped
kill -TERM "$pid"
for _ in $(seq 600); do
  kill -0 "$pid" 2>/dev/null || { echo "stopped"; exit 0; }
  sleep 0.5
done
echo "still running after 300 s" >&2
exit 1
TEXT
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
slices=1 spot='' create_flags=() ssh_flags=()
commit=HEAD extras=tpu,gcs setup='' env=() env_file=''
slice=0 worker=0 poll=30 patience=120 restarts=3 dry_run=no command=''
quiet=no failed=0 stage=look

while (($#)); do
  value=${1#*=}
  case $1 in
    --name=* | --zone=* | --project=* | --type=* | --version=* | --slices=* | --commit=* | \
      --extras=* | --setup=* | --slice=* | --worker=* | --poll=* | --patience=* | --restarts=*)
      option=${1%%=*}
      printf -v "${option#--}" '%s' "$value"
      ;;
    --gcloud=*) create_flags+=("$value") ;;
    --ssh=*) ssh_flags+=("$value") ;;
    --env=*)
      [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*(=|$) ]] || die "$1 must be --env=NAME[=VALUE]."
      if [[ $value != *=* ]]; then
        [[ -n ${!value+set} ]] || die "$1: there is no such variable in this shell."
        value=$value=${!value}
      fi
      env+=("$value")
      ;;
    --env-file=*)
      [[ -f $value ]] || die "$1: there is no such file."
      env_file=$value
      ;;
    --spot) spot=--spot ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    create | install | start | watch | log | status | stop | delete | all)
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
for option in slices slice worker poll patience restarts; do
  [[ ${!option} =~ ^[0-9]+$ ]] || die "--$option=${!option} must be a number."
done
[[ $extras =~ ^[a-z0-9,]+$ ]] || die "--extras=$extras must be names of extras, as in tpu,wandb."
left=$restarts
case $command in
  start | watch | all)
    for needed in config workdir; do
      [[ " $* " = *" --$needed="* ]] ||
        die "$command needs --$needed=... among the training arguments, which follow a --."
    done
    ;;
  *) (($# == 0)) || die "$command takes no training arguments." ;;
esac
case $command in
  # What a slice that was taken away gets again is the same commit, whatever HEAD is by then.
  install | watch | all)
    found=$(git -C "$root" rev-parse --verify --quiet "$commit^{commit}") ||
      die "--commit=$commit is no commit of $root."
    commit=$found
    if [[ -n $(git -C "$root" status --porcelain) ]]; then
      say "uncommitted changes are not sent; commit $commit is."
    fi
    ;;
esac
if [[ $dry_run = no ]] && ! command -v gcloud >/dev/null; then
  die 'gcloud is not installed; see https://cloud.google.com/sdk/docs/install, or use --dry-run.'
fi

case $dry_run-$command in
  yes-watch) show_watch "$@" ;;
  yes-all)
    create
    install
    start "$@"
    show_watch "$@"
    ;;
  no-all)
    create
    stage=setup
    watch "$@"
    ;;
  *) "$command" "$@" ;;
esac
