"""The check that holds documents against the table of options."""

from __future__ import annotations

import re

import options_table
import pytest

from azure_openai_proxy.config.options import OPTIONS

ROW = re.compile(r"^(\S+)=(.*)$", re.MULTILINE)
LINES = [f"{option.name}={options_table.default(option) or 'words'}" for option in OPTIONS]


def test_the_documents_agree(capsys: pytest.CaptureFixture[str]) -> None:
    """README.md and mitm_config.yaml name every option once, with its default."""
    assert (0, "") == (options_table.main(), capsys.readouterr().out)


@pytest.mark.parametrize(
    "change, found",
    [
        ({}, []),
        ({"azure_openai_max_attempts=4": "azure_openai_max_attempts=5"}, ["the default of azure_openai_max_attempts is 4, not 5"]),
        ({"azure_openai_repair=true": ""}, ["azure_openai_repair is missing"]),
        ({"azure_openai_repair=true": "azure_openai_repair=true\nazure_openai_repair=true"}, ["azure_openai_repair is there 2 times"]),
        ({"azure_openai_repair=true": "azure_openai_repair=true\nazure_openai_mend=true"}, ["azure_openai_mend is no option"]),
    ],
)
def test_what_differs_is_reported(change: dict[str, str], found: list[str]) -> None:
    """A missing, repeated or unknown option and another default are reported; other text is ignored."""
    text = "\n".join(change.get(line, line) for line in LINES)
    assert found == options_table.differences(text, ROW)
