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
        """See :meth:`Editor.compute_changes`.

        Raises:
            NonFiniteError: If a request's loss or gradient is not finite.
        """
        return GroupChanges(WeightChanges(self.stacked_changes(model, groups, passes)))

    def stacked_changes(
        self, model: LanguageModel, groups: Groups, passes: ForwardPasses | None = None
    ) -> dict[str, StackedDelta]:
        """Computes the weight changes of groups of requests, by site name.

        Raises:
            NonFiniteError: If a request's loss or gradient is not finite.
        """
        batch, edit_of_row = encode_groups(model, groups, self.encoder(model))
        names = [name_of(request) for group in groups for request in group]
        store = self.collect(model, batch, edit_of_row, names, passes)
        with torch.no_grad():
            return {site: changes.detach() for site, changes in self.stack(store).items()}

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
    ) -> FactorStore:
        """Computes gradient factors of requests, in passes of at most ``model.tokens_per_batch`` padded tokens.

        Args:
            model: The model.
            batch: R requests.
            edit_of_row: (R) int64 edit of each row.
            names: Names of the requests, for messages.
            passes: Forward passes with cached hidden states below the lowest site; the model's own by default.
            cache: Cached factors of the unedited model.

        Raises:
            NonFiniteError: If a loss or gradient is not finite; the message names the request and the site.
        """
        store = self.new_store(int(edit_of_row.max()) + 1)
        for chunk in batch.chunks(model.tokens_per_batch):
            part = batch if len(chunk) == len(batch) else batch.select(chunk)
            factors = cache.get(part) if cache is not None else None
            if factors is None:
                factors = self._factors(model, part, [names[row] for row in chunk.tolist()], passes)
            store.append(self.prepared(factors), edit_of_row[chunk])
        return store

    def prepared(self, factors: Mapping[str, GradientFactors]) -> Mapping[str, GradientFactors]:
        """Preprocesses the factors of each site for the editor."""
        return factors

    def _factors(
        self, model: LanguageModel, batch: TokenBatch, names: Sequence[str], passes: ForwardPasses | None
    ) -> dict[str, GradientFactors]:
        positions = batch.answer_mask if self.tokens == "answer" else None
        factors, losses = capture_factors(model, batch, self.edit_sites(model), passes, positions)
        bad = (~losses.isfinite()).nonzero()[:, 0].tolist()
        if bad:
            raise NonFiniteError(f"the target's loss of {names[bad[0]]!r} is {float(losses[bad[0]])}")
        for site, one in factors.items():
            wrong = (~one.delta.isfinite()).any(-1) | (~one.x.isfinite()).any(-1)
            if wrong.any():
                name = names[int(one.rows[wrong][0])]
                raise NonFiniteError(
                    f"the gradient of {name!r} at {site} is not finite; is the base model in a precision that "
                    "overflows? float32 or bfloat16 are safe"
                )
        return factors


def encode_groups(model: LanguageModel, groups: Groups, encoder: PromptEncoder) -> tuple[TokenBatch, Tensor]:
    """Tokenises requests with their targets into one padded batch; returns it with the (R) int64 group of each row."""
    texts = [encoder.encode(request.prompt, request.target) for group in groups for request in group]
    batch = encoder.collate(texts).to(model.device)
    group_of_row = [index for index, group in enumerate(groups) for _ in group]
    return batch, torch.tensor(group_of_row, device=batch.input_ids.device)
