"""`python -m azure_openai_proxy` prints what mitmproxy loads: `mitmdump -s "$(python -m azure_openai_proxy)"`."""

from .cli.launcher import SCRIPT

if __name__ == "__main__":
    print(SCRIPT)  # noqa: T201 - printing it is all this does
