#!/usr/bin/env bash
# The training data of mmvl-tiny, into runs/data. Sources and licences: the model card, mmvl/models/mmvl-tiny/README.md.
# What FONTS to EMOJI name is fetched and made by material.sh, which prints these variables.
#   FONTS     directory searched for fonts (held-out families are left out by name; `mmvl data import fonts` makes a
#             compact copy of them, to render on another machine)
#   CORPUS    directory of .jsonl.gz text files (made by data/text.py from Debian packages)
#   STAMPS    where Debian's tuxpaint-stamps-default is unpacked ("/" if it is installed; empty: no stamps)
#   CLIP_ART  where Debian's openclipart-png is unpacked, or a compact copy (`mmvl data import clip-art-pictures`); empty:
#             none, and the recipes' source clip-art goes
#   RECEIPTS, CHARTS, TABLES  real scans (SROIE), charts (ChartQA), tables (WikiTableQuestions), in the forms that
#             data/public_formats.py reads; empty: none, and the recipes' sources scans, scan-lines, chart-scans go
#   EMOJI     folder of emoji in further drawing styles (data/render_emoji.py says how it looks); empty: Noto's alone
#   DEST      where the shards go; ONLY  names of sources, all if empty; SCALE  divides the counts, for a try
#   SEEDS     is added to every seed, for more data of the same kinds; WORKERS  processes of a source, 0 is one a core
# Sources are made JOBS at a time: each begins with some seconds of one process, reading fonts.
set -euo pipefail
: "${FONTS:=/usr/share/fonts}" "${CORPUS:=runs/corpus}" "${STAMPS=/}" "${CLIP_ART=/}" "${RECEIPTS=}" "${CHARTS=}"
: "${TABLES=}" "${EMOJI=}" "${DEST:=runs/data}" "${ONLY=}" "${SCALE:=1}" "${SEEDS:=0}" "${WORKERS:=0}" "${JOBS:=6}"
running=0 failed=0
shards() { # render|import, kind, name, count, seed, settings
  [[ -z $ONLY || " $ONLY " == *" $3 "* ]] || return 0
  if ((running >= JOBS)); then wait -n || failed=1; running=$((running - 1)); fi
  mmvl data "$1" "$2" -o "$DEST/$3" --count $(($4 / SCALE)) --seed $(($5 + SEEDS)) --workers "$WORKERS" "${@:6}" &
  running=$((running + 1))
}
render() { shards render "$1" "$2" "$3" "$4" --set fonts="$FONTS" --set corpus="$CORPUS" "${@:5}"; }

# The largest first, so that none is left running alone. A picture costs far more tokens than a question, and to find
# what is asked for is harder to learn than to read: many questions on each.
asked=(--set whole=0.3 --set unanswerable=0.12 --set views=3 --set fewest_questions=6)
real=(${TABLES:+--set tables="$TABLES" --set mixed=0.6})
render tables tables 50000 33 "${asked[@]}" "${real[@]}" --set most_questions=20
# People's questions on real tables, and questions like theirs where the cells have changed places, so that none is known
# by heart. Most are whole, and of the size that they have on a page: larger than what a model sees without scaling.
[ -z "$TABLES" ] || render tables real-tables 60000 44 --set views=3 --set unanswerable=0.08 --set tables="$TABLES" \
  --set real=1 --set shuffled=0.5 --set people=0.85 --set cut=0.15 --set max_side=1100 --set whole=0.3 \
  --set fewest_questions=8 --set most_questions=20
render charts charts 80000 35 "${asked[@]}" ${TABLES:+--set tables="$TABLES"} --set printed_values=0.5 --set matplotlib=0.15 \
  --set most_questions=18
# Pages of statistics: many bars in small print, the value at each, buttons and credits around them.
render charts statistics 40000 47 --set views=3 --set whole=0.1 --set unanswerable=0.05 ${TABLES:+--set tables="$TABLES"} \
  --set statistics=1 --set printed_values=0.85 --set max_side=840 --set most_categories=21 --set fewest_questions=8 \
  --set most_questions=18
