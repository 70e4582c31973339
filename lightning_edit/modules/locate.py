"""Fits and evaluates locate-then-edit methods."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.data.datamodule import EditDataModule
from lightning_edit.editors.locate import LocateEditor
from lightning_edit.errors import ConfigurationError
from lightning_edit.metrics.base import Average
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.models.moments import MomentSums, keys_of
from lightning_edit.models.statistics import Corpus, KeyStatistics
from lightning_edit.modules.base import EditingModule
from lightning_edit.modules.evaluation import EvaluationSettings

_LOG = logging.getLogger(__name__)


class LocateEditing(EditingModule):
    """Collects the statistics of a locate-then-edit method in fit; validates, tests and predicts its edits.

    fit reads a text corpus (``data.corpus``) and collects the second moments of the keys of all edited layers in one
    pass over it. They are stored in the folder that ``editor.statistics`` names, with what they belong to; a run that
    was stopped goes on where it was. There is nothing to train.

    Args:
        editor: A locate-then-edit editor.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        save_every: Batches after which the sums so far are saved.
    """

    editor: LocateEditor

    def __init__(
        self,
        editor: LocateEditor,
        language_model: LanguageModelSettings = LanguageModelSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        validation: EvaluationSettings = EvaluationSettings(generate=False),
        average: Average = "probe",
        save_every: int = 50,
    ) -> None:
        super().__init__(editor, language_model, evaluation, validation, average)
        self.automatic_optimization = False
        self.save_every = save_every
        self._sums = MomentSums()
        self._sites: list[EditSite] = []

    def setup(self, stage: str) -> None:
        """Loads the base model; in fit, picks up the sums of a run that was stopped."""
        super().setup(stage)
        if stage != "fit":
            return
        if self.editor.statistics is None:
            raise ConfigurationError("editor.statistics: name the folder that the statistics are to be written to")
        self._kept(self._corpus(self._data().corpus_rows().numel()))
        layers = self.editor.edited_layers(self.language_model)
        self._sites = [self.language_model.layer_map.site(layer) for layer in layers]
        self._sums = MomentSums.resume(self._partial(), self._identity())
        self._data().corpus_skip = self._sums.batches
        if self.trainer.world_size > 1 and not list(self.parameters()):
            # Data parallelism refuses a module without parameters, and this one has nothing to train.
            self.placeholder = nn.Parameter(torch.zeros(()))
        if self._sums.batches:
            _LOG.info("going on behind %d batches (%d tokens)", self._sums.batches, self._sums.tokens)

    def prepare_measures(self, stage: str) -> None:
        """Fit measures nothing: a corpus has no probes."""
        if stage != "fit":
            super().prepare_measures(stage)

    def _data(self) -> EditDataModule:
        found = getattr(self.trainer, "datamodule", None)
        if not isinstance(found, EditDataModule):
            raise ConfigurationError("pass an EditDataModule with a corpus to the Trainer")
        return found

    def _identity(self) -> str:
        """What the sums belong to: model, sites, corpus, packing, and share of the processes."""
        data = self._data()
        rows = data.corpus_rows().numpy()
        values = [
            self.language_model.fingerprint.digest,
            [site.name for site in self._sites],
            hashlib.sha256(rows.tobytes()).hexdigest(),
            [*rows.shape, data.corpus.batch_size if data.corpus else 0, self.trainer.world_size],
        ]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def _corpus(self, tokens: int) -> Corpus:
        corpus = self._data().corpus
        return Corpus(corpus.name if corpus else "", corpus.length if corpus else 0, tokens)

    def _kept(self, corpus: Corpus) -> KeyStatistics | None:
        """Statistics of other sites that are there already."""
        return KeyStatistics.kept_in(str(self.editor.statistics), corpus, self.language_model.fingerprint)

    def _partial(self) -> Path:
        return Path(f"{self.editor.statistics}.partial-{self.trainer.global_rank}.safetensors")

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Adds a batch (B, L) int64 of packed texts."""
        self._sums.add(keys_of(self.language_model, batch, self._sites))
        self.log("train/tokens", float(self._sums.tokens), prog_bar=True)
        if self._sums.batches % self.save_every == 0:
            self._sums.save(self._partial(), self._identity())

    def on_train_end(self) -> None:
        """Merges the sums of all processes and writes the statistics from the first."""
        whole = self._sums.of_all_processes(self._sites)
        if self.trainer.is_global_zero:
            # Those of other sites, on the same corpus, stay.
            corpus, model = self._corpus(whole.tokens), self.language_model
            kept = self._kept(corpus)
            moments = {**(kept.moments if kept else {}), **whole.moments()}
            statistics = KeyStatistics(moments, corpus, model.name, model.fingerprint)
            folder = statistics.save(str(self.editor.statistics))
            _LOG.info("statistics of %d sites on %d tokens written to %s", len(self._sites), whole.tokens, folder)
        self.trainer.strategy.barrier()
        self._partial().unlink(missing_ok=True)

    def configure_optimizers(self) -> None:
        """There is nothing to optimise."""
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The statistics live in their folder; the checkpoint knows how far they are."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"].pop("placeholder", None)
        checkpoint["statistics_batches"] = self._sums.batches
