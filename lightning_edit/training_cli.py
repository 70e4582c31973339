"""fit, validate, test and predict from YAML and flags."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_edit.data.datamodule import EditDataModule
from lightning_edit.errors import ConfigurationError
from lightning_edit.modules.base import EditingModule

_UNNAMED = "lightning_logs"
"""What Lightning calls runs without a name."""


class EditingCLI(LightningCLI):
    """LightningCLI for editing modules, with defaults that suit them."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Sets the defaults of the Trainer that editors need."""
        parser.set_defaults(
            {
                # Editors take gradients while they validate.
                "trainer.inference_mode": False,
                # The data module divides the records between processes itself, each exactly once.
                "trainer.use_distributed_sampler": False,
                "trainer.num_sanity_val_steps": 0,
            }
        )

    def before_fit(self) -> None:
        """Refuses to fit what cannot be fitted, or without what fit reads.

        Raises:
            ConfigurationError: If the editor reads nothing, the module trains nothing and collects nothing, or the
                data that the editor reads are not configured.
        """
        name, reads = type(self.model.editor).__name__, self.model.editor.capabilities.fit_reads
        if reads == "nothing" or not is_overridden("training_step", self.model):
            raise ConfigurationError(
                f"{name} in {type(self.model).__name__} has nothing to fit; run validate, test, predict or edit"
            )
        if reads == "corpus" and self.datamodule.corpus is None:
            raise ConfigurationError(f"data.corpus: fit collects statistics of text for {name}, and none is configured")
        if reads == "records" and self.datamodule.sources["fit"] is None:
            raise ConfigurationError(f"data.train: fit reads training records for {name}, and none are configured")

    def before_instantiate_classes(self) -> None:
        """Runs that are not given a name are called after their editor: runs/serac/version_0."""
        config = self.config[self.subcommand]
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            arguments = getattr(logger, "init_args", None)
            if arguments is not None and arguments.get("name") == _UNNAMED:
                arguments.name = str(config.model.init_args.editor.class_path).rpartition(".")[2].lower()


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration as config.yaml into the run's folder; each run has a folder of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "overwrite": True})


def run(arguments: list[str]) -> None:
    """Runs a Trainer command.

    Args:
        arguments: The command and its options.
    """
    EditingCLI(
        EditingModule,
        EditDataModule,
        subclass_mode_model=True,
        subclass_mode_data=False,
        auto_configure_optimizers=False,
        save_config_callback=RunConfig,
        parser_kwargs={"parser_mode": "omegaconf+", "prog": "lightning-edit"},
        # LightningCLI warns when it is given arguments while the process has some of its own.
        args=None if arguments == sys.argv[1:] else arguments,
    )
