"""The mapping of models to deployments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.api import model_mapping
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.errors import SettingsError


@pytest.mark.parametrize(
    ("mapping", "model", "deployment"),
    [
        # the model's own name
        ("", "gpt-4.1", "gpt-4.1"),
        ("", "azure/gpt-4.1", "gpt-4.1"),
        ("", "my deployment/ü", "my deployment/ü"),
        # the defaults
        ("", "gpt-3.5-turbo", "gpt-35-turbo"),
        ("", "gpt-3.5-turbo-16k", "gpt-35-turbo-16k"),
        ("", "gpt-3.5-turbo-0125", "gpt-35-turbo-0125"),
        ("", "whisper-1", "whisper"),
        ("", "tts-1", "tts"),
        ("", "tts-1-hd", "tts-hd"),
        ("", "tts-1-1106", "tts"),
        # precedence: exact name, pattern, dated name
        ("gpt-4o=prod,gpt-4*=other", "gpt-4o", "prod"),
        ("gpt-4o=prod,gpt-4o-*=dated", "gpt-4o-2024-08-06", "dated"),
        ("gpt-4o=prod,*=rest", "gpt-4o-2024-08-06", "rest"),
        ("gpt-4o=prod", "gpt-4o-2024-08-06", "prod"),
        ("gpt-4o=prod", "gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-4=prod", "gpt-4-0613", "prod"),
        ("gpt-4=prod", "gpt-4-1106-preview", "gpt-4-1106-preview"),
        # patterns
        ("*=rest", "anything", "rest"),
        ("gpt-4*=four-*", "gpt-4o", "four-o"),
        ("*-mini=small", "gpt-4o-mini", "small"),
        ("a*a=x", "a", "a"),
        ("gpt*=long,gpt-4*=longer", "gpt-4o", "longer"),
        ("*=x-*", "gpt-4o", "x-gpt-4o"),
        # precedence of the user's entries over the defaults
        ("*=rest", "whisper-1", "rest"),
        ("gpt-3.5-turbo=mine", "gpt-3.5-turbo-0125", "mine"),
        ("gpt-3.5-turbo=mine", "gpt-3.5-turbo-16k", "gpt-35-turbo-16k"),
        # white space and separators
        (" gpt-4o = prod ,\n o1=two,, ", "o1", "two"),
        ("azure/gpt-4o=prod", "gpt-4o", "prod"),
        ("gpt-4o=prod", "azure/gpt-4o", "prod"),
        ("a=b=c", "a", "b=c"),
    ],
)
def test_deployment(mapping: str, model: str, deployment: str) -> None:
    """Each rule of the mapping applies in its order of precedence."""
    assert deployment == Mapper.parse(mapping).deployment(model)


@pytest.mark.parametrize("text", ["gpt-4o", "=x", "x=", "azure/=x", "a*b*=c", "a=b*", "a*=b**", "a=b,a=c"])
def test_an_invalid_pair_is_refused(text: str) -> None:
    """An invalid pair is refused with a one-line error that quotes it."""
    with pytest.raises(SettingsError) as error:
        Mapper.parse(text)
    assert text.rpartition(",")[2].partition("=")[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_pair_twice_is_one() -> None:
    """A repeated pair is accepted; only a contradiction is an error."""
    assert 1 == len(Mapper.parse("a=b,a=b"))


@pytest.mark.parametrize(
    ("mapping", "names"),
    [
        ("", ["gpt-3.5-turbo", "whisper-1", "tts-1", "tts-1-hd"]),
        ("gpt-4o=prod,o1=two", ["gpt-4o", "o1"]),
        ("gpt-4*=four", ["four"]),
        ("gpt-4o*=x-*", ["gpt-4o"]),
        ("*-mini=x-*", []),
        ("*=x-*", []),
        ("a=x,*=a", ["a"]),
    ],
)
def test_names_are_models_that_certainly_answer(mapping: str, names: list[str]) -> None:
    """The list of models has no patterns and no duplicates."""
    assert names == Mapper.parse(mapping).names()


def test_a_model_without_an_entry_is_not_mapped() -> None:
    """A model without an entry is not mapped."""
    mapper = Mapper.parse("gpt-4o=prod")
    assert ("prod", None) == (mapper.mapped("gpt-4o"), mapper.mapped("o1"))


def test_answers_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is looked up once; the cache is limited in the number and the length of names."""
    monkeypatch.setattr(model_mapping, "MOST_KNOWN", 2)
    mapper, long = Mapper.parse("a*=b*"), "a" * (model_mapping.LONGEST_KNOWN + 1)
    for _ in range(2):
        assert ["bx", None, "by", "b" + long[1:]] == [mapper.mapped(model) for model in ("ax", "x", "ay", long)]
    assert {"ax": "bx", "x": None} == mapper._known


def test_mappers_compare_by_their_entries() -> None:
    """Mappers with the same entries are equal and have the same hash."""
    assert Mapper.parse("a=b") == Mapper.parse(" a = b ")
    assert hash(Mapper.parse("a=b")) == hash(Mapper.parse(" a = b "))
    assert Mapper.parse("a=b") != Mapper()


@given(st.text(min_size=1).filter(lambda name: not name.startswith("azure/")))
def test_an_unmapped_name_is_unchanged(model: str) -> None:
    """A model that no entry matches is used unchanged as the deployment, for any name."""
    assert model == Mapper.parse("\x00never=x").deployment(model) or model.startswith(("gpt-3.5-turbo", "whisper-1", "tts-1"))


def test_defaults_are_not_applied_to_deployment_names() -> None:
    """For a client that names deployments the defaults are not applied: a deployment may be called whisper-1."""
    mapper = Mapper.parse("gpt-4o=prod")
    assert ("prod", "whisper-1") == (mapper.configured("gpt-4o"), mapper.configured("whisper-1"))
