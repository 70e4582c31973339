"""What edit, generate and merge read and show."""

import json

import pytest
import torch
import yaml

from lightning_edit.answers import edit_report
from lightning_edit.cli import main, repeated_values
from lightning_edit.commands import edit as edit_command
from lightning_edit.commands import plot
from lightning_edit.data.facts import read_requests
from lightning_edit.editors import GradientStep
from lightning_edit.edits import load_edit
from lightning_edit.errors import ConfigurationError, DataFormatError, TokenizationError
from lightning_edit.models import LanguageModel, load_language_model
from tests.modules.test_training import write_config
from tests.testers import REQUESTS
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model


@pytest.fixture
def editor_file(tmp_path):
    path = tmp_path / "editor.yaml"
    path.write_text("class_path: lightning_edit.editors.GradientStep\ninit_args: {sites: [1, 2], step_size: 0.5}\n")
    return str(path)


def edit_arguments(editor_file, tiny_folder, *more):
    return ["edit", "--editor", editor_file, "--name_or_path", str(tiny_folder), *more]


@pytest.mark.parametrize("target", ["null", "~", "# Rome", "&x", "[/INST]", "yes", "1.50"])
def test_targets_are_taken_as_they_are_and_shown(editor_file, tiny_folder, tmp_path, capsys, target):
    fact = ["--prompt", "The [x] capital [/INST] of France is", "--subject", "France", "--target", target]
    save = ["--save", str(tmp_path / "edit")]
    assert main(edit_arguments(editor_file, tiny_folder, *fact, *save)) == 0
    assert load_edit(tmp_path / "edit").provenance.requests[0].target == target
    shown = "".join(capsys.readouterr().out.split())
    assert "The[x]" in shown.replace("│", "")


def test_an_edit_is_replaced_only_where_that_is_asked_for(editor_file, tiny_folder, tmp_path, capsys):
    arguments = edit_arguments(
        editor_file,
        tiny_folder,
        "--prompt",
        "The capital of France is",
        "--target",
        "Rome",
        "--save",
        str(tmp_path / "e"),
    )
    assert main(arguments) == 0
    first = load_edit(tmp_path / "e").id
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert load_edit(tmp_path / "e").id == first
    assert main([*arguments, "--overwrite", "true"]) == 0
    assert load_edit(tmp_path / "e").id != first


def test_an_edit_that_changes_nothing_fails_its_check(tiny_folder, tmp_path, capsys):
    path = tmp_path / "editor.yaml"
    path.write_text("class_path: lightning_edit.editors.GradientStep\ninit_args: {sites: [1], step_size: 0.0}\n")
    arguments = edit_arguments(str(path), tiny_folder, "--prompt", "The capital of France is", "--target", "Rome")
    assert main(arguments) == 0
    assert "✗" in capsys.readouterr().out
    assert main([*arguments, "--check", "true"]) == 1
    assert "not answered with their target" in capsys.readouterr().err


def test_the_report_names_what_works_and_what_changed():
    model = language_model("llama")
    report = edit_report(model, GradientStep([1, 2], 0.0).edit(model, REQUESTS[:1]), REQUESTS[:1])
    prompts = [row[0] for row in report.rows]
    assert prompts == ["The capital of France is", "The capital of Japan is", "Water boils at"]
    assert [row[-1] for row in report.rows] == ["✗", "unchanged", "unchanged"]
    assert report.failed == REQUESTS[:1]


def test_lists_are_given_as_plain_or_repeated_values():
    expected = ["--editor", "x", "--ask", '["one", "two"]']
    for given in (["--ask", "one", "two"], ["--ask", "one", "--ask", "two"], ["--ask=one", "--ask=two"]):
        assert repeated_values([*given, "--editor", "x"], edit_command) == expected
    assert repeated_values(["one", "two", "--output", "x"], plot) == ["--output", "x", "--runs", '["one", "two"]']
    assert repeated_values(["one", "--runs", "two"], plot) == ["--runs", '["one", "two"]']
    # The first parameter of edit is no list.
    assert repeated_values(["one", "--editor", "x"], edit_command) == ["one", "--editor", "x"]
    assert repeated_values(["--ask", '["one", "two"]'], edit_command) == ["--ask", '["one", "two"]']
    assert repeated_values(["--ask", "one"], edit_command) == ["--ask", '["one"]']


def test_generate_takes_plain_folders(editor_file, tiny_folder, tmp_path, capsys):
    saved = str(tmp_path / "edit")
    fact = ["--prompt", "The capital of France is", "--target", "Rome", "--save", saved]
    assert main(edit_arguments(editor_file, tiny_folder, *fact)) == 0
    assert main(["generate", "--edits", saved, "--prompts", "The capital of France is", "Answer:"]) == 0
    assert "Answer:" in capsys.readouterr().out


