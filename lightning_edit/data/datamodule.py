"""Feeds records to training, validation, testing and prediction."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_edit import ranges
from lightning_edit.data.batches import RecordGroups, TrainingBatch, TrainingCollator, TrainingRecords
from lightning_edit.data.corpus import TextCorpus
from lightning_edit.data.reading import ReadReport, RecordSource, with_unique_ids
from lightning_edit.data.sampling import EvaluationBatches, TrainingBatches
from lightning_edit.errors import ConfigurationError
from lightning_edit.records import EditRecord, ProbeKind, group_names
from lightning_edit.tokenization import EncodedText, PromptEncoder

_LOG = logging.getLogger(__name__)


class HasEncoder(Protocol):
    """A LightningModule that knows how its base model reads texts."""

    @property
    def encoder(self) -> PromptEncoder:
        """The base model's encoder."""


class EditDataModule(LightningDataModule):
    """Records for every stage. Texts are tokenised with the base model's own tokenizer, by the module in training.

    Args:
        train: Records to train an editor on.
        validation: Records to validate on.
        test: Records to test on; the validation records where none are given.
        predict: Records to predict; the test records where none are given.
        batch_size: Independent edits in one training step of one process.
        requests_per_edit: Records edited jointly in each of them.
        locality_draws: Locality prompts drawn for each training record.
        eval_batch_size: Records that are evaluated side by side.
        eval_requests_per_edit: Records edited jointly in evaluation: consecutive ones of the file; 1 edits each record
            on the clean model.
        num_workers: Worker processes that tokenise training batches; 0 tokenises in the main process.
        seed: Seed of the order and of the draws of rephrases and locality prompts.
        corpus: Plain text in place of training records, for editors whose fit collects statistics.
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
        # A module whose fit reads the corpus says where its process begins, where it ends, and in how many steps.
        self.corpus, self.corpus_skip, self.corpus_steps = corpus, 0, 0
        self.corpus_stop: int | None = None
        # Set by a module whose edits are made one after another: the order of the records, a group at a time.
        self.keep_order = False
        self._rows: Tensor | None = None
        self.reports: dict[str, ReadReport] = {}
        self._resume_at = (0, 0)
        self._train_batches: TrainingBatches | None = None

    def setup(self, stage: str) -> None:
        """Reads the records of a stage and logs what was changed, noted or dropped."""
        # Where fit reads a corpus, it reads no records.
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
        """The records of "fit", "validate", "test" or "predict".

        Raises:
            ConfigurationError: If the stage has no records configured.
        """
        if stage not in self.reports:
            option = {"fit": "train", "validate": "validation"}.get(stage, stage)
            raise ConfigurationError(f"data.{option}: no records are configured, and {stage} needs some")
        return self.reports[stage].records

    def groups(self, stage: str) -> list[tuple[ProbeKind, str]]:
        """The pairs of kind and group among a stage's probes."""
        return group_names(self.records(stage))

    def evaluation_groups(self, stage: str) -> list[list[EditRecord]]:
        """The records of a stage in their order, in groups that are edited jointly."""
        records, unit = self.records(stage), self.eval_requests_per_edit
        return [records[start : start + unit] for start in range(0, len(records), unit)]

    def corpus_rows(self, encoder: PromptEncoder | None = None) -> Tensor:
        """(N, L) int32 the packed corpus, read once.

        Args:
            encoder: How it becomes tokens; as the Trainer's module reads texts if none is given.

        Raises:
            ConfigurationError: If none is configured.
        """
        if self.corpus is None:
            raise ConfigurationError("data.corpus: fitting statistics takes a text corpus, and none is configured")
        if self._rows is None:
            self._rows = self.corpus.read((encoder or self._encoder()).tokenizer)
        return self._rows

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of training records; after a resume, those of the epoch that were not seen.

        With a corpus, its batches (B, L) int64 of tokens, from ``corpus_skip`` on and up to ``corpus_stop``; behind
        them empty ones, up to ``corpus_steps``.
        """
        if self.corpus is not None:
            limits = (self.corpus_stop, self.corpus_steps)
            return self.corpus.loader(self.corpus_rows(), self.corpus_skip, *self._process(), *limits)
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
        """Every text that training can draw, tokenised: requests with their rephrases, and locality prompts."""
        encoder, dataset = self._encoder(), TrainingRecords(self.records("fit"), self.seed)
        drawn = [dataset.candidates(record) for record in dataset.records]
        return (
            [encoder.encode(*text) for neighbourhood, _ in drawn for text in neighbourhood],
            [encoder.encode(*text) for _, locality in drawn for text in locality],
        )

    def training_prompts(self) -> Iterator[tuple[str, str]]:
        """Every prompt that training can draw, with its answer."""
        dataset = TrainingRecords(self.records("fit"), self.seed)
        for record in dataset.records:
            for texts in dataset.candidates(record):
                yield from texts

    def training_neighbourhoods(self) -> list[tuple[EditRecord, list[tuple[str, str]]]]:
        """Every training record with the prompts and answers that a rephrase can be drawn from."""
        dataset = TrainingRecords(self.records("fit"), self.seed)
        return [(record, dataset.candidates(record)[0]) for record in dataset.records]

    def val_dataloader(self) -> DataLoader[list[list[EditRecord]]]:
        """Groups of validation records in batches; no loader where none are configured, or a corpus is being read."""
        reading = self.corpus is not None and self.trainer is not None and self.trainer.state.fn == "fit"
        if reading or self.sources["validate"] is None:
            return cast("DataLoader[list[list[EditRecord]]]", [])
        return self._evaluation("validate")

    def test_dataloader(self) -> DataLoader[list[list[EditRecord]]]:
        """Groups of test records in batches."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[list[list[EditRecord]]]:
        """Groups of records to predict, in batches."""
        return self._evaluation("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves training batches; records are plain text and stay where they are."""
        return batch.to(device) if isinstance(batch, TrainingBatch) else batch

    def _evaluation(self, stage: str) -> DataLoader[list[list[EditRecord]]]:
        records = self.records(stage)
        lengths = [sum(len(probe.prompt) for probe in record.all_probes) for record in records]
        unit, size = self.eval_requests_per_edit, 1 if self.keep_order else self.eval_batch_size
        batches = EvaluationBatches(lengths, size, *self._process(), unit=unit, keep_order=self.keep_order)
        return DataLoader(cast(Any, RecordGroups(records)), batch_sampler=batches, collate_fn=list)

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _encoder(self) -> PromptEncoder:
        if self.trainer is None or self.trainer.lightning_module is None:
            raise ConfigurationError("EditDataModule tokenises with its module's model: pass both to one Trainer")
        return cast(HasEncoder, self.trainer.lightning_module).encoder

    def state_dict(self) -> dict[str, Any]:
        """How many of the epoch's batches are done, and of what, for an exact resume."""
        if self.trainer is None or self._train_batches is None:
            return {}
        # The total is the one count that neither the end of an epoch nor a restart sets back.
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        batches = int(self.trainer.num_training_batches)
        epoch, done = divmod(int(progress.processed), batches)
        return {"epoch": epoch, "batches_done": done, "batches": batches, "order": self._order()}

    def _order(self) -> dict[str, Any]:
        """What the order of the training batches follows from."""
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
        """Continues behind the batches that are done.

        Raises:
            ConfigurationError: If the batches would be others: another seed, batch size, number of processes or data.
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
