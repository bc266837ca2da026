"""The command line, command by command. Importing it registers them all, in the order of `sirius --help`."""

from sirius_rec.commands import data, runs, serve, study
from sirius_rec.commands.common import app

__all__ = ["app", "data", "runs", "serve", "study"]
