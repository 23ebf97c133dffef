"""Record a session of a real agent: `PYTHONPATH=addon:tests python -m sessions.record NAME COMMAND ...`.

The agent talks to the simulator, whose model follows the script in the question, through a real mitmdump. The environment variables
`OPENAI_BASE_URL` and `OPENAI_API_KEY` of the command name the proxy. The programs are in `clients/sessions`; each needs an environment with
its own packages: openai-agents, langchain-openai and langgraph, ai and @ai-sdk/openai and zod, @openai/codex, aider-chat.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mitmproxy.certs import CertStore

from azure_simulator import PromptCache, Simulator, planned
from support.processes import Mitmdump

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    name, *command = arguments
    with Simulator() as azure, tempfile.TemporaryDirectory() as folder:
        azure.script, azure.prompt_cache = planned, PromptCache()
        confdir = Path(folder) / "confdir"
        confdir.mkdir()
        CertStore.from_store(confdir, "mitmproxy", 2048)
        file = Path(folder) / "flows"
        options = {"azure_openai_endpoint": azure.http_url, "azure_openai_token": azure.key, "save_stream_file": file}
        with Mitmdump(Path(folder) / "home", confdir, options=options) as proxy:
            env = {**os.environ, "OPENAI_BASE_URL": f"{proxy.url}/v1", "OPENAI_API_KEY": "client-key"}
            subprocess.run(command, env=env, check=True, timeout=300)
        Path(__file__).with_name(f"{name}.flows.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1:])
