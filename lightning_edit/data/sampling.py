"""Orders records into batches: shuffled and resumable for training, sorted for evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from lightning_edit.errors import ConfigurationError


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, record index), shuffled by seed and epoch, with records of similar length together.

    The order depends only on the seed, the epoch and the number of batches done, so a run resumed in mid-epoch sees
    exactly the remaining batches. Each process takes its share of every global batch; records that do not fill a
    global batch are left out of the epoch.

    Args:
        lengths: Length of each record, for batching similar lengths together.
        batch_size: Records in a batch of one process.
        seed: Seed for shuffling.
        rank: This process.
        world_size: Number of processes.
        unit: Records that are edited jointly and must not be divided between processes; it divides ``batch_size``.

    Raises:
        ConfigurationError: If there are not enough records for one batch.
    """

    POOL = 16
    """Number of batches that are sorted by length together."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        unit: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.unit = lengths, batch_size, seed, unit
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.skip = 0
        if len(self) == 0:
            raise ConfigurationError(
                f"{len(lengths)} training records do not fill one batch of {batch_size} records in each of "
                f"{world_size} processes; use a smaller batch or more records"
            )

    @property
    def sampler(self) -> TrainingBatches:
        """Itself: Lightning calls ``set_epoch`` on this attribute."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's order; called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Lightning may set the epoch again while workers prefetch; an iteration keeps the epoch it began with.
        epoch, start, self.skip = self.epoch, self.skip, 0
        for batch in self._global_batches(epoch)[start:]:
            units = [batch[first : first + self.unit] for first in range(0, len(batch), self.unit)]
            yield [(epoch, index) for unit in units[self.rank :: self.world_size] for index in unit]

    def _global_batches(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        size = self.batch_size * self.world_size
        order = order[: len(self) * size]
        batches = []
        for start in range(0, len(order), size * self.POOL):
            pool = sorted(order[start : start + size * self.POOL], key=lambda index: self.lengths[index])
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        rng.shuffle(batches)
        return batches


class EvaluationBatches(Sampler[list[list[int]]]):
    """Batches of groups of record indices, sorted by length; each record in exactly one batch of one process.

    A process without a group gets one empty batch, because all processes must take part in reducing metrics.

    Args:
        lengths: Length of each record.
        batch_size: Records in a batch, rounded down to whole groups; at least one group.
        rank: This process.
        world_size: Number of processes.
        unit: Consecutive records in a group, which are edited jointly; the last group may be smaller.
        keep_order: Keep the groups in the order of the records.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        unit: int = 1,
        keep_order: bool = False,
    ) -> None:
        everything = list(range(len(lengths)))
        groups = [everything[first : first + unit] for first in range(0, len(everything), unit)]
        if not keep_order:
            groups.sort(key=lambda group: sum(lengths[index] for index in group))
        shard, size = groups[rank::world_size], max(batch_size // unit, 1)
        self.batches = [shard[start : start + size] for start in range(0, len(shard), size)]
        if everything and not shard:
            self.batches = [[]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[list[int]]]:
        return iter(self.batches)


def limited(batches: int, limit: float | None) -> int:
    """Returns how many batches a Trainer runs under a limit: a number, or a fraction if it is a float."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(limit * batches)
