"""The parser of a command's arguments."""

from __future__ import annotations

import argparse
from typing import NoReturn

from azure_openai_proxy.formats import quoting

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the arguments' control characters."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {quoting.line(message)}\n")
