#!/usr/bin/env bash
# After quickstart.sh: teach the same subject to text to image (DreamBooth), then compare it, the frozen editor and the
# personalised one on configs/evaluation/spriteworld.yaml. Leaves logs/evaluation/report.html.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
begin=$SECONDS
newest() { find logs -maxdepth 1 -name "*_$1" 2> /dev/null | sort | tail -n 1; }

dream="$(newest biscuit)"
if [ -z "$dream" ] || [ ! -f "$dream/checkpoints/best.json" ]; then
  echo "evaluate_spriteworld: no personalised editor of biscuit in logs/; run bash scripts/quickstart.sh first" >&2
  exit 2
fi
if [ "$dream/checkpoints/best.json" -ot data/spriteworld/editor.safetensors ]; then
  echo "evaluate_spriteworld: $dream is older than data/spriteworld/editor.safetensors; run bash scripts/quickstart.sh again" >&2
  exit 2
fi
# class pictures and DreamBooth's run belong to the weights that they were made with
of="$(sha256sum < data/spriteworld/text-to-image.safetensors | cut -c 1-8)"
images="logs/class-images/dog-$of"
"$python" scripts/txt2img.py --class-images 200 --prompt "a dog" --output "$images" --batch-size 25 > /dev/null
booth="$(newest "dreambooth-biscuit-$of")"
if [ -n "$booth" ] && [ -f "$booth/checkpoints/step=800.safetensors" ]; then
  echo "evaluate_spriteworld: DreamBooth is trained ($booth)" >&2
elif [ -n "$booth" ] && [ -f "$booth/checkpoints/last.ckpt" ]; then
  "$python" scripts/train.py --resume "$booth"
else
  booth="$("$python" scripts/train.py configs/spriteworld/dreambooth.yaml "dataset.class_images=$images" \
    --name "dreambooth-biscuit-$of" | tail -n 1)"
fi
"$python" scripts/evaluate.py configs/evaluation/spriteworld.yaml --output logs/evaluation \
  --methods "dreambooth=$booth" instruct_pix2pix=data/spriteworld/editor.safetensors "instruct2dream=$dream"
echo "evaluate_spriteworld: done in $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s"
