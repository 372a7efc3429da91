#!/usr/bin/env bash
# Every notebook, top to bottom in Jupyter, in a clone of HEAD with nothing beside it: what needs data or long minutes says so and is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
git clone --quiet . "$tmp/ccd"
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$tmp/ccd" CCD_CACHE=none OMP_NUM_THREADS=1 IN_TEST=1 OUT="$tmp/out"

run() {
    local log="$OUT/$(basename "$1").log"
    if timeout --foreground 600 jupyter nbconvert --execute --to notebook --output-dir "$OUT" --log-level ERROR "$1" > "$log" 2>&1
    then echo "$1: $SECONDS s"
    else echo "$1: FAILS after $SECONDS s"; tail -n 20 "$log"; return 1
    fi
}
export -f run

mkdir "$OUT"
cd "$tmp/ccd"
find nbs -name "*.ipynb" | sort | xargs -P 2 -I {} bash -c 'run {}' || { echo "a notebook does not run from top to bottom in a bare clone"; exit 1; }
