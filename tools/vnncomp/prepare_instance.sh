#!/usr/bin/env bash
# VNN-COMP: before every instance. Arguments: v1 CATEGORY ONNX_FILE VNNLIB_FILE.
# Nothing is converted or cached: run_instance.sh reads both files itself.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected v1 as the first argument, got '${1:-}'" >&2; exit 1; }
for file in "${3:?an ONNX file}" "${4:?a VNN-LIB file}"; do
  [ -r "$file" ] || { echo "cannot read $file" >&2; exit 1; }
done
