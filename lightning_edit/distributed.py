"""Collective operations for distributed training."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as processes
from torch import Tensor

from lightning_edit.functional.moments import Moments

T = TypeVar("T")


def _is_single_process() -> bool:
    return not (processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1)


def moments_of_all_processes(moments: Moments) -> list[Moments]:
    """Gathers the moments of all processes, in the order of their ranks."""
    if _is_single_process():
        return [moments]
    packed = torch.cat([moments.number[None], moments.mean, moments.square])
    gathered = [torch.empty_like(packed) for _ in range(processes.get_world_size())]
    processes.all_gather(gathered, packed)
    size = len(moments.mean)
    return [Moments(row[0], row[1 : 1 + size], row[1 + size :]) for row in gathered]


def lists_of_all_processes(entries: list[T]) -> tuple[list[T], int]:
    """Concatenates the lists of all processes by rank, and returns this process's offset; items are pickled."""
    if _is_single_process():
        return entries, 0
    gathered: list[list[T]] = [[] for _ in range(processes.get_world_size())]
    processes.all_gather_object(gathered, entries)
    before = sum(len(items) for items in gathered[: processes.get_rank()])
    return [item for items in gathered for item in items], before


def mean_over_processes(count: int, device: torch.device) -> float:
    """Averages a number over all processes."""
    if _is_single_process():
        return float(count)
    total = torch.tensor(float(count), device=device)
    processes.all_reduce(total)
    return float(total) / processes.get_world_size()


def sum_over_processes(values: Tensor) -> Tensor:
    """Sums a tensor over all processes, in place."""
    if not _is_single_process():
        processes.all_reduce(values)
    return values
