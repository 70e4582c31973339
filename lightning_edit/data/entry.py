"""One raw record of a file, with typed access whose errors locate the wrong value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_edit.data.read_report import ReadReport
from lightning_edit.errors import DataFormatError
from lightning_edit.words import has_lone_surrogate

_LIST_INDEX = re.compile(r"\[\d+\]")


class Entry:
    """One raw record of a file, with typed access whose errors locate the wrong value.

    Args:
        values: The decoded JSON object.
        path: The file.
        index: The record's position in the file.
        report: Where changes are counted.
        trail: The field that holds ``values``, for messages; empty at the top of a record.
    """

    def __init__(self, values: object, path: Path, index: int | str, report: ReadReport, trail: str = "") -> None:
        self.path, self.index, self.report, self.trail = path, index, report, trail
        if not isinstance(values, dict):
            raise DataFormatError(f"expected an object, found {json_kind(values)}", path, index, trail or None)
        self.values: dict[str, Any] = values
        self._asked: set[str] = set()
        self._children: dict[str, Entry] = {}

    def __contains__(self, name: str) -> bool:
        self._asked.add(name)
        return name in self.values

    def is_unread(self, name: str) -> bool:
        """Whether a field exists that has not been read."""
        return name in self.values and name not in self._asked

    def note_unread_fields(self) -> None:
        """Counts the fields that were not read, by name, here and in the nested objects that were read."""
        for name in sorted(set(self.values) - self._asked):
            # Without list indices, so that a field of many items is counted as one.
            full = _LIST_INDEX.sub("", self._trail(name))
            self.report.noted[f"field {full!r} not read"] += 1
        for child in self._children.values():
            child.note_unread_fields()

    def error(self, name: str, problem: str) -> DataFormatError:
        """Builds an error about one field of this record."""
        full = f"{self.trail}.{name}" if self.trail else name
        return DataFormatError(problem, self.path, self.index, full)

    def _typed(self, name: str, kinds: tuple[type, ...], expected: str) -> Any:
        self._asked.add(name)
        if name not in self.values:
            raise self.error(name, f"missing; the record has {sorted(self.values)}")
        value = self.values[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(name, f"expected {expected}, found {json_kind(value)}")
        return value

    def text(self, name: str) -> str:
        """Returns a string, stripped of surrounding white space (counted if any)."""
        return self.strip(self._typed(name, (str,), "a string"))

    def strip(self, value: str) -> str:
        """Strips surrounding white space from ``value`` (counted if any)."""
        if value != value.strip():
            self.report.changed["white space around a text stripped"] += 1
        if has_lone_surrogate(value):
            raise DataFormatError(f"a text holds half of a surrogate pair: {value!a}", self.path, self.index)
        return value.strip()

    def number(self, name: str) -> int:
        """Returns an integer."""
        return int(self._typed(name, (int,), "a whole number"))

    def texts(self, name: str) -> list[str]:
        """Returns a list of strings, each stripped."""
        values = self._typed(name, (list,), "a list of strings")
        for position, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"{name}[{position}]", f"expected a string, found {json_kind(value)}")
        return [self.strip(value) for value in values]

    def child(self, name: str) -> Entry:
        """Returns a nested object."""
        return self._nested(name, self._typed(name, (dict,), "an object"))

    def children(self, name: str) -> list[Entry]:
        """Returns a list of nested objects."""
        values = self._typed(name, (list,), "a list of objects")
        return [self._nested(f"{name}[{position}]", value) for position, value in enumerate(values)]

    def _nested(self, name: str, values: object) -> Entry:
        """Returns a nested object, cached so that one entry tracks which of its fields were read."""
        if name not in self._children:
            self._children[name] = Entry(values, self.path, self.index, self.report, self._trail(name))
        return self._children[name]

    def answers(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Returns acceptable answers in any form: one string, aliases of one object, or objects with aliases.

        A string is one object with one name. A list of strings holds the names of one object. In a list of lists the
        outer list holds objects and the inner ones their aliases. Empty names and objects are left out and names
        repeated inside a probe are kept once; both are counted.
        """
        value = self._typed(name, (str, list), "a string or a list")
        if isinstance(value, str):
            objects = [[value]]
        elif all(isinstance(item, str) for item in value):
            objects = [value]
        elif all(isinstance(item, list) and all(isinstance(alias, str) for alias in item) for item in value):
            objects = value
        else:
            raise self.error(name, "expected a string, a list of strings, or a list of lists of strings")
        return self._clean_answers(objects)

    def _clean_answers(self, objects: list[list[str]]) -> tuple[tuple[str, ...], ...]:
        seen: set[str] = set()
        cleaned = []
        for aliases in objects:
            names = []
            for alias in map(self.strip, aliases):
                if alias in seen:
                    self.report.changed["answer repeated inside a probe removed"] += 1
                elif alias:
                    seen.add(alias)
                    names.append(alias)
            if names:
                cleaned.append(tuple(names))
            elif not any(alias.strip() for alias in aliases):
                self.report.changed["empty answer removed"] += 1
        return tuple(cleaned)

    def _trail(self, name: str) -> str:
        return f"{self.trail}.{name}" if self.trail else name


def json_kind(value: object) -> str:
    """Names the kind of a decoded JSON value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
