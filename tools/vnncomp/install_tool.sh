#!/usr/bin/env bash
# VNN-COMP: install the tool once. Argument: v1.
# PYTHON chooses the interpreter (3.11 or later), TORCH_INDEX where torch comes from.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected v1 as the first argument, got '${1:-}'" >&2; exit 1; }
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
"${PYTHON:-python3}" -m venv "$here/.venv"
# shellcheck disable=SC2086  # several words on purpose
"$here/.venv/bin/python" -m pip install --quiet ${TORCH_INDEX:---index-url https://download.pytorch.org/whl/cpu} torch
"$here/.venv/bin/python" -m pip install --quiet "$root[onnx,vnnlib]"
