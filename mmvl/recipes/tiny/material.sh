#!/usr/bin/env bash
# What data.sh makes mmvl-tiny's training data of, fetched and cut down to what is drawn, in one folder: small enough to
# be carried to a machine without a network. Needs the extra `material`, apt-get, dpkg and pip.
#   DEST      where it goes
#   PACKAGES  Debian packages, unpacked; NPM  npm packages, unpacked: fetched into these folders if they are not there
#   RECEIPTS, CHARTS, TABLES  tars and a .jsonl.gz as data.sh takes them; of these the training split alone goes along
# Nothing that is held out for evaluation goes along; evaluation.sh makes the sets of that.
set -euo pipefail
: "${DEST:=runs/material}" "${PACKAGES:=runs/packages}" "${NPM:=runs/npm}" "${RECEIPTS=}" "${CHARTS=}" "${TABLES=}"
mmvl data import debian -o "$PACKAGES"
mmvl data import npm -o "$NPM"
mmvl data import fonts -o "$DEST/fonts" --set packages="$PACKAGES"
mmvl data import corpus -o "$DEST/corpus" --set packages="$PACKAGES" --set max_chars=3800000
rm "$DEST/corpus/devil.jsonl.gz" # held out
mmvl data import stamp-pictures -o "$DEST/stamps" --set packages="$PACKAGES"
mmvl data import clip-art-pictures -o "$DEST/clip-art" --set packages="$PACKAGES"
mmvl data import emoji-styles -o "$DEST/emoji" --set packages="$NPM" --set fonts="$PACKAGES"
for file in "$RECEIPTS" "$CHARTS" "$TABLES"; do
  [ -z "$file" ] || mmvl data import training-split -o "$DEST/real" --set file="$file"
done
python3 -m pip download -q --no-deps -d "$DEST" easy-vqa==1.0

echo "$DEST is there; for data.sh:"
real() { [ -z "$2" ] || echo "  $1=$DEST/real/${2##*/}"; }
echo "  FONTS=$DEST/fonts CORPUS=$DEST/corpus STAMPS=$DEST/stamps CLIP_ART=$DEST/clip-art EMOJI=$DEST/emoji"
echo "  EASY_VQA_WHEEL=$(echo "$DEST"/easy_vqa-*.whl)"
real RECEIPTS "$RECEIPTS"
real CHARTS "$CHARTS"
real TABLES "$TABLES"
