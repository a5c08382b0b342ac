#!/usr/bin/env bash
# Keep training going on a queued resource until it is done: look every minute, start again what stopped, create the
# queued resource anew when it was taken away. It may be stopped and started at any time, also before setup.sh and
# run.sh, which it calls itself.
#
#   watch.sh NAME --type v5litepod-256 --tier spot --wheel dist/deberta_jax-0.1.0-py3-none-any.whl --bucket BUCKET \
#     -- deberta-jax pretrain --output bucket/runs/base ...
#
#   --type, --tier, --slices     as given to create.sh
#   --wheel, --bucket            as given to setup.sh
#   --poll       seconds between two looks (default 60)
#   --starts     how often to start without a new checkpoint in between, before giving up (default 5)
#   --backoff    seconds to wait before the second of them; doubled for each further one, at most 600 (default 30)
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print every call that it may make, once; make none
#
# What is seen                        What is done
#   SUSPENDED or FAILED               delete, create; then as for a new slice
#   ACTIVE, nothing runs              setup, run
#   ACTIVE, exit code 42 or >= 127    stop what still runs on other workers, run
#   ACTIVE, exit code 1 or other      print the logs, exit 1: a mistake in the settings or the data
#   ACTIVE, exit code 0 everywhere    exit 0
# Exit status: 0 training is done, 1 a person is needed, 2 wrong usage. Nothing is deleted at the end: the slice goes on
# costing money until delete.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
tier='' slices=1 poll=60 starts=5 backoff=30
parse "--type --tier --slices --wheel --bucket --poll --starts --backoff --project --zone --" "$@"
check --poll "$poll" '[0-9]+' 'seconds, a whole number'
check_count --starts "$starts"
check --backoff "$backoff" '[0-9]+' 'seconds, a whole number'

# --output of the command, where its checkpoints are.
output_folder() {
  local word before=''
  for word in "${command[@]}"; do
    if [[ $before == --output ]]; then echo "$word" && return; fi
    if [[ $word == --output=* ]]; then echo "${word#*=}" && return; fi
    before=$word
  done
}
output=$(output_folder)
check '--output of the command' "$output" '[^:]+' 'a folder as the workers see it, such as bucket/runs/base'

script() {
  local verb=$1
  shift
  "$(dirname "${BASH_SOURCE[0]}")/$verb.sh" "$name" "--project=$project" "--zone=$zone" ${dry_run:+--dry-run} "$@"
}
create() { script create "--type=$type" "--tier=$tier" "--slices=$slices"; }
setup() { script setup "--wheel=$wheel" "--bucket=$bucket"; }
run() { script run "--type=$type" -- "${command[@]}"; }
delete() { script delete; }
logs() { script logs --lines=30; }
stop() { on_workers 'bash worker.sh stop'; }
describe() { queued describe "$name" "--format=value(state.state)"; }
status() {
  on_workers "if [ -e worker.sh ]; then bash worker.sh status $(quoted "$output"); else echo worker new none 0; fi"
}

for step in create setup run; do dry_run=1 "$step" > /dev/null; done # their arguments are checked now, not at night
if [[ $dry_run ]]; then
  for step in describe status setup stop run logs delete create; do "$step"; done
  exit
fi

say() { printf '%(%F %T)T %s\n' -1 "$*"; }
newest=0    # step of the newest checkpoint ever seen
started=0   # starts since there was a new one
failures=0  # looks in a row that failed
waited=0    # looks since some workers, but not all, have stopped
deleted=''  # the queued resource is to be created again

give_up() {
  say "$*"
  logs || true
  say "giving up; the slice goes on costing money until: delete.sh $name"
  exit 1
}

# Counts a start (or a request that FAILED), gives up at the last, waits before all but the first.
count_start() {
  ((started < starts)) || give_up "$1, and none of the last $starts starts saved a new checkpoint (the newest: $newest)"
  if ((started > 0 && backoff > 0)); then
    local seconds=$((backoff << (started > 6 ? 6 : started - 1)))
    sleep $((seconds < 600 ? seconds : 600))
  fi
  started=$((started + 1))
  say "$1; start $started of at most $starts without a new checkpoint"
}

# One line for each worker, "worker HOST STATE STEP", becomes a decision.
look_at_training() {
  local report word host state step running=0 done=0 again=0 new=0 before=$newest
  report=$(status) || return
  while read -r word host state step; do
    if [[ $word != worker ]]; then continue; fi
    if ((step > newest)); then newest=$step; fi
    case $state in
      running) running=$((running + 1)) ;;
      none) new=$((new + 1)) ;;
      0) done=$((done + 1)) ;;
      42 | 12[7-9] | 1[3-9][0-9] | 2[0-9][0-9]) again=$((again + 1)) ;;
      *) give_up "$host: exit code $state, which starting again does not help" ;;
    esac
  done <<< "$report"
  if ((newest > before)); then started=0; fi

  local stopped=$((again + new))
  if ((running + done + stopped == 0)); then
    return 1
  elif ((running + stopped == 0)); then
    say "done on $done workers; the slice goes on costing money until: delete.sh $name"
    exit 0
  elif ((stopped == 0)); then
    waited=0
    say "running on $running workers, newest checkpoint: step $newest"
  elif ((running + done > 0 && waited < 5)); then # the others are saving, or about to notice
    waited=$((waited + 1))
    say "stopped on $stopped workers, running on $running"
  else
    waited=0
    count_start "stopped on $again workers, new on $new"
    if ((new)); then setup || return; fi
    if ((running + done + again)); then stop || return; fi
    run
  fi
}

look() {
  local state
  if [[ $deleted ]]; then
    create || return
    deleted=''
    return
  fi
  state=$(describe) || return
  case $state in
    ACTIVE) look_at_training ;;
    SUSPENDED | FAILED)
      say "the queued resource is $state: creating it again"
      if [[ $state == FAILED ]]; then count_start "the request was refused"; fi
      delete || return
      deleted=1
      ;;
    *) say "the queued resource is $state" ;;
  esac
}

while true; do
  if look; then # inside, "set -e" does not hold: hence "|| return" after what may fail
    failures=0
  else
    failures=$((failures + 1))
    ((failures < 20)) || give_up "20 looks in a row failed"
    say "that failed ($failures of 20 in a row); trying again. Is there a queued resource $name in $zone?"
  fi
  sleep "$poll"
done
