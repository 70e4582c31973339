"""Base class of editors that turn the factors of a fine-tuning gradient into an edit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Editor, GroupChanges, Groups, name_of
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.factor_cache import FactorCache
from lightning_edit.editors.factors import FactorStore
from lightning_edit.edits import EditSequence, StackedDelta, WeightChanges
from lightning_edit.errors import ConfigurationError, NonFiniteError
from lightning_edit.models.capture import GradientFactors, capture_factors
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.tokenization import PromptEncoder, TokenBatch

Tokens = Literal["all", "answer"]


class GradientEditor(Editor):
    """Base class of editors that use the gradient of the targets' loss at their edit sites.

    Args:
        sites: Edit sites: layers (negative ones count from the last; the MLP output projection is edited) or names of
            linear modules.
        tokens: Which tokens' factors are used: "all" of prompt and target, or those at the "answer" positions, whose
            output predicts a target token.
        end_token: Whether to append the end-of-text token to every target, so that the edited answer ends.
    """

    contradictions: Contradictions = "keep"

    def __init__(self, sites: Sequence[int | str], tokens: Tokens = "all", end_token: bool = False) -> None:
        super().__init__()
        self.end_token = end_token
        ranges.not_empty("editor", sites=sites)
        self.sites = list(sites)
        if tokens not in get_args(Tokens):
            raise ConfigurationError(f"editor.tokens: expected one of {get_args(Tokens)}, found {tokens!r}")
        self.tokens: Tokens = tokens

    def edit_sites(self, model: LanguageModel) -> list[EditSite]:
        """Returns the edit sites in ``model``, lowest layer first."""
        return model.layer_map.sites(self.sites)

    def lowest_layer(self, model: LanguageModel) -> int:
        """Returns the block of the lowest edit site."""
        return min(site.layer for site in self.edit_sites(model))

    def encoder(self, model: LanguageModel) -> PromptEncoder:
        """Returns the encoder of requests."""
        return model.encoder.with_end_token() if self.end_token else model.encoder

    @abstractmethod
    def stack(self, store: FactorStore) -> Mapping[str, StackedDelta]:
        """Turns gradient factors into the changes of independent edits, site by site."""

    def compute_changes(
        self, model: LanguageModel, groups: Groups, after: EditSequence, passes: ForwardPasses | None = None
    ) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        changes, problems = self.stacked_changes(model, groups, passes)
        return GroupChanges(WeightChanges(changes), problems)

    def stacked_changes(
        self, model: LanguageModel, groups: Groups, passes: ForwardPasses | None = None
    ) -> tuple[dict[str, StackedDelta], dict[int, str]]:
        """Computes the weight changes of groups of requests.

        Returns:
            The changes by site name, without the requests whose loss or gradient is not finite; and what is wrong with
            these requests, by their index over all groups.
        """
        batch, edit_of_row = encode_groups(model, groups, self.encoder(model))
        names = [name_of(request) for group in groups for request in group]
        problems: dict[int, str] = {}
        store = self.collect(model, batch, edit_of_row, names, passes, problems=problems)
        with torch.no_grad():
            return {site: changes.detach() for site, changes in self.stack(store).items()}, problems

    def new_store(self, edits: int) -> FactorStore:
        """Creates the store for the factors of B edits."""
        return FactorStore(edits)

    def collect(
        self,
        model: LanguageModel,
        batch: TokenBatch,
        edit_of_row: Tensor,
        names: Sequence[str],
        passes: ForwardPasses | None = None,
        cache: FactorCache | None = None,
        problems: dict[int, str] | None = None,
    ) -> FactorStore:
        """Computes gradient factors of requests, in passes of at most ``model.tokens_per_batch`` padded tokens.

        Args:
            model: The model.
            batch: R requests.
            edit_of_row: (R) int64 edit of each row.
            names: Names of the requests, for messages.
            passes: Forward passes with cached hidden states below the lowest site; the model's own by default.
            cache: Cached factors of the unedited model.
            problems: Collects what is wrong with requests whose loss or gradient is not finite, by row; their factors
                are left out. If None, they raise an error.

        Raises:
            NonFiniteError: If a loss or gradient is not finite; the message names the request and the site.
        """
        store = self.new_store(int(edit_of_row.max()) + 1)
        for chunk in batch.chunks(model.tokens_per_batch):
            part = batch if len(chunk) == len(batch) else batch.select(chunk)
            factors = cache.get(part) if cache is not None else None
            if factors is None:
                factors, wrong = self._factors(model, part, [names[row] for row in chunk.tolist()], passes)
                if wrong and problems is None:
                    raise NonFiniteError(next(iter(wrong.values())))
                if problems is not None:
                    problems |= {int(chunk[row]): problem for row, problem in wrong.items()}
            store.append(self.prepared(factors), edit_of_row[chunk])
        return store

    def prepared(self, factors: Mapping[str, GradientFactors]) -> Mapping[str, GradientFactors]:
        """Preprocesses the factors of each site for the editor."""
        return factors

    def _factors(
        self, model: LanguageModel, batch: TokenBatch, names: Sequence[str], passes: ForwardPasses | None
    ) -> tuple[dict[str, GradientFactors], dict[int, str]]:
        """Returns the factors of a batch by site, without those of rows that are not finite, and their problems."""
        positions = batch.answer_mask if self.tokens == "answer" else None
        factors, losses = capture_factors(model, batch, self.edit_sites(model), passes, positions)
        problems = {
            row: f"the target's loss of {names[row]!r} is {float(losses[row])}"
            for row in (~losses.isfinite()).nonzero()[:, 0].tolist()
        }
        for site, one in factors.items():
            wrong = (~one.delta.isfinite()).any(-1) | (~one.x.isfinite()).any(-1)
            for row in one.rows[wrong].unique().tolist():
                problems.setdefault(
                    row,
                    f"the gradient of {names[row]!r} at {site} is not finite; is the base model in a precision that "
                    "overflows? float32 or bfloat16 are safe",
                )
        return (without_rows(factors, list(problems)) if problems else factors), problems


def without_rows(factors: Mapping[str, GradientFactors], rows: Sequence[int]) -> dict[str, GradientFactors]:
    """Returns the factors of each site without those of some rows."""
    kept = {site: ~torch.isin(one.rows, torch.tensor(rows, device=one.rows.device)) for site, one in factors.items()}
    return {
        site: GradientFactors(one.x[kept[site]], one.delta[kept[site]], one.rows[kept[site]])
        for site, one in factors.items()
    }


def encode_groups(model: LanguageModel, groups: Groups, encoder: PromptEncoder) -> tuple[TokenBatch, Tensor]:
    """Tokenises requests with their targets into one padded batch; returns it with the (R) int64 group of each row."""
    texts = [encoder.encode(request.prompt, request.target) for group in groups for request in group]
    batch = encoder.collate(texts).to(model.device)
    group_of_row = [index for index, group in enumerate(groups) for _ in group]
    return batch, torch.tensor(group_of_row, device=batch.input_ids.device)
