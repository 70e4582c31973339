"""Runs the command line as ``python -m lightning_edit``."""

import sys

from lightning_edit.cli import main

if __name__ == "__main__":
    sys.exit(main())
