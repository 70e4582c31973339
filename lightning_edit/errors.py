"""Exceptions of the package; messages say what is wrong, where, and how to fix it."""

from __future__ import annotations

from pathlib import Path


class LightningEditError(Exception):
    """Base class of all errors raised on purpose by this package."""


class RequestError(LightningEditError, ValueError):
    """An edit request or a probe is not usable as given."""


class DataFormatError(LightningEditError, ValueError):
    """A data file does not have the expected format.

    Args:
        problem: What is wrong, and what is expected.
        path: The file.
        record: Zero-based position of the record in the file, if the error concerns one.
        field: Name of the field, if the error concerns one.
    """

    def __init__(
        self, problem: str, path: str | Path, record: int | str | None = None, field: str | None = None
    ) -> None:
        where = [str(path)]
        if record is not None:
            where.append(f"record {record}")
        if field is not None:
            where.append(f"field '{field}'")
        super().__init__(f"{', '.join(where)}: {problem}")
        self.problem = problem
        self.path = str(path)
        self.record = record
        self.field = field


class SourceNotFoundError(LightningEditError, FileNotFoundError):
    """A model or a data set is neither a local path nor reachable on the Hub."""


class TokenizationError(LightningEditError, ValueError):
    """A text and its token ids do not correspond exactly."""


class LayerMapError(LightningEditError, ValueError):
    """The edit sites of a model are ambiguous, or a named site does not exist."""


class BaseModelMismatchError(LightningEditError, ValueError):
    """An edit, editor or cache was made for another base model."""


class EditError(LightningEditError, ValueError):
    """An edit cannot be made, applied, merged or undone as asked."""


class EditorNotFittedError(LightningEditError, RuntimeError):
    """An editor was used before it was fitted or set up."""


class NonFiniteError(LightningEditError, ArithmeticError):
    """A loss or gradient is NaN or infinite."""


class RunInterruptedError(LightningEditError):
    """A run was stopped by a signal.

    Args:
        message: What was saved, and how to resume.
        status: Exit status of the command: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EngineBusyError(LightningEditError):
    """A server's queue of requests is full."""


class DiskFullError(LightningEditError, OSError):
    """The disk is full; no partial file is left."""


class ConfigurationError(LightningEditError, ValueError):
    """Settings are invalid, or contradict each other or the data."""


class NotApplicableError(ConfigurationError):
    """The editor does not support this data set or protocol."""
