#!/usr/bin/env bash
# What needs a GPU, in one run of less than nine minutes: are the kernels right there, and how fast are they?
#
#   benchmarks/gpu.sh [FOLDER]      writes gpu.json and gpu.txt into FOLDER (default: benchmarks/results)
#
# PYTHON names an interpreter that has torch and Triton. The compiler of optdsl is not needed, but where it can run (it
# needs lark), specs are held to its interpreter, and the clipped composition is measured. OPTDSL_SITE names a folder
# with further packages, such as one made by `pip install --target FOLDER lark jinja2` elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
PYTHONPATH="$PWD${OPTDSL_SITE:+:$OPTDSL_SITE}${PYTHONPATH:+:$PYTHONPATH}" \
    exec "${PYTHON:-python3}" benchmarks/gpu.py --out "$out"
