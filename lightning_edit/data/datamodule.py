"""Feeds records to training, validation, testing and prediction."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_edit import ranges
from lightning_edit.data.batches import RecordGroups, TrainingBatch, TrainingCollator, TrainingRecords
from lightning_edit.data.corpus import CorpusRange, TextCorpus
from lightning_edit.data.read_report import ReadReport, with_unique_ids
from lightning_edit.data.reading import RecordSource
from lightning_edit.data.sampling import EvaluationBatches, TrainingBatches
from lightning_edit.errors import ConfigurationError
from lightning_edit.records import EditRecord, ProbeKind, group_names
from lightning_edit.tokenization import EncodedText, PromptEncoder

_LOG = logging.getLogger(__name__)


class HasEncoder(Protocol):
    """A LightningModule with its base model's encoder."""

    @property
    def encoder(self) -> PromptEncoder:
        """The base model's encoder."""


@runtime_checkable
class SelectsData(Protocol):
    """A LightningModule that decides in which order records are evaluated, and which part of a corpus is read."""

    @property
    def corpus_range(self) -> CorpusRange:
        """The part of the corpus that fit reads."""

    def keeps_order(self, stage: str) -> bool:
        """Whether the records of a stage are evaluated in their order, one group at a time."""


class EditDataModule(LightningDataModule):
    """Loads the records of every stage. Texts are tokenised with the encoder of the Trainer's LightningModule.

    Args:
        train: Records to train an editor on.
        validation: Records to validate on.
        test: Records to test on; defaults to ``validation``.
        predict: Records to predict; defaults to ``test``.
        batch_size: Independent edits per training step and process.
        requests_per_edit: Records edited jointly in each edit.
        locality_draws: Locality prompts drawn for each training record.
        eval_batch_size: Records evaluated per batch.
        eval_requests_per_edit: Consecutive records edited jointly in evaluation; 1 edits each record on the
            unedited model.
        num_workers: Worker processes that tokenise training batches; 0 tokenises in the main process.
        seed: Seed for shuffling and for drawing rephrases and locality prompts.
        corpus: Plain text instead of training records, for editors whose fit collects statistics.
        skip_seen_subjects: Leave out validation, test and predict records whose subject is edited in training.

    Raises:
        ConfigurationError: If a number is out of its range.
    """

    def __init__(
        self,
        train: RecordSource | None = None,
        validation: RecordSource | None = None,
        test: RecordSource | None = None,
        predict: RecordSource | None = None,
        batch_size: int = 8,
        requests_per_edit: int = 1,
        locality_draws: int = 1,
        eval_batch_size: int = 16,
        eval_requests_per_edit: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        corpus: TextCorpus | None = None,
        skip_seen_subjects: bool = False,
    ) -> None:
        super().__init__()
        ranges.at_least(
            1,
            "data",
            batch_size=batch_size,
            requests_per_edit=requests_per_edit,
            locality_draws=locality_draws,
            eval_batch_size=eval_batch_size,
            eval_requests_per_edit=eval_requests_per_edit,
        )
        ranges.at_least(0, "data", num_workers=num_workers)
        self.sources = {
            "fit": train,
            "validate": validation,
            "test": test or validation,
            "predict": predict or test or validation,
        }
        self.batch_size, self.requests_per_edit, self.eval_batch_size = batch_size, requests_per_edit, eval_batch_size
        self.locality_draws, self.eval_requests_per_edit = locality_draws, eval_requests_per_edit
        self.num_workers, self.seed, self.skip_seen_subjects = num_workers, seed, skip_seen_subjects
        self.corpus = corpus
        self._rows: Tensor | None = None
        self.reports: dict[str, ReadReport] = {}
        self._resume_at = (0, 0)
        self._train_batches: TrainingBatches | None = None

    def setup(self, stage: str) -> None:
        """Reads the records of a stage and logs what was changed, noted or dropped."""
        # Fitting on a corpus needs no records.
        needed = {"fit": ["fit", "validate"] if self.corpus is None else []}.get(stage, [stage])
        if self.skip_seen_subjects and needed and "fit" not in needed:
            needed = ["fit", *needed]
        for name in needed:
            source = self.sources[name]
            if name in self.reports or source is None:
                continue
            report = source.read()
            report.records = with_unique_ids(report)
            if self.skip_seen_subjects and name != "fit":
                self._skip_seen(report)
            self.reports[name] = report
            _LOG.info("%s", report.summary())

    def _skip_seen(self, report: ReadReport) -> None:
        seen = {request.subject for record in self.records("fit") for request in record.requests} - {None}
        kept = [record for record in report.records if not any(request.subject in seen for request in record.requests)]
        report.dropped["record whose subject is in the training records"] += len(report.records) - len(kept)
        report.records = kept

    def records(self, stage: str) -> list[EditRecord]:
        """Returns the records of "fit", "validate", "test" or "predict".

        Raises:
            ConfigurationError: If the stage has no records configured.
        """
        if stage not in self.reports:
            option = {"fit": "train", "validate": "validation"}.get(stage, stage)
            raise ConfigurationError(f"data.{option}: no records are configured, and {stage} needs some")
        return self.reports[stage].records

    def groups(self, stage: str) -> list[tuple[ProbeKind, str]]:
        """Returns the (kind, group) pairs of a stage's probes."""
        return group_names(self.records(stage))

    def evaluation_groups(self, stage: str) -> list[list[EditRecord]]:
        """Splits the records of a stage, in order, into groups edited jointly."""
        records, unit = self.records(stage), self.eval_requests_per_edit
        return [records[start : start + unit] for start in range(0, len(records), unit)]

    def corpus_rows(self, encoder: PromptEncoder | None = None) -> Tensor:
        """Returns the packed corpus (N, L) int32, read once.

        Args:
            encoder: Encoder to tokenise with; defaults to that of the Trainer's module.

        Raises:
            ConfigurationError: If no corpus is configured.
        """
        if self.corpus is None:
            raise ConfigurationError("data.corpus: fitting statistics takes a text corpus, and none is configured")
        if self._rows is None:
            self._rows = self.corpus.read((encoder or self._encoder()).tokenizer)
        return self._rows

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns shuffled batches of training records; after a resume, the rest of the epoch.

        With a corpus, returns its token batches (B, L) int64 within the module's range.
        """
        if self.corpus is not None:
            part = self._module.corpus_range if isinstance(self._module, SelectsData) else CorpusRange()
            return self.corpus.loader(self.corpus_rows(), part, *self._process())
        records = self.records("fit")
        lengths = [len(record.requests[0].prompt) for record in records]
        size = self.batch_size * self.requests_per_edit
        batches = TrainingBatches(lengths, size, self.seed, *self._process(), unit=self.requests_per_edit)
        (batches.epoch, batches.skip), self._resume_at = self._resume_at, (0, 0)
        self._train_batches = batches
        return DataLoader(
            cast(Any, TrainingRecords(records, self.seed, self.locality_draws)),
            batch_sampler=batches,
            collate_fn=TrainingCollator(self._encoder(), self.requests_per_edit),
            num_workers=self.num_workers,
            persistent_workers=False,
        )

    def training_texts(self) -> tuple[list[EncodedText], list[EncodedText]]:
        """Tokenises every text that training can draw: requests with their rephrases, and locality prompts."""
        encoder, dataset = self._encoder(), TrainingRecords(self.records("fit"), self.seed)
        drawn = [dataset.candidates(record) for record in dataset.records]
        return (
            [encoder.encode(*text) for neighbourhood, _ in drawn for text in neighbourhood],
            [encoder.encode(*text) for _, locality in drawn for text in locality],
        )

    def training_prompts(self) -> Iterator[tuple[str, str]]:
        """Yields every (prompt, answer) that training can draw."""
        dataset = TrainingRecords(self.records("fit"), self.seed)
        for record in dataset.records:
            for texts in dataset.candidates(record):
                yield from texts

    def training_neighbourhoods(self) -> list[tuple[EditRecord, list[tuple[str, str]]]]:
        """Returns every training record with its candidate rephrases (prompt, answer)."""
        dataset = TrainingRecords(self.records("fit"), self.seed)
        return [(record, dataset.candidates(record)[0]) for record in dataset.records]

    def val_dataloader(self) -> DataLoader[list[list[EditRecord]]]:
        """Returns batches of groups of validation records; empty without records, or when fitting on a corpus."""
        reading = self.corpus is not None and self.trainer is not None and self.trainer.state.fn == "fit"
        if reading or self.sources["validate"] is None:
            return cast("DataLoader[list[list[EditRecord]]]", [])
        return self._evaluation("validate")

    def test_dataloader(self) -> DataLoader[list[list[EditRecord]]]:
        """Returns batches of groups of test records."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[list[list[EditRecord]]]:
        """Returns batches of groups of records to predict."""
        return self._evaluation("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves training batches; evaluation records are plain text."""
        return batch.to(device) if isinstance(batch, TrainingBatch) else batch

    def _evaluation(self, stage: str) -> DataLoader[list[list[EditRecord]]]:
        records = self.records(stage)
        lengths = [sum(len(probe.prompt) for probe in record.all_probes) for record in records]
        keep_order = isinstance(self._module, SelectsData) and self._module.keeps_order(stage)
        unit, size = self.eval_requests_per_edit, 1 if keep_order else self.eval_batch_size
        batches = EvaluationBatches(lengths, size, *self._process(), unit=unit, keep_order=keep_order)
        return DataLoader(cast(Any, RecordGroups(records)), batch_sampler=batches, collate_fn=list)

    @property
    def _module(self) -> object:
        """The Trainer's LightningModule, if there is one."""
        return None if self.trainer is None else self.trainer.lightning_module

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _encoder(self) -> PromptEncoder:
        if self.trainer is None or self.trainer.lightning_module is None:
            raise ConfigurationError("EditDataModule tokenises with its module's model: pass both to one Trainer")
        return cast(HasEncoder, self.trainer.lightning_module).encoder

    def state_dict(self) -> dict[str, Any]:
        """Returns the batches done in the epoch and their order, for an exact resume."""
        if self.trainer is None or self._train_batches is None:
            return {}
        # Only the total is not reset by the end of an epoch or a restart.
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        batches = int(self.trainer.num_training_batches)
        epoch, done = divmod(int(progress.processed), batches)
        return {"epoch": epoch, "batches_done": done, "batches": batches, "order": self._order()}

    def _order(self) -> dict[str, Any]:
        """Returns what determines the order of the training batches."""
        texts = [
            (
                [(request.prompt, request.target) for request in record.requests],
                [(probe.prompt, probe.answers) for probe in record.probes],
            )
            for record in self.records("fit")
        ]
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "requests_per_edit": self.requests_per_edit,
            "locality_draws": self.locality_draws,
            "processes": self._process()[1],
            "records": hashlib.sha256(json.dumps(texts).encode("utf-8", "surrogatepass")).hexdigest(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes after the batches that are done.

        Raises:
            ConfigurationError: If the batches would differ: another seed, batch size, number of processes or data.
        """
        stored = state_dict.get("order")
        if stored is not None and "fit" in self.reports:
            now = self._order()
            other = [
                f"{name} ({stored.get(name)} then, {value} now)"
                for name, value in now.items()
                if stored.get(name) != value
            ]
            if other:
                raise ConfigurationError(
                    f"the checkpoint's run had other training batches: {', '.join(other)}; use the same settings to go "
                    "on with it, or start a new run from its weights (model.optimization.start)"
                )
        self._resume_at = int(state_dict.get("epoch", 0)), int(state_dict.get("batches_done", 0))
