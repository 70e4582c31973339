"""Every error a user can meet: what is wrong, where, and what to do about it."""

from __future__ import annotations

from pathlib import Path


class LightningEditError(Exception):
    """Base class of all errors raised on purpose by this package."""


class RequestError(LightningEditError, ValueError):
    """An edit request or a probe is not usable as given."""


class DataFormatError(LightningEditError, ValueError):
    """A data file does not have the form its reader expects.

    Args:
        problem: What is wrong, and what would be right.
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
    """The edit sites of a model cannot be found without doubt, or a named site does not exist."""


class BaseModelMismatchError(LightningEditError, ValueError):
    """An edit, editor or cache was made for another base model."""


class EditError(LightningEditError, ValueError):
    """An edit cannot be made, applied, merged or undone as asked."""


class EditorNotFittedError(LightningEditError, RuntimeError):
    """An editor that has to be fitted or set up first is asked to edit."""


class NonFiniteError(LightningEditError, ArithmeticError):
    """A loss or gradient is NaN or infinite."""


class RunInterruptedError(LightningEditError):
    """A run was stopped by a signal.

    Args:
        message: What was saved, and how to go on.
        status: Exit status of the command: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EngineBusyError(LightningEditError):
    """A server has as many requests waiting as it takes."""


class DiskFullError(LightningEditError, OSError):
    """There is no room for a file; nothing half-written is left."""


class ConfigurationError(LightningEditError, ValueError):
    """Settings that contradict each other or the data at hand."""
