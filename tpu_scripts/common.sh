# shellcheck shell=bash
# What the scripts share: arguments are read and checked, calls are made or, with --dry-run, printed.
# Exit status of every script: 0 done, 1 something failed, 2 wrong usage (one line on stderr, nothing was called).
set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/}: needs bash 4.4 or newer; this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

# What several scripts take. Project, zone and so on rarely change: the environment may give them.
project=${TPU_PROJECT:-} zone=${TPU_ZONE:-} type=${TPU_TYPE:-} cluster=${TPU_CLUSTER:-}
name='' bucket='' wheel='' image='' dry_run='' command=()

# The comment at the head of the script is its help.
help() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# quoted WORD...: one line that a shell reads as these words.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    if [[ ! $word =~ ^[-A-Za-z0-9_./:=,+]+$ ]]; then word="'${word//\'/$quote}'"; fi
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# call WORD...: runs the command; with --dry-run prints it instead. Nothing outside this machine is reached otherwise.
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
      -*) [[ $allowed == *" $option "* ]] || die "no option $option; there are:$allowed--dry-run --help" ;;
      *)
        [[ ! $name ]] || die "$1: a second name after $name; one is allowed"
        name=$1 && shift && continue
        ;;
    esac
    if [[ $1 == -- ]]; then
      [[ $allowed == *" -- "* ]] || die "--: takes no command; see --help"
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
  [[ $allowed != *" -- "* ]] || ((${#command[@]})) || die "no command given; put it behind --"
}

# check OPTION VALUE PATTERN MEANING: the value matches the whole of an extended regular expression.
check() {
  [[ $2 =~ ^($3)$ ]] || die "$1: ${2:-nothing} given; allowed: $4"
}

# What the call is about, and where that is.
check_target() {
  check NAME "$name" '[a-z]([-a-z0-9]*[a-z0-9])?' 'small letters, digits and hyphens, a letter first'
  check --project "$project" '[a-z][-a-z0-9:.]*' 'the id of a Google Cloud project (or set TPU_PROJECT)'
  check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z0-9]+' 'a zone such as us-west4-a (or set TPU_ZONE)'
}

# check_type CHIP...: an accelerator type of one of these chips.
check_type() {
  local IFS='|'
  check --type "$type" "($*)-[1-9][0-9x]*" "${*/%/-N}, N its size (or set TPU_TYPE)"
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
  check "$1" "$2" '[1-9][0-9]*' 'a whole number from 1'
}

check_wheel() {
  [[ -f $wheel ]] || die "--wheel: ${wheel:-nothing} given, no such file; python -m build --wheel makes one in dist/"
  check --wheel "${wheel##*/}" 'deberta_jax-[^/]*\.whl' 'a wheel of deberta-jax, by the name that it was built with'
}

# generation TYPE: the chip of an accelerator type, as xla_flags.sh and compile-ahead call it.
generation() {
  case ${1%%-*} in
    v5litepod) echo v5e ;;
    *) echo "${1%%-*}" ;;
  esac
}

# queued VERB WORD...: a call about the queued resource.
queued() {
  call gcloud compute tpus queued-resources "$@" "--project=$project" "--zone=$zone"
}

# on_workers COMMAND [WORKER]: over ssh, on all workers of all slices or on one. gcloud's own messages are on stderr.
# It repeats a command whose connection broke (up to ten times), so what is run there must bear being run twice.
# A worker that is silent for 90 s counts as broken off; otherwise a frozen one would hold up the script for ever.
on_workers() {
  queued ssh "$name" --node=all "--worker=${2:-all}" --ssh-flag=-oConnectTimeout=30 \
    --ssh-flag=-oServerAliveInterval=30 "--command=$1"
}

# on_cluster VERB WORD...: a call about the GKE cluster.
on_cluster() {
  call xpk "$@" "--cluster=$cluster" "--project=$project" "--zone=$zone"
}
