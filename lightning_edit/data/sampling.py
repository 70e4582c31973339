"""Orders records into batches: shuffled and resumable for training, sorted for evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from lightning_edit.errors import ConfigurationError


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, record index), shuffled by seed and epoch, with records of similar length together.

    Everything follows from seed, epoch and the number of batches already done, so that a run resumed in the middle of
    an epoch sees exactly the batches that it had not seen. Each process takes its own share of every global batch;
    records that do not fill a global batch wait for another epoch's order.

    Args:
        lengths: Length of each record, by which similar ones are put together.
        batch_size: Records in a batch of one process.
        seed: Seed of the order.
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
        """Itself: Lightning announces the epoch to the attribute of this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's order; called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Lightning may announce the epoch again while workers fetch ahead; an iteration keeps the one it began with.
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

    A process that there is no group left for gets one empty batch, because all must take part when measures are added
    up.

    Args:
        lengths: Length of each record.
        batch_size: Records in a batch, as far as whole groups fit; at least one group.
        rank: This process.
        world_size: Number of processes.
        unit: Records of a group, which are edited jointly: consecutive ones; the last group may be smaller.
        keep_order: Leave the groups in the order of the records.
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
    """How many batches a Trainer runs under one of its limits: a number of batches, or a share if it is a float."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(limit * batches)
