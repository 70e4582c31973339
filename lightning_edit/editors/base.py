"""Base class of all editing methods."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Unpack

from torch import nn

from lightning_edit.components import init_arguments
from lightning_edit.editors.contradictions import Contradictions, report_contradictions, without_contradictions
from lightning_edit.edits import Changes, Edit, EditBatch, EditSequence, Provenance
from lightning_edit.errors import ConfigurationError, EditError, EditorNotFittedError
from lightning_edit.hub import PushOptions, marked
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.records import EditRequest

Groups = Sequence[Sequence[EditRequest]]
"""The requests of independent edits; those of a group are edited jointly."""
FitReads = Literal["nothing", "records", "corpus"]
Depends = Literal["all", "model", "nothing"]


@dataclass(frozen=True)
class Capabilities:
    """Capabilities and requirements of an editor.

    Args:
        joint: Several requests in one edit.
        sequential: Edits on top of earlier edits.
        depends: Earlier edits without which a later one is invalid: "all" of them, those that change the "model" that
            it is computed on, or "nothing", if it is computed without the edited model.
        needs_subject: Every request must name its subject.
        fit_reads: Data that fit reads: "records" to train on, a text "corpus" for statistics, or "nothing".
        needs_grad: Editing takes gradients through the base model.
        mergeable: Its edits can be merged into the weights.
        takes_passes: ``compute_changes`` takes ``passes``: forward passes of the unedited model with cached states.
    """

    joint: bool = True
    sequential: bool = True
    depends: Depends = "all"
    needs_subject: bool = False
    fit_reads: FitReads = "nothing"
    needs_grad: bool = False
    mergeable: bool = True
    takes_passes: bool = False


@dataclass(frozen=True)
class GroupChanges:
    """Changes that a method computed for groups of requests.

    Args:
        changes: The changes of every group, in order; a group whose requests all failed changes nothing.
        problems: Reasons why requests could not be edited, by index over all groups.
    """

    changes: Changes
    problems: Mapping[int, str] = field(default_factory=dict)


EditorT = TypeVar("EditorT", bound="Editor")


class Editor(nn.Module, ABC):
    """Base class of editing methods.

    To add a method, subclass it: take hyperparameters in the constructor, store them in attributes of the same names,
    and implement :meth:`compute_changes`. The base class handles contradictory and failed requests, provenance, and
    edits on top of earlier ones. An editor never changes the model, and its only state between calls is parameters,
    buffers and arguments.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()
    contradictions: Contradictions = "error"
    """How to handle requests of one edit with the same prompt and different targets."""
    fitted_buffers: ClassVar[tuple[str, ...]] = ()
    """Names of buffers whose shape depends on the data that fit read, such as an index of training records."""

    def setup(self, model: LanguageModel) -> None:
        """Builds modules that depend on the model's shapes; called once before fitting, loading or editing."""

    def lowest_layer(self, model: LanguageModel) -> int:
        """Returns the lowest block that the editor reads or changes; hidden states below it can be cached."""
        return 0

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""
        return init_arguments(self)

    def fit_without_corpus(self, model: LanguageModel) -> None:
        """Uses statistics that come with the package, or else collects them on text sampled from the model.

        Does nothing if the editor is already fitted, or its fit reads no corpus.
        """

    def share_searches(self, folder: str | Path) -> None:
        """Caches the results of value searches in a folder, shared by editors with the same search.

        Does nothing if the editor has no search to share.
        """

    @property
    def reused_seconds(self) -> float:
        """Seconds that reused searches originally took, so far."""
        return 0.0

    def findings(self, model: LanguageModel) -> dict[str, Any]:
        """Returns what the editor derives before editing, as plain data to store with each edit."""
        return {}

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """Refuses invalid settings and requests before any search or forward pass.

        Args:
            model: The base model; no edit is applied.
            groups: The requests, without those that a later one overrules.
        """

    def prepare(self, model: LanguageModel) -> None:
        """Computes what the editor needs from the unedited model, such as sampled contexts."""

    @abstractmethod
    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """Computes one independent change for each group of requests.

        Args:
            model: The model, with the earlier edits applied to it.
            groups: The requests, at least one in each group and without contradictions.
            after: The earlier edits; may be empty.

        Returns:
            The changes, and why requests could not be edited. An edit must not contain requests that failed, unless all
            of its requests did: such an edit, and one with values that are not finite, is emptied by the base class.

        Raises:
            EditError: If the editor does not support the requests.
        """

    def bytes_per_edit(self, model: LanguageModel, groups: Groups) -> int:
        """Returns the memory that the change of one of the groups takes at most while it is made, in bytes.

        0 if it is small (low-rank factors).
        """
        return 0

    def edit(self, model: LanguageModel, requests: Sequence[EditRequest], after: EditSequence | None = None) -> Edit:
        """Makes one edit of all requests jointly.

        Args:
            model: The base model; it is not changed.
            requests: The requests.
            after: The sequence of earlier edits to edit on top of.

        Raises:
            EditError: If the editor does not support the requests, or none could be edited.
            EditorNotFittedError: If it has to be fitted first.
        """
        edit = self.edit_each_group(model, [requests], after)[0]
        failed = edit.provenance.failed
        if failed and len(failed) >= len(without_contradictions(requests, self.contradictions)):
            raise EditError(f"the edit could not be made: {failed[0]}")
        return edit

    def edit_each(self, model: LanguageModel, requests: Sequence[EditRequest]) -> EditBatch:
        """Makes one independent edit of each request in a batch; see :meth:`edit_each_group`."""
        return self.edit_each_group(model, [[request] for request in requests])

    def edit_each_group(
        self,
        model: LanguageModel,
        groups: Groups,
        after: EditSequence | None = None,
        passes: ForwardPasses | None = None,
    ) -> EditBatch:
        """Makes one independent edit of each group of requests.

        Requests that cannot be edited are left out with a warning that names them; the others are edited. If all
        requests of an edit are left out, it changes nothing.

        Args:
            model: The base model; it is not changed.
            groups: The requests; those of a group are edited jointly.
            after: The sequence of earlier edits to edit on top of.
            passes: Forward passes of the unedited model with cached states, for editors that can use them.

        Raises:
            EditError: If the editor does not support the requests.
            EditorNotFittedError: If it has to be fitted first.
        """
        self.check(model, groups, on_top=after is not None and len(after) > 0)
        return self.edit_checked_groups(model, groups, after, passes)

    def edit_checked_groups(
        self,
        model: LanguageModel,
        groups: Groups,
        after: EditSequence | None = None,
        passes: ForwardPasses | None = None,
    ) -> EditBatch:
        """Like :meth:`edit_each_group`, for requests that :meth:`check` was called with before."""
        after = after if after is not None else EditSequence()
        kept = [without_contradictions(group, self.contradictions) for group in groups]
        self.prepare(model)
        with _applied(model, after):
            use_passes = passes is not None and self.capabilities.takes_passes and not len(after)
            computed = self.compute_changes(model, kept, after, **({"passes": passes} if use_passes else {}))
        computed = _without_failed_edits(computed, kept)
        _warn_about(computed.problems, sum(map(len, kept)))
        return EditBatch(computed.changes, self._provenances(model, groups, kept, computed.problems, after))

    def edit_in_parts(
        self, model: LanguageModel, groups: Groups, memory: int, passes: ForwardPasses | None = None
    ) -> Iterator[tuple[slice, EditBatch]]:
        """Makes independent edits in parts that fit into memory, of requests that :meth:`check` was called with.

        Args:
            model: The base model.
            groups: See :meth:`edit_each_group`.
            memory: Maximum bytes of the changes of one part; a single larger change is still made.
            passes: See :meth:`edit_each_group`.

        Yields:
            The groups of a part as a slice, and their edits.
        """
        size = self.bytes_per_edit(model, groups)
        step = max(memory // size, 1) if size else max(len(groups), 1)
        for start in range(0, len(groups), step):
            part = slice(start, start + step)
            yield part, self.edit_checked_groups(model, groups[part], passes=passes)

    def _provenances(
        self,
        model: LanguageModel,
        asked: Groups,
        kept: Groups,
        problems: Mapping[int, str],
        after: EditSequence,
    ) -> list[Provenance]:
        depends_on = {"all": after.frontier, "model": after.model_frontier, "nothing": ()}[self.capabilities.depends]
        findings, provenances, place = self.findings(model), [], 0
        for all_requests, requests in zip(asked, kept, strict=True):
            failed = [number for number in range(place, place + len(requests)) if number in problems]
            provenance = Provenance.of(model, type(self).__name__, self.hyperparameters, requests)
            left = set(requests)
            provenances.append(
                replace(
                    provenance,
                    findings=findings,
                    depends_on=depends_on,
                    failed=tuple(problems[number] for number in failed),
                    failed_requests=tuple(requests[number - place] for number in failed),
                    overruled=tuple(repr(name_of(request)) for request in all_requests if request not in left),
                )
            )
            place += len(requests)
        return provenances

    def could_have_produced(self, provenance: Provenance, requests: Sequence[EditRequest]) -> bool:
        """Whether this editor, with its current settings, could have made an edit of ``requests``."""
        # Through JSON, like a saved edit's settings, as it has no tuples.
        mine = json.loads(json.dumps([type(self).__name__, self.hyperparameters]))
        theirs = json.loads(json.dumps([provenance.method, provenance.settings]))
        wanted = without_contradictions(requests, self.contradictions)
        # A memory gives ids to requests without one, and does not contain those that failed.
        edited = [replace(request, id="") for request in provenance.requests]
        missing = []
        for request in wanted:
            if edited and edited[0] == replace(request, id=""):
                edited.pop(0)
            else:
                missing.append(request)
        failed = all(request in provenance.failed_requests for request in missing)
        return bool(mine == theirs) and not edited and failed

    def check(self, model: LanguageModel, groups: Groups, on_top: bool = False) -> None:
        """Checks requests before any work is done; :meth:`edit` calls this as well.

        Args:
            model: The base model.
            groups: See :meth:`edit_each_group`.
            on_top: Whether there will be earlier edits.

        Raises:
            EditError: If the editor does not support the requests, or they contradict one another and
                ``contradictions`` is "error".
            TokenizationError: If a request does not survive the tokenizer, or exceeds the model's positions.
        """
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
        for group in groups:
            for request in group:
                model.limits.check_text(request.prompt, request.target)
            report_contradictions(group, self.contradictions)
        self.validate(model, [without_contradictions(group, self.contradictions) for group in groups])

    @classmethod
    def from_checkpoint(cls: type[EditorT], path: str | Path, model: LanguageModel) -> EditorT:
        """Loads a trained editor from a checkpoint, for the base model that it was trained on.

        Args:
            path: The file, or a repository on the Hub (hf://owner/name).
            model: The base model.

        Raises:
            BaseModelMismatchError: If the checkpoint belongs to another base model.
            ConfigurationError: If it holds another editor.
            SourceNotFoundError: If there is no checkpoint.
        """
        from lightning_edit.editors.checkpoint import load_editor

        editor = load_editor(path, model)
        if not isinstance(editor, cls):
            raise ConfigurationError(f"{path} holds a {type(editor).__name__}, not a {cls.__name__}; use load_editor")
        return editor

    @classmethod
    def from_pretrained(cls: type[EditorT], name: str | Path, model: LanguageModel) -> EditorT:
        """Calls :meth:`from_checkpoint` with a path or the id of a repository on the Hub (owner/name)."""
        return cls.from_checkpoint(marked(name), model)

    def push_to_hub(self, repo_id: str, model: LanguageModel, **options: Unpack[PushOptions]) -> str:
        """Uploads the trained editor to the Hub; see :func:`lightning_edit.export.publishing.push_editor`."""
        from lightning_edit.export.publishing import push_editor

        return push_editor(self, model, repo_id, **options)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        return f"{type(self).__name__}({settings})"

    def not_ready(self) -> EditorNotFittedError:
        """Returns the error for an editor that was never set up."""
        return EditorNotFittedError(f"{type(self).__name__} is not set up; call setup(model), or load a checkpoint")


def name_of(request: EditRequest) -> str:
    """Returns a request's name for messages: its id, or its prompt."""
    return request.id or request.prompt


def _without_failed_edits(computed: GroupChanges, groups: Groups) -> GroupChanges:
    """Empties edits that have values that are not finite, or no request that could be edited.

    The former are reported as a problem of all their requests.
    """
    broken, problems = computed.changes.non_finite(), dict(computed.problems)
    failed, place = set(broken), 0
    for edit, group in enumerate(groups):
        numbers = range(place, place + len(group))
        place += len(group)
        if edit in broken:
            for number, request in zip(numbers, group, strict=True):
                problems.setdefault(number, f"the update of {broken[edit]} for {name_of(request)!r} is not finite")
        if all(number in problems for number in numbers):
            failed.add(edit)
    changes = computed.changes.without(failed) if failed else computed.changes
    return GroupChanges(changes, problems)


def _warn_about(problems: Mapping[int, str], count: int) -> None:
    if problems:
        reasons = "; ".join(problems[place] for place in sorted(problems))
        warnings.warn(f"{len(problems)} of {count} requests are left out: {reasons}", stacklevel=4)


@contextmanager
def _applied(model: LanguageModel, after: EditSequence) -> Iterator[None]:
    if not len(after):
        yield
        return
    with after.applied(model):
        yield
