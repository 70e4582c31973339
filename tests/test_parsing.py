"""Errors of configurations: one line with the key, the nearest name and the file."""

import pytest
import yaml

from lightning_edit.cli import main


def refused(capsys, *arguments):
    assert main(list(arguments)) == 1
    shown = capsys.readouterr().err.splitlines()
    return next(line for line in reversed(shown) if line.startswith("lightning-edit"))


def test_an_unknown_option_names_the_nearest(capsys):
    assert refused(capsys, "edit", "--promt", "x") == (
        "lightning-edit edit: there is no option --promt; did you mean --prompt?"
    )
    assert refused(capsys, "fit", "--trainer.max_stepz", "3").endswith("did you mean --trainer.max_steps?")
    assert "required: edits" in refused(capsys, "generate", "--prompts", "a")


def test_an_unknown_setting_names_the_class_the_key_and_the_file(capsys, tmp_path):
    editor = {"class_path": "lightning_edit.editors.MEND", "init_args": {"sites": [1], "rnk": 4}}
    model = {"class_path": "lightning_edit.modules.HypernetworkEditing", "init_args": {"editor": editor}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": model}))
    message = refused(capsys, "fit", "--config", str(path))
    assert f"{path}, line 7: model.editor: MEND has no setting rnk; did you mean rank?" in message
    editor["class_path"] = "lightning_edit.editors.MEMD"
    path.write_text(yaml.safe_dump({"model": model}))
    message = refused(capsys, "fit", "--config", str(path))
    assert "there is no class lightning_edit.editors.MEMD; did you mean MEND?" in message


def test_the_informative_error_of_a_chain_is_shown():
    from lightning_edit.errors import ConfigurationError
    from lightning_edit.parsing import informative_cause

    def raised(first, second):
        try:
            try:
                raise first
            except Exception as error:  # the first of a chain, of whatever kind a case gives
                raise second from error
        except Exception as error:  # the second
            return informative_cause(error)

    assert str(raised(KeyError("x"), ValueError("sites: expected a list"))) == "sites: expected a list"
    known = ConfigurationError("what is wrong")
    assert raised(known, ValueError("wrapped")) is known


def test_a_wrong_value_names_its_key(capsys):
    assert "data.batch_size: Expected a <class 'int'>. Got value: many" in refused(
        capsys, "fit", "--data.batch_size", "many"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"trainer: {max_steps: '${..nothing.here}'}", "Interpolation key"),
        (b"data: {batch_size: null}", "data.batch_size"),
        (b"data: {batch_size: 0}", "data.batch_size: expected at least 1, found 0"),
        (b"model: {init_args: {language_model: {name_or_path: null}}}", "name_or_path: null is not possible here"),
        (b"trainer: {accelerator: gpu}", "No supported gpu backend found"),
        (b"model: [", "Problems parsing config"),
        (b"data: {seed: " + b"9" * 5000 + b"}", "4300 digits"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said_in_one_line(capsys, tmp_path, tiny_folder, content, message):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    arguments = ["fit", "--config", "configs/experiment/mend-smollm2-worldfacts.yaml", "--config", str(path)]
    arguments += ["--trainer.logger", "false", "--trainer.callbacks", "null", "--trainer.fast_dev_run", "true"]
    if b"name_or_path" not in content:
        arguments += ["--model.language_model.name_or_path", str(tiny_folder)]
    assert message in refused(capsys, *arguments)
