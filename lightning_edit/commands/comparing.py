"""Commands that compare editors, and list the configurations that they start from."""

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

    Each cell is a test run in its own folder. A grid that was stopped goes on where it was; a cell that failed is tried
    again. Several processes may share a folder.

    Args:
        config: YAML file of the grid, such as @knowedit-smollm2.
        output: Folder for the cells and the report, in place of the one that the file names.
        records: Limit of the records of each data set, in place of the file's; 0 takes all.
        shard: "i/n": run every n-th cell from the i-th on.
        editors: Run only the cells of these editors, such as [ROME,MEMIT]; the report has all cells that were run.
        data: Run only the cells of these data sets.
        preset: Columns of the report: "default", or "knowedit" for the definitions of its paper.
        chat_template: Render prompts with the tokenizer's chat template, or not, in place of what the file says.
        plan: Show what would be run, and end.

    Raises:
        ConfigurationError: If the grid or the shard is not usable.
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
    # Before the cells, which take long.
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
        reference: Editor that others are compared with, record by record; the first one if none is given.
        per_record: Average over records, with each record's probes averaged first, instead of over probes.
        resamples: Bootstrap samples of the intervals.
        seed: Their seed.
        traces: Folders that trace wrote, which report.html shows as well.
    """
    from lightning_edit.comparison import build_report, read_runs, read_traces, write_report

    built = build_report(read_runs(runs), preset, reference, resamples, seed, per_record)
    for path in write_report(built, output, read_traces(traces or [])):
        print_line(f"written      {path}")


def configs(copy: str | None = None) -> None:
    """Lists the configurations and checkpoints that come with the package, or copies configurations, to be changed.

    --config @NAME, --editor @NAME and --ckpt_path @NAME use one of them; words of a name that no other name has are
    enough.

    Args:
        copy: A new folder to copy the configurations to.
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
