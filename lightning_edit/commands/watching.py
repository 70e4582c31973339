"""Commands that show runs: learning curves and W&B dashboards."""

from __future__ import annotations

from lightning_edit.errors import ConfigurationError
from lightning_edit.printing import print_line


def plot(runs: list[str], output: str = "curves.png", measures: list[str] | None = None) -> None:
    """Plots the learning curves of runs for comparison.

    Args:
        runs: Folders of runs, with metrics.csv.
        output: Image file to write.
        measures: Names in metrics.csv, such as val/score; by default losses and headline measures.
    """
    from lightning_edit.curves import DEFAULT_MEASURES, draw_curves, read_curves

    if not runs:
        raise ConfigurationError("runs: name the folder of at least one run")
    curves = {run: read_curves(run) for run in runs}
    print_line(f"written      {draw_curves(curves, measures or DEFAULT_MEASURES, output)}")


def dashboard(
    config: str, project: str = "lightning_edit", entity: str | None = None, output: str = "dashboard.json"
) -> None:
    """Creates a W&B workspace from a file; without a W&B key, its specification is written instead.

    Args:
        config: YAML file of the dashboard: @training, @comparison, or one of your own.
        project: W&B project.
        entity: W&B account or team; by default that of the login.
        output: File for the specification, if there is no key.
    """
    from lightning_edit.dashboards import has_wandb_key, save_specification, workspace

    if not has_wandb_key():
        written = save_specification(workspace(config, entity or "entity", project), output)
        print_line(f"written      {written}; with a W&B key (WANDB_API_KEY), the workspace is created in the account")
        return
    import wandb

    account = entity or wandb.Api().default_entity
    if account is None:
        raise ConfigurationError("entity: the W&B key belongs to no account; name one")
    print_line(f"created      {workspace(config, account, project).save().url}")
