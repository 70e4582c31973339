"""Base class of all edits, and the registration of new kinds."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Unpack, runtime_checkable

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lightning_edit.edits.deltas import Delta
from lightning_edit.edits.provenance import Provenance
from lightning_edit.edits.writing import write_deltas
from lightning_edit.errors import EditError
from lightning_edit.files import holds_something_else, replace_folder
from lightning_edit.hub import PushOptions, marked
from lightning_edit.manifests import write_manifest
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.models.perplexity import losses_of_rows, perplexity
from lightning_edit.models.scoring import Score
from lightning_edit.records import Route

MANIFEST = "edit.json"
TENSORS = "edit.safetensors"
STATE = "state.safetensors"
FORMAT = 3


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of an edit's file.

    Raises:
        EditError: If a tensor holds NaN or infinities.
    """
    # Copies, because the alignment in the file would select other kernels, which round differently.
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if broken:
        raise EditError(f"{path}: {broken[0]} is not finite; make the edit again")
    return tensors


class Scorer(Protocol):
    """Scores and generates: a language model with or without edits applied."""

    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        references: Sequence[Tensor | None] | None = None,
        keep_head_input: bool = False,
        passes: ForwardPasses | None = None,
    ) -> list[Score]:
        """See :meth:`LanguageModel.score`."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int] = 16, **settings: Any) -> list[str]:
        """See :meth:`LanguageModel.generate`."""


@runtime_checkable
class RoutedScorer(Scorer, Protocol):
    """A scorer that decides for each prompt whether a remembered edit answers it."""

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """Returns the decision for each prompt."""

    def losses_of_rows(self, rows: Tensor) -> Tensor:
        """See :func:`lightning_edit.models.perplexity.losses_of_rows`; each row is routed on its beginning."""


def routes_of(scorer: Scorer, prompts: Sequence[str]) -> list[Route | None]:
    """Returns a scorer's routing decision for each prompt; None if the scorer does not route."""
    return list(scorer.routes(prompts)) if isinstance(scorer, RoutedScorer) else [None] * len(prompts)


def losses_under(scorer: Scorer, model: LanguageModel, rows: Tensor) -> Tensor:
    """Computes the (R · (L - 1)) losses in nats of packed rows (R, L) of token ids under an edited model.

    Args:
        scorer: The scorer that ``applied`` yielded.
        model: The base model, within that context.
        rows: Token ids.

    Raises:
        EditError: If the scorer is not the model itself, and has no ``losses_of_rows``.
    """
    if scorer is model:
        return losses_of_rows(model, rows)
    if not hasattr(scorer, "losses_of_rows"):
        raise EditError(
            f"{type(scorer).__name__} has no losses_of_rows(rows), so the perplexity of the edited model cannot be "
            "measured; add the method to the scorer, or leave perplexity out"
        )
    losses: Tensor = scorer.losses_of_rows(rows)
    return losses


def perplexity_of(scorer: Scorer, model: LanguageModel, rows: Tensor) -> float:
    """Computes the perplexity of packed rows (R, L) under an edited model; see :func:`losses_under`."""
    return perplexity(lambda part: losses_under(scorer, model, part), rows)


