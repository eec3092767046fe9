"""What a stage tells its user when it cannot go on."""

import os
import re
from urllib.parse import unquote

# The user name, which may be a token, and the password before the @ of an address.
PASSWORD = re.compile(r"(?<=://)(?:[^\s/?#'\"@:]*:[^\s'\"]*|[^\s/?#'\"]*)(?=@)")
NAMES = "password|passwd|pass|pwd|token|key|keyid|secret|sig|signature|credential|auth|odbc_connect"
PARAMETER = re.compile(rf"(?i)([?&][\w-]*(?:{NAMES})=)[^&\s'\"]+")
ADDRESSES = ("MLFLOW_TRACKING_URI", "DATASET_MIRROR")  # environment variables that may hold a password
SHORT = 3  # characters: replacing such a short password would mask parts of ordinary words


def without_secrets(text: str) -> str:
    """Mask user names, passwords and tokens in the addresses of a text."""
    for secret in known_secrets():
        text = text.replace(secret, "***")
    return PARAMETER.sub(r"\1***", PASSWORD.sub("***", text))


def known_secrets() -> list[str]:
    """Passwords and query strings of the addresses in the environment, raw and URL-decoded, longest first."""
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
