"""The command line, command by command. Importing it registers them all, in the order of `sirius --help`."""

from importlib import import_module

from sirius_rec.commands.common import app

for _topic in ("runs", "data", "serve", "service", "study"):
    import_module(f"sirius_rec.commands.{_topic}")

__all__ = ["app"]
