"""The pictures of README.md: what `edit` shows, and the leaderboard of a grid.

lightning-edit compare --config @chat-template-smollm2
python -m benchmarks.pictures --grid runs/comparison/without-template
"""

from __future__ import annotations

import argparse
from io import StringIO
from pathlib import Path

from rich.console import Console

from lightning_edit.answers import edit_report, print_answers
from lightning_edit.comparison import build_report, draw_leaderboard, read_runs
from lightning_edit.editors.configured import configured_editor
from lightning_edit.models import load_language_model
from lightning_edit.records import EditRequest

FOLDER = Path("docs/images")


def draw_edit(path: Path) -> None:
    """What `lightning-edit edit --editor @rome` shows, with a rephrased prompt."""
    model = load_language_model("smollm2-135m-instruct")
    editor = configured_editor("configs/editor/rome.yaml")
    editor.setup(model)
    editor.fit_without_corpus(model)
    request = EditRequest("The capital of France is", target="Rome", subject="France")
    report = edit_report(model, editor.edit(model, [request]), [request])
    console = Console(record=True, width=104, file=StringIO())
    print_answers(report.rows, ["prompt", "before", "after", "P(target)", ""], console)
    console.save_svg(str(path), title='lightning-edit edit --prompt "The capital of France is" --target Rome')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, help="folder of a grid; no leaderboard is drawn without it")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    draw_edit(FOLDER / "edit.svg")
    if options.grid:
        draw_leaderboard(build_report(read_runs([options.grid])), FOLDER / "leaderboard.png")


if __name__ == "__main__":
    main()
