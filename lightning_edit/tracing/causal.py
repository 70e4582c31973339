"""Causal tracing (Meng et al. 2022, arXiv 2202.05262, section 2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_edit import ranges
from lightning_edit.editors.prompts import in_context
from lightning_edit.errors import ConfigurationError, LayerMapError
from lightning_edit.models.fast_paths import finite_rows, problem_of
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.recording import Tap, as_rows, first_tensor, tapped
from lightning_edit.models.skipping import entering, skipped
from lightning_edit.records import EditRequest
from lightning_edit.tokenization import EncodedText, TokenBatch

Restored = Literal["state", "mlp", "attention"]
"""What is restored: a block's whole output, or the output of its MLP or attention."""
ROLES = ("first subject", "middle subject", "last subject", "next", "further", "last")
"""Token roles that effects are averaged over, as in the paper's figure 2."""


@dataclass(frozen=True)
class TraceSettings:
    """Settings of causal tracing.

    Args:
        noise: Standard deviation of the noise on the subject's embeddings, in standard deviations of the subjects'
            embeddings (the paper's 3).
        samples: Noise samples (the paper's 10).
        window: Layers around a cell whose MLP or attention output is restored (the paper's 10).
        seed: Seed of the noise.
        tokens_per_batch: Tokens in one forward pass.

    Raises:
        ConfigurationError: If a number is out of its range.
    """

    noise: float = 3.0
    samples: int = 10
    window: int = 10
    seed: int = 0
    tokens_per_batch: int = 4096

    def __post_init__(self) -> None:
        ranges.above(0, "trace", noise=self.noise)
        counts = {"samples": self.samples, "window": self.window, "tokens_per_batch": self.tokens_per_batch}
        ranges.at_least(1, "trace", **counts)


@dataclass(frozen=True)
class Trace:
    """Result of tracing one fact.

    Args:
        tokens: The prompt's tokens, as text.
        subject: First and last (exclusive) subject token.
        answer: The answer's first token, as text.
        clean: The answer's probability without noise.
        corrupted: Its mean probability with noise on the subject.
        restored: For each of "state", "mlp" and "attention", (T, L) its mean probability with noise when the cell is
            restored.
    """

    tokens: list[str]
    subject: tuple[int, int]
    answer: str
    clean: float
    corrupted: float
    restored: dict[str, Tensor]

    def roles(self) -> list[str]:
        """Returns the role of each token."""
        start, end = self.subject
        names = []
        for place in range(len(self.tokens)):
            if start <= place < end:
                names.append(
                    "last subject" if place == end - 1 else "first subject" if place == start else "middle subject"
                )
            elif place == len(self.tokens) - 1:
                names.append("last")
            elif place == end:
                names.append("next")
            else:
                names.append("further" if place > end else "before")
        return names

    def effects(self, kind: str) -> Tensor:
        """Computes the indirect effect (T, L): restored minus corrupted probability."""
        return self.restored[kind] - self.corrupted


def embedding_deviation(model: LanguageModel, requests: Sequence[EditRequest]) -> float:
    """Computes the standard deviation of the embeddings of all subject tokens."""
    embeddings: Any = model.model.get_input_embeddings()
    subjects = []
    for request in requests:
        text = in_context(model, request, "{}")
        start, end = text.subject or (0, 0)
        subjects.append(embeddings(torch.tensor(text.ids[start:end], device=model.device)).detach().float())
    return float(torch.cat(subjects).std())


@torch.no_grad()
def trace_fact(
    model: LanguageModel,
    request: EditRequest,
    settings: TraceSettings,
    deviation: float,
    severed: Literal["mlp", "attention"] | None = None,
    kinds: Sequence[Restored] = get_args(Restored),
) -> Trace:
    """Traces one fact: adds noise to the subject's embeddings and restores states at every token and layer.

    Args:
        model: The model.
        request: Prompt and subject; its target is ignored: the answer is the model's without noise.
        settings: How to trace.
        deviation: See :func:`embedding_deviation`.
        severed: Fix the MLPs' (or attention's) outputs at the restored token, above the restored layers, to those under
            noise, to show their part in passing the state on (the paper's figure 3).
        kinds: What to restore.
    """
    return _Tracer(model, request, settings, deviation, severed).run(kinds)


