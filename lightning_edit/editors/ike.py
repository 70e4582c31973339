"""IKE: In-Context Knowledge Editing with demonstrations (Zheng et al. 2023, arXiv 2305.12740)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, GroupChanges, Groups
from lightning_edit.editors.ice import ICE, EveryPrompt, stated
from lightning_edit.edits import EditSequence, Memory, RoutedChanges, TextResponder
from lightning_edit.edits.memory import named_requests
from lightning_edit.errors import ConfigurationError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.sentence_encoder import SentenceEncoder
from lightning_edit.records import EditRecord, EditRequest, ProbeKind

COPY, UPDATE, RETAIN = "copy", "update", "retain"
FACTS = "facts"
SHARES = {COPY: 4, UPDATE: 12, RETAIN: 16}
"""Number of demonstrations of each kind, out of 32 (Zheng et al. 2023, section 4.3)."""


class FactsLast(EveryPrompt):
    """Keeps the new facts of all joined edits after the demonstrations of all of them.

    The memory's tensor "facts" (M) is the offset of the facts in each item's text, in characters.
    """

    def join(self, first: Memory, second: Memory) -> Memory:
        """See :meth:`Router.join`."""
        halves = [
            (text[:offset], text[offset:])
            for memory in (first, second)
            for text, offset in zip(memory.texts, memory.tensors[FACTS].tolist(), strict=True)
        ]
        demonstrations, facts = ("".join(column) for column in zip(*halves, strict=True))
        joined = super().join(first, second)
        return Memory(joined.requests, {FACTS: torch.tensor([len(demonstrations)])}, (demonstrations + facts,))


class IKE(ICE):
    """IKE: puts demonstrations of how to use a new fact in front of it (Zheng et al. 2023, arXiv 2305.12740).

    For a request, the k training records with the closest prompts each give one demonstration: "copy" (the record's
    prompt and new answer), "update" (a rephrase and the new answer) or "retain" (a neighbouring prompt and its old
    answer), in the ratio 4 : 12 : 16. The kinds are shuffled. The nearest record comes last, followed by a copy
    demonstration of the request itself and the query.

    fit embeds the training records' prompts with a sentence encoder; the checkpoint stores embeddings and
    demonstrations.

    Args:
        demonstrations: k, the number of demonstrations (the authors' 32).
        encoder: Sentence encoder: Hub id, local folder, or the bundled name "all-minilm-l6-v2" (the authors' model).
        seed: Seed of the kinds' order and of the choice among a record's rephrases and neighbours.
    """

    capabilities = Capabilities(depends="nothing", mergeable=False, fit_reads="records")
    fitted_buffers = ("embeddings", "stored")

    _EXAMPLE = "New Fact: {prompt} {target}\nPrompt: {prompt} {target}\n\n"

    def __init__(self, demonstrations: int = 32, encoder: str = "all-minilm-l6-v2", seed: int = 0) -> None:
        super().__init__(self._EXAMPLE, "{text}Prompt: {prompt}")
        ranges.at_least(1, "editor", demonstrations=demonstrations)
        self.demonstrations, self.encoder, self.seed = demonstrations, encoder, seed
        self._sentences = SentenceEncoder(encoder)
        self.register_buffer("embeddings", torch.zeros(0, 1))
        self.register_buffer("stored", torch.zeros(0, dtype=torch.uint8))
        self._examples: list[dict[str, list[str]]] | None = None

    embeddings: Tensor
    stored: Tensor

    def index(self, records: Sequence[EditRecord]) -> int:
        """Indexes training records and returns the number of requests indexed.

        Raises:
            ConfigurationError: If there are none.
        """
        requests = [(record, request) for record in records for request in record.requests]
        if not requests:
            raise ConfigurationError(
                "IKE needs training records for its demonstrations (data.train), and there are none"
            )
        examples = [_demonstrations(record, request) for record, request in requests]
        self.embeddings = self._sentences.embed([request.prompt for _, request in requests]).cpu()
        content = json.dumps(examples, ensure_ascii=False).encode()
        self.stored = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._examples = examples
        return len(examples)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: object) -> None:
        # Resizes the buffers, as the size of the index depends on the fit.
        for name in self.fitted_buffers:
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        self._examples = None
        # torch does not document the other arguments of this hook.
        super()._load_from_state_dict(state_dict, prefix, *arguments)  # type: ignore[arg-type]

    @property
    def examples(self) -> list[dict[str, list[str]]]:
        """Demonstration texts by kind, for each training request.

        Raises:
            EditorNotFittedError: If nothing was indexed.
        """
        if not len(self.stored):
            raise self.not_ready()
        if self._examples is None:
            self._examples = json.loads(bytes(self.stored.cpu().tolist()).decode())
        return self._examples

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        memories = []
        for group in groups:
            demonstrations, facts = self._demonstrations_and_facts(group)
            offset = torch.tensor([len(demonstrations)])
            memories.append(Memory((named_requests(group),), {FACTS: offset}, (demonstrations + facts,)))
        return GroupChanges(RoutedChanges(memories, FactsLast(), TextResponder(self.query)))

    def text_of(self, model: LanguageModel, requests: Sequence[EditRequest]) -> str:
        """See :meth:`ICE.text_of`; the "New Fact" lines of the requests end the text."""
        return "".join(self._demonstrations_and_facts(requests))

    def _demonstrations_and_facts(self, requests: Sequence[EditRequest]) -> tuple[str, str]:
        texts: list[str] = []
        for request in requests:
            texts += self._choose_demonstrations(request)
            texts.append(stated(self.fact, request.prompt, request.target))
        facts = (f"New Fact: {request.prompt} {request.target}\n" for request in requests)
        return "".join(texts), "".join(facts)

    def _choose_demonstrations(self, request: EditRequest) -> Iterator[str]:
        """Yields the demonstrations for a request, the nearest last."""
        examples, generator = self.examples, random.Random(f"{self.seed}-{request.prompt}")
        similarity = self._sentences.embed([request.prompt])[0] @ self.embeddings.T.cpu()
        nearest = similarity.argsort(descending=True, stable=True)[: self.demonstrations].tolist()
        kinds = _kinds(len(nearest))
        generator.shuffle(kinds)
        for place, kind in reversed(list(zip(nearest, kinds, strict=True))):
            choices = examples[place]
            yield generator.choice(choices.get(kind) or choices[COPY])


def _kinds(count: int) -> list[str]:
    """Returns the kinds of ``count`` demonstrations, in the published ratio up to rounding."""
    total = sum(SHARES.values())
    kinds: list[str] = []
    for kind, share in SHARES.items():
        kinds += [kind] * round(share * count / total)
    return (kinds + [RETAIN] * count)[:count]


def _demonstrations(record: EditRecord, request: EditRequest) -> dict[str, list[str]]:
    """Returns the demonstration texts that a record offers, by kind."""
    fact = f"New Fact: {request.prompt} {request.target}\n"
    rephrases = [probe.prompt for probe in record.probes_of(ProbeKind.GENERALIZATION)]
    neighbours = [(probe.prompt, probe.answer) for probe in record.probes_of(ProbeKind.LOCALITY)]
    return {
        COPY: [f"{fact}Prompt: {request.prompt} {request.target}\n\n"],
        UPDATE: [f"{fact}Prompt: {prompt} {request.target}\n\n" for prompt in rephrases],
        RETAIN: [f"{fact}Prompt: {prompt} {answer}\n\n" for prompt, answer in neighbours],
    }
