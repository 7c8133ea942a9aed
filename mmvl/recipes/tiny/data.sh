#!/usr/bin/env bash
# The training data of mmvl-tiny, into runs/data. Sources and licences: the model card, mmvl/models/mmvl-tiny/README.md.
#   FONTS   directory searched for fonts (held-out families are left out by name)
#   CORPUS  directory of .jsonl.gz text files
#   STAMPS  where Debian's tuxpaint-stamps-default is unpacked ("/" if it is installed)
#   SCALE   divides the counts, for a try
set -euo pipefail
: "${FONTS:=/usr/share/fonts}" "${CORPUS:=runs/corpus}" "${STAMPS:=/}" "${SCALE:=1}" "${WORKERS:=0}"
render() { mmvl data render "$1" -o "runs/data/$2" --count $(($3 / SCALE)) --seed "$4" --workers "$WORKERS" "${@:5}"; }
import() { mmvl data import "$1" -o "runs/data/$2" --count $(($3 / SCALE)) --seed "$4" --workers "$WORKERS" "${@:5}"; }

import text text 0 11 --set corpus="$CORPUS"
import easy-vqa easy-vqa 32000 12 ${EASY_VQA_WHEEL:+--set wheel="$EASY_VQA_WHEEL"}
import stamps stamps 6000 13 --set packages="$STAMPS"
render emoji emoji 24000 14 --set fonts="$FONTS"
render documents documents 60000 15 --set fonts="$FONTS" --set corpus="$CORPUS"
# Every length of line from the start: the short ones are the curriculum's easy end.
render text-lines lines 600000 16 --set fonts="$FONTS" --set corpus="$CORPUS"
