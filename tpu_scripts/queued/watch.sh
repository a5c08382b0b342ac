#!/usr/bin/env bash
# Keep training running on a queued resource until it is done: check every minute, restart training that stopped, and
# create the queued resource again after a preemption. It calls setup.sh and run.sh itself. You can stop and restart it
# at any time.
#
#   watch.sh NAME --type v5litepod-256 --tier spot --wheel dist/deberta_jax-1.0.0-py3-none-any.whl --bucket BUCKET \
#     -- deberta-jax pretrain --output bucket/runs/base ...
#
#   NAME                         name of the queued resource
#   --type, --tier, --slices     as for create.sh
#   --wheel, --bucket            as for setup.sh
#   --poll       seconds between two checks (default: 60)
#   --starts     number of starts without a new checkpoint before it gives up (default: 5)
#   --backoff    seconds to wait before the second of these starts, doubled for each further one up to 600 (default: 30)
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print every call that it may make once, instead of making any
#
# State of the slice                  Action
#   SUSPENDED or FAILED               delete and create it, then treat it as a new slice
#   ACTIVE, nothing started           setup, run
#   ACTIVE, exit code 42 or >= 127    stop training on the other workers, run
#   ACTIVE, exit code 1 or other      print the logs and exit 1: the settings or the data are wrong
#   ACTIVE, exit code 0 everywhere    exit 0
# Exit status: 0 training is done, 1 it needs your help, 2 wrong usage. The slice is not deleted at the end and costs
# money until you run delete.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
tier='' slices=1 poll=60 starts=5 backoff=30
parse "--type --tier --slices --wheel --bucket --poll --starts --backoff --project --zone --" "$@"
check --poll "$poll" '[0-9]+' 'seconds, a whole number'
check_count --starts "$starts"
check --backoff "$backoff" '[0-9]+' 'seconds, a whole number'

# Prints the value of --output in the training command, where its checkpoints are.
output_folder() {
  local word previous=''
  for word in "${command[@]}"; do
    if [[ $previous == --output ]]; then echo "$word" && return; fi
    if [[ $word == --output=* ]]; then echo "${word#*=}" && return; fi
    previous=$word
  done
}
output=$(output_folder)
check '--output of the command' "$output" '[^:]+' 'a folder on the workers, such as bucket/runs/base'

run_script() {
  local verb=$1
  shift
  "$(dirname "${BASH_SOURCE[0]}")/$verb.sh" "$name" "--project=$project" "--zone=$zone" ${dry_run:+--dry-run} "$@"
}
create() { run_script create "--type=$type" "--tier=$tier" "--slices=$slices"; }
setup() { run_script setup "--wheel=$wheel" "--bucket=$bucket"; }
run() { run_script run "--type=$type" -- "${command[@]}"; }
delete() { run_script delete; }
logs() { run_script logs --lines=30; }
stop() { on_workers 'bash worker.sh stop'; }
describe() { queued describe "$name" "--format=value(state.state)"; }
status() {
  on_workers "if [ -e worker.sh ]; then bash worker.sh status $(quoted "$output"); else echo worker new none 0; fi"
}

for step in create setup run; do dry_run=1 "$step" > /dev/null; done # checks their arguments now, not hours later
if [[ $dry_run ]]; then
  for step in describe status setup stop run logs delete create; do "$step"; done
  exit
fi

log() { printf '%(%F %T)T %s\n' -1 "$*"; }
newest=0    # step of the newest checkpoint so far
started=0   # starts since that checkpoint
failures=0  # failed checks in a row
waited=0    # checks since some workers, but not all, have stopped
deleted=''  # set if the queued resource was deleted and must be created again

give_up() {
  log "$*"
  logs || true
  log "giving up; the slice costs money until you run: delete.sh $name"
  exit 1
}

# count_start REASON: counts a start (or a request that FAILED), gives up after the last, and waits before all but the
# first.
count_start() {
  ((started < starts)) || give_up "$1, and none of the last $starts starts saved a new checkpoint (newest: $newest)"
  if ((started > 0 && backoff > 0)); then
    local seconds=$((backoff << (started > 6 ? 6 : started - 1)))
    sleep $((seconds < 600 ? seconds : 600))
  fi
  started=$((started + 1))
  log "$1; start $started of at most $starts without a new checkpoint"
}

# Reads a line for each worker, "worker HOST STATE STEP", and decides what to do.
check_training() {
  local report word host state step running=0 done=0 failed=0 new=0 previous=$newest
  report=$(status) || return
  while read -r word host state step; do
    if [[ $word != worker ]]; then continue; fi
    if ((step > newest)); then newest=$step; fi
    case $state in
      running) running=$((running + 1)) ;;
      none) new=$((new + 1)) ;;
      0) done=$((done + 1)) ;;
      42 | 12[7-9] | 1[3-9][0-9] | 2[0-9][0-9]) failed=$((failed + 1)) ;;
      *) give_up "$host: exit code $state; a restart would not help" ;;
    esac
  done <<< "$report"
  if ((newest > previous)); then started=0; fi

  local stopped=$((failed + new))
  if ((running + done + stopped == 0)); then
    return 1
  elif ((running + stopped == 0)); then
    log "training is done on $done workers; the slice costs money until you run: delete.sh $name"
    exit 0
  elif ((stopped == 0)); then
    waited=0
    log "running on $running workers, newest checkpoint: step $newest"
  elif ((running + done > 0 && waited < 5)); then # the others may be saving, or have not noticed yet
    waited=$((waited + 1))
    log "stopped on $stopped workers, running on $running"
  else
    waited=0
    count_start "training stopped on $failed workers, not started on $new"
    if ((new)); then setup || return; fi
    if ((running + done + failed)); then stop || return; fi
    run
  fi
}

# Checks the queued resource once.
check_slice() {
  local state
  if [[ $deleted ]]; then
    create || return
    deleted=''
    return
  fi
  state=$(describe) || return
  case $state in
    ACTIVE) check_training ;;
    SUSPENDED | FAILED)
      log "the queued resource is $state: creating it again"
      if [[ $state == FAILED ]]; then count_start "the request failed"; fi
      delete || return
      deleted=1
      ;;
    *) log "the queued resource is $state" ;;
  esac
}

while true; do
  if check_slice; then # bash ignores "set -e" inside a condition, hence the "|| return" in these functions
    failures=0
  else
    failures=$((failures + 1))
    ((failures < 20)) || give_up "20 checks in a row failed"
    log "the check failed ($failures of 20 in a row), retrying; does the queued resource $name exist in $zone?"
  fi
  sleep "$poll"
done
