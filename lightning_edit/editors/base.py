"""What every editing method offers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from lightning_edit.components import init_arguments
from lightning_edit.edits import Edit, EditBatch, EditSequence, Provenance
from lightning_edit.errors import EditError, EditorNotFittedError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.records import EditRequest


@dataclass(frozen=True)
class Capabilities:
    """What an editor can do.

    Args:
        joint: Several requests in one edit.
        sequential: Edits on top of earlier edits.
        depends: An edit on top of earlier ones is computed from the model as they changed it, and cannot do without
            them.
        needs_subject: Every request must name its subject.
        needs_fit: There is something to train or to collect before the first edit.
        needs_grad: Editing takes gradients through the base model.
        mergeable: Its edits can be written into the weights.
    """

    joint: bool = True
    sequential: bool = True
    depends: bool = True
    needs_subject: bool = False
    needs_fit: bool = False
    needs_grad: bool = False
    mergeable: bool = True


class Editor(nn.Module, ABC):
    """A method of editing. A new one is a subclass: hyperparameters in the constructor, edits out of ``edit_groups``.

    An editor never changes the model and keeps no state between calls that is not a parameter, a buffer or an
    argument.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    def setup(self, model: LanguageModel) -> None:
        """Builds what depends on the model's shapes; called once before fitting, loading or editing."""

    def lowest_layer(self, model: LanguageModel) -> int:
        """The lowest block that the editor reads or changes; what lies below can be kept from the unedited model."""
        return 0

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""
        return init_arguments(self)

    def findings(self, model: LanguageModel) -> dict[str, Any]:
        """What a user should know of how edits of a model are made, as plain data; by default nothing."""
        return {}

    def prepare(self, model: LanguageModel, groups: Sequence[Sequence[EditRequest]]) -> None:
        """Checks what is asked, and takes what the editor needs of the unedited model; no edit is applied yet.

        Args:
            model: The base model.
            groups: See :meth:`edit_groups`.
        """

    def made(self, provenance: Provenance, requests: Sequence[EditRequest]) -> bool:
        """Whether an edit is one that this editor, as it is configured, makes of ``requests``."""
        # Through JSON, as a saved edit's settings went: it has no tuples.
        mine = json.loads(json.dumps([type(self).__name__, self.hyperparameters]))
        found = json.loads(json.dumps([provenance.method, provenance.hyperparameters]))
        # A memory names the requests that came without a name.
        wanted, kept = ([replace(request, id="") for request in own] for own in (requests, provenance.requests))
        return bool(mine == found) and wanted == kept

    @abstractmethod
    def edit_groups(
        self, model: LanguageModel, groups: Sequence[Sequence[EditRequest]], after: EditSequence | None = None
    ) -> EditBatch:
        """Makes one independent edit of each group of requests; the requests of a group are edited jointly.

        Args:
            model: The model, with the earlier edits applied to it.
            groups: The requests.
            after: The earlier edits.
        """

    def edit(self, model: LanguageModel, requests: Sequence[EditRequest], after: EditSequence | None = None) -> Edit:
        """Edits jointly.

        Args:
            model: The base model; it is not changed.
            requests: What it should say.
            after: Earlier edits, on top of which this one is computed.

        Raises:
            EditError: If the editor cannot do what is asked.
            EditorNotFittedError: If it has to be fitted first.
        """
        return self.edit_each_group(model, [requests], after)[0]

    def edit_each(self, model: LanguageModel, requests: Sequence[EditRequest]) -> EditBatch:
        """Makes one independent edit of each request, side by side; see :meth:`edit` for what it raises."""
        return self.edit_each_group(model, [[request] for request in requests])

    def edit_each_group(
        self,
        model: LanguageModel,
        groups: Sequence[Sequence[EditRequest]],
        after: EditSequence | None = None,
    ) -> EditBatch:
        """Makes one independent edit of each group of requests; see :meth:`edit` for what it raises."""
        self.check(model, groups, on_top=bool(after))
        with _under(model, after):
            batch = self.edit_groups(model, groups, after)
        if after and self.capabilities.depends:
            batch.provenances = [provenance.on_top_of(after.ids) for provenance in batch.provenances]
        return batch

    def check(self, model: LanguageModel, groups: Sequence[Sequence[EditRequest]], on_top: bool = False) -> None:
        """Refuses what is known not to be editable before a search or a pass for it; :meth:`edit` does so, too.

        Args:
            model: The base model.
            groups: See :meth:`edit_groups`.
            on_top: Whether there will be earlier edits.

        Raises:
            EditError: If the editor cannot do what is asked.
        """
        self._check(groups, on_top)
        self.prepare(model, groups)

    def _check(self, groups: Sequence[Sequence[EditRequest]], on_top: bool) -> None:
        name, can = type(self).__name__, self.capabilities
        if not groups or not all(groups):
            raise EditError("nothing to edit: give at least one request in each group")
        if on_top and not can.sequential:
            raise EditError(f"{name} cannot edit on top of earlier edits; merge them first")
        if not can.joint and max(map(len, groups)) > 1:
            raise EditError(
                f"{name} edits one request at a time, and {max(map(len, groups))} are to be edited jointly; give one, "
                "choose an editor that edits jointly (MEMIT, for example), or edit each by itself (edit_each)"
            )
        if can.needs_subject:
            missing = [request for group in groups for request in group if request.subject is None]
            if missing:
                raise EditError(
                    f"{name} needs the subject of every request, and {len(missing)} have none "
                    f"(the first is {missing[0].prompt!r}); give the subject as it stands in the prompt"
                )

    def not_ready(self) -> EditorNotFittedError:
        """The error for an editor that was never set up."""
        return EditorNotFittedError(f"{type(self).__name__} is not set up; call setup(model), or load a checkpoint")


@contextmanager
def _under(model: LanguageModel, after: EditSequence | None) -> Iterator[None]:
    if after is None or not len(after):
        yield
        return
    with after.applied(model):
        yield
