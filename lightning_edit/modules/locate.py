"""Fits and evaluates locate-then-edit methods."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_edit import ranges
from lightning_edit.data.corpus import CorpusBatches, CorpusRange
from lightning_edit.data.datamodule import EditDataModule
from lightning_edit.distributed import lists_of_all_processes, sum_over_processes
from lightning_edit.editors.locate import LocateEditor
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import remove_unfinished
from lightning_edit.metrics.base import Average
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.models.moment_sums import MomentSums
from lightning_edit.models.statistics import Corpus, KeyStatistics
from lightning_edit.modules.base import EditingModule
from lightning_edit.modules.evaluation_settings import EvaluationSettings

_LOG = logging.getLogger(__name__)
_DIGITS = 12
"""Number of digits of the identity in the name of a file of sums."""


class LocateEditing(EditingModule):
    """Collects the statistics of a locate-then-edit method in fit; validates, tests and predicts its edits.

    fit collects the second moments of the keys of all edited layers in one pass over a text corpus (``data.corpus``).
    They are stored in the folder ``editor.statistics``, with the model and corpus that they belong to. A stopped run
    resumes where it was. There is nothing to train.

    Args:
        editor: A locate-then-edit editor.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        metrics: Further metrics over all outcomes.
        save_every: Number of batches between saves of the partial sums.
    """

    editor: LocateEditor

    def __init__(
        self,
        editor: LocateEditor,
        language_model: LanguageModelSettings = LanguageModelSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        validation: EvaluationSettings = EvaluationSettings(generate_records=8),
        average: Average = "probe",
        metrics: Sequence[Metric] = (),
        save_every: int = 50,
    ) -> None:
        super().__init__(editor, language_model, evaluation, validation, average, metrics)
        ranges.at_least(1, "model", save_every=save_every)
        self.automatic_optimization = False
        self.save_every = save_every
        self._sums = MomentSums()
        self._sites: list[EditSite] = []
        self._identity = ""
        self._range = CorpusRange()

    def setup(self, stage: str) -> None:
        """Loads the base model; in fit, resumes the sums of a stopped run."""
        super().setup(stage)
        if stage != "fit":
            return
        if self.editor.statistics is None:
            raise ConfigurationError("editor.statistics: name the folder that the statistics are to be written to")
        self._limit_batches()
        self._check_length()
        self._kept(self._corpus(self._tokens_to_read()))
        layers = self.editor.edited_layers(self.language_model)
        self._sites = [self.language_model.layer_map.site(layer) for layer in layers]
        self._identity = self._compute_identity()
        remove_unfinished(self._partial())
        self._sums = MomentSums.resume(self._partial(), self._identity)
        self._warn_about_stale_partials()
        self._skip_done_batches()
        if self.trainer.world_size > 1 and not list(self.parameters()):
            # Data parallelism refuses modules without parameters.
            self.placeholder = nn.Parameter(torch.zeros(()))
        if self._sums.batches:
            _LOG.info("resuming after %d batches (%d tokens)", self._sums.batches, self._sums.tokens)

    def _batches(self) -> list[list[int]]:
        """Returns the rows of each batch of this process, including finished ones."""
        data, trainer = self._data(), self.trainer
        size, rows = data.corpus.batch_size if data.corpus else 1, len(data.corpus_rows())
        return CorpusBatches(rows, size, 0, trainer.global_rank, trainer.world_size, self._range.stop).batches

    def _limit_batches(self) -> None:
        """Applies the Trainer's batch limit to the whole corpus, not only to the rest after resuming.

        Raises:
            ConfigurationError: If the limit is a share.
        """
        limit = self.trainer.limit_train_batches
        if isinstance(limit, float) and limit != 1.0:
            raise ConfigurationError(
                "trainer.limit_train_batches: a fraction would cover a different part of the corpus after a resume; "
                "give a number of batches, or limit data.corpus.tokens"
            )
        self._range = CorpusRange(stop=limit if isinstance(limit, int) else None)

    def _tokens_to_read(self) -> int:
        """Returns the number of tokens that a complete run reads in all processes."""
        rows = torch.tensor(sum(map(len, self._batches())), device=self.language_model.device)
        return int(sum_over_processes(rows)) * self._data().corpus_rows().shape[1]

    def _skip_done_batches(self) -> None:
        """Skips finished batches; a process with fewer left than another gets empty ones."""
        left = max(len(self._batches()) - self._sums.batches, 0)
        steps = max(lists_of_all_processes([left])[0])
        self._range = replace(self._range, skip=self._sums.batches, steps=steps)

    @property
    def corpus_range(self) -> CorpusRange:
        """See :attr:`EditingModule.corpus_range`."""
        return self._range

    def _check_length(self) -> None:
        """Refuses rows longer than the model's positions.

        Raises:
            ConfigurationError: If the rows have more tokens than the model has positions.
        """
        config: Any = self.language_model.model.config.get_text_config()
        positions, length = getattr(config, "max_position_embeddings", None), self._data().corpus_rows().shape[1]
        if positions is not None and length > positions:
            raise ConfigurationError(
                f"data.corpus.length: rows of {length} tokens, but {self.language_model.name} reads {positions} at most"
            )

    def prepare_measures(self, stage: str) -> None:
        """Prepares metrics except for fit, as a corpus has no probes."""
        if stage != "fit":
            super().prepare_measures(stage)

    def _data(self) -> EditDataModule:
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, EditDataModule):
            raise ConfigurationError("pass an EditDataModule with a corpus to the Trainer")
        return datamodule

    def _compute_identity(self) -> str:
        """Computes a digest of what the sums depend on: model, sites, corpus, packing, processes and limit."""
        data = self._data()
        values = [
            self.language_model.fingerprint.digest,
            [site.name for site in self._sites],
            self._digest(),
            [*data.corpus_rows().shape, data.corpus.batch_size if data.corpus else 0, self.trainer.world_size],
            self._range.stop,
        ]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def _corpus(self, tokens: int) -> Corpus:
        corpus = self._data().corpus
        return Corpus(corpus.name if corpus else "", corpus.length if corpus else 0, tokens, self._digest())

    def _digest(self) -> str:
        return hashlib.sha256(self._data().corpus_rows().numpy().tobytes()).hexdigest()

    def _kept(self, corpus: Corpus) -> KeyStatistics | None:
        """Returns existing statistics of other sites."""
        return KeyStatistics.kept_in(str(self.editor.statistics), corpus, self.language_model.fingerprint)

    def _partial(self) -> Path:
        folder, share = Path(str(self.editor.statistics)), f"{self._identity[:_DIGITS]}-{self.trainer.global_rank}"
        return folder.with_name(f"{folder.name}.partial-{share}.safetensors")

    def _warn_about_stale_partials(self) -> None:
        """Warns about partial sums of other runs (another model, text, layers or packing), which are kept."""
        folder = Path(str(self.editor.statistics))
        partials = {*folder.parent.glob(f"{glob.escape(folder.name)}.partial-*.safetensors")}
        others = sorted(str(path) for path in partials if f".partial-{self._identity[:_DIGITS]}-" not in path.name)
        if others and self.trainer.is_global_zero:
            _LOG.warning(
                "%s: sums of another run that was stopped (another model, text, packing, limit or number of processes, "
                "or other layers); they are not used here; delete them unless you want to resume that run",
                ", ".join(others),
            )

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Adds a batch (B, L) int64 of packed texts, in the base model's precision, ignoring the Trainer's."""
        if len(batch):
            with torch.autocast(batch.device.type, enabled=False):
                self._sums.add_batch(self.language_model, batch, self._sites)
            if self._sums.batches % self.save_every == 0:
                self._sums.save(self._partial(), self._identity)
        self.log("train/tokens", float(self._sums.tokens), prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Stops after one pass, regardless of the Trainer's number of epochs."""
        self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Merges the sums of all processes and writes the statistics on the first, unless the run was cut short.

        This hook is also called if a resumed run had nothing left to read.
        """
        whole, wanted = self._sums.of_all_processes(self._sites), self._tokens_to_read()
        if whole.tokens < wanted:
            # Stopped early, e.g. by trainer.max_time; partial sums must not pass for statistics of the whole corpus.
            self._sums.save(self._partial(), self._identity)
            _LOG.warning(
                "stopped after %d of %d tokens; no statistics were written. Run the same command again to resume",
                whole.tokens,
                wanted,
            )
            return
        if getattr(self.trainer, "fast_dev_run", False):
            _LOG.info("a trial (trainer.fast_dev_run): no statistics were written")
        else:
            self._write(whole)
        self._partial().unlink(missing_ok=True)

    def _write(self, whole: MomentSums) -> None:
        """Writes the statistics, with existing ones of other sites, and passes them to the editor."""
        # Every process checks, so that none waits for another that raised.
        corpus, model = self._corpus(whole.tokens), self.language_model
        kept = self._kept(corpus)
        self.trainer.strategy.barrier()
        computed = {site: moment.cpu() for site, moment in whole.moments().items()}
        moments = {**(kept.moments if kept else {}), **computed}
        statistics = KeyStatistics(moments, corpus, model.name, model.fingerprint)
        if self.trainer.is_global_zero:
            folder = statistics.save(str(self.editor.statistics))
            _LOG.info("statistics of %d sites on %d tokens written to %s", len(self._sites), whole.tokens, folder)
        self.trainer.strategy.barrier()
        self.editor.use_statistics(statistics)
        if self.trainer.is_global_zero:
            for name, value in self.editor.statistics_findings(model).items():
                _LOG.info("%s: %s", name, value)

    def configure_optimizers(self) -> None:
        """Returns None, as there is nothing to optimise."""
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the sums to their own file, and their number of batches to the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"].pop("placeholder", None)
        checkpoint["statistics_batches"] = self._sums.batches
        if self._sums.batches:
            self._sums.save(self._partial(), self._identity)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resumes from the sums, not from the Trainer's count of batches.

        Raises:
            ConfigurationError: If the sums are older than the checkpoint.
        """
        if hasattr(self, "placeholder"):
            checkpoint["state_dict"]["placeholder"] = self.placeholder.detach()
        super().on_load_checkpoint(checkpoint)
        if self._sites and self._sums.batches < checkpoint.get("statistics_batches", 0):
            raise ConfigurationError(
                f"the checkpoint was written after {checkpoint['statistics_batches']} batches, but {self._partial()} "
                f"has the sums of {self._sums.batches}; collect the statistics again, without a checkpoint"
            )
        checkpoint.pop("loops", None)
