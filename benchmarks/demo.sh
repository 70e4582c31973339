#!/usr/bin/env bash
# Trains MEND and the scope of its edits on WorldFacts, measures them on subjects that it never saw, and edits one fact.
# usage: benchmarks/demo.sh EXPERIMENT.yaml FOLDER
set -euo pipefail
experiment=$1
folder=$2
export TOKENIZERS_PARALLELISM=false

echo "== 1/6  train MEND, and the scope of its edits, on the built-in facts"
lightning-edit fit --config "$experiment" --trainer.val_check_interval 1.0
run=$(ls -td runs/scoped/version_* | head -n 1)
checkpoint=$(ls -t "$run"/checkpoints/best*.ckpt | head -n 1)
mkdir -p "$folder"
lightning-edit plot --runs "$run" --output "$folder/curves.png"

echo "== 2/6  measure on held-out countries and cities, with held-out wordings"
lightning-edit test --config "$experiment" --ckpt_path "$checkpoint"
report=$(ls -td runs/scoped/version_* | head -n 1)

fact=(--prompt "The capital of France is" --subject France --target Rome)
others=(--ask "What is the capital city of France? It is" "The capital of Japan is" "The capital of Germany is"
  "Water is made of hydrogen and")
echo "== 3/6  edit one fact and save the change"
lightning-edit edit --ckpt_path "$checkpoint" "${fact[@]}" "${others[@]}" --save "$folder/edit" --overwrite true

echo "== 4/6  the same edit by ROME, which is not trained: it searches"
lightning-edit edit --editor configs/editor/rome.yaml "${fact[@]}" "${others[@]}" --save "$folder/rome" --overwrite true

echo "== 5/6  ship ROME's edit as a LoRA adapter (a scoped edit is not a change of the weights: serve it)"
rm -rf "$folder/adapter"
lightning-edit export-adapter --edits "$folder/rome" --output "$folder/adapter"

echo "== 6/6  where everything is"
dashboard=$(ls -td runs/wandb/offline-run-* 2>/dev/null | sed -n 2p || true)
cat <<END

  checkpoint    $checkpoint
  measures      $report/metrics.json
  predictions   $report/predictions.jsonl
  training log  $run/metrics.csv
  curves        $folder/curves.png
  W&B run       ${dashboard:-runs/wandb}
  saved edits   $folder/edit, $folder/rome
  LoRA adapter  $folder/adapter

  Undo: the weights were never written. The model without the folder of an edit is the model as it was:
    lightning-edit generate --edits $folder/edit --prompts "The capital of France is"      (before and after)

  Next:
    lightning-edit merge --edits $folder/rome --output $folder/merged
    lightning-edit serve --edits $folder/edit
    wandb leet ${dashboard:-runs/wandb/latest-run}
    wandb sync ${dashboard:-runs/wandb/latest-run}      (needs a W&B account)
    lightning-edit fit --help
  The commands are in .venv/bin: source .venv/bin/activate
END
