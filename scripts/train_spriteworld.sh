#!/usr/bin/env bash
# Train everything in data/spriteworld again: first stage, recognisers, text to image, editor, text to image from the
# editor, and the first stage's decoder once more. It overwrites the weights that ship, their measures and the scale
# in configs/spriteworld/model.yaml: keep them by running it in a clone of its own. Each stage goes on where it was
# stopped; finished stages are not trained again, only their weights are put in place once more (the decoder's last).
# On two CPU cores it takes a night, on a GPU less. STEPS_FIRST_STAGE, STEPS_WINDOWS, STEPS_RECOGNISER, STEPS_TEXT,
# STEPS_EDIT, STEPS_TEXT_AGAIN, SCENES_LATENTS and STEPS_DECODER make it shorter (a training has at least 51 steps: 50
# are its warm-up); key.sub=value arguments go to every stage, such as training.precision=bf16 or
# data.params.train.params.length=2000 (data.params.train not to the decoder's, which learns from SCENES_LATENTS
# edits). Latents and recognisers that were stopped are made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python
data=data/spriteworld
runs=logs/spriteworld
given=("$@")
mkdir -p "$runs"

# run_of NAME-STEPS: the newest run folder of that name, or nothing.
run_of() { find "$runs" -maxdepth 1 -name "*_$1" | sort | tail -n 1; }

# text_of CONFIG: a YAML file and those that its base: line names.
text_of() {
  local base
  cat "$1"
  for base in $(sed -n 's/#.*//; s/^base: *//p' "$1" | tr -d '[],'); do text_of "$(dirname "$1")/$base"; done
}

# publish FILE PLACE: put weights in their place, whole or not at all.
publish() { cp "$1" "$2.tmp" && mv "$2.tmp" "$2"; }

# stage NAME CONFIG STEPS WEIGHTS PARENT [override ...]: train, or resume, then put the weights in their place. A run of
# another number of steps is another run. So is one by another recipe, from other weights (PARENT, or "") or with other
# overrides: the one before is then put aside as RUN.before-TIME.
stage() {
  local name="$1-$3" config="$2" steps="$3" weights="$4" parent="$5"
  shift 5
  local run origin
  origin="$({ text_of "$config"; [ -z "$parent" ] || cat "$parent"; printf '%s\n' "$@" ${given[@]+"${given[@]}"}; } | sha256sum | cut -c 1-16)"
  if [ "$(cat "$runs/$name.origin" 2> /dev/null)" != "$origin" ]; then
    find "$runs" -maxdepth 1 -name "*_$name" -exec mv {} "{}.before-$(date +%s%N)" \;
    echo "$origin" > "$runs/$name.origin"
  fi
  run="$(run_of "$name")"
  if [ -n "$run" ] && [ -f "$run/checkpoints/step=$steps.safetensors" ]; then
    echo "train_spriteworld: $name is done ($run)"
  elif [ -n "$run" ] && [ -f "$run/checkpoints/last.ckpt" ]; then
    "$python" scripts/train.py --logs "$runs" --resume "$run"
  else
    "$python" scripts/train.py "$config" "training.max_steps=$steps" "$@" ${given[@]+"${given[@]}"} \
      --logs "$runs" --name "$name"
  fi
  run="$(run_of "$name")"
  publish "$run/checkpoints/step=$steps.safetensors" "$weights"
}

# once FILE SOURCE job [option ...]: make FILE by that job of spriteworld.py, once for each SOURCE and options (two calls
# may differ in a bit, and what follows would be trained anew); if it is stopped, it is made anew.
once() {
  local file="$1" source="$2" record of
  shift 2
  record="$runs/$(basename "$file").of"
  of="$(sha256sum < "$source") $*"
  [ -f "$file" ] && [ "$(cat "$record" 2> /dev/null)" = "$of" ] && return
  rm -f "$record"
  "$python" scripts/spriteworld.py "$@"
  echo "$of" > "$record"
}

