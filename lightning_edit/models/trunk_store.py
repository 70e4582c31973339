"""Stores for the hidden states below the edit sites: in memory, or in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from lightning_edit.errors import BaseModelMismatchError, ConfigurationError
from lightning_edit.files import replace_folder
from lightning_edit.tokenization import TextKey

FORMAT = 1
_MANIFEST = "trunk.json"
_SPARE = 64 * 2**20
"""Bytes that a cache leaves free on disk."""


@dataclass(frozen=True)
class Kept:
    """Cached tensors of one text.

    Args:
        states: (S, hidden size) inputs of the trunk's block.
        reference: (T, head size) the unedited model's head inputs at the answer's positions; None if not requested.
    """

    states: Tensor
    reference: Tensor | None = None


class TrunkStore(ABC):
    """Base class of stores of hidden states by text."""

    @abstractmethod
    def get(self, key: TextKey) -> Kept | None:
        """Returns the cached tensors of a text, or None."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Size in bytes."""


class MemoryStore(TrunkStore):
    """Stores hidden states in memory."""

    def __init__(self) -> None:
        self._kept: dict[TextKey, Kept] = {}
        self._bytes = 0

    def put(self, key: TextKey, kept: Kept) -> None:
        """Stores a text's tensors."""
        self._kept[key] = kept
        self._bytes += kept.states.nbytes + (kept.reference.nbytes if kept.reference is not None else 0)

    def get(self, key: TextKey) -> Kept | None:
        """See :meth:`TrunkStore.get`."""
        return self._kept.get(key)

    @property
    def bytes(self) -> int:
        """See :attr:`TrunkStore.bytes`."""
        return self._bytes


