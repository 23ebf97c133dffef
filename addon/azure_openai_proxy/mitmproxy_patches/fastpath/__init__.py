"""The fast path: shortcuts through mitmproxy that save CPU time and change nothing else. `azure_openai_fast_path` turns it off."""
