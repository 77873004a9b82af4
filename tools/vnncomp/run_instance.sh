#!/usr/bin/env bash
# VNN-COMP: one instance. Arguments: v1 CATEGORY ONNX_FILE VNNLIB_FILE RESULTS_FILE TIMEOUT.
# The results file begins with sat, unsat, unknown, timeout or error; sat is followed by the witness,
# ((X_0 value) ... (Y_0 value) ...).
# CERTIFY chooses the command (default: what install_tool.sh installed), WORKERS the number of processes.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected v1 as the first argument, got '${1:-}'" >&2; exit 1; }
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
network="${3:?an ONNX file}" query="${4:?a VNN-LIB file}" results="${5:?a results file}" timeout="${6:?seconds}"
rm -f "$results"
# One thread a process: the matrices are small, and processes share the work.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
name="$({ zcat -f "$query" 2>/dev/null || true; } | grep -m1 -oE '\(declare-network +[A-Za-z_][A-Za-z0-9_]*' | awk '{print $2}' || true)"
${CERTIFY:-"$here/.venv/bin/certify"} verify --network "${name:-N}=$network" --timeout "$timeout" \
  --workers "${WORKERS:-$(nproc)}" --results "$results" "$query" || echo error > "$results"
