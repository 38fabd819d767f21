#!/bin/bash
# A run on a Cloud TPU slice, from asking for it to giving it back:
#
#   export TPU=NAME ZONE=ZONE              # and PROJECT, when it is not that of `gcloud config`
#   launch/tpu_vm/tpu.sh create v5litepod-16 [--spot]        queues for the slice and waits until it is there
#   launch/tpu_vm/tpu.sh setup PACKAGE                       installs looplm on all hosts: a wheel, gs://... or a name
#   launch/tpu_vm/tpu.sh train CONFIG[:NAME] WORKDIR [options of looplm train]
#   launch/tpu_vm/tpu.sh logs [HOST]                         follows the log of a host, 0 when left out
#   launch/tpu_vm/tpu.sh resume CONFIG[:NAME] WORKDIR [...]  a new slice in place of a lost one, and the run goes on
#   launch/tpu_vm/tpu.sh stop | delete                       saves and ends the run | gives the slice back
#
# CONFIG is a shipped name or a path on the hosts; WORKDIR lies on storage that all of them see. The hosts find each
# other by the metadata server. DRY_RUN=1 shows the commands and gives none. Secrets: put them on the hosts with
# Secret Manager; nothing here takes one. See docs/launching.md.
set -euo pipefail

: "${TPU:?the name of the slice}" "${ZONE:?the zone of the slice}"
RUNTIME=${RUNTIME:-}  # of the hosts; chosen by the kind of chip when empty
WAIT_S=${WAIT_S:-30}
place=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
state=${XDG_STATE_HOME:-$HOME/.local/state}/looplm/$TPU.create  # what was asked for, for resume

run() {
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

tpus() { run gcloud compute tpus "$@" "${place[@]}"; }

on_all() { tpus tpu-vm ssh "$TPU" --worker=all --command="$1"; }

runtime_of() {
    case $1 in
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        tpu7x-*) echo v2-alpha-tpu7-ubuntu2404 ;;
        *) echo "tpu.sh: $1 is no kind of slice that is known here; set RUNTIME to its runtime version" >&2; return 2 ;;
    esac
}

create() {
    local kind=$1 runtime=${RUNTIME:-}
    shift
    [[ -n $runtime ]] || runtime=$(runtime_of "$kind")
    if [[ -z ${DRY_RUN:-} ]]; then
        mkdir -p "$(dirname "$state")"
        printf '%s\n' "$kind" "$@" > "$state"
    fi
    tpus queued-resources create "$TPU" --node-id="$TPU" --accelerator-type="$kind" --runtime-version="$runtime" "$@"
    wait_for_slice
}

wait_for_slice() {
    local now
    while true; do
        now=$(tpus queued-resources describe "$TPU" --format='value(state.state)')
        echo "$now"
        case $now in
            ACTIVE | gcloud*) return ;;
            FAILED | SUSPENDED) echo "tpu.sh: the request for $TPU is $now; delete it and ask again" >&2; return 1 ;;
        esac
        sleep "$WAIT_S"
    done
}

setup() {
    local package=$1 source=$1
    if [[ $package == *.whl && $package != gs://* ]]; then
        tpus tpu-vm scp "$package" "$TPU:" --worker=all
        source=./$(basename "$package")
    elif [[ $package == gs://* ]]; then
        source=./$(basename "$package")
        on_all "gcloud storage cp $(printf '%q' "$package") ."
    fi
    on_all "python3 -m venv ~/looplm && ~/looplm/bin/pip install --quiet $(printf '%q' "$source")[tpu] && ~/looplm/bin/looplm --help > /dev/null"
}

train() {
    local words
    words=$(printf '%q ' looplm train "$1" --workdir "$2" "${@:3}")
    # On every host, also after this machine has gone: again and again until `looplm launch again` says that it is no
    # use. SIGTERM to looplm (stop, or the machine is wanted back) saves; a file keeps the loop from going on after stop.
    local loop="export PATH=~/looplm/bin:\$PATH LIBTPU_INIT_ARGS='${LIBTPU_INIT_ARGS:-}'; rm -f ~/looplm.stop; starts=0; \
while true; do code=0; $words|| code=\$?; [ -e ~/looplm.stop ] && exit \$code; \
looplm launch again \$code --starts \$starts || exit \$code; starts=\$((starts + 1)); sleep 10; done"
    on_all "nohup bash -c $(printf '%q' "$loop") >> ~/looplm.log 2>&1 < /dev/null & sleep 1"
    echo "started on all hosts of $TPU; follow with: $0 logs"
}

logs() { tpus tpu-vm ssh "$TPU" --worker="${1:-0}" --command="tail -n 100 -F ~/looplm.log"; }

stop() { on_all "touch ~/looplm.stop; pkill -TERM -f '[l]ooplm train' || true"; }

resume() {
    local asked=() now
    now=$(tpus queued-resources describe "$TPU" --format='value(state.state)')
    if [[ $now != ACTIVE ]]; then
        [[ -e $state ]] || { echo "tpu.sh: nothing is known of how $TPU was created; use delete, create, setup" >&2; return 2; }
        mapfile -t asked < "$state"
        delete
        create "${asked[@]}"
        setup "${PACKAGE:?what setup was given}"
    fi
    train "$@"
}

delete() { tpus queued-resources delete "$TPU" --force --quiet; }

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; }

case ${1:-} in
    create | setup | train | logs | resume | stop | delete)
        command=$1
        shift
        "$command" "$@"
        ;;
    *) usage >&2; exit 2 ;;
esac
