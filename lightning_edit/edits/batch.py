"""Independent edits side by side in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_edit.edits.base import Provenance, Scorer
from lightning_edit.edits.deltas import FactoredDelta
from lightning_edit.edits.hooks import Term, added_terms
from lightning_edit.edits.weight import WeightEdit
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel, Score


@dataclass(frozen=True)
class StackedFactors:
    """Factored changes of one site for B edits: delta_i = a[i] @ b[i].

    Args:
        a: (B, fan_in, rank) float32; unused ranks are zero.
        b: (B, rank, fan_out) float32.
    """

    a: Tensor
    b: Tensor

    def term(self, rows: Tensor, repeats: int = 1) -> Term:
        """What is added to the site's output for a batch whose row r belongs to edit ``rows[r]``.

        Args:
            rows: (R,) int64.
            repeats: How many consecutive rows a generation may make of one (beams, return sequences).
        """
        a, b = self.a[rows], self.b[rows]

        def output(x: Tensor) -> Tensor:
            count = len(rows)
            if x.dim() == 2:
                # Some architectures flatten (rows, positions) into one dimension before their MLP.
                return output(_unflatten(x, count, repeats)).reshape(x.shape[0], -1)
            if x.shape[0] == count:
                return x.to(a.dtype) @ a @ b
            if repeats > 1 and x.shape[0] == count * repeats:
                own_a, own_b = a.repeat_interleave(repeats, 0), b.repeat_interleave(repeats, 0)
                return x.to(a.dtype) @ own_a @ own_b
            raise EditError(
                f"a batch of {x.shape[0]} rows reached edits that were applied to {count} rows; say which edit each "
                "row belongs to"
            )

        return output


def _unflatten(x: Tensor, count: int, repeats: int) -> Tensor:
    for rows in (count, count * repeats):
        if x.shape[0] % rows == 0:
            return x.view(rows, -1, x.shape[-1])
    raise EditError(f"{x.shape[0]} flattened positions do not divide into {count} rows")


class EditBatch:
    """B independent edits, each with its own rows of a batch.

    Args:
        factors: Name of the edit site to the stacked factors of all edits.
        provenances: One for each edit.
    """

    def __init__(self, factors: Mapping[str, StackedFactors], provenances: Sequence[Provenance]) -> None:
        self.factors = dict(factors)
        self.provenances = list(provenances)
        sizes = {len(stacked.a) for stacked in self.factors.values()}
        if sizes != {len(self.provenances)}:
            raise EditError(f"{len(self.provenances)} edits, but factors for {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.provenances)

    def __getitem__(self, index: int) -> WeightEdit:
        """One of the edits, alone."""
        # Contiguous, so that the edit gives the same result to the last bit when it comes back from a file.
        deltas = {
            name: FactoredDelta(stacked.a[index].contiguous(), stacked.b[index].contiguous())
            for name, stacked in self.factors.items()
        }
        return WeightEdit(deltas, self.provenances[index])

    @contextmanager
    def hooked(self, model: LanguageModel, rows: Sequence[int], repeats: int = 1) -> Iterator[None]:
        """Edits one forward pass whose row r belongs to edit ``rows[r]``; any other batch size is an error."""
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            raise EditError(f"rows name the edits {min(rows)} to {max(rows)}, but there are {len(self)}")
        terms = {}
        for name, stacked in self.factors.items():
            terms[name] = stacked.term(torch.tensor(list(rows), device=stacked.a.device), repeats)
        with added_terms(model, terms):
            yield

    @contextmanager
    def applied(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """A context that yields what scores and generates with prompt r under edit ``rows[r]``.

        Raises:
            BaseModelMismatchError: If the edits were made for another base model.
        """
        for provenance in self.provenances[:1]:
            model.check_base(provenance.fingerprint, "edit", provenance.base_name)
        yield _SideBySide(model, self, list(rows))


class _SideBySide:
    """Scores and generates with each prompt under its own edit."""

    def __init__(self, model: LanguageModel, edits: EditBatch, rows: list[int]) -> None:
        self._model, self._edits, self._rows = model, edits, rows

    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        references: Sequence[Tensor | None] | None = None,
        keep_head_input: bool = False,
    ) -> list[Score]:
        self._check(prompts)
        return self._model.score(prompts, targets, references, keep_head_input, around=self._around(1))

    def generate(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int] = 16, **settings: Any) -> list[str]:
        self._check(prompts)
        repeats = int(settings.get("num_beams") or 1) * int(settings.get("num_return_sequences") or 1)
        return self._model.generate(prompts, max_new_tokens, around=self._around(repeats), **settings)

    def _around(self, repeats: int) -> Any:
        return lambda chunk: self._edits.hooked(self._model, [self._rows[index] for index in chunk], repeats)

    def _check(self, prompts: Sequence[str]) -> None:
        if len(prompts) != len(self._rows):
            raise EditError(f"{len(prompts)} prompts, but the edits were applied to {len(self._rows)} rows")