class _Tracer:
    """Traces one fact, in batches of (token, layer) cells."""

    def __init__(
        self,
        model: LanguageModel,
        request: EditRequest,
        settings: TraceSettings,
        deviation: float,
        severed: str | None,
    ) -> None:
        self.model, self.settings, self.severed = model, settings, severed
        self.text: EncodedText = in_context(model, request, "{}")
        start, end = self.text.subject or (0, 0)
        if start == end:
            raise ConfigurationError(f"the request {request.prompt!r} has no subject to put noise on")
        self.subject = slice(start, end)
        depth = len(model.layer_map)
        maps = model.layer_map
        self.taps = {
            "state": [Tap(maps.block(layer), "output", layer) for layer in range(depth)],
            "mlp": [Tap(maps.site(layer).module, "output", layer) for layer in range(depth)],
            "attention": [Tap(maps.attention_site(layer).module, "output", layer) for layer in range(depth)],
        }
        generator = torch.Generator().manual_seed(settings.seed)
        embeddings: Any = model.model.get_input_embeddings()
        size = embeddings.weight.shape[1]
        shape = (settings.samples, end - start, size)
        # The same noise for every cell, so that cells can be compared.
        noise = torch.randn(shape, generator=generator) * settings.noise * deviation
        self.noise = noise.to(device=model.device, dtype=embeddings.weight.dtype)
        self.answer = -1
        self._returns = model.block_returns
        self.starts_above = False

    def run(self, kinds: Sequence[Restored]) -> Trace:
        ids = self.text.ids
        wanted = {f"{kind}.{layer}": tap for kind, taps in self.taps.items() for layer, tap in enumerate(taps)}
        seen: dict[str, Tensor] = {}
        with tapped(wanted, seen):
            clean = self._last_probabilities(self._batch(1))[0]
        self.answer = int(clean.argmax())
        try:
            self.clean = {name: as_rows(value, torch.Size((1, len(ids))))[0] for name, value in seen.items()}
        except LayerMapError as error:
            raise LayerMapError(
                f"{self.model.name} keeps several states for each position between its blocks, but causal tracing "
                "can restore only one; this model cannot be traced"
            ) from error
        noisy: dict[str, Tensor] = {}
        with self._noisy(self.settings.samples), tapped(wanted, noisy):
            corrupted = self._last_probabilities(self._batch(self.settings.samples))[:, self.answer]
        shape = torch.Size((self.settings.samples, len(ids)))
        self.noisy = {name: as_rows(value, shape) for name, value in noisy.items()}
        self.starts_above = self._partial_passes_match(corrupted)
        restored: dict[str, Tensor] = {kind: self._restored(kind) for kind in kinds}
        tokens = [str(self.model.tokenizer.decode([id])) for id in ids]
        answer = str(self.model.tokenizer.decode([self.answer]))
        span = (self.subject.start, self.subject.stop)
        return Trace(tokens, span, answer, float(clean[self.answer]), float(corrupted.mean()), restored)

    def _partial_passes_match(self, corrupted: Tensor) -> bool:
        """Whether noisy passes from the middle and the last block on match whole passes; warns if not."""
        depth = len(self.model.layer_map)
        problems = [self._problem(layer, corrupted) for layer in (depth // 2, depth - 1)]
        problem = next((text for text in problems if text is not None), None)
        if problem is not None:
            warnings.warn(
                f"passes that start above the first block do not match full passes in {self.model.name} "
                f"({problem}); all blocks are run",
                stacklevel=4,
            )
        return problem is None

    def _problem(self, layer: int, corrupted: Tensor) -> str | None:
        samples = self.settings.samples

        def from_layer() -> Tensor:
            with self._noisy(samples), self._above(layer, 1):
                return self._last_probabilities(self._batch(samples))[:, self.answer]

        if not bool(finite_rows(corrupted).any()):
            return "the probabilities under noise are not finite"
        problem = problem_of(from_layer, corrupted, self.model.dtype)
        return None if problem is None else f"from block {layer} on: {problem}"

    def _batch(self, rows: int) -> TokenBatch:
        return self.model.encoder.collate([self.text] * rows, padding_side="right").to(self.model.device)

    def _last_probabilities(self, batch: TokenBatch) -> Tensor:
        """Computes next-token probabilities (R, V) after the prompt."""
        last = torch.zeros_like(batch.answer_mask)
        last[:, -1] = True
        return self.model.head_logits(batch, last)[0].float().softmax(-1)

    @contextmanager
    def _noisy(self, rows: int) -> Iterator[None]:
        """Adds the noise samples to the subject's embeddings within the context."""
        noise = self.noise.repeat(rows // len(self.noise), 1, 1)

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[:, self.subject] += noise
            return changed

        embeddings: Any = self.model.model.get_input_embeddings()
        handle = embeddings.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _restored(self, kind: Restored) -> Tensor:
        """Computes the mean probability (T, L) of the answer with each cell restored."""
        length, depth = len(self.text.ids), len(self.model.layer_map)
        # Ordered by layer: below the lowest layer of a chunk, states are those under noise alone.
        cells = [(token, layer) for layer in range(depth) for token in range(length)]
        size = max(self.settings.tokens_per_batch // (length * self.settings.samples), 1)
        probabilities: list[Tensor] = []
        for start in range(0, len(cells), size):
            chunk = cells[start : start + size]
            rows = len(chunk) * self.settings.samples
            lowest = min(self._layers(kind, layer).start for _, layer in chunk) if self.starts_above else 0
            with self._noisy(rows), self._above(lowest, len(chunk)), self._patched(kind, chunk):
                values = self._last_probabilities(self._batch(rows))[:, self.answer]
            probabilities.append(values.view(len(chunk), -1).mean(1))
        return torch.cat(probabilities).view(depth, length).T.cpu()

    @contextmanager
    def _above(self, layer: int, cells: int) -> Iterator[None]:
        """Makes passes start at a layer from the recorded noisy states, in the rows of all cells."""
        if layer == 0:
            yield
            return
        blocks, states = self.model.layer_map.blocks, self.noisy[f"state.{layer - 1}"].repeat(cells, 1, 1)
        with skipped(blocks[:layer], self._returns), entering(blocks[layer], states):
            yield

    @contextmanager
    def _patched(self, kind: Restored, cells: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Restores each cell's values in the cell's own rows."""
        with ExitStack() as stack:
            for layer in range(len(self.model.layer_map)):
                mine = [index for index, (_, center) in enumerate(cells) if layer in self._layers(kind, center)]
                if mine:
                    self._patch(stack, self.taps[kind][layer], mine, cells, self.clean[f"{kind}.{layer}"][None])
                above = [index for index, (_, center) in enumerate(cells) if layer >= self._layers(kind, center).stop]
                if self.severed and above:
                    tap = self.taps[self.severed][layer]
                    self._patch(stack, tap, above, cells, self.noisy[f"{self.severed}.{layer}"])
            yield

    def _layers(self, kind: Restored, layer: int) -> range:
        """Returns the layers that a cell restores: its own, or a window around it."""
        if kind == "state":
            return range(layer, layer + 1)
        half = self.settings.window // 2
        return range(max(layer - half, 0), min(layer - half + self.settings.window, len(self.model.layer_map)))

    def _patch(
        self,
        stack: ExitStack,
        tap: Tap,
        mine: Sequence[int],
        cells: Sequence[tuple[int, int]],
        values: Tensor,
    ) -> None:
        """Sets a tap's output at the token of some cells to ``values[:, token]``, (1 or samples, T, D)."""
        samples = self.settings.samples
        shape = torch.Size((len(cells) * samples, len(self.text.ids)))

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            states = first_tensor(output)
            changed = as_rows(states, shape).clone()
            for index in mine:
                changed[index * samples : (index + 1) * samples, cells[index][0]] = values[:, cells[index][0]]
            changed = changed.reshape(states.shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        stack.callback(tap.module.register_forward_hook(hook).remove)


def average_effects(traces: Sequence[Trace], kind: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Computes per token role the (L) mean indirect effect over facts and (L) half width of its 95 % confidence band.

    Roles that no fact has are left out; a fact's tokens of one role are averaged first.
    """
    by_role: dict[str, list[Tensor]] = {}
    for trace in traces:
        roles, effects = trace.roles(), trace.effects(kind)
        for role in set(roles):
            rows = [place for place, name in enumerate(roles) if name == role]
            by_role.setdefault(role, []).append(effects[rows].mean(0))
    averages = {}
    for role in ROLES:
        if role in by_role:
            values = torch.stack(by_role[role])
            spread = values.std(0) if len(values) > 1 else torch.zeros_like(values[0])
            averages[role] = (values.mean(0), 1.96 * spread / len(values) ** 0.5)
    return averages


def suggested_layers(traces: Sequence[Trace], count: int) -> list[int]:
    """Returns the consecutive layers whose MLP windows have the largest mean effect at the subject's last token.

    This is the paper's early site: the layer for methods that edit one layer, and the range of layers for methods that
    edit several. A model with fewer layers gets all of them.
    """
    effects = average_effects(traces, "mlp")["last subject"][0]
    sums = effects.unfold(0, min(count, len(effects)), 1).sum(-1)
    first = int(sums.argmax())
    return list(range(first, min(first + count, len(effects))))
