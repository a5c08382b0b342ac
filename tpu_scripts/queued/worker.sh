#!/usr/bin/env bash
# What happens on a worker; setup.sh copies this file there and the other scripts call it over ssh.
#
#   worker.sh setup WHEEL BUCKET     install, mount; may be repeated
#   worker.sh start COMMAND...       start in the background, unless training runs already
#   worker.sh stop                   SIGTERM, so that it saves; SIGKILL after two minutes
#   worker.sh status OUTPUT          one line: worker HOST STATE STEP (below)
#   worker.sh logs LINES             the end of the log
#
# Training must outlive the ssh connection, so it gets a session of its own (setsid) under a small supervisor. That
# writes ~/job/log and, when training ends, ~/job/exit_code, and holds a lock on ~/job/lock meanwhile. A lock, unlike a
# file with a process id, is right after a crash or a reboot too. (systemd-run would do as well, but needs root and
# keeps no exit code of what ended well; nothing here needs more than bash and util-linux.)
set -euo pipefail
cd ~
export PATH=$HOME/venv/bin:$HOME/.local/bin:$PATH
mkdir -p job
GCSFUSE=3.8.0

setup() {
  local wheel=$1 bucket=$2
  # The images' own Python is older than 3.11 (22.04: 3.10), so uv brings one.
  python3 -m pip install --quiet --user uv
  uv venv --quiet --allow-existing --python 3.12 venv
  uv pip install --quiet --python venv --reinstall-package deberta-jax "./${wheel}[train,tpu]"
  if mountpoint --quiet bucket; then return; fi
  if ! command -v gcsfuse > job/gcsfuse; then
    local package=gcsfuse_${GCSFUSE}_amd64.deb
    curl --fail --silent --show-error --location --output "job/$package" \
      "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$GCSFUSE/$package"
    # A fresh machine is still updating itself: wait for its lock.
    sudo apt-get -o DPkg::Lock::Timeout=600 install --yes --quiet "./job/$package"
  fi
  mkdir -p bucket
  # No cache of metadata: a worker must see at once what another has written, or a checkpoint of all is not found.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" bucket
}

running() { ! flock --nonblock job/lock true; }

start() {
  if running; then
    echo "$(hostname): training already, left alone"
    return
  fi
  rm -f job/exit_code
  setsid bash "$0" supervise "$@" >> job/log 2>&1 < /dev/null &
  until running || [[ -e job/exit_code ]]; do sleep 0.1; done
  echo "$(hostname): started"
}

# Not for people: what `start` puts in the background.
supervise() {
  exec 9> job/lock
  flock 9
  echo $$ > job/pid
  echo "=== $(date --utc +%FT%TZ) $*"
  trap : TERM # not its own end: it has to write the exit code. Training itself gets the signal as usual.
  local code=0
  "$@" 9>&- || code=$?
  echo "=== $(date --utc +%FT%TZ) exit code $code"
  echo "$code" > job/exit_code.new
  mv job/exit_code.new job/exit_code
  kill -KILL 0 # data workers that training left behind would keep the TPU busy; this ends the supervisor too
}

stop() {
  if ! running; then return; fi
  kill -TERM -- "-$(cat job/pid)" # the whole session
  if ! flock --timeout 120 job/lock true; then kill -KILL -- "-$(cat job/pid)"; fi
}

# STATE: running, an exit code, or none (never started, or the machine was restarted under it).
# STEP: of the newest checkpoint; Orbax gives a step's folder its number when the checkpoint is whole.
status() {
  local state=none step=''
  if running; then
    state=running
  elif [[ -e job/exit_code ]]; then
    state=$(cat job/exit_code)
  fi
  if [[ -d $1/checkpoints ]]; then
    # A bucket that hangs must not hide the state.
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
