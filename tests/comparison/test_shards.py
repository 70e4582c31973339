"""Shards of a comparison in one folder, whose results merge by themselves."""

import csv
import subprocess
import sys

import yaml

from lightning_edit.cli import main
from lightning_edit.comparison import read_runs
from tests.comparison.test_grid import configured

MEASURED = ("editor", "data", "protocol", "edit success")


def rows_of(folder):
    with (folder / "leaderboard.csv").open(encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name in MEASURED} for row in csv.DictReader(file)]


def small(folder, tiny_folder):
    folder.mkdir()
    path = configured(folder, tiny_folder)
    content = yaml.safe_load(path.read_text())
    content["evaluation"] = {"fluency_tokens": 0}
    content["editors"] = {name: content["editors"][name] for name in ("ICE", "step")}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def test_shards_one_after_another_give_the_report_of_one_run(tmp_path, tiny_folder):
    whole, divided = small(tmp_path / "whole", tiny_folder), small(tmp_path / "divided", tiny_folder)
    assert main(["compare", "--config", whole]) == 0
    for number in (1, 2, 3):
        assert main(["compare", "--config", divided, "--shard", f"{number}/3"]) == 0
    expected = rows_of(tmp_path / "whole" / "grid")
    assert len(expected) == 8
    assert rows_of(tmp_path / "divided" / "grid") == expected


def test_shards_side_by_side_leave_one_whole_report(tmp_path, tiny_folder):
    path = small(tmp_path / "divided", tiny_folder)
    command = [sys.executable, "-m", "lightning_edit", "compare", "--config", path, "--shard"]
    shards = [subprocess.Popen([*command, f"{number}/2"], stderr=subprocess.DEVNULL) for number in (1, 2)]
    assert [shard.wait(300) for shard in shards] == [0, 0]
    assert len(rows_of(tmp_path / "divided" / "grid")) == 8
    assert not any(run.problem for run in read_runs([tmp_path / "divided" / "grid"]))
