"""A text, and a finished run of fit on it. Modules about other editors have runs of their own."""

import pytest

from tests.modules.fitting import fitted


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(f"The capital of country {n} is city {n * 7}.\nIt lies by the sea." for n in range(80)))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder, text):
    folder = tmp_path_factory.mktemp("locate")
    fitted(folder, tiny_folder, text)
    return folder
