"""Questions that a model is asked, and what it says to them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_edit.records import Answer, Probe, ProbeKind

QuestionKey = tuple[str, tuple[str, ...], int, bool]
"""What the unedited model's answer to a question depends on: the prompt, the texts that are scored, the length of the
generation (0 where there is none), and whether its distribution is compared later."""


@dataclass(frozen=True)
class Question:
    """A probe, ready to be asked.

    Args:
        record: Position of its record in the batch.
        probe: The probe.
        limit: Length of its free generation in tokens; 0 where there is none.
    """

    record: int
    probe: Probe
    limit: int

    @property
    def further_texts(self) -> list[str]:
        """The texts that are scored beside the probe's answer: its rival, or both sides of a sentiment probe."""
        if self.probe.kind is ProbeKind.SENTIMENT:
            return [*self.probe.aliases, *self.probe.opposites]
        return [self.probe.rival] if self.probe.rival else []

    @property
    def compares_distributions(self) -> bool:
        """Whether the edited model's distribution is compared with the unedited one's."""
        return self.probe.kind is ProbeKind.LOCALITY

    @property
    def key(self) -> QuestionKey:
        """What the unedited model's answer depends on."""
        texts = (self.probe.answer, *self.further_texts)
        return self.probe.prompt, texts, self.limit, self.compares_distributions


@dataclass(frozen=True)
class Reply:
    """What a model said to one question.

    Args:
        answer: For the metrics.
        target_ids: Token ids of the answer that was scored.
        head_input: (positions, hidden) what the language-model head read, to compare distributions with.
        divergence: From the reference, where one was given.
    """

    answer: Answer
    target_ids: tuple[int, ...] = ()
    head_input: Tensor | None = None
    divergence: float | None = None
