#!/usr/bin/env bash
# Quantize a model, gate it, verify it, upload it and change an overlay to it: the steps of
# .github/workflows/model-gate.yml for any other CI. Run it in the repository with your recipes, tasks, suites
# and overlays, on a machine with the GPU that will serve.
#
# MODEL        16-bit model: a hub id, a folder, or bundled:NAME
# REVISION     commit of a hub id, 40 hex digits
# RECIPE       name of a shipped recipe, or a file
# KEY          file with the private key; mode 0600
# PUBLIC_KEY   file with the public key
# QUANTIZE_PYTHON   interpreter with the quantization libraries; made on first use if absent
# WORK         folder for the model and the reports (work)
# MARGINS      acceptable losses, such as "sentiment=0.02 topic=0.02"
# CONFIG       settings file of the gate's engine; without it the gate runs on the CPU
# UPLOAD       command that uploads: called with the folder and sha256-HEX as $1 and $2
# OVERLAY      folder with a cluster's settings.yaml; rendered anew
# STORE        model store as the cluster's pods see it (/store)
# ADMISSION    ConfigMap of attested digests, whose data is the last part of the file
#
# Exit status: that of the step that failed. gate: 1 a task failed, 3 inconclusive.
set -euo pipefail
shopt -s nullglob

: "${MODEL:?names the 16-bit model}" "${RECIPE:?names the recipe}"
: "${KEY:?names the private key}" "${PUBLIC_KEY:?names the public key}"
WORK=${WORK:-work}
STORE=${STORE:-/store}
mkdir -p "$WORK"

for suite in suites/*/; do
  narrowgate suite check "${suite%/}"
done

case $MODEL in
  bundled:*) baseline=$(narrowgate materialize) ;;
  *)
    if [ -d "$MODEL" ]; then
      baseline=$MODEL
    else
      baseline=$(hf download "$MODEL" --revision "$REVISION" --quiet \
        --include '*.safetensors' --include '*.json' --include '*.jinja' \
        --include '*.model' --include '*.txt')
    fi
    ;;
esac

options=()
if [ -n "${REVISION:-}" ] && [ ! -d "$MODEL" ]; then options+=(--revision "$REVISION"); fi
if [ -d tasks ]; then options+=(--tasks-dir tasks); fi
if [ -d suites ]; then options+=(--held-out suites); fi
if [ -n "${QUANTIZE_PYTHON:-}" ]; then options+=(--python "$QUANTIZE_PYTHON"); fi
narrowgate quantize "$MODEL" --recipe "$RECIPE" --out "$WORK/model" "${options[@]}"

options=()
for suite in suites/*/; do options+=(--suite "${suite%/}"); done
if [ ${#options[@]} -eq 0 ]; then options=(--suite builtin); fi
if [ -d tasks ]; then options+=(--tasks-dir tasks); fi
if [ -n "${CONFIG:-}" ]; then options+=(--config "$CONFIG"); fi
read -r -d '' -a margins <<< "${MARGINS:-}" || true
for margin in "${margins[@]}"; do options+=(--margin "$margin"); done
narrowgate gate --baseline "$baseline" --candidate "$WORK/model" --key "$KEY" "${options[@]}"

narrowgate verify "$WORK/model" --trust "$PUBLIC_KEY"
# Python, because an image need not have jq.
digest=$(python3 - "$WORK/model/attestation.json" <<'DIGEST'
import base64
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    payload = json.loads(base64.b64decode(json.load(file)["payload"]))
print(payload["subject"][0]["digest"]["sha256"])
DIGEST
)
artifact=sha256-$digest

if [ -n "${UPLOAD:-}" ]; then
  bash -euo pipefail -c "$UPLOAD" upload "$WORK/model" "$artifact"
fi

if [ -n "${OVERLAY:-}" ]; then
  narrowgate k8s render --settings "$OVERLAY/settings.yaml" --artifact "$artifact" --store "$STORE" \
    --out "$OVERLAY"
  sed -i -E "s#/models/sha256-[0-9a-f]{64}#/models/$artifact#" "$OVERLAY/settings.yaml"
fi
if [ -n "${ADMISSION:-}" ] && ! grep -q "$artifact" "$ADMISSION"; then
  sed -i 's/^data: {}$/data:/' "$ADMISSION"
  printf '  %s: "%s"\n' "$artifact" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" >> "$ADMISSION"
fi
echo "$artifact"
