"""What a stage tells its user when it cannot go on."""

import re

# What stands before the @ of an address: a user's name, which may be a token, and a password of any characters.
PASSWORD = re.compile(r"(?<=://)(?:[^\s/?#'\"@:]*:[^\s'\"]*|[^\s/?#'\"]*)(?=@)")
PARAMETER = re.compile(r"(?i)([?&][\w-]*(?:password|passwd|pwd|token|key|secret|sig|signature|credential)=)[^&\s'\"]+")


def without_secrets(text: str) -> str:
    """A text in which no address has a password, a token, or a user's name, which may be one."""
    return PARAMETER.sub(r"\1***", PASSWORD.sub("***", text))


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or else the kind of error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class PipelineError(Exception):
    """Something outside the program is wrong: the message says what, where, and what to do about it.

    Addresses in it are shown without passwords.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))
