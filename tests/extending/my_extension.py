"""A user's own module: a kind of edit, an editor that makes it, a metric and a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_edit.data.read_report import ReadReport
from lightning_edit.data.reading import RecordSource
from lightning_edit.editors import Capabilities, Editor
from lightning_edit.editors.base import GroupChanges, Groups
from lightning_edit.edits import Changes, Edit, EditSequence, Provenance, RowScorer, Scorer
from lightning_edit.edits.base import TENSORS
from lightning_edit.edits.hooks import Term, added_terms
from lightning_edit.edits.rows import split_rows
from lightning_edit.errors import EditError
from lightning_edit.metrics import OutcomeMetric
from lightning_edit.models import LanguageModel
from lightning_edit.models.passes import BatchRows
from lightning_edit.records import EditOutcome, EditRecord, EditRequest, Probe, ProbeKind


class BiasEdit(Edit):
    """Adds a vector to the output of one site."""

    kind = "bias"

    def __init__(self, site: str, bias: Tensor, provenance: Provenance) -> None:
        super().__init__(provenance)
        self.site, self.bias = site, bias

    @contextmanager
    def layered(self, below: Scorer, model: LanguageModel) -> Iterator[Scorer]:
        with added_terms(model, {self.site: lambda x, output: self.bias.to(output.device)}):
            yield below

    def joined(self, later: Edit) -> Edit | None:
        if not isinstance(later, BiasEdit) or later.site != self.site:
            return None
        return BiasEdit(self.site, self.bias + later.bias, later.provenance)

    def check_mergeable(self, action: str = "merged") -> None:
        raise EditError(f"this edit cannot be {action}: the site has no bias")

    def write(self, folder: Path) -> dict[str, Any]:
        save_file({"bias": self.bias}, folder / TENSORS)
        return {"site": self.site}

    @classmethod
    def read(cls, folder: Path, details: dict[str, Any], provenance: Provenance) -> BiasEdit:
        return cls(details["site"], load_file(folder / TENSORS)["bias"].clone(), provenance)


class BiasChanges(Changes):
    """A vector for each of several edits."""

    def __init__(self, site: str, biases: Tensor) -> None:
        self.site, self.biases = site, biases

    def __len__(self) -> int:
        return len(self.biases)

    def edit(self, index: int, provenance: Provenance) -> BiasEdit:
        return BiasEdit(self.site, self.biases[index].clone(), provenance)

    @contextmanager
    def layered(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        yield RowScorer(model, rows, self._terms)

    def _terms(self, owners: Sequence[int], batch: BatchRows, repeats: int) -> dict[str, Term]:
        biases = self.biases[list(owners)]

        def term(x: Tensor, output: Tensor) -> Tensor:
            # Some architectures flatten rows and positions; generation with beams repeats rows.
            split = split_rows(output, len(biases), repeats)
            each = biases.repeat_interleave(len(split) // len(biases), 0)
            return each[:, None].expand_as(split).reshape(output.shape)

        return {self.site: term}


class TargetBias(Editor):
    """Pushes the last layer's output towards the target's first token.

    Args:
        strength: How far.
    """

    capabilities = Capabilities(mergeable=False)

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        head: Any = model.model.get_output_embeddings()
        rows = [
            sum(head.weight[model.encoder.encode(r.prompt, r.target).target_ids[0]] for r in group) for group in groups
        ]
        return GroupChanges(BiasChanges(model.layer_map.site(-1).name, self.strength * torch.stack(rows)))


class AnswerLength(OutcomeMetric):
    """Mean number of tokens of the expected answers."""

    def value(self, outcome: EditOutcome) -> float | None:
        return float(len(outcome.target_ids)) or None


class MyFacts(RecordSource):
    """Facts written into the code.

    Args:
        facts: Prompt to target.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.facts = dict(facts)

    def read(self) -> ReadReport:
        report = ReadReport(origin="my facts")
        for prompt, target in self.facts.items():
            probe = Probe("Water boils at", (("noon",),), ProbeKind.LOCALITY, "常识")
            report.records.append(EditRecord(prompt, (EditRequest(prompt, target, id=prompt),), (probe,)))
        return report
