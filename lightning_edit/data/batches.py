"""Training batches: what an editor is trained on in one step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_edit.records import EditRecord, EditRequest, ProbeKind
from lightning_edit.tokenization import PromptEncoder, TokenBatch


@dataclass(frozen=True)
class TrainingExample:
    """The training data of one record in one epoch: its requests, a rephrase and locality prompts.

    Args:
        record: The record.
        rephrase: A rephrased prompt with its target (or the request itself).
        locality: Prompts that the edit must not change, with their answers.
    """

    record: EditRecord
    rephrase: tuple[str, str]
    locality: tuple[tuple[str, str], ...]


@dataclass
class TrainingBatch:
    """B independent edits for one training step.

    Args:
        names: (R) names of the requests, for messages.
        edit: R tokenised requests.
        edit_of_request: (R) int64 index of the edit that each request belongs to.
        outer: Q tokenised texts to evaluate the edited model on: rephrases, then locality prompts.
        edit_of_outer: (Q) int64 index of the edit of each text.
        rephrases: Number of rephrases in ``outer``; the rest are locality prompts.
        edits: Number of edits B.
        requests: The requests, as text.
        outer_texts: (Q) prompts with their answers, as text.
    """

    names: list[str]
    edit: TokenBatch
    edit_of_request: Tensor
    outer: TokenBatch
    edit_of_outer: Tensor
    rephrases: int
    edits: int
    requests: list[EditRequest] = field(default_factory=list)
    outer_texts: list[tuple[str, str]] = field(default_factory=list)

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Returns the batch on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("edit", "edit_of_request", "outer", "edit_of_outer")}
        return replace(self, **moved)

    def pin_memory(self) -> TrainingBatch:
        """Returns the batch in pinned memory."""
        names = ("edit", "edit_of_request", "outer", "edit_of_outer")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in names})

    def with_outer(self, rows: Tensor) -> TrainingBatch:
        """Returns the same edits with a subset of the outer texts.

        Args:
            rows: (K) int64 rows of ``outer``, ascending.
        """
        if len(rows) == len(self.outer):
            return self
        rephrases = int((rows < self.rephrases).sum())
        outer, of_outer = self.outer.select(rows), self.edit_of_outer[rows]
        texts = [self.outer_texts[row] for row in rows.tolist()] if self.outer_texts else []
        return replace(self, outer=outer, edit_of_outer=of_outer, rephrases=rephrases, outer_texts=texts)

    @property
    def locality_rows(self) -> Tensor:
        """(Q - rephrases) int64: the rows of ``outer`` that are locality prompts."""
        return torch.arange(self.rephrases, len(self.outer), device=self.outer.input_ids.device)


class RecordGroups(Dataset[list[EditRecord]]):
    """Groups of records, indexed by lists of record indices.

    Args:
        records: The records.
    """

    def __init__(self, records: Sequence[EditRecord]) -> None:
        self.records = records

    def __getitem__(self, indices: list[int]) -> list[EditRecord]:
        return [self.records[index] for index in indices]


class TrainingRecords(Dataset[TrainingExample]):
    """Draws a rephrase and locality prompts of a record for each key (epoch, index).

    The rephrase is drawn from the record's equivalence neighbourhood, including the request itself (Mitchell et al.
    2022, section 2). The draw depends on seed, epoch and index alone, not on which worker makes it.

    Args:
        records: The records.
        seed: Seed of the draws.
        locality_draws: Maximum number of locality prompts to draw for a record.
    """

    def __init__(self, records: Sequence[EditRecord], seed: int = 0, locality_draws: int = 1) -> None:
        self.records, self.seed, self.locality_draws = records, seed, locality_draws

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> TrainingExample:
        epoch, index = key
        rng = random.Random(f"{self.seed} {epoch} {index}")
        neighbourhood, locality = self.candidates(self.records[index])
        return TrainingExample(
            self.records[index],
            rng.choice(neighbourhood),
            tuple(rng.sample(locality, min(self.locality_draws, len(locality)))),
        )

    @staticmethod
    def candidates(record: EditRecord) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Returns the (prompt, target) pairs that can be drawn as rephrase and as locality prompt."""
        neighbourhood = [(request.prompt, request.target) for request in record.requests]
        neighbourhood += [(probe.prompt, probe.answer) for probe in record.probes_of(ProbeKind.GENERALIZATION)]
        return neighbourhood, [(probe.prompt, probe.answer) for probe in record.probes_of(ProbeKind.LOCALITY)]


class TrainingCollator:
    """Tokenises training examples and pads them into one batch.

    Args:
        encoder: The base model's encoder.
        requests_per_edit: Number of records that are edited jointly.
    """

    def __init__(self, encoder: PromptEncoder, requests_per_edit: int = 1) -> None:
        self.encoder, self.requests_per_edit = encoder, requests_per_edit

    def __call__(self, examples: Sequence[TrainingExample]) -> TrainingBatch:
        """Collates examples into a :class:`TrainingBatch`."""
        requests: list[EditRequest] = []
        edit_of_request: list[int] = []
        rephrases: list[tuple[tuple[str, str], int]] = []
        localities: list[tuple[tuple[str, str], int]] = []
        for position, example in enumerate(examples):
            edit = position // self.requests_per_edit
            requests += example.record.requests
            edit_of_request += [edit] * len(example.record.requests)
            rephrases.append((example.rephrase, edit))
            localities += [(text, edit) for text in example.locality]
        outer = rephrases + localities
        encode = self.encoder.encode
        return TrainingBatch(
            names=[request.id or request.prompt for request in requests],
            edit=self.encoder.collate([encode(request.prompt, request.target) for request in requests]),
            edit_of_request=torch.tensor(edit_of_request),
            outer=self.encoder.collate([encode(*text) for text, _ in outer]),
            edit_of_outer=torch.tensor([edit for _, edit in outer]),
            rephrases=len(rephrases),
            edits=edit_of_request[-1] + 1,
            requests=requests,
            outer_texts=[text for text, _ in outer],
        )
