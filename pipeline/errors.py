"""What a stage tells its user when it cannot go on."""


class PipelineError(Exception):
    """Something outside the program is wrong: the message says what, where, and what to do about it."""
