"""Facts for causal tracing, in the known_1000 format."""

from __future__ import annotations

from pathlib import Path

from lightning_edit.data.files import read_json
from lightning_edit.errors import DataFormatError, RequestError
from lightning_edit.records import EditRequest


def read_known_facts(path: str | Path) -> list[EditRequest]:
    """Reads a list of facts with subject, prompt and optionally attribute.

    The attribute is the request's target, or the placeholder "-" if there is none: tracing uses the model's own
    answer.

    Raises:
        SourceNotFoundError: If there is no such file.
        DataFormatError: If the file is no such list; the message names the record and the field.
    """
    path = Path(path).expanduser()
    content = read_json(path)
    if not isinstance(content, list):
        raise DataFormatError(f"expected a list of facts, found {type(content).__name__}", path)
    if not content:
        raise DataFormatError("no fact; give at least one, with subject and prompt", path)
    return [_fact(path, number, fact) for number, fact in enumerate(content)]


def read_fact_groups(path: str | Path, field: str) -> list[str]:
    """Reads the group of each fact of such a file, in order.

    Args:
        path: The file.
        field: The field that holds the group, such as "relation_id".

    Raises:
        SourceNotFoundError: If there is no such file.
        DataFormatError: If a fact lacks the field, or it is neither a text nor a number.
    """
    path = Path(path).expanduser()
    groups = []
    for number, fact in enumerate(read_json(path)):
        value = fact.get(field) if isinstance(fact, dict) else None
        if not isinstance(value, str | int):
            raise DataFormatError("expected a text or a number, by which facts are grouped", path, number, field)
        groups.append(str(value))
    return groups


def _fact(path: Path, number: int, fact: object) -> EditRequest:
    if not isinstance(fact, dict):
        raise DataFormatError(f"expected an object, found {type(fact).__name__}", path, number)
    for name in ("subject", "prompt"):
        if not isinstance(fact.get(name), str):
            raise DataFormatError("expected a text", path, number, name)
    if not isinstance(fact.get("attribute") or "-", str):
        raise DataFormatError("expected a text, or none", path, number, "attribute")
    try:
        return EditRequest(fact["prompt"], fact.get("attribute") or "-", fact["subject"], id=str(number))
    except RequestError as error:
        raise DataFormatError(str(error), path, number) from error