@dataclass(frozen=True)
class Identity:
    """Identity of a cache on disk.

    Args:
        model: Name of the base model, for messages.
        fingerprint: Digest of the base model in its precision.
        tokenizer: Digest of the tokenizer's vocabulary and rules.
        layer: The trunk's block.
        dtype: Precision of the stored states.
        texts: Digest of all texts.
    """

    model: str
    fingerprint: str
    tokenizer: str
    layer: int
    dtype: str
    texts: str

    @property
    def name(self) -> str:
        """Folder name: a hash of all fields except the model's name."""
        values = {name: value for name, value in asdict(self).items() if name != "model"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """Size of a text in the files, in rows.

    Args:
        key: The text.
        length: Number of its tokens.
        answers: Rows of its reference; 0 if it has none.
    """

    key: TextKey
    length: int
    answers: int


class DiskStore(TrunkStore):
    """Reads hidden states from memory-mapped files in a folder.

    Args:
        folder: A folder written by :func:`open_or_build`.
        entries: The texts, in the order of the files.
        sizes: Hidden size and head size.
        dtype: Precision of the stored states.
    """

    def __init__(self, folder: Path, entries: list[Entry], sizes: tuple[int, int], dtype: torch.dtype) -> None:
        self._states = _mapped(folder / "states", sum(entry.length for entry in entries), sizes[0], dtype)
        self._references = _mapped(folder / "references", sum(entry.answers for entry in entries), sizes[1], dtype)
        self._at: dict[TextKey, tuple[int, int, int, int]] = {}
        start = answer = 0
        for entry in entries:
            self._at[entry.key] = (start, start + entry.length, answer, answer + entry.answers)
            start, answer = start + entry.length, answer + entry.answers

    def get(self, key: TextKey) -> Kept | None:
        """See :meth:`TrunkStore.get`."""
        if key not in self._at:
            return None
        start, end, first, last = self._at[key]
        return Kept(self._states[start:end], self._references[first:last] if last > first else None)

    @property
    def bytes(self) -> int:
        """See :attr:`TrunkStore.bytes`."""
        return int(self._states.nbytes + self._references.nbytes)


def open_or_build(
    folder: Path,
    identity: Identity,
    entries: list[Entry],
    sizes: tuple[int, int],
    dtype: torch.dtype,
    compute: Callable[[], Iterable[tuple[TextKey, Kept]]],
) -> tuple[DiskStore, bool]:
    """Opens a cache, or builds it if it is missing or broken; safe with several processes.

    Args:
        folder: Folder of the cache.
        identity: The identity it must have.
        entries: The texts, in the order of ``compute``.
        sizes: Hidden size and head size.
        dtype: Precision of the stored states.
        compute: Yields the states of every text.

    Returns:
        The store, and whether it was newly built.

    Raises:
        BaseModelMismatchError: If the folder holds another cache.
        ConfigurationError: If the disk has too little space, or the folder holds other files.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        built = not _is_whole(folder, identity, entries, sizes, dtype)
        if built:
            check_space(folder.parent, needed_bytes(entries, sizes, dtype))
            _build(folder, identity, compute(), dtype)
    return DiskStore(folder, entries, sizes, dtype), built


def needed_bytes(entries: Iterable[Entry], sizes: tuple[int, int], dtype: torch.dtype) -> int:
    """Computes the size of the states of some texts."""
    numbers = sum(entry.length * sizes[0] + entry.answers * sizes[1] for entry in entries)
    return numbers * torch.empty((), dtype=dtype).element_size()


def check_space(folder: Path, needed: int) -> None:
    """Checks that the disk has enough space.

    Raises:
        ConfigurationError: If there is less space than needed.
    """
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise ConfigurationError(
            f"the hidden states below the edit sites need {needed / 2**30:.2f} GB, and {folder} has "
            f"{free / 2**30:.2f} GB free; lower trunk.gigabytes, name another disk in trunk.folder, or set "
            "trunk.dtype to bfloat16"
        )


def _is_whole(
    folder: Path, identity: Identity, entries: list[Entry], sizes: tuple[int, int], dtype: torch.dtype
) -> bool:
    """Whether a folder holds the complete cache; a broken one returns False, another one raises."""
    if not folder.exists():
        return False
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        kept = Identity(**manifest["identity"])
        checksums, stored = dict(manifest["checksums"]), manifest["format"]
    except FileNotFoundError as error:
        raise ConfigurationError(f"{folder} exists and holds no cache of hidden states; name another folder") from error
    except (KeyError, TypeError, ValueError, RecursionError):
        return False
    if kept.name != identity.name:
        raise BaseModelMismatchError(
            f"{folder} holds hidden states of {kept.model} (layer {kept.layer}, {kept.dtype}), of another model, "
            f"tokenizer, layer, precision or set of texts than {identity.model} (layer {identity.layer}, "
            f"{identity.dtype}) with these texts; name another folder, or delete it"
        )
    wanted = needed_bytes(entries, sizes, dtype)
    files = [folder / name for name in ("states", "references")]
    if stored != FORMAT or not all(file.is_file() for file in files):
        return False
    if sum(file.stat().st_size for file in files) != wanted:
        return False
    return all(_checksum(file) == checksums.get(file.name) for file in files)


def _build(folder: Path, identity: Identity, computed: Iterable[tuple[TextKey, Kept]], dtype: torch.dtype) -> None:
    with replace_folder(folder) as temporary:
        with (temporary / "states").open("wb") as states, (temporary / "references").open("wb") as references:
            for _, kept in computed:
                states.write(_raw(kept.states, dtype))
                if kept.reference is not None:
                    references.write(_raw(kept.reference, dtype))
        checksums = {name: _checksum(temporary / name) for name in ("states", "references")}
        manifest = {"format": FORMAT, "identity": asdict(identity), "checksums": checksums}
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _raw(values: Tensor, dtype: torch.dtype) -> bytes:
    return values.detach().to(device="cpu", dtype=dtype).contiguous().view(torch.uint8).numpy().tobytes()


def _mapped(path: Path, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    if rows == 0:
        return torch.empty(0, width, dtype=dtype)
    # Copy on write, because torch has no read-only tensors.
    mapped: Any = np.memmap(path, dtype=np.uint8, mode="c")
    return torch.from_numpy(mapped).view(dtype).view(rows, width)


def _checksum(path: Path) -> int:
    value = 0
    for block in _blocks(path):
        value = zlib.crc32(block, value)
    return value


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(2**24):
            yield block


def digest_of_texts(keys: Iterable[TextKey]) -> str:
    """Computes a digest of texts, independent of their order."""
    digest = hashlib.sha256()
    for key in sorted(keys):
        digest.update(np.asarray((len(key), *key), dtype=np.int64).tobytes())
    return digest.hexdigest()
