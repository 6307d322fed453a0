"""Whether a finished model could be pushed, asked before it is trained: who we are, and whether we may write there.

Nothing is made or changed on the Hub. What it would say to a push hours later is asked in at most three questions: who
the token belongs to, whether the repository exists and may be written to, and, where there is none, whether its owner
is one we may create it for. What only the push itself can show (a quota, a rule of the organisation) is not found here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sra_data.errors import ConfigError, SRAError

LOG_IN = "log in with `hf auth login`, or leave hub.push_to out"
READ_ONLY = frozenset({"read", "no_access"})  # roles in an organisation


def refuse_unpushable(name: str) -> None:
    """Refuse a name on the Hub that the finished model could not be pushed to.

    Args:
        name: "owner/name", or a name alone for the user's own.

    Raises:
        ConfigError: One line.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    where = f"hub.push_to={name}"
    offline = f"{where}: the Hub is switched off (HF_HUB_OFFLINE); unset it, or leave hub.push_to out"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}; write owner/name") from None
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(offline)
    api = HfApi()
    try:
        user = api.whoami()
        refuse_read_token(where, user)
        owner, slash, _ = name.rpartition("/")
        full = name if slash else f"{user['name']}/{name}"
        try:
            api.repo_info(full)
        except RepositoryNotFoundError:
            refuse_foreign_owner(where, owner, user)
        else:
            refuse_unwritable(where, full, api, user)
    except SRAError:
        raise
    except OfflineModeIsEnabled:
        raise ConfigError(offline) from None
    except LocalTokenNotFoundError:
        raise ConfigError(f"{where}: not logged in to the Hub; {LOG_IN}") from None
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        reason = "the Hub does not know the token" if code == 401 else _one_line(error)
        raise ConfigError(f"{where}: {reason}; {LOG_IN}") from None
    except Exception as error:  # no network, a proxy's page in place of an answer: errors of several libraries
        raise ConfigError(
            f"{where}: the Hub cannot be asked ({_one_line(error)}); mend the network, or leave hub.push_to out"
        ) from None


def refuse_read_token(where: str, user: Mapping[str, Any]) -> None:
    """Refuse a token that may only read.

    Raises:
        ConfigError: Naming it.
    """
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise ConfigError(
            f"{where}: the token {token.get('displayName', '')!r} of {user['name']} may only read; log in with one that"
            " may write, by `hf auth login`, or leave hub.push_to out"
        )


def refuse_foreign_owner(where: str, owner: str, user: Mapping[str, Any]) -> None:
    """Refuse to create a repository for somebody else; `owner` is empty for the user.

    Raises:
        ConfigError: With the owners there are.
    """
    roles = {org["name"]: org.get("roleInOrg") for org in user.get("orgs") or ()}
    writable = [user["name"], *(name for name, role in roles.items() if role not in READ_ONLY)]
    if not owner or owner in writable:
        return
    why = f"{user['name']} may only read in {owner}" if owner in roles else f"{user['name']} does not belong to {owner}"
    raise ConfigError(f"{where}: there is no such repository, and {why}; it can be created for {', '.join(writable)}")


def refuse_unwritable(where: str, full: str, api: Any, user: Mapping[str, Any]) -> None:
    """Refuse a repository that exists and cannot be written to.

    Raises:
        ConfigError: Saying so.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.auth_check(full, write=True)
    except TypeError:  # releases that cannot ask about writing: the owner tells
        refuse_foreign_owner(where, full.partition("/")[0], user)
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", None) not in (401, 403, 404):
            raise
        raise ConfigError(
            f"{where}: the repository exists, and {user['name']} may not write to it; choose another name"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