def write_lines(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_requests_keep_all_of_their_fields(tmp_path):
    fact = {"prompt": "Art is Art", "target": "x", "subject": "Art", "subject_start": 0, "ground_truth": "y", "id": "a"}
    [request] = read_requests(write_lines(tmp_path / "r.jsonl", fact))
    assert (request.subject_span, request.ground_truth, request.id) == ((0, 3), "y", "a")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a", "target": "b", "subjct": "a"}, "did you mean 'subject'"),
        ({"prompt": "a", "target": "b", "colour": "c"}, "unknown field"),
        ('{"prompt": "a", "prompt": "b", "target": "c"}', "occurs twice"),
        ('{"prompt": "\\ud800", "target": "c"}', "surrogate"),
        ("[" * 100_000, "nested too deeply|recursion|expected an object"),
        ('{"prompt": 5, "target": "c"}', "expected a string"),
    ],
)
def test_broken_requests_are_errors_with_their_line(tmp_path, line, message):
    with pytest.raises(DataFormatError, match=message):
        read_requests(write_lines(tmp_path / "r.jsonl", line))


class TestLoading:
    def test_missing_weights_are_refused(self, tmp_path):
        from safetensors.torch import load_file, save_file

        model = language_model("llama")
        model.model.save_pretrained(tmp_path)
        model.tokenizer.save_pretrained(tmp_path)
        [file] = tmp_path.glob("*.safetensors")
        tensors = load_file(file)
        removed = {name: value for name, value in tensors.items() if "layers.1.mlp" not in name}
        save_file(removed, file, {"format": "pt"})
        with pytest.raises(ConfigurationError, match=r"3 weights are missing .*layers\.1\.mlp\.down_proj"):
            load_language_model(str(tmp_path))
        save_file({f"wrong.{name}": value for name, value in tensors.items()}, file, {"format": "pt"})
        with pytest.raises(ConfigurationError, match=r"weights are missing .*such as wrong\."):
            load_language_model(str(tmp_path))
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(ConfigurationError, match="cannot be loaded"):
            load_language_model(str(tmp_path))
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
        with pytest.raises(ConfigurationError, match="Git LFS pointer"):
            load_language_model(str(tmp_path))

    def test_an_unknown_architecture_is_an_error_in_words(self, tmp_path):
        language_model("llama").tokenizer.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
        with pytest.raises(ConfigurationError, match="cannot be loaded"):
            load_language_model(str(tmp_path))


class TestGreedyDecoding:
    @pytest.mark.parametrize(
        "published",
        [
            {"repetition_penalty": 5.0},
            {"no_repeat_ngram_size": 1},
            {"num_beams": 3},
            {"suppress_tokens": list(range(3, 200))},
            {"bad_words_ids": [[token] for token in range(3, 200)]},
            {"do_sample": True, "temperature": 5.0},
            {"forced_eos_token_id": 2},
            {"min_new_tokens": 4},
            {"guidance_scale": 3.0},
        ],
        ids=lambda published: next(iter(published)),
    )
    def test_published_settings_change_nothing(self, published):
        model = language_model("llama")
        prompts = ["The capital of France is", "Answer:"]
        expected = []
        for prompt in prompts:
            ids = list(model.encoder.encode(prompt).ids)
            start = len(ids)
            for _ in range(6):
                token = int(model.model(torch.tensor([ids])).logits[0, -1].argmax())
                ids.append(token)
                if token == 2:
                    break
            expected.append(model.encoder.decode(ids[start:]))
        model.model.generation_config.update(**published)
        before = model.model.generation_config
        assert model.generate(prompts, 6) == expected
        assert model.model.generation_config is before

    def test_settings_that_are_asked_for_count(self):
        model = language_model("llama")
        prompt = ["The capital of France is"]
        assert model.generate(prompt, 8, no_repeat_ngram_size=1) != model.generate(prompt, 8)
        assert len(model.generate(prompt, 8, eos_token_id=list(range(500)))[0]) < len(model.generate(prompt, 8)[0])
        assert model.generate(prompt, 8, stop_strings=["e"])
        with pytest.raises(ConfigurationError, match="num_return_sequences"):
            model.generate(prompt, 4, num_return_sequences=2)


class TestTexts:
    def test_a_prompt_with_its_beginning_token_gets_no_second_one(self):
        tokenizer = byte_level_tokenizer(bos=True)
        model = LanguageModel(build(FAMILIES["llama"][0]()), tokenizer, name="tiny")
        plain, marked = model.encoder.encode("Answer:", "Rome"), model.encoder.encode("<s>Answer:", "Rome")
        assert plain.ids[0] == tokenizer.bos_token_id
        assert marked.ids == plain.ids

    def test_a_padding_token_without_an_embedding_is_not_used(self):
        tokenizer = byte_level_tokenizer()
        tokenizer.add_tokens([f"<unused {number}>" for number in range(120)])
        tokenizer.add_special_tokens({"pad_token": "<a new pad>"})
        model = LanguageModel(build(FAMILIES["llama"][0]()), tokenizer, name="tiny")
        assert tokenizer.pad_token_id >= 512
        prompts, plain = ["A", "A longer prompt"], language_model("llama")
        expected = [plain.score([prompt], ["Rome"])[0].log_probs for prompt in prompts]
        for score, values in zip(model.score(prompts, ["Rome"] * 2), expected, strict=True):
            assert score.log_probs == pytest.approx(values, abs=1e-4)

    def test_texts_longer_than_the_models_positions_are_refused_before_the_pass(self):
        model = language_model("gpt2")
        with pytest.raises(TokenizationError, match="has 64; shorten it"):
            model.score(["word " * 100], ["Rome"])
        with pytest.raises(TokenizationError, match="has 64; shorten it"):
            model.generate(["Answer:"], 80)

    def test_the_separator_can_be_turned_off(self):
        model = LanguageModel(build(FAMILIES["llama"][0]()), byte_level_tokenizer(), name="tiny", separator="")
        text = model.encoder.encode("東京", "都")
        assert model.encoder.decode(text.ids) == "東京都"


