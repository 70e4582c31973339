"""Reads, tokenises and packs plain text, for key statistics and perplexity."""

from __future__ import annotations

import importlib.util
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from lightning_edit import ranges
from lightning_edit.data.files import decode_json, read_json
from lightning_edit.errors import ConfigurationError, DataFormatError, SourceNotFoundError
from lightning_edit.hub import could_be_hub_id
from lightning_edit.words import has_lone_surrogate

_LOG = logging.getLogger(__name__)
_LONG = 2**22
"""Characters after which a document also ends at a line of white space."""


class PackedTexts(Dataset[Tensor]):
    """Dataset of token ids in rows of equal length.

    Args:
        rows: (N, L) int32.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index].long()

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Returns rows (B, L) int64; B may be zero."""
        return self.rows[torch.tensor(indices, dtype=torch.int64)].long()


@dataclass(frozen=True)
class CorpusRange:
    """The batches of a corpus that a process reads.

    Args:
        skip: Number of batches of this process to skip.
        stop: Number of batches of this process to stop after, counting the skipped ones; None for all.
        steps: Number of batches that every process yields, padded with empty ones.
    """

    skip: int = 0
    stop: int | None = None
    steps: int = 0


class CorpusBatches(Sampler[list[int]]):
    """Yields batches in order, from a given batch on; each process takes its share.

    Args:
        rows: Number of rows.
        batch_size: Rows of a batch.
        skip: Number of batches of this process to skip.
        rank: This process.
        world_size: Number of processes.
        stop: Number of batches of this process to stop after, counting the skipped ones; None for all.
        steps: Number of batches that every process yields, padded with empty ones: the Trainer synchronises the
            processes in each batch.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
        stop: int | None = None,
        steps: int = 0,
    ) -> None:
        every = [list(range(start, min(start + batch_size, rows))) for start in range(0, rows, batch_size)]
        batches = every[rank::world_size][skip:stop]
        self.batches = batches + [[] for _ in range(steps - len(batches))]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class TextCorpus:
    """Plain text: documents are tokenised, joined, and cut into rows of equal length.

    Each document is followed by the tokenizer's end-of-text token, if it has one. An incomplete last row is dropped.

    Args:
        source: A .txt file (documents separated by empty lines), a .jsonl, .ndjson, .json or .parquet file, or a Hub
            data set.
        field: Name of the text field in records.
        split: Split of a Hub data set.
        configuration: Name of a Hub data set's configuration, such as "20220301.en", if it has several.
        tokens: Maximum number of tokens to read.
        length: Tokens in a row; not the model's maximum, which would take much memory.
        batch_size: Rows in a forward pass.

    Raises:
        ConfigurationError: If a number is out of its range.
    """

    def __init__(
        self,
        source: str,
        field: str = "text",
        split: str = "train",
        tokens: int = 100_000,
        length: int = 256,
        batch_size: int = 8,
        configuration: str | None = None,
    ) -> None:
        ranges.at_least(1, "data.corpus", tokens=tokens, length=length, batch_size=batch_size)
        self.source, self.field, self.split, self.configuration = source, field, split, configuration
        self.tokens, self.length, self.batch_size = tokens, length, batch_size

    @property
    def name(self) -> str:
        """Name of the corpus."""
        if Path(self.source).exists():
            return Path(self.source).name
        return f"{self.source} ({', '.join(part for part in (self.configuration, self.split) if part)})"

    def read(self, tokenizer: Any) -> Tensor:
        """Reads the corpus as packed rows (N, L) int32.

        Raises:
            ConfigurationError: If the corpus does not fill one row.
        """
        if self.tokens < self.length:
            raise ConfigurationError(
                f"{self.source}: {self.tokens} tokens are asked for, fewer than the {self.length} of one row; ask for "
                "more (data.corpus.tokens) or use shorter rows (data.corpus.length)"
            )
        texts = documents(self.source, self.field, self.split, self.configuration)
        rows = pack(texts, tokenizer, self.length, self.tokens)
        if not len(rows):
            raise ConfigurationError(
                f"{self.source}: the corpus has fewer than {self.length} tokens, the length of one row; "
                "use more text or a smaller length (data.corpus.length)"
            )
        _LOG.info("%s: %d rows of %d tokens", self.name, len(rows), self.length)
        return rows

    def loader(
        self, rows: Tensor, part: CorpusRange = CorpusRange(), rank: int = 0, world_size: int = 1
    ) -> DataLoader[Tensor]:
        """Returns a loader of packed rows (B, L) int64; see :class:`CorpusBatches`."""
        batches = CorpusBatches(len(rows), self.batch_size, part.skip, rank, world_size, part.stop, part.steps)
        return DataLoader(PackedTexts(rows), batch_sampler=cast(Any, batches), collate_fn=cast(Any, _identity))


def _identity(batch: Tensor) -> Tensor:
    return batch


def pack(texts: Iterator[str], tokenizer: Any, length: int, tokens: int) -> Tensor:
    """Concatenates texts and cuts their tokens into rows (N, L) int32."""
    ids = array("i")
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    # None hides the bar outside a terminal.
    with tqdm(total=tokens, desc="tokens of the corpus", leave=False, disable=None) as bar:
        for text in texts:
            ids_of_text = tokenizer(text, add_special_tokens=False)["input_ids"] + end
            ids.extend(ids_of_text)
            bar.update(len(ids_of_text))
            if len(ids) >= tokens:
                break
    rows = min(len(ids), tokens) // length
    return torch.tensor(memoryview(ids)[: rows * length], dtype=torch.int32).view(rows, length)


def documents(source: str, field: str, split: str, configuration: str | None = None) -> Iterator[str]:
    """Yields the documents of a corpus.

    Raises:
        SourceNotFoundError: If the source is neither a local file nor reachable on the Hub.
        DataFormatError: If a record has no text.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        yield from _from_hub(source, field, split, configuration)
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from _from_jsonl(path, field)
    elif path.suffix == ".json":
        yield from _from_json(path, field)
    elif path.suffix == ".parquet":
        yield from _from_parquet(path, field)
    else:
        yield from _from_text(path)


