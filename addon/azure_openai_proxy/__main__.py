"""`python -m azure_openai_proxy` prints the path of the script for mitmproxy: `mitmdump -s "$(python -m azure_openai_proxy)"`."""

from .cli.launcher import SCRIPT

if __name__ == "__main__":
    print(SCRIPT)  # noqa: T201 - the output of this command