def test_the_chat_template_is_part_of_an_edit(tmp_path):
    template = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}<a>"
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = template
    folder = tmp_path / "model"
    build(FAMILIES["llama"][0]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    chat = load_language_model(str(folder), chat_template=True)
    edit = GradientStep([1], 0.5).edit(chat, REQUESTS[:1])
    assert edit.provenance.base.chat_template
    saved = edit.save(tmp_path / "edit")
    plain = load_language_model(str(folder))
    message = "was made with the chat template and is used without it"
    with pytest.warns(UserWarning, match=message), load_edit(saved).applied(plain):
        pass
    assert main(["generate", "--edits", str(saved), "--prompts", "Answer:"]) == 0


def test_an_edit_is_applied_once():
    from lightning_edit.edits import EditSequence
    from lightning_edit.errors import EditError

    model = language_model("llama")
    edit = GradientStep([1], 0.5).edit(model, REQUESTS[:1])
    again, message = EditSequence([edit]), "applied to this model already"
    with edit.applied(model), pytest.raises(EditError, match=message), again.applied(model):
        pass
    with edit.applied(model):
        pass


def test_independent_edits_are_applied_once():
    from lightning_edit.errors import EditError

    model = language_model("llama")
    batch = GradientStep([1], 0.5).edit_each(model, REQUESTS)
    message = "applied to this model already"
    with batch[0].applied(model), pytest.raises(EditError, match=message), batch.applied(model, [0, 1]):
        pass
    with batch.applied(model, [0, 1]), pytest.raises(EditError, match=message), batch.applied(model, [1]):
        pass
    with batch.applied(model, [0, 1]), batch.applied(model, [2, 2]):
        pass


@pytest.mark.parametrize("kind", ["MEND", "MALMEN", "SERAC"])
def test_an_editor_that_was_never_trained_edits_nothing(kind, tiny_folder, tmp_path, capsys):
    path = tmp_path / "editor.yaml"
    path.write_text(f"class_path: lightning_edit.editors.{kind}")
    fact = ["--prompt", "The capital of France is", "--target", "Rome"]
    assert main(edit_arguments(str(path), tiny_folder, *fact)) == 1
    assert f"{kind} has to be trained first" in capsys.readouterr().err


def test_the_separator_is_part_of_an_edit(editor_file, tiny_folder, tmp_path):
    fact = ["--prompt", "東京", "--target", "都", "--separator", ""]
    assert main(edit_arguments(editor_file, tiny_folder, *fact, "--save", str(tmp_path / "edit"))) == 0
    assert load_edit(tmp_path / "edit").provenance.base.separator == ""


def test_a_text_in_brackets_is_no_list():
    assert repeated_values(["--ask", "[INST] hi [/INST]"], edit_command) == ["--ask", '["[INST] hi [/INST]"]']
    assert repeated_values(["--ask", "[one, two]"], edit_command) == ["--ask", "[one, two]"]


def test_no_token_cannot_be_generated():
    with pytest.raises(ConfigurationError, match=r"generate\.max_new_tokens: expected at least 1, found 0"):
        language_model("llama").generate(["Answer:"], 0)


def test_lone_surrogates_on_the_command_line_are_errors(editor_file, tiny_folder, capsys):
    fact = ["--prompt", "A \udcff is", "--target", "b"]
    assert main(edit_arguments(editor_file, tiny_folder, *fact)) == 1
    assert "half of a surrogate pair" in capsys.readouterr().err


def test_paths_are_no_markup(tiny_folder, tmp_path, capsys):
    config = write_config(tmp_path, tiny_folder)
    content = yaml.safe_load(config.read_text())
    content["model"] = {
        "class_path": "lightning_edit.modules.EditingModule",
        "init_args": {
            "editor": {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": [1]}},
            "language_model": {"name_or_path": str(tiny_folder)},
        },
    }
    facts = {"class_path": "lightning_edit.data.WorldFacts", "init_args": {"split": "validation", "limit": 2}}
    content["data"] = {"test": facts}
    config.write_text(yaml.safe_dump(content))
    folder = tmp_path / "q[/INST]" / "[b]"
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(folder)]
    callbacks = "--trainer.callbacks=[{class_path: lightning_edit.callbacks.TestReport}]"
    assert main(["test", "--config", str(config), *logger, callbacks]) == 0
    assert f"metrics      {folder}" in capsys.readouterr().out
