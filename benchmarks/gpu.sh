#!/usr/bin/env bash
# Everything worth measuring on a GPU: bash benchmarks/gpu.sh FOLDER
# Writes into FOLDER the logs of the tests and of the kernels, kernels.json, the printed tables, a Chrome trace of one
# picture by moss5 (moss5.json), and one JSON file a shape that belongs into benchmarks/results.  Takes less than nine
# minutes; every part has its own limit, and one that fails does not stop the others.  The environment variable PYTHON
# names the interpreter (default: python3).  DEVICE=cpu tries the same list without a GPU, in two minutes: every shape is
# nano, and what only a GPU has is left out.
set -uo pipefail
mkdir -p "${1:?usage: bash benchmarks/gpu.sh FOLDER}"
folder=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
failed=0

if [ "$device" = cpu ]; then
  large=nano middle=nano graphs=() runs=(--runs 1 --warmup 0) precision=fp32 cells=16
  sizes=(--device cpu --dtype float32 --heads 2 --head-dim 32 --shapes 121x60 --runs 1)
else
  large=2b middle=125m graphs=(--graphs on) runs=(--runs 20 --warmup 3) precision=bf16 cells=64
  sizes=()
fi

part() { # seconds, file, command
  local limit=$1 file=$2
  shift 2
  echo "== $*"
  timeout "$limit" "$@" 2>&1 | tee -a "$folder/$file" || failed=1
}

bench() { # seconds, file, shape, more options
  local limit=$1 file=$2 shape=$3
  shift 3
  part "$limit" "$file" "$python" -m comfy_moss bench --shape "$shape" --device "$device" --precision $precision "$@" --save "$folder"
}

part 105 tests.txt "$python" -m pytest -m gpu -p no:cacheprovider
part 75 kernels.txt "$python" -m benchmarks.kernels "${sizes[@]}" --json "$folder/kernels.json"
bench 100 tables.md $large "${runs[@]}"
bench 100 tables.md $large "${graphs[@]}" "${runs[@]}"
bench 45 tables.md $middle "${runs[@]}"
bench 30 tables.md nano "${runs[@]}"
bench 40 profile.txt $large "${graphs[@]}" --profile "$folder/moss5.json"
part 30 decoder.txt "$python" -m benchmarks.parts decoder --cells $cells
exit $failed
