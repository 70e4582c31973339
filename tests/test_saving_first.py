"""What was computed is kept, whatever happens while it is shown."""

import pytest
import torch

from lightning_edit.cli import main
from lightning_edit.editors import GradientStep
from lightning_edit.edits import load_edit
from lightning_edit.models import load_language_model
from lightning_edit.records import EditRequest


def test_an_edit_is_complete_on_the_disk_when_printing_fails(tiny_folder, tmp_path, monkeypatch):
    editor = tmp_path / "editor.yaml"
    editor.write_text("class_path: lightning_edit.editors.GradientStep\ninit_args: {sites: [1, 2], step_size: 0.5}\n")

    def failing(rows, titles):
        raise BrokenPipeError("nobody reads")

    monkeypatch.setattr("lightning_edit.answers.print_answers", failing)
    fact = ["--prompt", "The capital of France is", "--target", "Rome", "--subject", "France"]
    command = ["edit", "--editor", str(editor), "--name_or_path", str(tiny_folder), *fact]
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        main([*command, "--save", str(tmp_path / "edit")])
    assert not list(tmp_path.rglob("*.unfinished"))
    saved, model = load_edit(tmp_path / "edit"), load_language_model(str(tiny_folder))
    request = EditRequest("The capital of France is", "Rome", "France", id="0")
    assert saved.provenance.requests == (request,)
    expected = GradientStep([1, 2], 0.5).edit(model, [request])
    assert saved.deltas.keys() == expected.deltas.keys()
    for site, delta in expected.deltas.items():
        torch.testing.assert_close(saved.deltas[site].dense(), delta.dense())
    with saved.applied(model) as edited:
        assert edited.generate([request.prompt], 4)
