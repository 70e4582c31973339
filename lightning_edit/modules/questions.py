"""Questions to a model, and its replies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_edit.records import Answer, Probe, ProbeKind

QuestionKey = tuple[str, tuple[str, ...], int, bool]
"""Cache key of the unedited model's answer: the prompt, the scored texts, the length of the generation (0 for none),
and whether its distribution is compared later."""


@dataclass(frozen=True)
class Question:
    """A probe, ready to be asked.

    Args:
        record: Position of its record in the batch.
        probe: The probe.
        limit: Length of its free generation in tokens; 0 for none.
    """

    record: int
    probe: Probe
    limit: int

    @property
    def further_texts(self) -> list[str]:
        """Texts scored in addition to the probe's answer: its rival, or both sides of a sentiment probe."""
        if self.probe.kind is ProbeKind.SENTIMENT:
            return [*self.probe.aliases, *self.probe.opposites]
        return [self.probe.rival] if self.probe.rival else []

    @property
    def compares_distributions(self) -> bool:
        """Whether the edited model's distribution is compared with the unedited one's."""
        return self.probe.kind is ProbeKind.LOCALITY

    @property
    def key(self) -> QuestionKey:
        """Cache key of the unedited model's answer; see :data:`QuestionKey`."""
        texts = (self.probe.answer, *self.further_texts)
        return self.probe.prompt, texts, self.limit, self.compares_distributions


@dataclass(frozen=True)
class Reply:
    """A model's reply to one question.

    Args:
        answer: The answer, for the metrics.
        target_ids: Token ids of the scored answer.
        head_input: (positions, hidden) inputs of the language-model head, to compare distributions.
        divergence: Divergence from the reference, if one was given.
    """

    answer: Answer
    target_ids: tuple[int, ...] = ()
    head_input: Tensor | None = None
    divergence: float | None = None
