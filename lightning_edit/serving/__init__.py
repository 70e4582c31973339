"""Serves a model whose edits can be changed at run time; needs the packages fastapi and uvicorn."""

from lightning_edit.serving.app import create_app
from lightning_edit.serving.engine import Completion, Engine

__all__ = ["Completion", "Engine", "create_app"]
