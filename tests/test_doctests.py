"""The examples in docstrings, with ``model`` standing for a tiny language model."""

import doctest
import importlib
import pkgutil

import pytest

import lightning_edit
from tests.tiny_models import language_model


def modules_with_examples():
    """Names of the modules whose source holds an example."""
    names = [lightning_edit.__name__]
    for info in pkgutil.walk_packages(lightning_edit.__path__, "lightning_edit."):
        source = info.module_finder.find_spec(info.name).loader.get_source(info.name)
        if source and ">>> " in source:
            names.append(info.name)
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_do_what_they_say(name):
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS, extraglobs={"model": language_model("llama")}
    )
    assert result.attempted > 0
    assert result.failed == 0


def test_the_main_classes_have_examples():
    assert len(modules_with_examples()) >= 10
