#!/usr/bin/env bash
# Train everything in data/spriteworld again: first stage, recognisers, text to image, editor. Each stage goes on where
# it was stopped; finished stages are left alone. On a GPU it takes minutes, on two CPU cores a night. STEPS_FIRST_STAGE,
# STEPS_TEXT and STEPS_EDIT make it shorter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python
data=data/spriteworld
runs=logs/spriteworld
mkdir -p "$runs"

# stage NAME CONFIG STEPS SHIPPED-AS [override ...]: train, or resume, then put the weights in their place. A run of
# another number of steps is another run.
stage() {
  local name="$1-$3" config="$2" steps="$3" shipped="$4"
  shift 4
  local run
  run="$(find "$runs" -maxdepth 1 -name "*_$name" | sort | tail -n 1)"
  if [ -n "$run" ] && [ -f "$run/checkpoints/step=$steps.safetensors" ]; then
    echo "train_spriteworld: $name is done ($run)"
  elif [ -n "$run" ] && [ -f "$run/checkpoints/last.ckpt" ]; then
    "$python" scripts/train.py --logs "$runs" --resume "$run"
  else
    "$python" scripts/train.py "$config" "training.max_steps=$steps" "$@" --logs "$runs" --name "$name"
  fi
  run="$(find "$runs" -maxdepth 1 -name "*_$name" | sort | tail -n 1)"
  cp "$run/checkpoints/step=$steps.safetensors" "$data/$shipped.safetensors.tmp"
  mv "$data/$shipped.safetensors.tmp" "$data/$shipped.safetensors"
}

stage first-stage configs/spriteworld/first-stage.yaml "${STEPS_FIRST_STAGE:-3600}" first-stage
# the scale of these latents: every config that starts from these weights reads it
scale="$("$python" scripts/spriteworld.py scale)"
sed -i "s/scale_factor: [0-9.]*/scale_factor: $scale/" configs/spriteworld/model.yaml
# the recognisers are trained through the first stage, too
if [ ! -f "$data/recogniser-grey.safetensors" ] || ! cmp -s "$data/first-stage.safetensors" "$runs/recognised-by"; then
  "$python" scripts/spriteworld.py recogniser
  cp "$data/first-stage.safetensors" "$runs/recognised-by"
fi
stage text-to-image configs/spriteworld/text-to-image.yaml "${STEPS_TEXT:-1200}" text-to-image
stage instruct-pix2pix configs/spriteworld/instruct-pix2pix.yaml "${STEPS_EDIT:-7600}" editor
"$python" scripts/spriteworld.py photos > /dev/null
"$python" scripts/spriteworld.py measure --output "$data/measures"
