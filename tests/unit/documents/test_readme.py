"""The documents name each option and each target."""

import pytest

from azure_openai_proxy.config.options import OPTIONS
from support.processes import ROOT


@pytest.mark.parametrize("document", ["README.md", "mitm_config.yaml"])
def test_every_option_is_explained(document: str) -> None:
    """Each option is documented."""
    text = (ROOT / document).read_text()
    assert [] == [option.name for option in OPTIONS if option.name not in text]
