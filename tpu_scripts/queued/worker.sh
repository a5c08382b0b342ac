#!/usr/bin/env bash
# Runs on each worker. setup.sh copies this file there, and the other scripts call it over ssh.
#
#   worker.sh setup WHEEL BUCKET     install the wheel with ~/constraints.txt, mount the bucket; safe to repeat
#   worker.sh start COMMAND...       start training in the background, unless it is already running
#   worker.sh stop                   send SIGTERM, so that training saves, and SIGKILL after two minutes
#   worker.sh status OUTPUT          print one line: worker HOST STATE STEP (see below)
#   worker.sh logs LINES             print the last lines of the log
#
# Training must outlive the ssh connection, so it runs in a new session (setsid) under a small supervisor, which writes
# ~/job/log, writes ~/job/exit_code when training ends, and holds a lock on ~/job/lock until then. Unlike a file with a
# process ID, a lock is released by a crash or a reboot as well. (systemd-run would need root, and it does not keep the
# exit code of a command that succeeded. This needs only bash and util-linux.)
set -euo pipefail
cd ~
export PATH=$HOME/venv/bin:$HOME/.local/bin:$PATH
mkdir -p job
GCSFUSE=3.8.0

setup() {
  local wheel=$1 bucket=$2
  # The Python of the images is too old (Ubuntu 22.04 has 3.10), so uv installs another.
  python3 -m pip install --quiet --user uv
  uv venv --quiet --allow-existing --python 3.12 venv
  uv pip install --quiet --python venv --constraint constraints.txt \
    --reinstall-package deberta-jax "./${wheel}[train,tpu]"
  if mountpoint --quiet bucket; then return; fi
  if ! command -v gcsfuse > job/gcsfuse; then
    local package=gcsfuse_${GCSFUSE}_amd64.deb
    curl --fail --silent --show-error --location --output "job/$package" \
      "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$GCSFUSE/$package"
    # A new machine may still be installing updates: wait for the lock of apt.
    sudo apt-get -o DPkg::Lock::Timeout=600 install --yes --quiet "./job/$package"
  fi
  mkdir -p bucket
  # Without a metadata cache a worker sees at once what others have written. With one, it may miss that a checkpoint was
  # committed.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" bucket
}

running() { ! flock --nonblock job/lock true; }

start() {
  if running; then
    echo "$(hostname): training is already running"
    return
  fi
  rm -f job/exit_code
  setsid bash "$0" supervise "$@" >> job/log 2>&1 < /dev/null &
  until running || [[ -e job/exit_code ]]; do sleep 0.1; done
  echo "$(hostname): started"
}

# Internal: `start` runs this in the background.
supervise() {
  exec 9> job/lock
  flock 9
  echo $$ > job/pid
  echo "=== $(date --utc +%FT%TZ) $*"
  # `stop` sends SIGTERM to the whole session. Training receives it; the supervisor survives to write the exit code.
  trap : TERM
  local code=0
  "$@" 9>&- || code=$?
  echo "=== $(date --utc +%FT%TZ) exit code $code"
  echo "$code" > job/exit_code.new
  mv job/exit_code.new job/exit_code
  kill -KILL 0 # ends processes that training left behind, which would keep the TPU busy, and the supervisor itself
}

stop() {
  if ! running; then return; fi
  kill -TERM -- "-$(cat job/pid)" # the whole session
  if ! flock --timeout 120 job/lock true; then kill -KILL -- "-$(cat job/pid)"; fi
}

# STATE is running, an exit code, or none (never started, or the machine was restarted).
# STEP is the step of the newest checkpoint: Orbax names the folder by its step when the checkpoint is complete.
status() {
  local state=none step=''
  if running; then
    state=running
  elif [[ -e job/exit_code ]]; then
    state=$(cat job/exit_code)
  fi
  if [[ -d $1/checkpoints ]]; then
    # The timeout returns the state even if the bucket hangs.
    step=$(timeout --signal=KILL 60 find "$1/checkpoints" -maxdepth 1 -regex '.*/[0-9]+' -printf '%f\n' |
      sort -n | tail -n 1) || step=''
  fi
  echo "worker $(hostname) $state ${step:-0}"
}

logs() { tail -n "$1" job/log | sed "s/^/$(hostname): /"; }

case ${1:-} in
  setup | start | supervise | stop | status | logs) "$@" ;;
  *) echo "worker.sh: ${1:-nothing} given; allowed: setup, start, stop, status, logs" >&2 && exit 2 ;;
esac
