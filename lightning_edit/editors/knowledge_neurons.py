"""Knowledge Neurons (Dai et al. 2022, arXiv 2104.08696)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.prompts import BARE, Contexts
from lightning_edit.edits import EditSequence, StackedFactors, WeightChanges
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.attribution import chosen_neurons
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.recording import Tap, record
from lightning_edit.models.suffix_passes import WholePasses, shortest_passes
from lightning_edit.records import EditRequest
from lightning_edit.tokenization import EncodedText

_LOG = logging.getLogger(__name__)
_WORD = 8
"""Number of generated tokens in which to look for a word."""
_LOGITS = 2**26
"""Maximum number of logits per attribution pass: 256 MB of float32, and as much for the gradient."""


class KnowledgeNeurons(Editor):
    """Finds the neurons that express a fact by integrated gradients, and changes their output vectors.

    A neuron is an input of an MLP's output projection. Its attribution for the answer y at the prompt's last position
    is w̄ ∫₀¹ ∂P(y | w = α w̄)/∂w dα, approximated by a sum over α = 1/m … 1. Neurons with a high attribution in several
    prompts are kept, and the output vector of each is changed by λ₂ e(target) - λ₁ e(answer), e being the output
    embedding. The attributions of several answer tokens are averaged, each at the position that predicts it.

    Args:
        layers: Layers whose neurons are considered; all by default, as in the paper.
        contexts: Prompts of the same fact: texts with "{}" in place of the prompt, the bare prompt first. The paper
            uses about nine paraphrases; with a single prompt, ``prompt_share`` has no effect.
        steps: Steps m of the integral (the paper's 20).
        threshold: A neuron counts above this share of the largest attribution (the paper's 0.2).
        prompt_share: It is kept if it counts in this share of the prompts (the paper's 0.7).
        min_neurons: Smallest number of neurons, for which the share is lowered (the paper's 2).
        max_neurons: Largest number of neurons (the paper's 5).
        answer_weight: λ₁ (the paper's 1).
        target_weight: λ₂ (the paper's 8).
        contradictions: How to handle requests of one edit with the same prompt and different targets: "error", "last"
            keeps the last one, "keep" tries to make all of them.
        signed: Flip the sign of the change for neurons with a negative value at the prompt, so that their output moves
            towards the target. The paper's neurons are positive where they count; those of gated MLPs need not be.
    """

    capabilities = Capabilities(needs_grad=True)

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        contexts: Sequence[str] = (BARE,),
        steps: int = 20,
        threshold: float = 0.2,
        prompt_share: float = 0.7,
        min_neurons: int = 2,
        max_neurons: int = 5,
        answer_weight: float = 1.0,
        target_weight: float = 8.0,
        signed: bool = False,
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__()
        ranges.layer_numbers("editor", layers)
        ranges.one_of(get_args(Contradictions), "editor", contradictions=contradictions)
        ranges.at_least(1, "editor", steps=steps, min_neurons=min_neurons, max_neurons=max_neurons)
        ranges.at_least(0, "editor", threshold=threshold, prompt_share=prompt_share)
        ranges.at_least(0, "editor", answer_weight=answer_weight, target_weight=target_weight)
        ranges.at_least(min_neurons, "editor", max_neurons=max_neurons)
        if not threshold < 1:
            raise ConfigurationError(f"editor.threshold: expected a share below 1, found {threshold}")
        if not prompt_share <= 1:
            raise ConfigurationError(
                f"editor.prompt_share: expected a share of the prompts, at most 1, found {prompt_share}"
            )
        self.layers = list(layers) if layers is not None else None
        self.contexts = list(Contexts((tuple(contexts),)).templates)
        self.steps, self.threshold, self.prompt_share = steps, threshold, prompt_share
        self.min_neurons, self.max_neurons = min_neurons, max_neurons
        self.answer_weight, self.target_weight, self.signed = answer_weight, target_weight, signed
        self.contradictions = contradictions

    def sites(self, model: LanguageModel) -> list[EditSite]:
        """Returns the output projections of the considered layers, lowest first."""
        layers = range(len(model.layer_map)) if self.layers is None else self.layers
        return model.layer_map.sites(list(layers))

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`.

        Raises:
            LayerMapError: If the model does not have one of the layers, or one is named twice.
        """
        self.sites(model)

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`.

        Requests whose attributions are not finite, or never positive, are left out.
        """
        sites = self.sites(model)
        results = [[self._change(model, request, sites) for request in group] for group in groups]
        flat = [result for group in results for result in group]
        problems = {place: result for place, result in enumerate(flat) if isinstance(result, str)}
        changes = [[result for result in group if not isinstance(result, str)] for group in results]
        touched = {name for group in changes for change in group for name in change}
        # Give empty edits a zero change at one site.
        changed = [site for site in sites if site.name in touched] or sites[:1]
        return GroupChanges(WeightChanges({site.name: _stacked(changes, site, model) for site in changed}), problems)

    def _change(
        self, model: LanguageModel, request: EditRequest, sites: Sequence[EditSite]
    ) -> dict[str, tuple[Tensor, Tensor]] | str:
        """Computes the factors of a request's change by site name, or returns an error message."""
        name = repr(request.id or request.prompt)
        answer = request.ground_truth or self._current_answer(model, request)
        if not answer:
            return f"the model generates no answer to {name}, whose neurons are needed; give the request's ground_truth"
        scores = self.attributions(model, request.prompt, answer, sites)
        if not bool(scores.isfinite().all()):
            return f"the attributions of {name} are not finite"
        neurons = chosen_neurons(scores, self.threshold, self.prompt_share, self.min_neurons, self.max_neurons)
        if not len(neurons):
            return f"no neuron has a positive attribution for the answer {answer!r} of {name}"
        if len(neurons) < self.min_neurons:
            _LOG.warning(
                "%s: only %d neurons, of at least %d, have a positive attribution for %r",
                name, len(neurons), self.min_neurons, answer,
            )  # fmt: skip
        embedding: Any = model.model.get_output_embeddings()

        def mean(text: str) -> Tensor:
            ids = list(model.encoder.encode(request.prompt, text).target_ids)
            rows: Tensor = embedding.weight.detach()[ids].float()
            return rows.mean(0)

        written = self.target_weight * mean(request.target) - self.answer_weight * mean(answer)
        values = self._values(model, model.encoder.encode(request.prompt), sites)
        changes = {}
        for layer, site in enumerate(sites):
            chosen = neurons[neurons[:, 0] == layer][:, 1]
            if len(chosen):
                signs = values[layer, chosen].sign() if self.signed else torch.ones_like(values[layer, chosen])
                rows = nn.functional.one_hot(chosen, site.fan_in).to(written)
                changes[site.name] = (rows.T, signs[:, None].to(written) * written)
        return changes

    @staticmethod
    def _values(model: LanguageModel, text: EncodedText, sites: Sequence[EditSite]) -> Tensor:
        """Returns the neurons' (L, M) values at a text's last position."""
        taps = {site.name: Tap(site.module, "input", site.layer) for site in sites}
        seen = record(model, [text], [len(text.ids) - 1], taps)
        # With a device map, sites may be on several devices.
        return torch.stack([seen[site.name][0].to(model.device) for site in sites])

    @staticmethod
    def _current_answer(model: LanguageModel, request: EditRequest) -> str:
        """Generates the model's current answer (first word), for requests without one; may be empty."""
        [text] = model.generate([request.prompt], _WORD)
        return next(iter(text.split()), "")

    def attributions(self, model: LanguageModel, prompt: str, answer: str, sites: Sequence[EditSite]) -> Tensor:
        """Computes the (P, L, M) attribution of every neuron for an answer, in every context."""
        attributions = []
        for template in self.contexts:
            text = model.encoder.encode(template.replace(BARE, prompt), answer)
            start, end = text.target
            each = []
            for position in range(start, end):
                before = EncodedText(text.ids[:position], (position, position))
                each.append(self._attribution(model, before, text.ids[position], sites))
            attributions.append(torch.stack(each).mean(0))
        return torch.stack(attributions)

    def _attribution(self, model: LanguageModel, text: EncodedText, token: int, sites: Sequence[EditSite]) -> Tensor:
        """Computes the (L, M) attribution for one token after a text, with a batch row per layer and step."""
        last = len(text.ids) - 1
        values = self._values(model, text, sites)
        count = self._layers_at_once(model, text, sites)
        gradients = []
        for start in range(0, len(sites), count):
            some = sites[start : start + count]
            # Below its own layer, a row equals the unmodified text.
            passes = shortest_passes(model, [text], [last], some[0].layer)
            gradients.append(self._gradients(model, passes, values[start : start + count], some, token))
        return values * torch.cat(gradients)

    def _layers_at_once(self, model: LanguageModel, text: EncodedText, sites: Sequence[EditSite]) -> int:
        """Returns the number of layers per pass that saturates the device, within the limit on logits."""
        width = shortest_passes(model, [text], [len(text.ids) - 1], sites[0].layer).batch.input_ids.shape[1]
        embeddings: Any = model.model.get_output_embeddings()
        rows: int = min(model.saturation_tokens // width, _LOGITS // embeddings.weight.shape[0])
        return max(rows // self.steps, 1)

    def _gradients(
        self, model: LanguageModel, passes: WholePasses, values: Tensor, sites: Sequence[EditSite], token: int
    ) -> Tensor:
        """Computes the (L, M) mean gradient of a token's probability along the path from 0 to each site's values."""
        rows = torch.zeros(len(sites) * self.steps, dtype=torch.int64, device=model.device)
        batch = passes.batch.select(rows)
        position = int(passes.start[0] - passes.offset[0])
        read = torch.zeros_like(batch.answer_mask)
        read[:, position] = True
        alphas = torch.arange(1, self.steps + 1, device=values.device) / self.steps
        leaves = [(alphas[:, None].to(value) * value).requires_grad_() for value in values]
        with model.enable_grad_through(), _scaled(sites, leaves, position, batch.input_ids.shape):
            logits = passes.head_logits(rows, batch, read)
            probabilities = logits.float().softmax(-1)[:, token]
            gradients = torch.autograd.grad(probabilities.sum(), leaves)
        return torch.stack([gradient.mean(0) for gradient in gradients])


@contextmanager
def _scaled(sites: Sequence[EditSite], leaves: Sequence[Tensor], position: int, shape: torch.Size) -> Iterator[None]:
    """Replaces the input of site l at one position by the (m, M) values l, in its own m rows of the batch."""
    with ExitStack() as stack:
        for index, (site, values) in enumerate(zip(sites, leaves, strict=True)):
            rows = slice(index * len(values), (index + 1) * len(values))
            handle = site.module.register_forward_pre_hook(_replacing(values, rows, position, shape))
            stack.callback(handle.remove)
        yield


def _replacing(values: Tensor, rows: slice, position: int, shape: torch.Size) -> Callable[[nn.Module, Any], Any]:
    def hook(module: nn.Module, args: Any) -> Any:
        read = args[0].reshape(*shape, -1).clone()
        read[rows, position] = values.to(read.dtype)
        return (read.reshape(args[0].shape), *args[1:])

    return hook


def _stacked(
    changes: Sequence[Sequence[Mapping[str, tuple[Tensor, Tensor]]]], site: EditSite, model: LanguageModel
) -> StackedFactors:
    """Concatenates the factors of each edit's requests at a site, padded to the same rank."""
    pairs = [[change[site.name] for change in group if site.name in change] for group in changes]
    rank = max(sum(a.shape[1] for a, _ in factors) for factors in pairs)
    a = torch.zeros(len(pairs), site.fan_in, max(rank, 1), device=model.device)
    b = torch.zeros(len(pairs), max(rank, 1), site.fan_out, device=model.device)
    for index, factors in enumerate(pairs):
        if factors:
            left, right = torch.cat([pair[0] for pair in factors], 1), torch.cat([pair[1] for pair in factors], 0)
            a[index, :, : left.shape[1]], b[index, : len(right)] = left, right
    return StackedFactors(a, b)
