"""Columns of a report: a measure, the probes it is computed on, and how it is averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_edit.comparison.bootstrap import Interval, mean_interval
from lightning_edit.comparison.results import Run
from lightning_edit.records import WILD_CONTEXTS


@dataclass(frozen=True)
class Column:
    """A column of a report.

    Args:
        title: Its heading.
        kinds: Kinds of probes.
        measure: The measure.
        by_group: Average the means of the groups, instead of over all probes; and show them one by one.
        scale: Factor of the numbers.
        better: "higher", "lower", or "" for neither.
    """

    title: str
    kinds: tuple[str, ...]
    measure: str
    by_group: bool = False
    scale: float = 1.0
    better: str = "higher"

    def interval(self, run: Run, resamples: int, seed: int, per_record: bool = False) -> Interval | None:
        """Computes the column's value for a run; None if nothing was measured."""
        return self._interval(self.groups(run), resamples, seed, per_record)

    def group_interval(
        self, run: Run, group: str, resamples: int, seed: int, per_record: bool = False
    ) -> Interval | None:
        """Computes the column's value on one group of probes; None if nothing was measured."""
        values = run.values(self.kinds, self.measure, group)
        return self._interval([values] if values else [], resamples, seed, per_record)

    def _interval(
        self, groups: list[dict[str, list[float]]], resamples: int, seed: int, per_record: bool
    ) -> Interval | None:
        if not groups:
            return None
        interval = mean_interval(groups, resamples, seed, per_record)
        low, high = sorted((interval.low * self.scale, interval.high * self.scale))
        return Interval(interval.mean * self.scale, low, high, interval.records, interval.probes)

    def groups(self, run: Run) -> list[dict[str, list[float]]]:
        """Returns the values by record, for each group that counts equally; without ``by_group`` all probes are one."""
        if not self.by_group:
            parts = [run.values(self.kinds, self.measure)]
        else:
            parts = [run.values([kind], self.measure, name) for kind in self.kinds for name in run.groups(kind)]
        return [part for part in parts if part]


_KINDS = ("edit_success", "generalization", "portability")
TEACHER_FORCED = (
    *(Column(kind.replace("_", " "), (kind,), "token_accuracy") for kind in _KINDS),
    Column("locality", ("locality",), "self_agreement"),
)
FREE_GENERATION = (
    *(Column(f"{kind.replace('_', ' ')}, generated", (kind,), "containment") for kind in _KINDS),
    Column("locality, generated", ("locality",), "generation_agreement"),
)
_CHANGED = tuple(
    Column(f"{kind.replace('_', ' ')}, WILD", (kind,), "wild_match") for kind in ("edit_success", "generalization")
)
_WILD = tuple(
    Column(f"edit success, {title}", ("edit_success",), f"{judge}_{context}")
    for context in WILD_CONTEXTS
    for judge, title in (("wild", f"WILD, {context}"), ("judged", f"judged, {context}"))
)
TEXT = (
    *_CHANGED,
    *_WILD,
    Column("old answer generated", ("edit_success",), "rival_containment", better="lower"),
    Column("fluency", ("fluency",), "ngram_entropy", better=""),
    Column("consistency", ("fluency",), "tfidf_consistency"),
    Column("sentiment", ("sentiment",), "sentiment_score"),
    Column("sentiment, generated", ("sentiment",), "generated_sentiment"),
    Column("KL at locality", ("locality",), "kl_divergence", better="lower"),
)
PRESETS: dict[str, Sequence[Column]] = {
    "default": (*TEACHER_FORCED, *FREE_GENERATION, *TEXT),
    # Zhang et al. 2024, section 4: success is the mean of edit and rephrase, portability and locality the means of
    # their groups, under teacher forcing, and fluency is given times 100. ConvSent's success is the sentiment column,
    # and its locality is KL.
    "knowedit": (
        Column("success", ("edit_success", "generalization"), "token_accuracy", by_group=True, scale=100.0),
        Column("sentiment", ("sentiment",), "sentiment_score", scale=100.0),
        Column("portability", ("portability",), "token_accuracy", by_group=True, scale=100.0),
        Column("locality", ("locality",), "self_agreement", by_group=True, scale=100.0),
        Column("KL", ("locality",), "kl_divergence", better="lower"),
        Column("fluency", ("fluency",), "ngram_entropy", scale=100.0, better=""),
    ),
}
"""Named sets of columns."""
