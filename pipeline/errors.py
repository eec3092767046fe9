"""What a stage tells its user when it cannot go on."""

import os
import re
from urllib.parse import unquote

# What stands before the @ of an address: a user's name, which may be a token, and a password of any characters.
PASSWORD = re.compile(r"(?<=://)(?:[^\s/?#'\"@:]*:[^\s'\"]*|[^\s/?#'\"]*)(?=@)")
NAMES = "password|passwd|pass|pwd|token|key|keyid|secret|sig|signature|credential|auth|odbc_connect"
PARAMETER = re.compile(rf"(?i)([?&][\w-]*(?:{NAMES})=)[^&\s'\"]+")
ADDRESSES = ("MLFLOW_TRACKING_URI", "DATASET_MIRROR")  # variables that may hold a password
SHORT = 3  # characters: what is no longer may be a part of any word


def without_secrets(text: str) -> str:
    """A text in which no address has a password, a token, or a user's name, which may be one."""
    for secret in known_secrets():
        text = text.replace(secret, "***")
    return PARAMETER.sub(r"\1***", PASSWORD.sub("***", text))


def known_secrets() -> list[str]:
    """The passwords and parameters in the addresses that this process was told, as they stand there and decoded."""
    found = set()
    for address in filter(None, map(os.environ.get, ADDRESSES)):
        _, _, rest = address.partition("://")
        user, at, _ = rest.rpartition("@")
        query = rest.partition("?")[2] if "?" in rest else ""
        parts = [user.partition(":")[2] or user] if at else []
        found |= {variant for part in [*parts, query] for variant in (part, unquote(part)) if len(variant) > SHORT}
    return sorted(found, key=len, reverse=True)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or else the kind of error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class PipelineError(Exception):
    """Something outside the program is wrong: the message says what, where, and what to do about it.

    Addresses in it are shown without passwords.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))
