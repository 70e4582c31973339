"""What the columns of a report are: which measure of which probes, averaged how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_edit.comparison.bootstrap import Interval, mean_interval
from lightning_edit.comparison.results import Run


@dataclass(frozen=True)
class Column:
    """A column of a report.

    Args:
        title: Its heading.
        kinds: Kinds of probes.
        measure: The measure.
        by_group: Average the means of the groups, instead of over all probes; and show them one by one.
        scale: Factor of the numbers.
        better: "higher" or "lower"; "" where neither is.
    """

    title: str
    kinds: tuple[str, ...]
    measure: str
    by_group: bool = False
    scale: float = 1.0
    better: str = "higher"

    def interval(self, run: Run, resamples: int, seed: int, per_record: bool = False) -> Interval | None:
        """The column's number for a run; None where nothing was measured."""
        values = self.values(run)
        if not values:
            return None
        found = mean_interval(values, resamples, seed, per_record)
        low, high = sorted((found.low * self.scale, found.high * self.scale))
        return Interval(found.mean * self.scale, low, high, found.records, found.probes)

    def values(self, run: Run, group: str | None = None) -> dict[str, list[float]]:
        """Record to the values that the column averages.

        Where groups count equally, a probe's value is weighted by the inverse size of its group, so that the mean over
        probes is the mean of the groups' means.
        """
        if not self.by_group or group is not None:
            return run.values(self.kinds, self.measure, group)
        parts = [run.values([kind], self.measure, name) for kind in self.kinds for name in run.groups(kind)]
        sizes = [sum(map(len, part.values())) for part in parts]
        total, filled = sum(sizes), sum(size > 0 for size in sizes)
        values: dict[str, list[float]] = {}
        for part, size in zip(parts, sizes, strict=True):
            for record, numbers in part.items():
                weight = total / (filled * size)
                values.setdefault(record, []).extend(number * weight for number in numbers)
        return values


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
TEXT = (
    *_CHANGED,
    Column("old answer generated", ("edit_success",), "rival_containment", better="lower"),
    Column("fluency", ("fluency",), "ngram_entropy", better=""),
    Column("consistency", ("fluency",), "tfidf_consistency"),
    Column("KL at locality", ("locality",), "kl_divergence", better="lower"),
)
PRESETS: dict[str, Sequence[Column]] = {
    "default": (*TEACHER_FORCED, *FREE_GENERATION, *TEXT),
    # Zhang et al. 2024, section 4: success is the mean over edit and rephrase, portability and locality the means of
    # their groups, under teacher forcing, and fluency is given times 100.
    "knowedit": (
        Column("success", ("edit_success", "generalization"), "token_accuracy", by_group=True, scale=100.0),
        Column("portability", ("portability",), "token_accuracy", by_group=True, scale=100.0),
        Column("locality", ("locality",), "self_agreement", by_group=True, scale=100.0),
        Column("fluency", ("fluency",), "ngram_entropy", scale=100.0, better=""),
    ),
}
"""Named sets of columns."""