# The first stage: whole pictures, then (its latents made white) windows of 32 and 48 pixels around the animal, where
# the details are, and whole pictures again; last, each channel as large as what it means to the picture (nearly).
first=configs/spriteworld/first-stage.yaml
plain=(model.params.lossconfig.params.whiten=0 model.params.lossconfig.params.kl=1.0e-5
  data.params.train.params.low_contrast=1 data.params.train.params.any_coat=0.5 data.params.train.params.seed=1)
windows="${STEPS_WINDOWS:-2600}"
from=model.params.ckpt_path
stage first-stage-plain "$first" "${STEPS_FIRST_STAGE:-3600}" "$runs/plain.safetensors" "" "${plain[@]}"
once "$runs/white.safetensors" "$runs/plain.safetensors" \
  whiten --ckpt "$runs/plain.safetensors" --output "$runs/white.safetensors"
stage first-stage-32 "$first" "$windows" "$runs/windows-32.safetensors" "$runs/white.safetensors" \
  "$from=$runs/white.safetensors" data.params.batch_size=32 data.params.train.params.crop=32 data.params.train.params.seed=11
stage first-stage-48 "$first" "$windows" "$runs/windows-48.safetensors" "$runs/windows-32.safetensors" \
  "$from=$runs/windows-32.safetensors" data.params.batch_size=24 data.params.train.params.crop=48 data.params.train.params.seed=12
stage first-stage "$first" "${STEPS_FIRST_STAGE:-9000}" "$runs/whole.safetensors" "$runs/windows-48.safetensors" \
  "$from=$runs/windows-48.safetensors"
once "$runs/first-stage.safetensors" "$runs/whole.safetensors" \
  whiten --ckpt "$runs/whole.safetensors" --output "$runs/first-stage.safetensors" --power 0.8
publish "$runs/first-stage.safetensors" "$data/first-stage.safetensors"
# the scale of these latents: every config that starts from these weights reads it
scale="$("$python" scripts/spriteworld.py scale)"
sed -i "s/scale_factor: [0-9.]*/scale_factor: $scale/" configs/spriteworld/model.yaml
# the recognisers are trained through the first stage, too
once "$data/recogniser-grey.safetensors" "$data/first-stage.safetensors" \
  recogniser --steps "${STEPS_RECOGNISER:-1200}"
stage text-to-image configs/spriteworld/text-to-image.yaml "${STEPS_TEXT:-4000}" "$data/text-to-image.safetensors" \
  "$data/first-stage.safetensors"
stage instruct-pix2pix configs/spriteworld/instruct-pix2pix.yaml "${STEPS_EDIT:-14000}" "$data/editor.safetensors" \
  "$data/text-to-image.safetensors"
# Text to image again, from the editor without its picture: it has seen the animals for longer than its beginning had.
without="$runs/without-picture.safetensors"
once "$without" "$data/editor.safetensors" without-picture --output "$without"
stage text-to-image-again configs/spriteworld/text-to-image.yaml "${STEPS_TEXT_AGAIN:-1200}" \
  "$data/text-to-image.safetensors" "$without" "$from=$without"
# The decoder, from the latents that this editor makes; both models take it along, their latents stay.
latents="$runs/latents.safetensors"
once "$latents" "$data/editor.safetensors" latents --output "$latents" --scenes "${SCENES_LATENTS:-6000}"
for i in "${!given[@]}"; do [[ "${given[i]}" != data.params.train[.=]* ]] || unset "given[i]"; done
stage decoder configs/spriteworld/first-stage-decoder.yaml "${STEPS_DECODER:-4000}" "$runs/decoder.safetensors" \
  "$latents" "data.params.train.params.files=$latents"
publish "$runs/decoder.safetensors" "$data/first-stage.safetensors"
for model in text-to-image editor; do
  "$python" scripts/spriteworld.py follow --ckpt "$data/$model.safetensors" --output "$runs/followed.safetensors"
  rm -f "$runs/exported.safetensors"
  "$python" scripts/export.py "$runs/followed.safetensors" "$runs/exported.safetensors"  # in fp16
  mv "$runs/exported.safetensors" "$data/$model.safetensors"
done
"$python" scripts/spriteworld.py photos > /dev/null
"$python" scripts/spriteworld.py measure --output "$data/measures"