render receipts receipts 50000 31 "${asked[@]}" --set most_questions=12
render pages pages 40000 32 "${asked[@]}" --set most_questions=12
# Small tables and cards teach in a few hundred tokens which cell and which label is meant.
render tables small-tables 150000 40 --set views=3 --set unanswerable=0.15 --set real=0.6 "${real[@]}" \
  --set shuffled=0.5 --set people=0.4 --set max_side=320 --set most_rows=5 --set most_columns=4 \
  --set fewest_questions=8 --set most_questions=20
# So do small charts: with a value printed at each mark which one belongs to which bar, without how to measure.
render charts small-charts 150000 42 --set views=3 --set unanswerable=0.1 ${TABLES:+--set tables="$TABLES"} \
  --set max_side=336 --set most_categories=8 --set most_series=3 --set printed_values=0.6 --set wear=0.2 \
  --set fewest_questions=8 --set most_questions=16
render labelled labelled 150000 41 --set max_side=440 --set views=2 --set fewest_questions=6 --set most_questions=16
render receipt-lines receipt-lines 400000 34 --set capitals=0.1
# Three lines in ten are words in random order: with sentences alone the model guesses words instead of reading them.
render text-lines lines 800000 16 --set running_text=0.4 --set min_size=11 --set max_size=34
render documents documents 80000 15
# Single words and numbers, large and clean: the first thing to learn to read.
render text-lines words 150000 17 --set max_chars=8 --set min_size=16 --set clean=true
render screens screens 15000 36 "${asked[@]}" --set most_questions=12
if [ -n "$RECEIPTS" ]; then
  # Other dates, sums and names in most views: shops come again, and their dates would be known by heart.
  render scans scans 15000 37 --set receipts="$RECEIPTS" --set rewrite=0.8
  shards render scan-lines scan-lines 110000 38 --set receipts="$RECEIPTS"
fi
[ -z "$CHARTS" ] || shards render chart-scans chart-scans 9000 39 --set charts="$CHARTS"
shards import easy-vqa easy-vqa 32000 12 ${EASY_VQA_WHEEL:+--set wheel="$EASY_VQA_WHEEL"}
[ -z "$STAMPS" ] || shards import stamps stamps 8000 13 --set packages="$STAMPS"
[ -z "$CLIP_ART" ] || shards import clip-art clip-art 40000 45 --set packages="$CLIP_ART" --set split=train --set views=0.85
shards render emoji emoji 640000 14 --set fonts="$FONTS" ${EMOJI:+--set pictures="$EMOJI"}
shards import text text 0 11 --set corpus="$CORPUS"
shards import text-questions text-questions 120000 46 --set corpus="$CORPUS" --set longest=9000
while ((running)); do wait -n || failed=1; running=$((running - 1)); done
((failed == 0))
# Questions that say which of several pictures they are about.
small="$DEST/labelled,$DEST/labelled,$DEST/small-tables,$DEST/small-charts"  # labels twice: most questions in common
shards import albums albums 120000 18 --set shards="$small,$DEST/emoji,$DEST/easy-vqa,$DEST/receipt-lines"
# Pairs for the preference stage: this picture's (or text's) answer over another's, or over a near miss.
shards import pairs preferences 8000 21 --set near=0.5 --set shards="$DEST/documents"
shards import pairs labelled-preferences 8000 27 --set near=0.7 --set shards="$DEST/labelled"
shards import pairs page-preferences 6000 23 --set near=0.7 --set shards="$DEST/pages"
shards import pairs receipt-preferences 6000 24 --set near=0.7 --set shards="$DEST/receipts"
shards import pairs table-preferences 6000 26 --set near=0.7 --set shards="$DEST/small-tables"
shards import pairs chart-preferences 6000 25 --set near=0.7 --set shards="$DEST/charts"
shards import pairs text-preferences 4000 22 --set shards="$DEST/text"
while ((running)); do wait -n || failed=1; running=$((running - 1)); done
((failed == 0))
