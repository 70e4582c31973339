"""Search for the value that makes a model predict the target, by gradient descent on one hidden state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_edit import ranges
from lightning_edit.editors.prompts import every_context, last_subject_token
from lightning_edit.editors.value_steps import AdamSteps, QuasiNewtonSteps, ValueOptimizer, ValueSteps
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.losses import mean_by_row
from lightning_edit.models.head import search_losses
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.recording import Tap, as_rows, first_tensor
from lightning_edit.models.skipping import skipped
from lightning_edit.models.suffix_passes import shortest_passes
from lightning_edit.records import EditRequest
from lightning_edit.tokenization import EncodedText, TokenBatch

ESSENCE = "{} is a"
"""The prompt whose next-token distribution should be preserved (Meng et al. 2022, section 3.1)."""
GRADIENT_BATCH_FACTOR = 1.5
"""Token budget of a pass with gradients, as a multiple of ``LanguageModel.saturation_tokens``."""


@dataclass(frozen=True)
class ValueSettings:
    """Settings for optimizing the value vector of a locate-then-edit method.

    The defaults are ROME's on Llama; other methods have others. To change one setting of a method, write
    ``dataclasses.replace(PMET().search, steps=10)``; a file or a flag changes the named setting alone.

    Args:
        steps: Number of loss evaluations (published settings have 20 or 25), with one gradient step less.
        learning_rate: Adam's learning rate (0.5 in most published settings).
        weight_decay: Weight of |δ| / |h|², h being the initial state.
        clamp_norm: Maximum of |δ|, as a multiple of |h|.
        kl_weight: Weight of the divergence on "<subject> is a" (0.0625 in the authors' code of ROME and MEMIT).
        stop_below: Stop once the loss is below this; never if None. The authors' code stops at 0.05.
        satisfied_weight: Weight of the target's loss in the step after one in which every target token was the most
            probable one in every context (PMET).
        satisfied_kl: Stop at such a step if the weighted divergence is at most this; never if None (PMET).
        loss_layer: Layer whose output the final norm and the head read for the target's loss; the last one if None, as
            in all published settings. The divergence is always that of the whole model.
        optimizer: "adam", as in all published settings, or "lbfgs", which reaches in 10 evaluations what Adam does in
            25 (benchmarks/README.md) and ignores the learning rate; it supports one place and a loss with constant
            weights. See :mod:`lightning_edit.editors.value_steps`.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    steps: int = 25
    learning_rate: float = 0.5
    weight_decay: float = 1e-3
    clamp_norm: float = 4.0
    kl_weight: float = 0.0625
    stop_below: float | None = None
    satisfied_weight: float = 1.0
    satisfied_kl: float | None = None
    loss_layer: int | None = None
    optimizer: ValueOptimizer = "adam"

    def __post_init__(self) -> None:
        where = "editor.search"
        ranges.one_of(get_args(ValueOptimizer), where, optimizer=self.optimizer)
        ranges.at_least(1, where, steps=self.steps)
        ranges.at_least(0, where, weight_decay=self.weight_decay, kl_weight=self.kl_weight)
        ranges.at_least(0, where, satisfied_weight=self.satisfied_weight, satisfied_kl=self.satisfied_kl)
        ranges.above(0, where, learning_rate=self.learning_rate, clamp_norm=self.clamp_norm)
        if self.optimizer != "adam" and self.satisfied_weight != 1.0:
            raise ConfigurationError(
                f"{where}.optimizer: {self.optimizer!r} needs a loss with constant weights, but satisfied_weight "
                f"({self.satisfied_weight}) reweights it during the search; keep the default of one of them"
            )

    def steps_from(self, initial: Mapping[str, Tensor]) -> ValueSteps:
        """Creates the optimiser of the search, starting from δ = 0, given the initial states."""
        if self.optimizer == "lbfgs":
            return QuasiNewtonSteps(initial, self.clamp_norm)
        return AdamSteps(initial, self.clamp_norm, self.learning_rate)


@dataclass
class ValueResult:
    """Result of the value search for one request.

    Args:
        initial: (D) initial state at the bare prompt's last subject token, by place.
        delta: (D) change, by place.
        losses: The loss of each evaluation.
        problem: Why the search failed, if it did; the change is then invalid.
    """

    initial: dict[str, Tensor]
    delta: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    problem: str | None = None

    def target(self, place: str) -> Tensor:
        """Returns the (D) searched value."""
        return self.initial[place] + self.delta[place]


def search_values(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    taps: Mapping[str, Tap],
    settings: ValueSettings,
) -> list[ValueResult]:
    """Searches δ for each request: argmin of NLL + kl_weight · KL + weight_decay · |δ| / |h|².

    NLL is the target's mean negative log-likelihood, averaged over the contexts; KL = KL(p_δ || p) at the last subject
    token of "<subject> is a". δ is added to the taps' outputs at the last subject token, in every context and in that
    prompt (Meng et al. 2022, arXiv 2202.05262, equation 4). Requests are independent; many are searched in a batch,
    which finished ones leave.

    Args:
        model: The model; edits may be applied to it.
        requests: The requests, each with a subject.
        templates: Contexts; the first one is the bare prompt.
        taps: Modules to whose outputs δ is added, by place; each place has its own δ.
        settings: How to search.

    Returns:
        One result per request.
    """
    results: dict[int, ValueResult] = {}
    with tqdm(total=len(requests), desc="values", leave=False, disable=None if len(requests) > 1 else True) as bar:
        for chunk in _chunks(model, requests, templates):
            search = _Search(model, [requests[index] for index in chunk], templates, taps, settings)
            search.run(bar.update)
            results.update(zip(chunk, search.results, strict=True))
    return [results[index] for index in range(len(requests))]


def _chunks(model: LanguageModel, requests: Sequence[EditRequest], templates: Sequence[str]) -> Iterator[list[int]]:
    """Groups requests into passes, with all their contexts, sorted by the number of tokens after the subject.

    A pass is limited to the model's tokens per batch. Its tokens after the subjects, which need gradients and memory,
    are limited to not many more than saturate the device.
    """
    rows, sizes = len(templates) + 1, []
    for request in requests:
        texts = _texts(model, request, templates)
        behind = len(texts[0].ids) - last_subject_token(texts[0])
        sizes.append((behind, max(len(text.ids) for text in texts)))
    chunk: list[int] = []
    longest = 0
    for index in sorted(range(len(requests)), key=lambda index: sizes[index]):
        behind, length = sizes[index]
        longest = max(longest, length)
        count = rows * (len(chunk) + 1)
        if chunk and (
            count * longest > model.tokens_per_batch or count * behind > GRADIENT_BATCH_FACTOR * model.saturation_tokens
        ):
            yield chunk
            chunk, longest = [], length
        chunk.append(index)
    if chunk:
        yield chunk


def _texts(model: LanguageModel, request: EditRequest, templates: Sequence[str]) -> list[EncodedText]:
    """Tokenises a request in every context, with its target, followed by its essence prompt."""
    subject = request.subject or ""
    essence = model.encoder.encode(ESSENCE.replace("{}", subject), "", (0, len(subject)))
    return [*every_context(model, [request], templates, with_targets=True), essence]


class _Search:
    """Searches the values of several requests in a batch."""

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        templates: Sequence[str],
        taps: Mapping[str, Tap],
        settings: ValueSettings,
    ) -> None:
        self.model, self.taps, self.settings = model, dict(taps), settings
        self.rows_each = len(templates) + 1
        texts = [text for request in requests for text in _texts(model, request, templates)]
        starts, layers = [last_subject_token(text) for text in texts], [tap.layer for tap in taps.values()]
        self.passes = shortest_passes(model, texts, starts, min(layers))
        self._highest = max(layers)
        self.batch = self.passes.batch
        self.position = self.passes.start - self.passes.offset
        self._returns = model.block_returns
        self.names = [request.id or request.prompt for request in requests]
        self.results = [ValueResult({}, {}) for _ in requests]
        self.steps: list[ValueSteps] = []
        self.essence: dict[int, Tensor] = {}
        self.nll_weight = [1.0] * len(requests)

    def run(self, done: Callable[[int], object]) -> None:
        """Runs until every request is finished."""
        active = list(range(len(self.results)))
        self._begin(active)
        for step in range(self.settings.steps):
            with self.model.enable_grad_through():
                losses, satisfied = self._losses(active)
            last = step == self.settings.steps - 1
            left = [request for request in active if not self._is_done(request, losses, satisfied)]
            if last or not left:
                break
            done(len(active) - len(left))
            gradients = self._gradients(left, losses)
            for request in left:
                self.steps[request].step(self.results[request].losses[-1], gradients[request])
            active = left
        done(len(active))
        for result, steps in zip(self.results, self.steps, strict=True):
            result.delta = steps.result(result.losses[-1])

    def _begin(self, active: list[int]) -> None:
        """Reads the initial states, with δ = 0."""
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), ExitStack() as stack:
            for place, tap in self.taps.items():
                handle = tap.module.register_forward_hook(_recording_hook(place, seen))
                stack.callback(handle.remove)
            stack.enter_context(skipped(self.model.layer_map.blocks[self._highest + 1 :], self._returns))
            rows = self._rows(active)
            self.passes.head_inputs(rows, self.batch, torch.zeros_like(self.batch.answer_mask))
        for request in active:
            row = request * self.rows_each
            for place, values in seen.items():
                state = as_rows(values, self.batch.input_ids.shape)[row, self.position[row]]
                wide = state.to(torch.promote_types(state.dtype, torch.float32))
                self.results[request].initial[place] = wide
        self.steps = [self.settings.steps_from(result.initial) for result in self.results]

    def _rows(self, active: Sequence[int]) -> Tensor:
        rows = [row for request in active for row in range(request * self.rows_each, (request + 1) * self.rows_each)]
        return torch.tensor(rows, device=self.model.device)

    def _read(self, rows: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Returns the head's inputs at the answers, (N, hidden size), and at the essence prompts' subjects, (K, …)."""
        answers, essences = batch.answer_mask, torch.zeros_like(batch.answer_mask)
        essence = (rows % self.rows_each == self.rows_each - 1).nonzero()[:, 0]
        essences[essence, self.position[rows][essence]] = True
        read, layer = answers | essences, self.settings.loss_layer
        whole = self.passes.head_inputs(rows, batch, read)
        if layer is None:
            return whole[answers[read]], whole[essences[read]]
        with skipped(self.model.layer_map.blocks[layer + 1 :], self._returns):
            early = self.passes.head_inputs(rows, batch, answers)
        return early, whole[essences[read]]

    @contextmanager
    def _shifted(self, active: Sequence[int], rows: Tensor) -> Iterator[None]:
        """Adds each request's δ at its positions."""
        with ExitStack() as stack:
            for place, tap in self.taps.items():
                deltas = torch.stack([self.steps[request].parameters[place] for request in active])
                each = deltas.repeat_interleave(self.rows_each, 0)
                handle = tap.module.register_forward_hook(_shifting_hook(each, self.position[rows]))
                stack.callback(handle.remove)
            yield

    def _losses(self, active: list[int]) -> tuple[dict[int, tuple[Tensor, Tensor]], list[bool]]:
        """Computes each request's loss and weighted divergence, and whether every target token is the most probable."""
        rows = self._rows(active)
        batch = self.batch.select(rows)
        with self._shifted(active, rows):
            answers, essences = self._read(rows, batch)
        before = torch.stack([self.essence[request] for request in active]) if self.essence else None
        result_losses = search_losses(self.model, answers, batch.target_ids, essences, before)
        if before is None:
            self.essence = dict(zip(active, result_losses.kept_logits, strict=True))
        nll = mean_by_row(result_losses.nll, batch.target_rows, len(batch))
        wrong = mean_by_row((result_losses.predicted != batch.target_ids).to(nll), batch.target_rows, len(batch))
        settings, losses, satisfied = self.settings, {}, []
        for index, request in enumerate(active):
            contexts = slice(index * self.rows_each, (index + 1) * self.rows_each - 1)
            divergence = settings.kl_weight * result_losses.divergences[index]
            decay = settings.weight_decay * torch.stack(
                [
                    parameter.norm() / self.results[request].initial[place].norm() ** 2
                    for place, parameter in self.steps[request].parameters.items()
                ]
            )
            loss = self.nll_weight[request] * nll[contexts].mean() + divergence + decay.sum()
            losses[request] = (loss, divergence)
            satisfied.append(not bool(wrong[contexts].any()))
        return losses, satisfied

    def _is_done(self, request: int, losses: dict[int, tuple[Tensor, Tensor]], satisfied: list[bool]) -> bool:
        """Records the loss of a request, and returns whether its search is finished."""
        settings = self.settings
        loss, divergence = (value.detach() for value in losses[request])
        value = float(loss)
        self.results[request].losses.append(value)
        if not loss.isfinite():
            self.results[request].problem = f"the loss of {self.names[request]!r} became {value}"
            return True
        if settings.stop_below is not None and value < settings.stop_below:
            return True
        is_satisfied = satisfied[list(losses).index(request)]
        self.nll_weight[request] = settings.satisfied_weight if is_satisfied else 1.0
        return (
            is_satisfied and settings.satisfied_kl is not None and float(divergence.detach()) <= settings.satisfied_kl
        )

    def _gradients(self, left: list[int], losses: dict[int, tuple[Tensor, Tensor]]) -> dict[int, dict[str, Tensor]]:
        parameters = [parameter for request in left for parameter in self.steps[request].parameters.values()]
        with torch.enable_grad():
            total = torch.stack([losses[request][0] for request in left]).sum()
        gradients = iter(torch.autograd.grad(total, parameters))
        return {request: {place: next(gradients) for place in self.steps[request].parameters} for request in left}


def _recording_hook(place: str, seen: dict[str, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        # Cloned, as some blocks add the attention's output to the MLP's in place.
        seen[place] = first_tensor(output).clone()

    return hook


def _shifting_hook(deltas: Tensor, positions: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
    """Adds (R, D) deltas at one position of each of R rows."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        states = first_tensor(output)
        # With a device map, the site may be on another device.
        rows, places = torch.arange(len(deltas), device=states.device), positions.to(states.device)
        shape = states.shape if states.dim() == 3 else (len(deltas), -1, states.shape[-1])
        shifted = states.reshape(shape)
        addend = torch.zeros_like(shifted).index_put((rows, places), deltas.to(states))
        shifted = (shifted + addend).reshape(states.shape)
        return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

    return hook
