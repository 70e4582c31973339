"""Small files in the formats of the published benchmarks, for runs that need some records of them."""

import json
from pathlib import Path

COUNTRIES = ("France", "Germany", "Brazil", "Japan", "Kenya", "Peru", "Oman", "Chad")
CITIES = ("Paris", "Berlin", "Brasilia", "Tokyo", "Nairobi", "Lima", "Muscat", "N'Djamena")


def zsre_record(number: int) -> dict:
    """MEND's format, with the fields of both published files."""
    country, truth, target = COUNTRIES[number], CITIES[number], CITIES[(number + 1) % len(CITIES)]
    return {
        "case_id": number, "subject": country, "src": f"What is the capital of {country}?",
        "rephrase": f"Which city is {country}'s capital?", "alt": target, "answers": [truth], "pred": truth,
        "loc": f"nq question: who wrote book {number}?", "loc_ans": f"author {number}",
        "cond": f"{truth} >> {target} || What is the capital of {country}?",
    }  # fmt: skip


def knowedit_zsre_record(number: int) -> dict:
    country, truth, target = COUNTRIES[number], CITIES[number], CITIES[(number + 1) % len(CITIES)]
    return {
        "subject": country, "prompt": f"What is the capital of {country}?", "target_new": target,
        "ground_truth": [truth], "rephrase_prompt": f"Which city is {country}'s capital?",
        "cond": f"{truth} >> {target} || What is the capital of {country}?",
        "portability": {"Reasoning": [{"prompt": f"The mayor of {country}'s capital is", "ground_truth": ["Ann"]}]},
        "locality": {
            "Relation_Specificity": [{"prompt": f"The currency of {country} is", "ground_truth": ["the mark"]}]
        },
    }  # fmt: skip


def counterfact_record(number: int) -> dict:
    """The original format."""
    country, truth, target = COUNTRIES[number], CITIES[number], CITIES[(number + 1) % len(CITIES)]
    neighbour = COUNTRIES[(number + 3) % len(COUNTRIES)]
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": "The capital of {} is", "subject": country, "relation_id": "P36",
            "target_new": {"str": target, "id": "Q1"}, "target_true": {"str": truth, "id": "Q2"},
        },
        "paraphrase_prompts": [f"It rains. {country}'s capital is", f"Well. The seat of {country} is"],
        "neighborhood_prompts": [f"The capital of {neighbour} is"],
        "attribute_prompts": [f"{target} is the capital of"],
        "generation_prompts": [f"{country} is known for"],
    }  # fmt: skip


def compact_counterfact_record(number: int) -> dict:
    country, truth, target = COUNTRIES[number], CITIES[number], CITIES[(number + 1) % len(CITIES)]
    return {
        "case_id": number, "prompt": f"The capital of {country} is", "target_new": target, "subject": country,
        "ground_truth": truth, "rephrase_prompt": f"It rains. {country}'s capital is",
        "locality_prompt": f"The currency of {country} is", "locality_ground_truth": truth,
    }  # fmt: skip


FILES = {
    "zsre_mend_train_10000.mzsre_en.json": zsre_record,
    "zsre_mend_train-1k.json": zsre_record,
    "ZsRE-test-all.json": knowedit_zsre_record,
    "wiki_counterfact_train_cf.json": knowedit_zsre_record,
    "wiki_recent_recent_train.json": knowedit_zsre_record,
    "counterfact_original_format_1031.json": counterfact_record,
    "counterfact-train.json": compact_counterfact_record,
    "counterfact-val.json": compact_counterfact_record,
}
"""Published name to what makes a record."""


def write_benchmarks(folder: Path) -> Path:
    """Writes a file of eight records under each published name."""
    folder.mkdir()
    for name, record in FILES.items():
        records = [record(number) for number in range(len(COUNTRIES))]
        (folder / name).write_text(json.dumps(records), encoding="utf-8")
    return folder
