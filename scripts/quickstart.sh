#!/usr/bin/env bash
# The whole of Instruct2Dream on a machine with only python3: set up, make a subject's pairs, teach it in 800 steps, edit
# new pictures, measure before and after. SUBJECT chooses one of data/spriteworld/subjects/ (default biscuit).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python
subject="${SUBJECT:-biscuit}"
case "$subject" in
  mochi) class_word=cat ;;
  *) class_word=dog ;;
esac
pairs="logs/pairs/$subject"
begin=$SECONDS

echo "quickstart: 1 of 3, pairs of $subject: its photos edited in reverse, other edits of it, and regularization pairs"
pictures=data/spriteworld/pictures
bash generate_dataset.sh --photos "data/spriteworld/subjects/$subject" --class-word "$class_word" \
  --source-words wolf rabbit --source-edits "remove the collar" \
  --reg-photos "wolf=$pictures/wolf" "rabbit=$pictures/rabbit" --num-reg 100 \
  --subject-edits "put the {word} in the forest" "make the {word} red" "give the {word} a blue hat" \
  "put the {word} in the city" "make the {word} green" "put the {word} in a room" "give the {word} a yellow hat" \
  "put the {word} in the meadow" "put the {word} in the desert" "put the {word} in the mountains" \
  --num-subject-edits 20 \
  --batch-size 25 --ckpt data/spriteworld/editor.safetensors --config configs/spriteworld/pairs.yaml --output "$pairs"

echo "quickstart: 2 of 3, teaching \"sks $class_word\" in 800 steps"
run="$(bash train.sh --data "$pairs" --name "$subject" "$@" | tail -n 1)"

echo "quickstart: 3 of 3, measuring on new pictures"
"$python" scripts/spriteworld.py subject --run "$run" --subject "$subject" --scenes 20

echo "quickstart: done in $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s"
echo "  pairs      $pairs/training-contact-sheet.png"
echo "  results    $run/results.png"
echo "  edit       ./edit.sh --ckpt $run \\"
echo "               --input data/spriteworld/pictures/wolf/01.png --edit \"replace the wolf with a sks $class_word\""
