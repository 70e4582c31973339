"""Runs of fit that collect statistics of a tiny model."""

import yaml

from lightning_edit.cli import main
from lightning_edit.models.statistics import KeyStatistics


def write_config(folder, tiny_folder, text, batch_size=4, **trainer):
    facts = {"class_path": "lightning_edit.data.WorldFacts"}
    config = {
        "seed_everything": 3,
        "model": {
            "class_path": "lightning_edit.modules.LocateEditing",
            "init_args": {
                "language_model": {"name_or_path": str(tiny_folder)},
                "editor": {
                    "class_path": "lightning_edit.editors.MEMIT",
                    "init_args": {"layers": [0, 1], "statistics": str(folder / "statistics"), "search": {"steps": 4}},
                },
                "save_every": 1,
            },
        },
        "data": {
            "corpus": {"source": str(text), "tokens": 1200, "length": 32, "batch_size": batch_size},
            "test": {**facts, "init_args": {"split": "validation", "limit": 3}},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}},
            "callbacks": [{"class_path": "lightning_edit.callbacks.TestReport"}],
            **trainer,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fitted(folder, tiny_folder, text, **settings):
    assert main(["fit", "--config", str(write_config(folder, tiny_folder, text, **settings))]) == 0
    return KeyStatistics.load(folder / "statistics")
