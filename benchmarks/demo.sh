#!/usr/bin/env bash
# Trains MEND on WorldFacts, measures it on subjects that it never saw, and edits one fact.
# usage: benchmarks/demo.sh EXPERIMENT.yaml FOLDER
set -euo pipefail
experiment=$1
folder=$2
export TOKENIZERS_PARALLELISM=false

echo "== 1/4  train MEND on the built-in facts"
lightning-edit fit --config "$experiment"
run=$(ls -td runs/mend/version_* | head -n 1)
checkpoint=$(ls -t "$run"/checkpoints/best*.ckpt | head -n 1)

echo "== 2/4  measure on held-out countries and cities, with held-out wordings"
lightning-edit test --config "$experiment" --ckpt_path "$checkpoint"
report=$(ls -td runs/mend/version_* | head -n 1)

echo "== 3/4  edit one fact and save the change"
rm -rf "$folder/edit"
lightning-edit edit --ckpt_path "$checkpoint" \
  --prompt "The capital of France is" --subject France --target Rome \
  --ask '["What is the capital city of France? It is", "The capital of Japan is", "Water is made of hydrogen and"]' \
  --save "$folder/edit"

echo "== 4/4  where everything is"
dashboard=$(ls -td runs/wandb/offline-run-* 2>/dev/null | sed -n 2p || true)
cat <<END

  checkpoint    $checkpoint
  measures      $report/metrics.json
  predictions   $report/predictions.jsonl
  training log  $run/metrics.csv
  W&B run       ${dashboard:-runs/wandb}
  saved edit    $folder/edit

  Next:
    lightning-edit generate --edits '["$folder/edit"]' --prompts '["The capital of France is"]'
    lightning-edit merge --edits '["$folder/edit"]' --output $folder/merged
    wandb leet ${dashboard:-runs/wandb/latest-run}
    wandb sync ${dashboard:-runs/wandb/latest-run}      (needs a W&B account)
    lightning-edit fit --help
  The commands are in .venv/bin: source .venv/bin/activate
END
