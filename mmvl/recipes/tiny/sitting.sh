#!/usr/bin/env bash
# A sitting of mmvl-tiny's training: from a model's weights, as it is shipped or as it was trained, once through the
# published stages that look at pictures, on data that data.sh drew with new SEEDS. How v6 of a model comes from v5.
#   MODEL    the model to go on from (default: the one that comes with mmvl)
#   MINUTES  all stages together, the loading of the model four times not counted (a few seconds each)
#   OUT      where the stages go; what is left is OUT/instruction/model
#   DATA     where the shards are; the recipes name runs/data, which becomes a link to it
#   STAGES   which of them, in this order
#   SETTINGS further ones of documents, such as "profile_at_step=200 data.workers=8"
# A model learns tables, and forgets some lines: `mmvl average MODEL OUT/instruction/model --shares 0.3,0.7 -o AVERAGE`
# keeps most of both; then `mmvl quantize AVERAGE -o SHIPPED --experts int8 --rest all`.
set -euo pipefail
: "${MODEL:=$(python3 -c 'from mmvl.shipped import MMVL_TINY; print(MMVL_TINY)')}" "${MINUTES:=15}" "${OUT:=runs/tiny}"
: "${DATA:=runs/data}" "${STAGES:=contrastive alignment documents instruction}" "${SETTINGS=}"
recipes=$(cd "$(dirname "$0")" && pwd)
part() { python3 -c "print(round($MINUTES * $1, 2))"; }
last=$MODEL
if [ "$DATA" != runs/data ]; then mkdir -p runs && ln -sfn "$(cd "$DATA" && pwd)" runs/data; fi
vision=null
for stage in $STAGES; do
  set -- "$recipes/$stage.yaml" --set out="$OUT/$stage"
  case $stage in
    contrastive)  # names of things in any drawing style; the ViT alone
      mmvl train "$@" --set model_config_file="$recipes/grown.json" --set tokenizer="$last" --set vision_from="$last" \
        --set data.batch_pairs=1024 --set optimizer.lr=3.0e-4 --set budget.pairs=4000000 \
        --set budget.minutes="$(part 0.1)"
      vision=$OUT/contrastive/model
      continue ;;
    alignment) set -- "$@" --set vision_from="$vision" --set budget.minutes="$(part 0.05)" --set optimizer.lr=6.0e-4 ;;
    documents)
      set -- "$@" --set budget.minutes="$(part 0.79)"
      for setting in $SETTINGS; do set -- "$@" --set "$setting"; done ;;
    instruction) set -- "$@" --set budget.minutes="$(part 0.06)" ;;
    *) set -- "$@" ;;
  esac
  mmvl train "$@" --set init_from="$last"
  last=$OUT/$stage/model
done
echo "mmvl-tiny of this sitting: $last"
