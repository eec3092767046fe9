"""The command line of a command."""

import argparse


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser whose `--help` shows the docstring of a command's module as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m pipeline.commands.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
