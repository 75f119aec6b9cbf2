#!/usr/bin/env bash
# Prints FILE with its ${NAME:?why} filled in from the environment, or says what is missing.
# launch/fill.sh launch/jobset-gpu.yaml | kubectl apply -f -
set -euo pipefail
text=$(<"${1:?a file of launch/, such as launch/jobset-gpu.yaml}")
eval "cat <<END_OF_FILE
$text
END_OF_FILE"
