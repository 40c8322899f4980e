#!/usr/bin/env bash
# The wheel with its base dependencies on other Pythons: `tests/device/pythons.sh BUNDLE [PYTHON …]`.
# A device has no torch; JetPack 6 has Python 3.10, whose last onnxruntime is 1.23.
set -euo pipefail
cd "$(dirname "$0")/../.."
bundle=${1:?usage: tests/device/pythons.sh BUNDLE [PYTHON …]}
shift
pythons=("$@")
[ ${#pythons[@]} -gt 0 ] || pythons=(python3.10 python3.12 python3.13)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m build --wheel --outdir "$work" . > "$work/build.log" || { cat "$work/build.log"; exit 1; }
export EDGEVLM_CACHE="$work/cache"
for python in "${pythons[@]}"; do
  venv="$work/$(basename "$python")"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --only-binary :all: "$work"/*.whl 2> "$work/pip.log" || { cat "$work/pip.log"; exit 1; }
  if "$venv/bin/python" -c "import torch" 2> /dev/null; then
    echo "$python: torch is installed; this proves nothing about a device" >&2
    exit 1
  fi
  "$venv/bin/python" -c 'import platform, onnxruntime as o, numpy as n
print(f"Python {platform.python_version()}, onnxruntime {o.__version__}, numpy {n.__version__}")'
  cp "$bundle" "$work/bundle.edgevlm"
  "$venv/bin/edgevlm" validate "$work/bundle.edgevlm"
done
