"""Whether a model could be pushed is known before it is trained; nobody is asked here but a stand-in for the Hub."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

from sra_data.errors import ConfigError
from sra_train.hub import refuse_unpushable

ANN = {
    "name": "ann",
    "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "museum", "roleInOrg": "read"}],
    "auth": {"accessToken": {"displayName": "laptop", "role": "write"}},
}
ANNS = frozenset({"ann/there", "lab/there"})
OTHERS = frozenset({"bob/there"})


def failed(kind: type[HfHubHTTPError], code: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=code)
    return kind(f"{code} said the Hub\nat length", response=response)


class Hub:
    """What the Hub answers; anything else that is asked of it is an error."""

    def __init__(self, user: Any = ANN) -> None:
        self.user = user
        self.asked: list[str] = []

    def __call__(self) -> Hub:
        return self

    def whoami(self) -> Any:
        self.asked.append("whoami")
        if isinstance(self.user, Exception):
            raise self.user
        return self.user

    def repo_info(self, name: str) -> None:
        self.asked.append(f"repo_info {name}")
        if name not in ANNS | OTHERS:
            raise failed(RepositoryNotFoundError, 404)

    def auth_check(self, name: str, *, write: bool) -> None:
        self.asked.append(f"auth_check {name}")
        assert write
        if name not in ANNS:
            raise failed(HfHubHTTPError, 403)


class OlderHub(Hub):
    """Cannot be asked about writing."""

    def auth_check(self, name: str) -> None:  # type: ignore[override]
        raise AssertionError(name)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def ask(monkeypatch: pytest.MonkeyPatch, name: str, hub: Hub) -> list[str]:
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    refuse_unpushable(name)
    return hub.asked


def refused(monkeypatch: pytest.MonkeyPatch, name: str, hub: Hub) -> str:
    with pytest.raises(ConfigError) as caught:
        ask(monkeypatch, name, hub)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"hub.push_to={name}: ")
    return str(caught.value)


@pytest.mark.parametrize("name", ["ann/new", "lab/new", "new", "ann/there", "lab/there", "there"])
@pytest.mark.parametrize("kind", [Hub, OlderHub])
def test_names_that_can_be_pushed_to_are_let_through(online, monkeypatch, name: str, kind: type[Hub]) -> None:
    asked = ask(monkeypatch, name, kind())
    assert asked[0] == "whoami"
    assert asked[1] == f"repo_info {name if '/' in name else f'ann/{name}'}"


@pytest.mark.parametrize("kind", [Hub, OlderHub])
def test_somebody_elses_repository_is_refused(online, monkeypatch, kind: type[Hub]) -> None:
    assert "ann" in refused(monkeypatch, "bob/there", kind())


def test_a_repository_that_cannot_be_created_is_refused_with_the_owners_there_are(online, monkeypatch) -> None:
    message = refused(monkeypatch, "bob/new", Hub())
    assert "no such repository, and ann does not belong to bob; it can be created for ann, lab" in message
    assert "ann may only read in museum" in refused(monkeypatch, "museum/new", Hub())


def test_a_token_that_only_reads_is_refused_before_anything_else_is_asked(online, monkeypatch) -> None:
    hub = Hub({**ANN, "auth": {"accessToken": {"displayName": "laptop", "role": "read"}}})
    assert "the token 'laptop' of ann may only read" in refused(monkeypatch, "ann/new", hub)
    assert hub.asked == ["whoami"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("no token"), "not logged in to the Hub; log in with `hf auth login`"),
        (failed(HfHubHTTPError, 401), "the Hub does not know the token; log in"),
        (failed(HfHubHTTPError, 500), "500 said the Hub at length; log in"),
        (ConnectionError("no route\nto host"), r"the Hub cannot be asked (no route to host); mend the network"),
    ],
)
def test_whoever_cannot_be_known_is_refused(online, monkeypatch, error: Exception, message: str) -> None:
    assert message in refused(monkeypatch, "ann/new", Hub(error))


@pytest.mark.parametrize("name", ["a/b/c", "ann/what is this", "ann/-x", ""])
def test_what_is_no_name_is_refused_without_asking(online, monkeypatch, name: str) -> None:
    hub = Hub()
    assert "write owner/name" in refused(monkeypatch, name, hub)
    assert hub.asked == []


def test_where_the_hub_is_switched_off_it_is_said_and_not_asked(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = Hub()
    assert "the Hub is switched off (HF_HUB_OFFLINE)" in refused(monkeypatch, "ann/new", hub)
    assert hub.asked == []
