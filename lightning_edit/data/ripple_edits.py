"""RippleEdits: the side effects of edits on related facts (Cohen et al. 2023, arXiv 2307.12976)."""

from __future__ import annotations

import re

from lightning_edit.data.entry import Entry
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.records import EditRecord, Probe, ProbeKind

_OF = "The {} of <subject> is"
_NAME_OF = "The name of the {} of <subject> is"
_TEMPLATES = {
    **{
        relation: _NAME_OF.format(relation.lower().replace("_", " "))
        for relation in (
            "MOTHER", "FATHER", "BROTHER", "SISTER", "SPOUSE", "UNCLE", "AUNT", "CHILD", "STEPFATHER", "STEPMOTHER",
            "COUNTRY_OF_CITIZENSHIP", "ALMA_MATER", "EMPLOYER", "FIELD_OF_WORK", "HEAD_OF_GOVERNMENT", "HEAD_OF_STATE",
            "AUTHOR", "EDITOR", "DIRECTOR", "SCREENWRITER", "ARCHITECT", "COMPOSER", "FOUNDER",
        )
    },
    **{
        relation: _OF.format(relation.lower().replace("_", " "))
        for relation in (
            "DATE_OF_BIRTH", "DATE_OF_DEATH", "PLACE_OF_BIRTH", "PLACE_OF_DEATH", "SEXUAL_ORIENTATION", "OCCUPATION",
            "EYE_COLOR",
        )
    },
    "SIBLING": "The names of the siblings of <subject> are",
    "NUMBER_OF_CHILDREN": "The number of children <subject> has is",
    "SEX_OR_GENDER": "The gender of <subject> is",
    "PLACE_OF_BURIAL": "The place of burial of <subject> is",
    "COUNTRY": "The name of the country which <subject> is associated with is",
    "POSITION_HELD": "The name of the position held by <subject> is",
    "MEMBER_OF_SPORTS_TEAM": "The name of the sports team which <subject> is a member of is",
    "LEAGUE": "The name of the league which <subject> plays in is",
    "NATIVE_LANGUAGE": "The mother tongue of <subject> is",
    "AWARD_RECEIVED": "The name of the award <subject> won is",
    "FOLLOWS": "<subject> follows",
    "FOLLOWED_BY": "<subject> is followed by",
    "ETHNIC_GROUP": "The name of the ethnic group which <subject> is associated with is",
    "RELIGION": "The name of the religion which <subject> is associated with is",
    "CONTINENT": "The name of the continent which <subject> is part of is",
    "CAPITAL": "The name of the capital city of <subject> is",
    "CURRENCY": "The name of the currency in <subject> is",
    "OFFICIAL_LANGUAGE": "The official language of <subject> is",
    "ANTHEM": "The name of the anthem of <subject> is",
    "LIKELY_ANTHEM": "The name of the anthem that is most likely to be performed in <subject> is",
    "CAPITAL_OF": "The name of the country which <subject> is the capital of is",
    "CAST_MEMBER": "The names of the cast members of <subject> are",
}  # fmt: skip
"""Relation to its sentence in the authors' code; the object and a full stop follow."""
_GROUPS = {
    "Logical_Generalization": ProbeKind.PORTABILITY,
    "Subject_Aliasing": ProbeKind.PORTABILITY,
    "Compositionality_I": ProbeKind.PORTABILITY,
    "Compositionality_II": ProbeKind.PORTABILITY,
    "Relation_Specificity": ProbeKind.LOCALITY,
    "Relation_Specifity": ProbeKind.LOCALITY,
    "Forgetfulness": ProbeKind.LOCALITY,
}
"""Groups of tests; the authors spell one of them in two ways."""


class RippleEdits(Benchmark):
    """Edits of Wikidata facts with six groups of tests.

    The file gives an edit as a full sentence, without marking subject and target. They are extracted with the
    relation's template or, if that fails, by comparison with the original fact's sentence. Edits that neither can
    split, and edits that change nothing, are dropped and counted. Logical generalization, subject aliasing and
    compositionality are portability probes, relation specificity and forgetfulness locality probes, each in its own
    group, as in KnowEdit. The conditions of a test (what the unedited model must know) are not read.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: "recent", "random" or "popular".
        limit: Read at most this many records.
    """

    files = {"recent": ("recent.json",), "random": ("random.json",), "popular": ("popular.json",)}

    def __init__(self, source: str, split: str = "popular", limit: int | None = None) -> None:
        super().__init__(source, split, limit)

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        edit = entry.child("edit")
        sentence, relation = edit.text("prompt"), edit.text("relation")
        earlier = edit.child("original_fact").text("prompt") if "original_fact" in edit else ""
        parts = parts_of(sentence, relation, earlier)
        if parts is None or sentence == earlier:
            reason = "changes nothing" if sentence == earlier else "is cut by no template"
            entry.report.dropped[f"edit whose sentence {reason}"] += 1
            return []
        prompt, subject, target = parts
        truth = parts_of(earlier, relation, sentence) if earlier else None
        id = f"ripple-{self.split}-{entry.index}"
        request = make_request(entry, prompt, target, subject or None, truth[2] if truth else None, id)
        if request is None:
            return []
        probes: list[Probe] = []
        for group, kind in _GROUPS.items():
            for test in entry.children(group) if group in entry else ():
                probes += _probes(test, kind, group.replace("Specifity", "Specificity"))
        return [EditRecord(id, (request,), tuple(probes))]


def _probes(test: Entry, kind: ProbeKind, group: str) -> list[Probe]:
    probes: list[Probe] = []
    for query in test.children("test_queries"):
        objects = [(one.text("value"), *one.texts("aliases")) for one in query.children("answers")]
        answers = tuple(tuple(dict.fromkeys(filter(None, names))) for names in objects)
        probes += make_probe(query, query.text("prompt"), tuple(filter(None, answers)), kind, group)
    return probes


def parts_of(sentence: str, relation: str, other: str = "") -> tuple[str, str, str] | None:
    """Splits a full sentence into prompt, subject and target.

    Args:
        sentence: Such as "The gender of Ada is female."
        relation: Name of its relation, such as "SEX_OR_GENDER".
        other: A sentence with the same subject and relation and another target, if there is one.

    Returns:
        Such as ("The gender of Ada is", "Ada", "female"); the subject is empty if only ``other`` gave the target.
        None if the target cannot be determined.
    """
    text = sentence.strip().removesuffix(".")
    template = _TEMPLATES.get(relation)
    if template is not None:
        before, after = (re.escape(part) for part in template.split("<subject>"))
        # The template's words may occur in the subject or the target, too: both sentences must agree on the prompt.
        for subject in (".+", ".+?"):
            match = re.fullmatch(rf"({before}({subject}){after}) (.+)", text)
            if match and other.startswith(match[1] if other else ""):
                return match[1], match[2], match[3]
    words, others = text.split(" "), other.strip().removesuffix(".").split(" ")
    same = next((place for place, pair in enumerate(zip(words, others, strict=False)) if len(set(pair)) > 1), 0)
    if not other or not 0 < same < len(words):
        return None
    return " ".join(words[:same]), "", " ".join(words[same:])