class Edit(ABC):
    """The result of editing: a change that can be applied, undone, saved and, for some kinds, merged.

    New kinds are subclasses that set ``kind``, by which :func:`load_edit` finds them. They implement how the edit is
    applied on top of a scorer (:meth:`layered`) and, optionally, how two consecutive edits are joined (:meth:`joined`).

    Args:
        provenance: Where the edit comes from.
        state: State that the editor needs for later edits, as rows (n, M) by name. A sequence accumulates Σ rowsᵀ rows,
            in constant size.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Edit]]] = {}
    changes_model: ClassVar[bool] = True
    """Whether applying the edit changes the hidden states of the model itself, which later edits are computed on."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if inspect.isabstract(cls):
            return
        if not hasattr(cls, "kind"):
            raise TypeError(f"{cls.__qualname__} needs a kind: a class attribute with the name that is saved with it")
        if "kind" not in vars(cls):
            # A subclass is saved and loaded as its base class.
            return
        known = Edit.kinds.setdefault(cls.kind, cls)
        if f"{known.__module__}.{known.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}":
            raise TypeError(f"the kind of edit {cls.kind!r} is registered by {known} already; choose another name")
        Edit.kinds[cls.kind] = cls

    def __init__(self, provenance: Provenance, state: Mapping[str, Tensor] | None = None) -> None:
        self.provenance = provenance
        self.state = dict(state or {})

    @property
    def id(self) -> str:
        """Name of the edit."""
        return self.provenance.id

    @property
    def edits(self) -> tuple[Edit, ...]:
        """This edit alone, as in a sequence of one; see :attr:`EditSequence.edits`."""
        return (self,)

    @contextmanager
    def applied(self, model: LanguageModel) -> Iterator[Scorer]:
        """Context manager that applies the edit, and yields a scorer of the edited model.

        Within the context, a weight edit also changes the outputs of ``model`` itself. A routed edit answers only
        through the yielded scorer; calling the Hugging Face model directly is then an error.

        The model's weights are never written, so leaving the context restores it exactly.

        Raises:
            BaseModelMismatchError: If the edit was made for another base model.
            EditError: If the edit is already applied.

        Example:
            >>> from lightning_edit import EditRequest, GradientStep
            >>> request = EditRequest("The capital of France is", target="Rome")
            >>> edit = GradientStep(sites=[-1]).edit(model, [request])
            >>> def loss(scorer):
            ...     return -sum(scorer.score([request.prompt], [request.target])[0].log_probs)
            >>> before = loss(model)
            >>> with edit.applied(model) as edited:
            ...     print(loss(edited) < before)
            True
            >>> loss(model) == before
            True
        """
        self.check(model)
        with model.marked_as_applied([self.id]), self.layered(model, model) as scorer:
            yield scorer

    @abstractmethod
    def layered(self, below: Scorer, model: LanguageModel) -> AbstractContextManager[Scorer]:
        """Context manager that yields a scorer with the edit on top of ``below``.

        Args:
            below: The base model, with earlier edits applied.
            model: The base model.
        """

    def joined(self, later: Edit) -> Edit | None:
        """Returns one edit equivalent to this one followed by ``later``; None if they cannot be joined."""
        return None

    def check(self, model: LanguageModel) -> str | None:
        """Refuses another base model; returns a warning if the same one was loaded differently."""
        base = self.provenance.base
        return model.check_base(base.fingerprint, "edit", base.name, base.chat_template)

    def weight_deltas(self) -> Mapping[str, Delta]:
        """Returns the weight changes by site name, for kinds that can be merged.

        A kind that overrides this can be merged and exported; for others, :meth:`check_mergeable` raises an error.
        """
        return {}

    @property
    def nbytes(self) -> int:
        """Size of the edit in bytes; kinds without weight changes override it."""
        return sum(tensor.nbytes for delta in self.weight_deltas().values() for tensor in delta.tensors().values())

    def check_mergeable(self, action: str = "merged") -> None:
        """Refuses kinds that cannot be written into weights: by default those that do not define weight_deltas().

        Args:
            action: The refused action, for the message.

        Raises:
            EditError: If this kind cannot be merged.
        """
        if type(self).weight_deltas is Edit.weight_deltas:
            raise EditError(
                f"this edit cannot be {action}: edits of the kind {self.kind!r} give no changes of weights "
                "(weight_deltas); apply it instead"
            )

    def merge(self, model: LanguageModel) -> None:
        """Writes the edit into the model's weights, for export.

        The sum W + ΔW is taken in float32 and rounded once to the weight's dtype. The model's fingerprint then differs
        from the edit's base.

        Raises:
            BaseModelMismatchError: If the edit was made for another base model.
            EditError: If this kind of edit cannot be written into weights, or a weight is quantised or shared.
        """
        self.check_mergeable()
        self.check(model)
        write_deltas(model, self.weight_deltas())

    def to_peft(
        self, model: LanguageModel, folder: str | Path, rank: int | None = None, max_error: float = 0.01
    ) -> Path:
        """Saves the edit as a LoRA adapter in PEFT's format; see :func:`lightning_edit.export.adapter_of`."""
        from lightning_edit.export import adapter_of, save_adapter

        return save_adapter(adapter_of(self, model, rank, max_error), folder)

    def push_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> str:
        """Uploads the edit to the Hub; see :func:`lightning_edit.export.publishing.push_edit`."""
        from lightning_edit.export.publishing import push_edit

        return push_edit(self, repo_id, **options)

    @staticmethod
    def from_pretrained(folder: str | Path, revision: str | None = None) -> Edit:
        """Loads a saved edit of any kind from a folder, or from a repository on the Hub (owner/name)."""
        from lightning_edit.edits.loading import load_edit

        return load_edit(marked(folder), revision)

    def as_hf(self, model: LanguageModel) -> PreTrainedModel:
        """Wraps the edited model as a transformers model, whose generate and forward apply the edit.

        See :class:`lightning_edit.export.transformers_model.EditedCausalLM`.
        """
        from lightning_edit.export.transformers_model import EditedCausalLM

        return EditedCausalLM(self, model)

    @abstractmethod
    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the tensors into ``folder`` and returns their description for the manifest."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, details: dict[str, Any], provenance: Provenance) -> Edit:
        """Reads what :meth:`write` wrote; the state is read for all kinds alike."""

    def save(self, folder: str | Path) -> Path:
        """Saves the edit as a folder of safetensors and a JSON manifest, atomically.

        Raises:
            EditError: If the folder exists and does not hold an edit.
        """
        folder = Path(folder)
        if holds_something_else(folder, MANIFEST):
            raise EditError(f"{folder} exists and is not an edit; save to a new folder")
        with replace_folder(folder) as temporary:
            details = self.write(temporary)
            if self.state:
                rows = {name: value.detach().cpu().contiguous() for name, value in self.state.items()}
                save_file(rows, temporary / STATE)
            manifest = {"format": FORMAT, "kind": self.kind, "details": details, **self.provenance.to_dict()}
            files = sorted(file.name for file in temporary.iterdir() if file.name != MANIFEST)
            write_manifest(temporary / MANIFEST, manifest, files)
        return folder

    def __repr__(self) -> str:
        provenance = self.provenance
        return (
            f"{type(self).__name__}(id={self.id!r}, method={provenance.method!r}, "
            f"requests={len(provenance.requests)}, base={provenance.base.name!r})"
        )
