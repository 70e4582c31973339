"""Serves a model with edits that can be changed while it runs; needs the packages fastapi and uvicorn."""

from lightning_edit.serving.app import create_app
from lightning_edit.serving.engine import Completion, Engine

__all__ = ["Completion", "Engine", "create_app"]
