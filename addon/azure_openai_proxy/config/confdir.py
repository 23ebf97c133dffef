"""The check of mitmproxy's folder (`confdir`), which has its CA and its config.yaml."""

from __future__ import annotations

import tempfile

from azure_openai_proxy.errors import SettingsError
from azure_openai_proxy.formats.paths import expanded

__all__ = ["check_confdir"]


def check_confdir(confdir: str) -> None:
    """Check that mitmproxy has its CA or can make one; it would fail with a traceback.

    Raises:
        SettingsError: it cannot.
    """
    wrong = f"{confdir} cannot be written"
    try:
        folder = expanded(confdir)
        wrong = f"{folder} cannot be written"
        if (ca := folder / "mitmproxy-ca.pem").exists():
            wrong = f"{ca} cannot be read"
            with ca.open("rb"):
                return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"{wrong} ({reason}): set confdir (--set confdir=FOLDER) or HOME to a folder that can be read and written."
        ) from None
