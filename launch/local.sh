#!/usr/bin/env bash
# Simulate, prepare and train on this machine; started again, it goes on at the step it had reached.
# launch/local.sh CONFIG FOLDER [editjax train options, such as --optim.steps 100]
set -euo pipefail
config=$1 folder=$2
shift 2
cores=$(nproc)

if [ ! -e "$folder/shards/manifest.json" ]; then
    if [ ! -e "$folder/simulated" ]; then
        rm -rf "$folder/sessions" # half of them cannot be gone on with
        editjax simulate "$folder/sessions" --count 1000 --seed 1 --workers "$cores"
        touch "$folder/simulated"
    fi
    editjax prepare "$folder/sessions" "$folder/shards" --validation 0.05 --workers "$cores"
fi
exec editjax train "$config" --data "$folder/shards" --out "$folder/run" "$@"
