#!/bin/bash
# Train on all hosts of a Cloud TPU VM:   launch/tpu_vm/train.sh TPU_NAME ZONE CONFIG[:NAME] WORKDIR
# CONFIG and WORKDIR are paths on the hosts; WORKDIR is on storage that all of them see. looplm is installed there.
# The hosts find each other by the metadata server. Flags are explained in launch/README.md.
set -euo pipefail
name=$1 zone=$2 config=$3 workdir=$4

remote="LIBTPU_INIT_ARGS='${LIBTPU_INIT_ARGS:-}' looplm train $(printf '%q' "$config") --workdir $(printf '%q' "$workdir")"
# Codes 2 (a mistake in the request) and 76 (training stopped itself) are no use starting again after.
remote="for attempt in \$(seq 20); do code=0; $remote || code=\$?; \
    case \$code in 0|2|76|130) break;; esac; sleep 10; done; exit \$code"

exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$remote"
