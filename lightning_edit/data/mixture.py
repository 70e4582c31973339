"""Records of several data sets together, for training one editor on all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from lightning_edit import ranges
from lightning_edit.data.read_report import ReadReport, note_repeated_prompts, with_unique_ids
from lightning_edit.data.reading import RecordSource
from lightning_edit.errors import ConfigurationError
from lightning_edit.records import EditRecord


class Mixture(RecordSource):
    """Reads several data sets and concatenates their records.

    Every source's counts of dropped, changed and noted records are kept, with its class in front. Records of different
    sources may have the same id; later ones get a number appended. The data module shuffles the mixture in training.

    Args:
        sources: The data sets.
        sizes: How many records of each source are used, drawn at random without replacement; null uses all. By
            default all records of all sources.
        seed: Seed of the draw.
        limit: Use at most this many records, drawn at random from the whole mixture.

    Raises:
        ConfigurationError: If there are no sources, or another number of sizes.
    """

    def __init__(
        self,
        sources: Sequence[RecordSource],
        sizes: Sequence[int | None] | None = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        ranges.not_empty("Mixture", sources=sources)
        if sizes is not None and len(sizes) != len(sources):
            raise ConfigurationError(f"Mixture.sizes: {len(sizes)} sizes for {len(sources)} sources; give one for each")
        for size in sizes or ():
            ranges.at_least(1, "Mixture", sizes=size)
        ranges.at_least(1, "Mixture", limit=limit)
        self.limit = limit
        self.sources, self.sizes, self.seed = list(sources), None if sizes is None else list(sizes), seed

    def read(self) -> ReadReport:
        """Reads all sources.

        Raises:
            ConfigurationError: If a source has fewer records than are to be drawn from it.
            DataFormatError: If a file is broken.
            SourceNotFoundError: If a file is missing.
        """
        mixed, origins = ReadReport(), []
        for number, source in enumerate(self.sources):
            report, name = source.read(), type(source).__name__
            records = self._drawn(report, number)
            mixed.records += records
            for mine, theirs in (
                (mixed.dropped, report.dropped), (mixed.changed, report.changed), (mixed.noted, report.noted),
            ):  # fmt: skip
                mine.update({f"{name}: {reason}": count for reason, count in theirs.items()})
            origins.append(f"{len(records)} of {report.origin}")
        mixed = replace(mixed, origin=" + ".join(origins))
        mixed.records = with_unique_ids(mixed)
        if self.limit is not None and self.limit < len(mixed.records):
            mixed.records = self._sample(mixed.records, self.limit, "all")
        note_repeated_prompts(mixed)
        return mixed

    def _drawn(self, report: ReadReport, number: int) -> list[EditRecord]:
        """Draws the wanted number of records of a source."""
        size = None if self.sizes is None else self.sizes[number]
        if size is None:
            return report.records
        if size > len(report.records):
            raise ConfigurationError(
                f"Mixture.sizes: {size} records of {type(self.sources[number]).__name__} are wanted, and "
                f"{report.origin} has {len(report.records)}; give a smaller number, or null for all"
            )
        return self._sample(report.records, size, str(number))

    def _sample(self, records: Sequence[EditRecord], size: int, name: str) -> list[EditRecord]:
        """Samples records without replacement, in their order."""
        places = random.Random(f"{self.seed} {name}").sample(range(len(records)), size)
        return [records[place] for place in sorted(places)]
