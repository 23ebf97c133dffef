"""For a container's health check: does the proxy answer, where its environment says it listens?"""

import os
import sys
import urllib.request

port = os.environ.get("AZURE_OPENAI_PROXY_ADDRESS", "").rpartition(":")[2] or "8080"
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with direct.open(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
    sys.exit(answer.status != 200)
