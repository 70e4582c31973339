"""Similarity of the traced locations of related facts (RSim)."""

import json
import math

import numpy
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from lightning_edit.cli import main
from lightning_edit.data.known import read_fact_groups
from lightning_edit.errors import DataFormatError
from lightning_edit.tracing.causal import ROLES, Trace
from lightning_edit.tracing.similarity import group_similarities, mean_similarity, profile, relative_similarity


def trace(effects, subject=(0, 2)):
    """Four tokens: the first and last of the subject, the next and the last."""
    return Trace(["a", "b", "c", "d"], subject, "x", 0.9, 0.1, {"mlp": torch.tensor(effects) + 0.1})


def test_a_profile_has_the_effects_of_each_layer_by_the_tokens_role():
    values = profile(trace([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]), "mlp").view(len(ROLES), 2)
    expected = {"first subject": [1, 2], "middle subject": [0, 0], "last subject": [3, 4]}
    expected |= {"next": [5, 6], "further": [0, 0], "last": [7, 8]}
    assert {role: row.tolist() for role, row in zip(ROLES, values, strict=True)} == pytest.approx(
        {role: pytest.approx(row) for role, row in expected.items()}
    )


def test_tokens_of_one_role_are_averaged():
    values = profile(trace([[1.0], [2.0], [4.0], [7.0]], subject=(0, 3)), "mlp")
    assert values.tolist() == pytest.approx([1.0, 2.0, 4.0, 0.0, 0.0, 7.0])


def test_the_mean_is_over_pairs_of_different_facts():
    profiles = torch.randn(7, 12)
    similarities = cosine_similarity(profiles.numpy())
    expected = similarities[~numpy.eye(7, dtype=bool)].mean()
    assert mean_similarity(profiles) == pytest.approx(float(expected), abs=1e-6)
    assert math.isnan(mean_similarity(profiles[:1]))


@pytest.mark.parametrize(("similarity", "of_all", "expected"), [(1.0, 0.4, 1.0), (0.7, 0.4, 0.5), (0.3, 0.4, 0.0)])
def test_relative_similarity_lies_between_any_two_facts_and_identical_ones(similarity, of_all, expected):
    assert relative_similarity(similarity, of_all) == pytest.approx(expected)


def test_facts_of_a_group_that_are_kept_together_stand_out():
    here, there = [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    of_all, groups = group_similarities(
        [trace(here), trace(here), trace(there), trace(there), trace(here)], ["A", "A", "B", "B", "C"], "mlp"
    )
    # Of the ten pairs, three are the same here, one there.
    assert of_all == pytest.approx(0.4)
    assert {name: (one.facts, one.similarity, one.relative) for name, one in groups.items()} == {
        "A": (2, pytest.approx(1.0), pytest.approx(1.0)),
        "B": (2, pytest.approx(1.0), pytest.approx(1.0)),
    }


def facts_file(folder):
    names = ["France", "Brazil", "Japan", "Kenya", "Peru"]
    facts = [
        {"subject": name, "prompt": f"The {what} of {name} is", "relation": what}
        for what in ("capital", "river")
        for name in names
    ]
    path = folder / "facts.json"
    path.write_text(json.dumps(facts))
    return path


def test_the_command_compares_groups_of_facts(tiny_folder, tmp_path, capsys):
    arguments = ["trace", "--name_or_path", str(tiny_folder), "--facts", str(facts_file(tmp_path)), "--samples", "2"]
    arguments += ["--window", "2", "--limit", "2", "--group_by", "relation"]
    assert main([*arguments, "--output", str(tmp_path / "both")]) == 0
    content = json.loads((tmp_path / "both" / "traces.json").read_text())
    assert content["groups"] == ["capital", "capital", "river", "river"]
    assert content["counts"] == {"given": 10, "asked": 10, "known": 4, "traced": 4}
    assert set(content["similarity"]) == {"state", "mlp", "attention"}
    groups = content["similarity"]["mlp"]["groups"]
    assert {name: group["facts"] for name, group in groups.items()} == {"capital": 2, "river": 2}
    mean = sum(group["relative"] for group in groups.values()) / 2
    assert content["similarity"]["mlp"]["mean_relative"] == pytest.approx(mean)
    assert "RSim" in capsys.readouterr().out
    assert main([*arguments, "--groups", "[river]", "--output", str(tmp_path / "one")]) == 0
    assert json.loads((tmp_path / "one" / "traces.json").read_text())["groups"] == ["river", "river"]
    assert main([*arguments, "--groups", "[lake]", "--output", str(tmp_path / "none")]) == 1
    assert "has 'lake' as relation" in capsys.readouterr().err


def test_groups_need_a_file_and_a_field(tiny_folder, tmp_path, capsys):
    path = facts_file(tmp_path)
    fact = ["trace", "--prompt", "The capital of France is", "--subject", "France"]
    assert main([*fact, "--group_by", "relation"]) == 1
    assert "give --facts as well" in capsys.readouterr().err
    assert main(["trace", "--name_or_path", str(tiny_folder), "--facts", str(path), "--groups", "[river]"]) == 1
    assert "with --group_by" in capsys.readouterr().err
    with pytest.raises(DataFormatError, match="record 0, field 'relation_id'"):
        read_fact_groups(path, "relation_id")
