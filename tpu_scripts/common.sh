# shellcheck shell=bash
# Shared by all scripts: reads and checks arguments, and makes calls or, with --dry-run, prints them.
# Exit status of every script: 0 success, 1 a failure, 2 wrong usage (one line on stderr, and no call was made).
set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/}: needs bash 4.4 or newer; this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

# Options of several scripts. Those that rarely change may be set in the environment.
project=${TPU_PROJECT:-} zone=${TPU_ZONE:-} type=${TPU_TYPE:-} cluster=${TPU_CLUSTER:-}
name='' bucket='' wheel='' image='' dry_run='' command=()

# Prints the comment at the top of the script, without its "#".
help() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# quoted WORD...: prints the words as one line of shell input.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    if [[ ! $word =~ ^[-A-Za-z0-9_./:=,+]+$ ]]; then word="'${word//\'/$quote}'"; fi
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# call WORD...: runs a command, or prints it with --dry-run. All calls to the cloud and to docker go through here.
call() {
  if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# parse OPTIONS ARGUMENT...: "--some-option VALUE" and "--some-option=VALUE" set $some_option, a word without dashes
# sets $name, and what follows "--" is the array command. --dry-run and --help are options of every script.
parse() {
  local allowed=" $1 " option value
  shift
  while (($#)); do
    option=${1%%=*}
    case $1 in
      -h | --help) help && exit 0 ;;
      --dry-run) dry_run=1 && shift && continue ;;
      --) ;;
      -*) [[ $allowed == *" $option "* ]] || die "unknown option $option; allowed:$allowed--dry-run --help" ;;
      *)
        [[ ! $name ]] || die "$1: unexpected second name after $name; give one name"
        name=$1 && shift && continue
        ;;
    esac
    if [[ $1 == -- ]]; then
      [[ $allowed == *" -- "* ]] || die "--: this script takes no command; see --help"
      shift && command=("$@")
      break
    elif [[ $1 == *=* ]]; then
      value=${1#*=} && shift
    else
      (($# > 1)) || die "$option: no value given; see --help"
      value=$2 && shift 2
    fi
    option=${option#--}
    printf -v "${option//-/_}" %s "$value"
  done
  [[ $allowed != *" -- "* ]] || ((${#command[@]})) || die "no command given; put it after --"
}

# check OPTION VALUE PATTERN MEANING: exits unless an extended regular expression matches the whole value.
check() {
  [[ $2 =~ ^($3)$ ]] || die "$1: ${2:-nothing} given; allowed: $4"
}

# Checks the name of the slice, workload or cluster, the project and the zone.
check_target() {
  check NAME "$name" '[a-z]([-a-z0-9]*[a-z0-9])?' 'lowercase letters, digits and hyphens, starting with a letter'
  check --project "$project" '[a-z][-a-z0-9:.]*' 'the ID of a Google Cloud project (or set TPU_PROJECT)'
  check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z0-9]+' 'a zone such as us-west4-a (or set TPU_ZONE)'
}

# check_type CHIP...: exits unless --type is an accelerator type of one of these chips.
check_type() {
  local IFS='|'
  check --type "$type" "($*)-[1-9][0-9x]*" "${*/%/-N} with N the size (or set TPU_TYPE)"
}

check_bucket() {
  check --bucket "$bucket" '[a-z0-9][-_.a-z0-9]*' 'the name of a bucket, without gs://'
}

check_cluster() {
  check --cluster "$cluster" '[a-z][-a-z0-9]*' 'the name of a GKE cluster (or set TPU_CLUSTER)'
}

check_image() {
  check --image "$image" '[^ ]+/[^ ]+:[^ :]+' 'REPOSITORY/NAME:TAG'
}

check_count() {
  check "$1" "$2" '[1-9][0-9]*' 'a whole number, at least 1'
}

check_wheel() {
  [[ -f $wheel ]] || die "--wheel: ${wheel:-nothing} given, no such file; build one with python -m build --wheel"
  check --wheel "${wheel##*/}" 'deberta_jax-[^/]*\.whl' 'a wheel of deberta-jax under its original name'
}

# generation TYPE: prints the chip of an accelerator type under the name that xla_flags.sh and compile-ahead use.
generation() {
  case ${1%%-*} in
    v5litepod) echo v5e ;;
    *) echo "${1%%-*}" ;;
  esac
}

# queued VERB WORD...: makes a gcloud call about the queued resource.
queued() {
  call gcloud compute tpus queued-resources "$@" "--project=$project" "--zone=$zone"
}

# on_workers COMMAND [WORKER]: runs a command over ssh, on all workers of all slices (default) or on one. gcloud writes
# its own messages to stderr. It repeats a command whose connection broke, up to ten times, so each command must be safe
# to run twice. The ssh options end the connection to a worker that is silent for 90 s (three missed keep-alives);
# otherwise a frozen worker would block the script forever.
on_workers() {
  queued ssh "$name" --node=all "--worker=${2:-all}" --ssh-flag=-oConnectTimeout=30 \
    --ssh-flag=-oServerAliveInterval=30 "--command=$1"
}

# on_cluster VERB WORD...: makes an xpk call about the GKE cluster.
on_cluster() {
  call xpk "$@" "--cluster=$cluster" "--project=$project" "--zone=$zone"
}
