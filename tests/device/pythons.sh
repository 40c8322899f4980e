#!/usr/bin/env bash
# What a device installs, on other Pythons: `tests/device/pythons.sh BUNDLE [PYTHON …]`.
# A device has no torch; JetPack 6 has Python 3.10, whose last onnxruntime is 1.23. For JetPack 5's Python 3.8 the
# wheel is too new: there the runner that lies in the bundle answers, and its answers are counted.
set -euo pipefail
cd "$(dirname "$0")/../.."
bundle=${1:?usage: tests/device/pythons.sh BUNDLE [PYTHON …]}
shift
pythons=("$@")
[ ${#pythons[@]} -gt 0 ] || pythons=(python3.10 python3.12 python3.13)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export EDGEVLM_CACHE="$work/cache"

install() {
  "$1/bin/pip" install --quiet --only-binary :all: "${@:2}" 2> "$work/pip.log" || { cat "$work/pip.log"; exit 1; }
  if "$1/bin/python" -c "import torch" 2> /dev/null; then
    echo "$1: torch is installed; this proves nothing about a device" >&2
    exit 1
  fi
  "$1/bin/python" -c 'import platform, onnxruntime as o, numpy as n
print(f"Python {platform.python_version()}, onnxruntime {o.__version__}, numpy {n.__version__}")'
}

# A Jetson's bundle is answered by ONNX Runtime in place of TensorRT.
run_the_copy() {
  if [ -d "$bundle" ]; then
    cp -r "$bundle" "$work/unpacked"
  else
    "$1/bin/python" -m zipfile -e "$bundle" "$work/unpacked"
  fi
  emulate=$(grep -q '"runtime": *"tensorrt"' "$work/unpacked/model.json" && echo --emulate || true)
  PYTHONPATH="$work/unpacked/runner" PYTHONDONTWRITEBYTECODE=1 \
    "$1/bin/python" -m edgevlm_runner "$work/unpacked" --out "$work/evidence" $emulate > "$work/runner.log" 2>&1 ||
    { tail -n 20 "$work/runner.log"; exit 1; }
  "$1/bin/python" - "$work/evidence/answers.jsonl" "$work/unpacked/reference.jsonl" << 'END'
import json, sys
ours, reference = [{one["item_id"]: one["text"] for one in map(json.loads, open(path))} for path in sys.argv[1:]]
assert ours and ours.keys() == reference.keys()
print(len(ours), "answers,", sum(ours[item] == reference[item] for item in ours), "of them FP16's")
END
  rm -rf "$work/unpacked" "$work/evidence"
}

for python in "${pythons[@]}"; do
  venv="$work/$(basename "$python")"
  "$python" -m venv "$venv"
  if "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 10))'; then
    install "$venv" numpy Pillow tokenizers onnxruntime
    run_the_copy "$venv"
    continue
  fi
  [ -e "$work"/edgevlm-*.whl ] || .venv/bin/python -m build --wheel --outdir "$work" . > "$work/build.log" ||
    { cat "$work/build.log"; exit 1; }
  install "$venv" "$work"/edgevlm-*.whl
  cp "$bundle" "$work/bundle.edgevlm"
  "$venv/bin/edgevlm" validate "$work/bundle.edgevlm"
done
