#!/usr/bin/env bash
# Simulate, prepare and train on this machine; started again, it goes on at the step it had reached.
# [RECORDINGS=FOLDER] launch/local.sh CONFIG FOLDER [editjax train options, such as --optim.steps 100]
# With RECORDINGS, half of the sessions play music, speech and noises from there; see docs/recordings.csv.
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
exec editjax train "$config" --data "$folder/shards" --out "$folder/run" "$@"
