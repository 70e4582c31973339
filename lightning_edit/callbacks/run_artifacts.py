"""Sends a run's configuration and checkpoint to W&B."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf

from lightning_edit.printing import print_line


class RunArtifacts(Callback):
    """Logs the run's configuration at the start and its best checkpoint as an artifact at the end.

    It works offline too: the artifact is uploaded with the run.

    Args:
        name: Name of the artifact.
    """

    def __init__(self, name: str = "editor") -> None:
        self.name = name

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the configuration, if the command line wrote one."""
        path = Path(trainer.log_dir or "") / "config.yaml"
        if not trainer.is_global_zero or not path.is_file():
            return
        config = OmegaConf.to_container(OmegaConf.load(path))
        for logger in _wandb_loggers(trainer):
            logger.experiment.config.update(config, allow_val_change=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the best checkpoint and prints where the files are."""
        # Every process must read the folder: the trainer broadcasts it.
        callback, folder = trainer.checkpoint_callback, Path(trainer.log_dir or "")
        best = callback.best_model_path if isinstance(callback, ModelCheckpoint) else ""
        if not trainer.is_global_zero or not best:
            return
        print_line(f"checkpoint   {best}")
        print_line(f"metrics      {folder / 'metrics.csv'}")
        for logger in _wandb_loggers(trainer):
            import wandb  # only here, because the import takes half a second

            artifact = wandb.Artifact(self.name, type="model")
            artifact.add_file(best)
            logger.experiment.log_artifact(artifact)
            print_line(f"W&B run      {Path(logger.experiment.dir).parent}")


def _wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
