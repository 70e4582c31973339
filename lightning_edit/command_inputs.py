"""Reads the inputs of commands: edit requests, and the base model of saved edits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from lightning_edit.data.facts import Facts
from lightning_edit.data.known import read_fact_groups, read_known_facts
from lightning_edit.edits import EditSequence
from lightning_edit.errors import ConfigurationError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import LanguageModelSettings, load_language_model
from lightning_edit.records import EditRequest

_LOG = logging.getLogger(__name__)


def requested(prompt: str, target: str, subject: str, path: str | None) -> list[EditRequest]:
    """Returns the requests given on the command line, as a prompt with its target or as a file."""
    if path is not None:
        if prompt or target:
            raise ConfigurationError("give either --requests, or --prompt with --target, not both")
        records = Facts(path).read().records
        if probes := sum(len(record.probes) for record in records):
            _LOG.info("%s: its %d probes are ignored by edit; use test or compare to evaluate them", path, probes)
        return [request for record in records for request in record.requests]
    if not prompt or not target:
        raise ConfigurationError("nothing to edit: give --prompt and --target, or --requests with a file of facts")
    return [EditRequest(prompt, target, subject or None, id="0")]


def facts_and_groups(
    path: str, group_by: str | None, groups: Sequence[str] | None
) -> tuple[list[EditRequest], list[str] | None]:
    """Reads the facts of a file in the known_1000 format, and the group of each.

    Args:
        path: The file.
        group_by: Field that names a fact's group; without it the groups are None.
        groups: Keep only the facts of these groups.

    Raises:
        ConfigurationError: If groups are chosen without a field, or the file has no such group.
    """
    requests = read_known_facts(path)
    if group_by is None:
        if groups is not None:
            raise ConfigurationError("--groups chooses groups of facts; give the field that names them with --group_by")
        return requests, None
    group_of = read_fact_groups(path, group_by)
    for name in groups or ():
        if name not in group_of:
            raise ConfigurationError(f"groups: no fact of {path} has {name!r} as {group_by}")
    kept = [place for place, name in enumerate(group_of) if groups is None or name in groups]
    return [requests[place] for place in kept], [group_of[place] for place in kept]


def shard_of(text: str) -> tuple[int, int]:
    """Parses a shard, "i/n".

    Raises:
        ConfigurationError: If the text has another form.
    """
    number, slash, total = text.partition("/")
    if not slash or not number.isdigit() or not total.isdigit() or not 1 <= int(number) <= int(total):
        raise ConfigurationError(f'shard: expected "i/n" with i from 1 to n, found {text!r}')
    return int(number), int(total)


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address; host names other than "localhost" are not."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def served_model(
    sequence: EditSequence, name_or_path: str | None, dtype: str, device: str | None, chat_template: bool | None
) -> LanguageModel:
    """Loads the base model of edits, or the bundled model without edits."""
    if len(sequence):
        return base_of(sequence, name_or_path, dtype, device, chat_template)
    settings = LanguageModelSettings(dtype=dtype, device=device, chat_template=bool(chat_template))
    if name_or_path is not None:
        settings = replace(settings, name_or_path=name_or_path)
    return load_language_model(**vars(settings))


def base_of(
    sequence: EditSequence,
    name_or_path: str | None,
    dtype: str,
    device: str | None,
    chat_template: bool | None = None,
) -> LanguageModel:
    """Loads the base model of edits with the settings it had when they were made, unless overridden."""
    if not len(sequence):
        raise ConfigurationError("edits: give the folder of at least one saved edit")
    base = sequence.edits[0].provenance.base
    return load_language_model(
        name_or_path or base.name,
        base.revision,
        dtype=dtype,
        device=device,
        site=base.site,
        chat_template=base.chat_template if chat_template is None else chat_template,
        separator=base.separator,
    )
