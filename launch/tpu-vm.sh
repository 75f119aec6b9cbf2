#!/usr/bin/env bash
# Train on a TPU VM or a slice of several, made anew whenever it was pre-empted, until the run is done.
# The TPU stays after that, and is billed: delete it with gcloud compute tpus tpu-vm delete NAME --zone ZONE.
# NAME=pointer ZONE=us-west4-a TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite SETUP='…' SHARED=/mnt/shared \
#     CONFIG=configs/pointer_base.py launch/tpu-vm.sh [train options]
set -uo pipefail
name=${NAME:?what to call the TPU}
where=(--zone "${ZONE:?such as us-west4-a}")
type=${TYPE:?such as v5litepod-16} version=${VERSION:?the software of the TPU VM, such as v2-alpha-tpuv5-lite}
setup=${SETUP:?a command that installs editjax[tpu] and mounts SHARED on every host}
shared=${SHARED:?a folder that all hosts share, with the folder shards}
config=${CONFIG:?a config, such as configs/pointer_base.py}
train=(env JAX_NUM_PROCESSES=detect editjax train "$config" --data "$shared/shards" --out "$shared/$name" "$@")

on_all() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }
state() {
    gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' 2>&1 |
        grep -oE '^(READY|PREEMPTED|TERMINATED)$|NOT_FOUND' | head -n 1
}

for ((attempt = 0; attempt < 100; attempt++)); do
    case $(state) in
        READY) ;;
        PREEMPTED | TERMINATED)
            gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet || sleep 60
            continue
            ;;
        NOT_FOUND)
            gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type="$type" --version="$version" --spot ||
                { sleep 60; continue; }
            on_all "$setup" || exit
            ;;
        *) # on its way to another state, or nothing was heard of it
            sleep 60
            continue
            ;;
    esac
    code=0
    on_all "$(printf '%q ' "${train[@]}")" || code=$?
    if [ "$code" -ne 75 ] && [ "$(state)" = READY ]; then
        exit "$code" # done, or an error that would come again
    fi
    sleep 30
done
exit 75
