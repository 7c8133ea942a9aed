#!/usr/bin/env bash
# The sets that mmvl-tiny's model card measures it on and that mmvl draws: fonts, words, layouts, styles and tables that
# training never had. The same commands give the same questions and the same pictures.
#   DEST      where the shards go, a folder a set
#   PACKAGES  Debian packages, unpacked; NPM  npm packages, unpacked: fetched into these folders if they are not there
#   FONTS     directory with the held-out families
#   TABLES    WikiTableQuestions as data.sh takes them, whole: charts and tables are made of its development split
#   ONLY      names of sets, all if empty
# The card's charts and tables of v2 to v4 were drawn by the renderers of commit fe240ed; those of 1a9652e and later ask
# other questions. To get them, run this with `mmvl` of that commit and ONLY="charts tables".
set -euo pipefail
: "${DEST:=runs/evaluation}" "${PACKAGES:=runs/packages}" "${NPM:=runs/npm}" "${TABLES:?WikiTableQuestions}" "${ONLY=}"
: "${FONTS:=$PACKAGES}"
wanted() { [[ -z $ONLY || " $ONLY " == *" $1 "* ]]; }
made() { # renderer, count
  wanted "$1" || return 0
  mmvl data render "$1" -o "$DEST/$1" --count "$2" --seed 9100 --set held_out=true "${@:3}"
}
page() { made "$1" "$2" --set fonts="$FONTS" --set corpus="$DEST/corpus" --set unanswerable=0.12 "${@:3}"; }

mmvl data import debian -o "$PACKAGES"
mmvl data import corpus -o "$DEST/corpus" --set packages="$PACKAGES" --set sources="[devil]" # held-out words
page charts 80 --set tables="$TABLES"
page tables 80 --set tables="$TABLES"
page labelled 60
page pages 60 --set whole=0.5
page receipts 60 --set whole=0.5
page screens 30
if wanted emoji; then
  mmvl data import npm -o "$NPM"
  mmvl data import emoji-styles -o "$DEST/drawn" --set packages="$NPM" --set fonts="$PACKAGES" --set held_out=true
  made emoji 300 --set fonts="$PACKAGES" --set pictures="$DEST/drawn"
fi
! wanted stamps || mmvl data import stamps -o "$DEST/stamps" --seed 9100 --set packages="$PACKAGES" --set held_out=true
