"""Commands that compare editors and list shipped configurations."""

from __future__ import annotations

from lightning_edit.printing import print_line, quiet_lightning


def compare(
    config: str,
    output: str | None = None,
    records: int | None = None,
    shard: str = "1/1",
    editors: list[str] | None = None,
    data: list[str] | None = None,
    preset: str = "default",
    chat_template: bool | None = None,
    plan: bool = False,
) -> None:
    """Runs a grid of editors, data sets and protocols, and writes its report.

    Each cell is a test run in its own folder. A stopped grid resumes with the cells that are not done, and retries
    failed ones. Several processes may share a folder.

    Args:
        config: YAML file of the grid, such as @knowedit-smollm2.
        output: Folder for the cells and the report; overrides the file.
        records: Maximum number of records per data set; overrides the file. 0 takes all.
        shard: "i/n": run every n-th cell, starting from the i-th.
        editors: Run only the cells of these editors, such as [ROME,MEMIT]; the report has all cells that were run.
        data: Run only the cells of these data sets.
        preset: Columns of the report: "default", or "knowedit" for the definitions of its paper.
        chat_template: Whether to render prompts with the tokenizer's chat template; overrides the file.
        plan: Show what would be run, and exit.

    Raises:
        ConfigurationError: If the grid or the shard is invalid.
    """
    from lightning_edit.command_inputs import shard_of
    from lightning_edit.comparison import (
        Grid,
        build_report,
        cells_of,
        read_comparison,
        read_runs,
        read_traces,
        write_report,
    )

    quiet_lightning()
    comparison = read_comparison(config, {"output": output, "records": records}, chat_template)
    # Read first, to fail before the cells are run.
    traces = read_traces(comparison.traces)
    grid = Grid(comparison, shard_of(shard), editors, data)
    print_line(grid.plan())
    if plan:
        return
    grid.run()
    runs = read_runs([cell.folder for cell in cells_of(comparison) if cell.folder.is_dir()])
    built = build_report(runs, preset, comparison.reference, comparison.resamples, comparison.seed)
    for path in write_report(built, comparison.output, traces):
        print_line(f"written      {path}")


def report(
    runs: list[str],
    output: str,
    preset: str = "default",
    reference: str | None = None,
    per_record: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    traces: list[str] | None = None,
) -> None:
    """Writes the report of test runs: leaderboard.md, .csv and .png, report.json and report.html.

    Args:
        runs: Folders of test runs (with metrics.json), or folders above them.
        output: Folder for the report.
        preset: Columns: "default", or "knowedit" for the definitions of its paper.
        reference: Editor that others are compared with, record by record; the first one by default.
        per_record: Average over records, with each record's probes averaged first, instead of over probes.
        resamples: Number of bootstrap samples for the intervals.
        seed: Seed of the bootstrap.
        traces: Output folders of the trace command, to show in report.html.
    """
    from lightning_edit.comparison import build_report, read_runs, read_traces, write_report

    built = build_report(read_runs(runs), preset, reference, resamples, seed, per_record)
    for path in write_report(built, output, read_traces(traces or [])):
        print_line(f"written      {path}")


def configs(copy: str | None = None) -> None:
    """Lists the configurations and checkpoints that come with the package, or copies the configurations.

    Use them as --config @NAME, --editor @NAME and --ckpt_path @NAME; words that only one name has are enough.

    Args:
        copy: New folder to copy the configurations to.
    """
    from lightning_edit.shipped import configs_folder, copy_configs, shipped_checkpoints, shipped_names

    if copy is not None:
        print_line(f"configurations {copy_configs(copy)}")
        return
    options = {"experiment": "--config", "comparison": "--config", "dashboard": "--config", "editor": "--editor"}
    for folder, option in options.items():
        for name in shipped_names(folder):
            first = (configs_folder() / folder / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
            print_line(f"{option} @{name}  {first.removeprefix('#').strip() if first.startswith('#') else ''}")
    for name in shipped_checkpoints():
        print_line(f"--ckpt_path @{name}")
