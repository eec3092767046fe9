"""What a stage tells its user when it cannot go on."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or else the kind of error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class PipelineError(Exception):
    """Something outside the program is wrong: the message says what, where, and what to do about it."""
