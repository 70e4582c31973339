"""Settings of how records are evaluated, each on the clean model or one after another."""

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
        every: Measure after every so many edits; 0 measures at the end alone.
        text: Plain text that perplexity is measured on; no perplexity if none is given.
        tokens: Tokens of it.
        stop_above: End the sequence once the perplexity is so many times the unedited model's; never if None.
        folder: Folder for the edits and the measures, from which a sequence that was stopped goes on; the run's own
            folder, without the edits, if none is given.

    Raises:
        ConfigurationError: If a number is out of its range, or the sequence is to be stopped by a perplexity that is
            not measured before its end.
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
        generate: Also generate freely after every probe, not only score its answer under teacher forcing.
        generate_records: Generate after the probes of the first so many records alone; all if None.
        extra_tokens: Free generation ends this many tokens after the length of the probe's longest answer.
        fluency_tokens: Length of the generations that fluency is measured on; 0 measures no fluency. Records without
            prompts for it use their edit prompts, as KnowEdit does.
        trunk_gigabytes: Hidden states that are kept from scoring the unedited model, so that scoring the edited one
            needs only the blocks from the lowest edited one on; 0 keeps none.
        change_gigabytes: Memory for the changes of edits that are evaluated side by side; those of methods with dense
            changes are made and evaluated in parts that fit.
        sequential: Edit one after another in the order of the records, each on top of all before, instead of each on
            the clean model; ``data.eval_requests_per_edit`` records make one edit.
        wild: Also ask the edited model as WILD does, in several contexts, about what was edited and what follows from
            it; of records that are generated for.

    Raises:
        ConfigurationError: If a number is out of its range.
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
        """Whether probes of fluency are asked."""
        return self.generate and self.fluency_tokens > 0

    def groups(self, groups: Sequence[tuple[ProbeKind, str]]) -> list[tuple[ProbeKind, str]]:
        """The kinds and groups of probes that are asked of records that have those of ``groups`` themselves."""
        asked = [pair for pair in groups if pair[0] is not ProbeKind.FLUENCY]
        fluency = [pair for pair in groups if pair[0] is ProbeKind.FLUENCY]
        return asked + ([*dict.fromkeys([*fluency, (ProbeKind.FLUENCY, "")])] if self.measures_fluency else [])
