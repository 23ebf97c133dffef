"""The documents name what there is."""

import pytest

from azure_openai_proxy.config.options import OPTIONS
from support.processes import ROOT


@pytest.mark.parametrize("document", ["README.md", "mitm_config.yaml"])
def test_every_option_is_explained(document: str) -> None:
    """An option that nobody reads of is not there."""
    text = (ROOT / document).read_text()
    assert [] == [option.name for option in OPTIONS if option.name not in text]
