"""The commands fit, validate, test and predict, configured by YAML files and flags."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_edit.callbacks.interrupts import Interrupts
from lightning_edit.callbacks.last_checkpoint import LastCheckpoint
from lightning_edit.callbacks.progress_lines import ProgressLines
from lightning_edit.data.datamodule import EditDataModule
from lightning_edit.editors.checkpoint import checkpoint_file, read_checkpoint
from lightning_edit.errors import ConfigurationError, LightningEditError, RunInterruptedError
from lightning_edit.files import remove_unfinished
from lightning_edit.modules.base import EditingModule
from lightning_edit.parsing import (
    ConciseArgumentParser,
    in_file,
    informative_cause,
    refuse_nulls,
    refuse_nulls_of_parts,
)
from lightning_edit.printing import quiet_lightning

_LOG = logging.getLogger(__name__)
LAST = "last"
"""Value of --ckpt_path for the newest checkpoint of earlier runs of the same name."""
_UNNAMED = "lightning_logs"
"""Lightning's name of runs without a name."""


class TrainerArgumentParser(ConciseArgumentParser, LightningArgumentParser):
    """LightningCLI's parser, with one-line errors."""


class EditingCLI(LightningCLI):
    """LightningCLI for editing modules, with defaults that suit them."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Sets Trainer defaults that editors need."""
        parser.add_lightning_class_args(ProgressLines, "progress")
        parser.set_defaults(
            {
                # Editors need gradients during validation.
                "trainer.inference_mode": False,
                # The data module divides the records between processes itself, each exactly once.
                "trainer.use_distributed_sampler": False,
                "trainer.num_sanity_val_steps": 0,
                # It would have a row for each of a hypernetwork's layers.
                "trainer.enable_model_summary": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments and the files that they name.

        Raises:
            ConfigurationError: If a key, a value or a file is wrong.
        """
        given = sys.argv[1:] if args is None else args
        try:
            super().parse_arguments(parser, args)
        except ConfigurationError as error:
            raise ConfigurationError(in_file(str(error), given)) from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"{_file_of(error, given)}: not UTF-8 (byte {error.start}); save the file as UTF-8"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"a configuration cannot be read: {error}") from error

    def instantiate_classes(self) -> None:
        """Builds the Trainer, the module and the data from the configuration.

        Raises:
            ConfigurationError: If a class refuses its settings.
        """
        try:
            super().instantiate_classes()
        except LightningEditError:
            raise
        except Exception as error:  # a constructor may raise any exception
            cause = informative_cause(error)
            if "backend found" in str(cause):
                raise ConfigurationError(
                    f"trainer.accelerator: this machine has none of the kind asked for ({cause}); use auto or cpu"
                ) from error
            if isinstance(cause, LightningEditError):
                raise cause from error
            _LOG.debug("the configuration cannot be used", exc_info=error)
            raise ConfigurationError(f"the configuration cannot be used: {type(cause).__name__}: {cause}") from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the commands, each with the Trainer's arguments that are not options."""
        return {name: skipped | {"verbose"} for name, skipped in LightningCLI.subcommands().items()}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Turns the Trainer's results table off, as the report replaces it."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return arguments | ({"verbose": False} if subcommand in ("validate", "test") else {})

    def before_test(self) -> None:
        """Refuses editors that were never trained, and reads the run's inputs."""
        self._refuse_untrained()
        self._read_inputs("test")

    def before_validate(self) -> None:
        """See :meth:`before_test`."""
        self._refuse_untrained()
        self._read_inputs("validate")

    def before_predict(self) -> None:
        """See :meth:`before_test`."""
        self._refuse_untrained()
        self._read_inputs("predict")

    def _read_inputs(self, stage: str) -> None:
        """Reads the data and loads the model, which may fail, before loggers create folders and runs."""
        self.datamodule.setup(stage)
        self.model.load()
        self.model.check_inputs(self.datamodule, stage)

    def _refuse_untrained(self) -> None:
        editor = self.model.editor
        if editor.capabilities.fit_reads == "records" and not self.config[self.subcommand].get("ckpt_path"):
            raise ConfigurationError(
                f"{type(editor).__name__} has to be fitted first: give its checkpoint (--ckpt_path FILE, or "
                "--ckpt_path last for the newest run)"
            )

    def before_fit(self) -> None:
        """Refuses editors that cannot be fitted, and fit without the data that it reads.

        Raises:
            ConfigurationError: If editor or module have nothing to fit, or the data that the editor reads are not
                configured.
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
        self._read_inputs("fit")

    def before_instantiate_classes(self) -> None:
        """Names unnamed runs after their editor, and resolves the checkpoint."""
        config = self.config[self.subcommand]
        for name in ("trainer", "model", "data"):
            if not isinstance(config.get(name), Namespace):
                raise ConfigurationError(f"{name}: expected settings by name, found {config.get(name)!r}")
        values = config.as_dict()
        refuse_nulls(EditDataModule, values["data"], "data")
        refuse_nulls_of_parts(values["model"], "model")
        self._name_runs(config)
        if config.get("ckpt_path") == LAST:
            config.ckpt_path = str(newest_checkpoint(config))
        if config.get("ckpt_path"):
            config.ckpt_path = str(checkpoint_file(config.ckpt_path))
            remove_unfinished(Path(config.ckpt_path))

    def _parse_ckpt_path(self) -> None:
        """Reads a given checkpoint safely before anything is built; its settings do not replace configured ones."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and path != LAST:
            read_checkpoint(path)

    @staticmethod
    def _name_runs(config: Any) -> None:
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            arguments = getattr(logger, "init_args", None)
            if arguments is not None and arguments.get("name") == _UNNAMED:
                arguments.name = str(config.model.init_args.editor.class_path).rpartition(".")[2].lower()

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs a command of the Trainer.

        Raises:
            RunInterruptedError: If a signal stopped it.
        """
        try:
            super()._run_subcommand(subcommand)
            if self.trainer.received_sigterm:
                # It came in the last batch, after which the Trainer does not check.
                raise self._interrupted(143)
        except SIGTERMException as error:
            raise self._interrupted(143) from error
        except SystemExit as error:
            if not self.trainer.interrupted:
                raise
            raise self._interrupted(130) from error

    def _interrupted(self, status: int) -> RunInterruptedError:
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        saved = next((callback.path for callback in callbacks if isinstance(callback, LastCheckpoint)), None)
        if self.subcommand == "fit" and saved is not None and saved.exists():
            return RunInterruptedError(f"stopped; the state is in {saved}. Go on with --ckpt_path {saved}", status)
        return RunInterruptedError("stopped; run the same command again to resume", status)


def _file_of(error: UnicodeDecodeError, arguments: list[str]) -> str:
    """Finds the file among the arguments that could not be decoded."""
    candidates = [Path(argument.partition("=")[2] or argument) for argument in arguments]
    holders = [path for path in candidates if path.is_file() and error.object[:64] in path.read_bytes()]
    return str(holders[0]) if holders else "a configuration file"


def newest_checkpoint(config: Any) -> Path:
    """Finds the newest "last.ckpt" among earlier runs of the same name.

    Args:
        config: The configuration of a Trainer command.

    Raises:
        ConfigurationError: If there is none.
    """
    loggers = config.trainer.logger
    default = Path(config.trainer.get("default_root_dir") or ".")
    folders: list[Path] = []
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = getattr(logger, "init_args", None)
        if arguments is not None and arguments.get("save_dir") and arguments.get("name"):
            folders.append(Path(arguments.save_dir) / arguments.name)
    # Without a logger's folder, runs write into the default one, which runs of other names share.
    named = bool(folders)
    for callback in config.trainer.get("callbacks") or []:
        directory = getattr(callback, "init_args", {}).get("dirpath")
        folders += [Path(directory)] if directory else []
    patterns = (f"{LAST}.ckpt", f"checkpoints/{LAST}.ckpt", f"version_*/checkpoints/{LAST}.ckpt")
    checkpoints = [path for folder in folders for pattern in patterns for path in folder.glob(pattern)]
    if not checkpoints and not named:
        checkpoints = [path for pattern in patterns for path in default.glob(pattern)]
    if not checkpoints:
        raise ConfigurationError(
            f"ckpt_path: last: no earlier run in {', '.join(map(str, folders or [default]))} has a checkpoint; start "
            "without --ckpt_path, or name a file"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime)


class RunConfig(SaveConfigCallback):
    """Saves the full configuration as config.yaml in the run's own folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "overwrite": True})


def run(arguments: list[str]) -> None:
    """Runs a Trainer command.

    Args:
        arguments: The command and its options.
    """
    quiet_lightning()
    EditingCLI(
        EditingModule,
        EditDataModule,
        subclass_mode_model=True,
        subclass_mode_data=False,
        auto_configure_optimizers=False,
        save_config_callback=RunConfig,
        trainer_defaults={"callbacks": [Interrupts()]},
        parser_class=TrainerArgumentParser,
        parser_kwargs={"parser_mode": "omegaconf+", "prog": "lightning-edit"},
        # LightningCLI warns about given arguments if the process has some, too.
        args=None if arguments == sys.argv[1:] else arguments,
    )