def _from_text(path: Path) -> Iterator[str]:
    """Streams documents, so that no more of a long file is read than needed.

    Documents are separated by empty lines. A very long document also ends at a line of white space, because the blank
    lines of WikiText hold a space.
    """
    try:
        # Some editors write a byte order mark, which is not part of the text.
        with path.open(encoding="utf-8-sig") as file:
            lines: list[str] = []
            size = 0
            for line in file:
                lines.append(line)
                size += len(line)
                if line == "\n" or (size > _LONG and not line.strip()):
                    yield from _stripped(lines)
                    lines, size = [], 0
            yield from _stripped(lines)
    except UnicodeDecodeError as error:
        raise DataFormatError(f"not UTF-8 ({error.reason})", path) from error


def _stripped(lines: list[str]) -> Iterator[str]:
    text = "".join(lines).strip()
    if text:
        yield text


def _from_jsonl(path: Path, field: str) -> Iterator[str]:
    # Bytes, so that an error names the line that is not UTF-8.
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            yield _text_of(decode_json(line, path, number), path, number, field)


def _from_json(path: Path, field: str) -> Iterator[str]:
    content = read_json(path)
    if not isinstance(content, list):
        raise DataFormatError("expected a list of texts, or of records with one", path)
    for number, record in enumerate(content):
        yield _text_of({field: record} if isinstance(record, str) else record, path, number, field)


def _from_parquet(path: Path, field: str) -> Iterator[str]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigurationError(f"{path}: reading .parquet needs the package pyarrow: pip install pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = [field] if field in file.schema_arrow.names else None
            records = (record for batch in file.iter_batches(columns=columns) for record in batch.to_pylist())
            yield from _texts(records, path, field)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"not a Parquet file, or a damaged one ({error})", path) from error


def _from_hub(source: str, field: str, split: str, configuration: str | None) -> Iterator[str]:
    if not could_be_hub_id(source):
        raise SourceNotFoundError(
            f"{source}: no such file; pass a .txt, .jsonl, .json or .parquet file, or a Hub data set"
        )
    if importlib.util.find_spec("datasets") is None:
        raise ConfigurationError(
            f"the corpus {source!r} is no local file, and the Hub needs the package datasets: pip install datasets, or "
            "pass a .txt or .jsonl file"
        )
    try:
        from datasets import load_dataset

        rows = load_dataset(source, configuration, split=split, streaming=True)
    except Exception as error:  # the Hub client raises many kinds; all mean: not available
        raise SourceNotFoundError(
            f"the corpus {source!r} is neither a local file nor reachable on the Hub ({type(error).__name__}: "
            f"{error}); pass a .txt, .jsonl or .parquet file; some data sets also want a data.corpus.configuration"
        ) from error
    yield from _texts(rows, source, field)


def _texts(records: Any, source: str | Path, field: str) -> Iterator[str]:
    for number, record in enumerate(records):
        yield _text_of(record, source, number, field)


def _text_of(record: Any, source: str | Path, number: int, field: str) -> str:
    """Returns the text of a record.

    Raises:
        DataFormatError: If it has none, or one that UTF-8 cannot encode.
    """
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        fields = f"; the fields are {sorted(record)}" if isinstance(record, dict) else ""
        raise DataFormatError(f"expected a text{fields}", source, number, field)
    text: str = record[field]
    if has_lone_surrogate(text):
        raise DataFormatError("the text holds half of a surrogate pair", source, number, field)
    return text
