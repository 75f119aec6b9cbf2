#!/usr/bin/env bash
# Simulate, prepare and train on this machine; started again, it goes on at the step it had reached.
# [RECORDINGS=FOLDER] [PROCESSES=2] launch/local.sh CONFIG FOLDER [editjax train options, such as --optim.steps 100]
# With RECORDINGS, half of the sessions play music, speech and noises from there; see docs/recordings.csv.
# With PROCESSES so many train together, each on its share of the GPUs, or of the cores.
set -euo pipefail
config=$1 folder=$2
shift 2
cores=$(nproc)

if [ ! -e "$folder/shards/manifest.json" ]; then
    if [ ! -e "$folder/simulated" ]; then
        rm -rf "$folder/sessions" # half of them cannot be gone on with
        simulate=(editjax simulate "$folder/sessions" --workers "$cores" ${RECORDINGS:+--recordings "$RECORDINGS" --split train})
        styles=(--styles final tight loose radio extended produced)
        "${simulate[@]}" --count 1700 --seed 1 "${styles[@]}"
        "${simulate[@]}" --count 150 --seed 2 "${styles[@]}" --min-length-s 300 --max-length-s 600
        touch "$folder/simulated"
    fi
    editjax prepare "$folder/sessions" "$folder/shards" --validation 0.05 --workers "$cores"
fi
train=(editjax train "$config" --data "$folder/shards" --out "$folder/run" "$@")
count=${PROCESSES:-1}
if [ "$count" -eq 1 ]; then
    exec "${train[@]}"
fi

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
if [ "$gpus" -gt 0 ] && [ $((gpus % count)) -ne 0 ]; then
    echo "local.sh: $gpus GPUs do not divide over PROCESSES=$count" >&2
    exit 2
fi
processes=() stopping=
trap 'stopping+=1; kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT
for ((rank = 0; rank < count; rank++)); do
    own=(env "JAX_PROCESS_ID=$rank")
    if [ "$gpus" -gt 0 ]; then
        own+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $((rank * gpus / count)) $(((rank + 1) * gpus / count - 1)))")
    elif [ "$cores" -ge "$count" ] && command -v taskset >/dev/null; then
        own+=(taskset --cpu-list "$((rank * cores / count))-$(((rank + 1) * cores / count - 1))")
    fi
    "${own[@]}" "${train[@]}" &
    processes+=($!)
done
ends=0
for process in "${processes[@]}"; do
    while :; do
        code=0 before=$stopping
        wait "$process" || code=$?
        [ "$before" != "$stopping" ] || break # else a signal ended the waiting, not the process
    done
    if [ "$code" -ne 0 ] && { [ "$ends" -eq 0 ] || [ "$ends" -eq 75 ]; }; then
        ends=$code
    fi
done
exit "$ends"
