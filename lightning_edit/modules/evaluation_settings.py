"""Settings of the evaluation of records, each on the clean model or one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_edit import ranges
from lightning_edit.errors import ConfigurationError
from lightning_edit.modules.wild import WildSettings
from lightning_edit.records import ProbeKind


@dataclass(frozen=True)
class SequentialSettings:
    """How a sequence of edits is measured.

    Args:
        every: Number of edits between measurements; 0 measures only at the end.
        text: Plain text for measuring perplexity; not measured by default.
        tokens: Number of tokens of the text.
        stop_above: Stop the sequence when the perplexity exceeds this multiple of the unedited model's; never if None.
        folder: Folder for edits and measures, from which a stopped sequence resumes; by default only the measures are
            written, into the run's folder.

    Raises:
        ConfigurationError: If a number is out of range, or ``stop_above`` is set without measuring perplexity before
            the end.
    """

    every: int = 0
    text: str | None = None
    tokens: int = 20_000
    stop_above: float | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        where = "evaluation.sequential"
        ranges.at_least(0, where, every=self.every)
        ranges.at_least(2, where, tokens=self.tokens)
        ranges.above(0, where, stop_above=self.stop_above)
        if self.stop_above is not None and self.text is None:
            raise ConfigurationError(f"{where}.stop_above needs the text that perplexity is measured on ({where}.text)")
        if self.stop_above is not None and not self.every:
            raise ConfigurationError(f"{where}.stop_above: nothing is measured before the end; set {where}.every")


@dataclass(frozen=True)
class EvaluationSettings:
    """How records are evaluated.

    Args:
        generate: Also generate freely after every probe, in addition to scoring its answer under teacher forcing.
        generate_records: Number of records to generate for, from the first on; all if None.
        extra_tokens: Number of tokens to generate beyond the length of the probe's longest answer.
        fluency_tokens: Length of the generations that fluency is measured on; 0 measures no fluency. Records without
            fluency prompts use their edit prompts, as KnowEdit does.
        trunk_gigabytes: Cache for the unedited model's hidden states, so that scoring the edited model needs only the
            blocks from the lowest edited one on; 0 caches none.
        change_gigabytes: Memory for the changes of edits that are evaluated together; dense changes are computed and
            evaluated in parts that fit.
        sequential: Edit one after another in the order of the records, each on top of the earlier ones, instead of
            each on the clean model; ``data.eval_requests_per_edit`` records make one edit.
        wild: Also evaluate the edited model with WILD's protocol, in several contexts, on edited facts and what
            follows from them, for the records with generation.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    generate: bool = True
    generate_records: int | None = None
    extra_tokens: int = 8
    fluency_tokens: int = 0
    trunk_gigabytes: float = 0.5
    change_gigabytes: float = 1.0
    sequential: SequentialSettings | None = None
    wild: WildSettings | None = None

    def __post_init__(self) -> None:
        where = "evaluation"
        ranges.at_least(0, where, generate_records=self.generate_records, extra_tokens=self.extra_tokens)
        ranges.at_least(0, where, fluency_tokens=self.fluency_tokens, trunk_gigabytes=self.trunk_gigabytes)
        ranges.above(0, where, change_gigabytes=self.change_gigabytes)

    @property
    def change_bytes(self) -> int:
        """``change_gigabytes`` in bytes."""
        return int(self.change_gigabytes * 2**30)

    @property
    def measures_fluency(self) -> bool:
        """Whether fluency probes are asked."""
        return self.generate and self.fluency_tokens > 0

    def groups(self, groups: Sequence[tuple[ProbeKind, str]]) -> list[tuple[ProbeKind, str]]:
        """Returns the kinds and groups of probes that are asked of records with those in ``groups``."""
        others = [pair for pair in groups if pair[0] is not ProbeKind.FLUENCY]
        fluency = [pair for pair in groups if pair[0] is ProbeKind.FLUENCY]
        return others + ([*dict.fromkeys([*fluency, (ProbeKind.FLUENCY, "")])] if self.measures_fluency else [])
