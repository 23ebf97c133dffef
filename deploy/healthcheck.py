"""A container's health check: exit with 0 if the proxy responds at the port in AZURE_OPENAI_PROXY_ADDRESS."""

import os
import sys
import urllib.request

port = os.environ.get("AZURE_OPENAI_PROXY_ADDRESS", "").rpartition(":")[2] or "8080"
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with direct.open(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
    sys.exit(answer.status != 200)
