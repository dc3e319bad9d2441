#!/usr/bin/env bash
# Everything worth measuring on a GPU: bash benchmarks/gpu.sh FOLDER
# Writes into FOLDER the logs of the tests and of the kernels, kernels.json, the printed tables, a Chrome trace of one
# picture by moss5 (moss5.json), and one JSON file a shape
# that belongs into benchmarks/results.  Takes less than nine minutes; every part has its own limit, and one that fails does
# not stop the others.  The environment variable PYTHON names the interpreter (default: python3).
set -uo pipefail
mkdir -p "${1:?usage: bash benchmarks/gpu.sh FOLDER}"
folder=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
failed=0

part() { # seconds, file, command
  local limit=$1 file=$2
  shift 2
  echo "== $*"
  timeout "$limit" "$@" 2>&1 | tee -a "$folder/$file" || failed=1
}

part 105 tests.txt "$python" -m pytest -m gpu -p no:cacheprovider
part 75 kernels.txt "$python" -m benchmarks.kernels --json "$folder/kernels.json"
part 100 tables.md "$python" -m comfy_moss bench --shape 2b --device cuda --precision bf16 --runs 20 --warmup 3 --save "$folder"
part 100 tables.md "$python" -m comfy_moss bench --shape 2b --device cuda --precision bf16 --graphs on --runs 20 --warmup 3 --save "$folder"
part 45 tables.md "$python" -m comfy_moss bench --shape 125m --device cuda --precision bf16 --runs 20 --warmup 3 --save "$folder"
part 30 tables.md "$python" -m comfy_moss bench --shape nano --device cuda --precision bf16 --runs 20 --warmup 3 --save "$folder"
part 40 profile.txt "$python" -m comfy_moss bench --shape 2b --device cuda --precision bf16 --graphs on --save "$folder" --profile "$folder/moss5.json"
part 30 decoder.txt "$python" -m benchmarks.parts decoder
exit $failed
