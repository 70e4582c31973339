"""An editor, a metric, a reader and a kind of edit from outside the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_edit.data import ReadReport, RecordSource
from lightning_edit.editors import Capabilities, Editor
from lightning_edit.editors.base import GroupChanges, Groups
from lightning_edit.editors.factors import FactorStore
from lightning_edit.editors.gradient import GradientEditor
from lightning_edit.edits import Changes, Edit, EditSequence, Provenance, RowScorer, Scorer, StackedFactors
from lightning_edit.edits.hooks import Term, added_terms
from lightning_edit.edits.rows import split_rows
from lightning_edit.functional.packing import pack_rows
from lightning_edit.metrics import OutcomeMetric
from lightning_edit.models import LanguageModel
from lightning_edit.models.passes import BatchRows
from lightning_edit.records import EditOutcome, EditRecord, EditRequest, Probe, ProbeKind


# --8<-- [start:editor]
class NormalizedStep(GradientEditor):
    """A gradient step of a fixed length: W' = W - α G / |G| with G = Σ_t x_t δ_tᵀ.

    Args:
        sites: Edit sites: layers, or names of linear modules.
        step_size: Length α of the step, in the Frobenius norm.
    """

    capabilities = Capabilities(needs_grad=True, takes_passes=True)

    def __init__(self, sites: Sequence[int | str] = (-2,), step_size: float = 1.0) -> None:
        super().__init__(sites)
        self.step_size = step_size

    def stack(self, store: FactorStore) -> dict[str, StackedFactors]:
        """The changes of B independent edits, site by site."""
        stacked = {}
        for site in store.sites:
            factors = store.whole(site)
            x, delta = (pack_rows(rows, factors.group, store.edits) for rows in (factors.x, factors.delta))
            norms = StackedFactors(x.mT, delta).norms()
            stacked[site] = StackedFactors(x.mT, -self.step_size * delta / norms[:, None, None])
        return stacked


# --8<-- [end:editor]


# --8<-- [start:metric]
class FirstToken(OutcomeMetric):
    """Share of answers whose first token is the most probable one after the prompt."""

    def value(self, outcome: EditOutcome) -> float | None:
        """1 or 0; None for a probe without an answer."""
        if not outcome.target_ids:
            return None
        return float(self.answer(outcome).predicted_ids[0] == outcome.target_ids[0])


# --8<-- [end:metric]


# --8<-- [start:reader]
class TabSeparated(RecordSource):
    """Facts in lines of prompt, target and a prompt that must not change with its answer, separated by tabs.

    Args:
        source: Path of the file.
        limit: Read at most this many records.
    """

    def __init__(self, source: str, limit: int | None = None) -> None:
        self.source, self.limit = source, limit

    def read(self) -> ReadReport:
        """Reads the records; lines with another number of columns are dropped and counted."""
        report = ReadReport(origin=self.source)
        for number, line in enumerate(Path(self.source).read_text(encoding="utf-8").splitlines()):
            columns = line.split("\t")
            if len(columns) != 4:
                report.dropped["line without four columns"] += 1
                continue
            prompt, target, neighbour, answer = columns
            probe = Probe(neighbour, ((answer,),), ProbeKind.LOCALITY, group="neighbour")
            report.records.append(EditRecord(str(number), (EditRequest(prompt, target, id=str(number)),), (probe,)))
        report.records = report.records[: self.limit]
        return report


# --8<-- [end:reader]


# --8<-- [start:kind]
class BiasEdit(Edit):
    """Adds a vector to the output of one site."""

    kind = "bias"

    def __init__(self, site: str, bias: Tensor, provenance: Provenance) -> None:
        super().__init__(provenance)
        self.site, self.bias = site, bias

    @contextmanager
    def layered(self, below: Scorer, model: LanguageModel) -> Iterator[Scorer]:
        """Applies the edit on top of ``below``."""
        with added_terms(model, {self.site: lambda x, output: self.bias.to(output.device)}):
            yield below

    def joined(self, later: Edit) -> Edit | None:
        """Two vectors at the same site are one; others stay two layers of a sequence."""
        if not isinstance(later, BiasEdit) or later.site != self.site:
            return None
        return BiasEdit(self.site, self.bias + later.bias, later.provenance)

    @property
    def nbytes(self) -> int:
        """Size of the edit in bytes."""
        return self.bias.nbytes

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the tensors; what is returned becomes "details" in the manifest."""
        save_file({"bias": self.bias}, folder / "edit.safetensors")
        return {"site": self.site}

    @classmethod
    def read(cls, folder: Path, details: dict[str, Any], provenance: Provenance) -> BiasEdit:
        """The inverse of ``write``."""
        return cls(details["site"], load_file(folder / "edit.safetensors")["bias"], provenance)


# --8<-- [end:kind]


# --8<-- [start:changes]
class BiasChanges(Changes):
    """A vector for each of B edits, which are evaluated side by side."""

    def __init__(self, site: str, biases: Tensor) -> None:
        self.site, self.biases = site, biases

    def __len__(self) -> int:
        return len(self.biases)

    def edit(self, index: int, provenance: Provenance) -> BiasEdit:
        """One of the edits, alone."""
        return BiasEdit(self.site, self.biases[index].clone(), provenance)

    @contextmanager
    def layered(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """Prompt r is answered under edit ``rows[r]``."""
        yield RowScorer(model, rows, self._terms)

    def _terms(self, owners: Sequence[int], batch: BatchRows, repeats: int) -> dict[str, Term]:
        """The term of a batch whose row r is under edit ``owners[r]``."""
        biases = self.biases[list(owners)]

        def term(x: Tensor, output: Tensor) -> Tensor:
            split = split_rows(output, len(biases), repeats)  # beams repeat rows
            each = biases.to(output.device).repeat_interleave(len(split) // len(biases), 0)
            return each[:, None].expand_as(split).reshape(output.shape)

        return {self.site: term}


class TargetBias(Editor):
    """Pushes the last block's MLP output towards the embeddings of the targets' first tokens.

    Args:
        strength: How far.
    """

    capabilities = Capabilities(mergeable=False)

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """One vector for each group of requests."""
        embeddings: Any = model.model.get_output_embeddings()
        biases = [
            sum(embeddings.weight[model.encoder.encode(one.prompt, one.target).target_ids[0]] for one in group)
            for group in groups
        ]
        return GroupChanges(BiasChanges(model.layer_map.site(-1).name, self.strength * torch.stack(biases)))


# --8<-- [end:changes]
