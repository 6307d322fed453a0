"""What both packages ask of the Hub: whether one may write there, and what it refuses, each in one line.

Nothing is made or changed there by anything in here. What a push would be told hours later is asked in at most three
questions: who the token belongs to, whether the repository exists and may be written to, and, where there is none,
whether its owner is one we may create it for. What only the push itself can show (a quota, a rule of the
organisation) is not found here. A token is never part of a message, whatever the library says of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sra_data.errors import ConfigError, SRAError

Kind = Literal["model", "dataset"]
READ_ONLY = frozenset({"read", "no_access"})  # roles in an organisation
TOKEN = re.compile(r"\b(hf|api_org)_\w+")
LONGEST_REASON = 160
UNKNOWN, FORBIDDEN, ABSENT = 401, 403, 404  # status codes


@dataclass(frozen=True)
class Asking:
    """Who asks the Hub for what.

    Attributes:
        where: the option or argument with its value, as a message begins.
        instead: what to do where the Hub is not wanted after all, as a message ends; may be empty.
        page: the repository's page, where a gated one is asked for; may be empty.
    """

    where: str
    instead: str = ""
    page: str = ""

    def remedy(self, what: str) -> str:
        """What to do, with what to do instead."""
        return f"{what}, or {self.instead}" if self.instead else what

    def log_in(self) -> str:
        """The remedy for who is not known."""
        return self.remedy("log in with `hf auth login`")

    def switched_off(self) -> ConfigError:
        """The refusal where no network is wanted."""
        return ConfigError(f"{self.where}: the Hub is switched off (HF_HUB_OFFLINE); {self.remedy('unset it')}")


@contextmanager
def in_one_line(asking: Asking) -> Iterator[None]:
    """Whatever the Hub, its library or the network raise, as one line.

    Raises:
        ConfigError: In place of any exception that is not an `SRAError`.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = asking.where
    try:
        yield
    except SRAError:
        raise
    except OfflineModeIsEnabled:
        raise asking.switched_off() from None
    except LocalTokenNotFoundError:
        raise ConfigError(f"{where}: not logged in to the Hub; {asking.log_in()}") from None
    except GatedRepoError:
        raise ConfigError(
            f"{where}: gated, and access was not given to you; ask for it at {asking.page or 'its page'}, then log in "
            "with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ConfigError(f"{where}: there is no such revision; leave it out for the main branch") from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{where}: there is no such repository, or it is private and not yours to read; check the name, or "
            f"{asking.log_in()}"
        ) from None
    except HfHubHTTPError as error:
        is_unknown = getattr(error.response, "status_code", None) == UNKNOWN
        reason = "the Hub does not know the token" if is_unknown else reason_of(error)
        raise ConfigError(f"{where}: {reason}; {asking.log_in()}") from None
    except Exception as error:  # no network, a proxy's page in place of an answer: errors of several libraries
        if isinstance(error.__cause__, HfHubHTTPError | LocalTokenNotFoundError | OfflineModeIsEnabled):
            with in_one_line(asking):  # what the library has wrapped says more
                raise error.__cause__ from None
        raise ConfigError(
            f"{where}: the Hub cannot be asked ({reason_of(error)}); {asking.remedy('mend the network')}"
        ) from None


def reason_of(error: Exception) -> str:
    """What a library says, on one line, without a token."""
    said = " ".join(TOKEN.sub("***", str(error)).split())
    return said[:LONGEST_REASON].rstrip(".") or type(error).__name__


def refuse_switched_off(asking: Asking) -> None:
    """Refuse to ask a Hub that is switched off.

    Raises:
        ConfigError: If HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise asking.switched_off()


def refuse_no_name(name: str, asking: Asking) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ConfigError: With the library's reason.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{asking.where}: {reason_of(error)}; write owner/name") from None


def refuse_unwritable(name: str, asking: Asking, *, kind: Kind = "model") -> bool:
    """Refuse a name on the Hub that nothing could be pushed to.

    Args:
        name: "owner/name", or a name alone for the user's own.
        asking: who asks.
        kind: of the repository.

    Returns:
        Whether the repository exists.

    Raises:
        ConfigError: One line.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    refuse_no_name(name, asking)
    refuse_switched_off(asking)
    api: Any = HfApi()
    of_kind = {} if kind == "model" else {"repo_type": kind}
    with in_one_line(asking):
        user = api.whoami()
        _refuse_read_token(asking, user)
        owner, slash, _ = name.rpartition("/")
        full = name if slash else f"{user['name']}/{name}"
        try:
            api.repo_info(full, **of_kind)
        except GatedRepoError:  # it exists; whether it may be written to is the next question
            pass
        except RepositoryNotFoundError:
            _refuse_foreign_owner(asking, owner, user)
            return False
        _refuse_foreign_repository(asking, full, api, user, of_kind)
    return True


def _refuse_read_token(asking: Asking, user: Mapping[str, Any]) -> None:
    """Refuse a token that may only read, naming it as its owner does."""
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        remedy = asking.remedy("log in with one that may write, by `hf auth login`")
        named = f"the token {token.get('displayName', '')!r} of {user['name']}"
        raise ConfigError(f"{asking.where}: {named} may only read; {remedy}")


def _refuse_foreign_owner(asking: Asking, owner: str, user: Mapping[str, Any]) -> None:
    """Refuse to create a repository for somebody else; `owner` is empty for the user."""
    roles = {org["name"]: org.get("roleInOrg") for org in user.get("orgs") or ()}
    writable = [user["name"], *(name for name, role in roles.items() if role not in READ_ONLY)]
    if not owner or owner in writable:
        return
    why = f"{user['name']} may only read in {owner}" if owner in roles else f"{user['name']} does not belong to {owner}"
    known = ", ".join(writable)
    raise ConfigError(f"{asking.where}: there is no such repository, and {why}; it can be created for {known}")


def _refuse_foreign_repository(
    asking: Asking, full: str, api: Any, user: Mapping[str, Any], of_kind: Mapping[str, str]
) -> None:
    """Refuse a repository that exists and cannot be written to."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.auth_check(full, write=True, **of_kind)
    except TypeError:  # releases that cannot ask about writing: the owner tells
        _refuse_foreign_owner(asking, full.partition("/")[0], user)
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", None) not in (UNKNOWN, FORBIDDEN, ABSENT):
            raise
        said = f"the repository exists, and {user['name']} may not write to it"
        raise ConfigError(f"{asking.where}: {said}; choose another name") from None
