#!/usr/bin/env bash
# The training data of mmvl-tiny, into runs/data. Sources and licences: the model card, mmvl/models/mmvl-tiny/README.md.
#   FONTS   directory searched for fonts (held-out families are left out by name; `mmvl data import fonts` makes a compact
#           copy of them, to render on another machine)
#   CORPUS  directory of .jsonl.gz text files (made by data/text.py from Debian packages)
#   STAMPS  where Debian's tuxpaint-stamps-default is unpacked ("/" if it is installed; empty: no stamps)
#   SCALE   divides the counts, for a try; WORKERS  processes, 0 is one a core
set -euo pipefail
: "${FONTS:=/usr/share/fonts}" "${CORPUS:=runs/corpus}" "${STAMPS=/}" "${SCALE:=1}" "${WORKERS:=0}"
render() { mmvl data render "$1" -o "runs/data/$2" --count $(($3 / SCALE)) --seed "$4" --workers "$WORKERS" "${@:5}"; }
import() { mmvl data import "$1" -o "runs/data/$2" --count $(($3 / SCALE)) --seed "$4" --workers "$WORKERS" "${@:5}"; }

import text text 0 11 --set corpus="$CORPUS"
# Single words and numbers, large and clean: the first thing to learn to read.
render text-lines words 150000 17 --set fonts="$FONTS" --set corpus="$CORPUS" \
  --set max_chars=8 --set min_size=16 --set clean=true
import easy-vqa easy-vqa 32000 12 ${EASY_VQA_WHEEL:+--set wheel="$EASY_VQA_WHEEL"}
[ -z "$STAMPS" ] || import stamps stamps 0 13 --set packages="$STAMPS"
render emoji emoji 24000 14 --set fonts="$FONTS"
# Three lines in ten are words in random order: with sentences alone the model guesses words instead of reading them.
render text-lines lines 800000 16 --set fonts="$FONTS" --set corpus="$CORPUS" --set running_text=0.4
render documents documents 80000 15 --set fonts="$FONTS" --set corpus="$CORPUS"
# Pairs for the preference stage: this picture's (or text's) answer over another's.
import pairs preferences 8000 21 --set shards=runs/data/documents
import pairs text-preferences 4000 22 --set shards=runs/data/text
