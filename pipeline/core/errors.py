"""The error that stages report to the user, and the masking of secrets in texts."""

import os
import re
from urllib.parse import unquote

# The user name, which may be a token, and the password: the part of a URL before the @.
PASSWORD = re.compile(r"(?<=://)(?:[^\s/?#'\"@:]*:[^\s'\"]*|[^\s/?#'\"]*)(?=@)")
NAMES = "password|passwd|pass|pwd|token|key|keyid|secret|sig|signature|credential|auth|odbc_connect"
PARAMETER = re.compile(rf"(?i)([?&][\w-]*(?:{NAMES})=)[^&\s'\"]+")
ADDRESSES = ("MLFLOW_TRACKING_URI", "DATASET_MIRROR", "SWEEP_STORAGE")  # environment variables that may hold a password
# Messages about exhausted memory: of TensorFlow, JAX, PyTorch, CUDA's libraries and NumPy, which share no class.
EXHAUSTED = re.compile(
    r"(?i)out.of.memory|OOM when|RESOURCE_EXHAUSTED|allocate memory|ALLOC(ATION)?_FAILED|(unable|failed) to allocate|"
    "Dst tensor is not initialized"
)
# Messages about a lost connection: of JAX's coordinator, Gloo, which connects CPUs, and NCCL, which connects GPUs.
DISCONNECTED = re.compile(r"(?i)gloo|nccl|coordination|connection (closed|reset|refused)|UNAVAILABLE|DEADLINE_EXCEEDED")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_LINE, LONGEST_MESSAGE = 1000, 20_000  # characters
SHORT = 3  # characters; masking a password this short would mask parts of ordinary words


def without_secrets(text: str) -> str:
    """Mask user names, passwords and tokens in the URLs of a text."""
    for secret in known_secrets():
        text = text.replace(secret, "***")
    return PARAMETER.sub(r"\1***", PASSWORD.sub("***", text))


def shown(text: str) -> str:
    """One line for a terminal: control characters are escaped, and the middle of a long text is left out."""
    text = CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 2 :]}"


def known_secrets() -> list[str]:
    """Passwords and query strings of the URLs in the environment, raw and URL-decoded, longest first."""
    found = set()
    for address in filter(None, map(os.environ.get, ADDRESSES)):
        _, _, rest = address.partition("://")
        user, at, _ = rest.rpartition("@")
        query = rest.partition("?")[2] if "?" in rest else ""
        parts = [user.partition(":")[2] or user] if at else []
        found |= {variant for part in [*parts, query] for variant in (part, unquote(part)) if len(variant) > SHORT}
    return sorted(found, key=len, reverse=True)


def first_line(error: BaseException) -> str:
    """First non-blank line of an error's message without secrets, or the name of its class if there is no such line."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return without_secrets(line[:LONGEST_MESSAGE])


def is_exhausted(error: BaseException) -> bool:
    """Whether an error of a library says that memory does not suffice, a GPU's or the processor's."""
    explained = isinstance(error, PipelineError)
    return not explained and (isinstance(error, MemoryError) or bool(EXHAUSTED.search(str(error))))


def is_disconnected(error: BaseException) -> bool:
    """Whether an error of a library says that the connection to another process of the training was lost."""
    return not isinstance(error, PipelineError) and bool(DISCONNECTED.search(str(error)))


class PipelineError(Exception):
    """An error whose cause is outside the program: the message says what is wrong, where, and what to do.

    Passwords in its URLs are masked, control characters are escaped, and long lines are cut: it may quote a file.
    """

    def __init__(self, message: str) -> None:
        masked = without_secrets(message[:LONGEST_MESSAGE])  # which takes quadratic time
        super().__init__("\n".join(map(shown, masked.split("\n"))))


class LostProcessError(PipelineError):
    """Another process of the training was lost. The training can continue from its checkpoint."""


class UsedElsewhereError(PipelineError):
    """Another process uses the project at its earlier location, to which new records would go."""
