#!/bin/sh
# Perplexity of 1-bit key caches on the bundled model: no, Haar, Hadamard and learned rotation,
# 50 iterations, 6 evaluation windows of 512 tokens of the bundled text, both protocols.
# Usage: benchmarks/key_codecs.sh [folder for the codecs and the record]
set -eu
out=${1:-bench-key-codecs}
gonio=${GONIO:-.venv/bin/gonio}
mkdir -p "$out"
set --
for rotation in none haar hadamard learned; do
    codec=$out/sign-$rotation.safetensors
    [ -f "$codec" ] || "$gonio" cache calibrate smollm2-135m --rotation "$rotation" --out "$codec" \
        --output "$out/sign-$rotation.txt" --force
    set -- "$@" --codec "$codec"
done
"$gonio" cache evaluate smollm2-135m "$@" --json --output "$out/evaluation.json" --force
"$gonio" cache observe smollm2-135m --json --output "$out/keys.json" --force
"$gonio" site build --from "$out/evaluation.json" "$out/keys.json" --out "$out/site"
python3 - "$out/evaluation.json" "$out/keys.json" <<'PY'
import json, sys

for path in sys.argv[1:]:
    for value in json.load(open(path))["record"]["values"]:
        interval = value["interval"]
        bounds = f"[{interval['low']:.4g}, {interval['high']:.4g}]" if interval else ""
        print(f"{value['name']:<45}{value['value']:>10.4g}  {bounds:<22}chance {value['chance']:.4g}")
PY
