"""What editors share that turn the factors of a fine-tuning gradient into an edit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.edits import EditBatch, Provenance, StackedFactors
from lightning_edit.errors import NonFiniteError
from lightning_edit.models.capture import GradientFactors, capture_factors
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.trunk import Trunk
from lightning_edit.records import EditRequest
from lightning_edit.tokenization import TokenBatch


class GradientEditor(Editor):
    """An editor that reads the gradient of the targets' loss at its edit sites.

    Args:
        sites: Edit sites: layers (negative ones count from the last; the MLP output projection is edited) or names of
            linear modules.
    """

    def __init__(self, sites: Sequence[int | str]) -> None:
        super().__init__()
        self.sites = list(sites)

    def edit_sites(self, model: LanguageModel) -> list[EditSite]:
        """The edit sites in ``model``, lowest layer first."""
        return model.layer_map.sites(self.sites)

    @abstractmethod
    def stack(
        self, factors: Mapping[str, GradientFactors], edit_of_row: Tensor, edits: int
    ) -> dict[str, StackedFactors]:
        """Turns gradient factors into the changes of B independent edits.

        Args:
            factors: Site name to gradient factors of R rows.
            edit_of_row: (R) int64 the edit that each row belongs to.
            edits: Number of edits B.
        """

    def edit_groups(self, model: LanguageModel, groups: Sequence[Sequence[EditRequest]]) -> EditBatch:
        """See :meth:`Editor.edit_groups`.

        Raises:
            NonFiniteError: If a request's loss or gradient is not finite.
        """
        requests = [request for group in groups for request in group]
        texts = [model.encoder.encode(request.prompt, request.target) for request in requests]
        batch = model.encoder.collate(texts).to(model.device)
        edit_of_row = torch.tensor(
            [index for index, group in enumerate(groups) for _ in group], device=batch.input_ids.device
        )
        factors = self.factors(model, batch, [request.id or request.prompt for request in requests])
        with torch.no_grad():
            stacked = self.stack(factors, edit_of_row, len(groups))
        provenances = [Provenance.of(model, type(self).__name__, self.hyperparameters, group) for group in groups]
        return EditBatch(stacked, provenances)

    def factors(
        self, model: LanguageModel, batch: TokenBatch, names: Sequence[str], trunk: Trunk | None = None
    ) -> dict[str, GradientFactors]:
        """The gradient factors of a batch of requests.

        Args:
            model: The model.
            batch: R requests.
            names: A name for each, for messages.
            trunk: Hidden states kept from below the lowest site.

        Raises:
            NonFiniteError: If a loss or gradient is not finite; the message names the request and the site.
        """
        factors, losses = capture_factors(model, batch, self.edit_sites(model), trunk)
        bad = (~losses.isfinite()).nonzero()[:, 0].tolist()
        if bad:
            raise NonFiniteError(f"the target's loss of {names[bad[0]]!r} is {float(losses[bad[0]])}")
        for site, own in factors.items():
            wrong = (~own.delta.isfinite()).any(-1) | (~own.x.isfinite()).any(-1)
            if wrong.any():
                name = names[int(own.rows[wrong][0])]
                raise NonFiniteError(
                    f"the gradient of {name!r} at {site} is not finite; is the base model in a precision that "
                    "overflows? float32 or bfloat16 are safe"
                )
        return factors
