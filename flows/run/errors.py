"""Which errors may pass by themselves: of the network, of storage, of the hub. No Prefect in here.

The packages that raise them need not be installed, so their exceptions are known by name.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["UsageError", "annotate", "one_line", "transient"]


T = TypeVar("T")


class UsageError(ValueError):
    """A command or a request that names what does not exist, or does not go together: exit code 2."""


# By package. What derives from them counts too.
_NAMES = {
    "aiohttp": {"ClientConnectionError", "ClientPayloadError"},
    "botocore": {"ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseStreamingError"},
    "fsspec": {"FSTimeoutError"},
    "http": {"HTTPException"},
    "httpcore": {"NetworkError", "RemoteProtocolError", "TimeoutException"},
    "httpx": {"NetworkError", "RemoteProtocolError", "TimeoutException"},
    "requests": {"ChunkedEncodingError", "ConnectionError", "Timeout"},
    "socket": {"gaierror"},
    "urllib3": {"MaxRetryError", "NewConnectionError", "ProtocolError", "TimeoutError"},
}
_NAMES |= {"httpcore2": _NAMES["httpcore"], "httpx2": _NAMES["httpx"]}  # as the hub's client calls them
# EREMOTEIO and EBUSY: what s3fs makes of "internal error" and "slow down".
_ERRNOS = {
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EBUSY", "EAGAIN", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EPIPE"),
    )
    if hasattr(errno, name)
}
_STATUSES = {408, 425, 429}
# They stay, whatever is wrapped around them: a person took the network away, or must fix a certificate.
_LASTING = {"OfflineModeIsEnabled", "SSLCertVerificationError"}
# Of the machine, of the person, or ours, also where they come up while a lost connection is dealt with.
_OTHERS = (
    *(PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, MemoryError, AssertionError),
    *(ArithmeticError, AttributeError, LookupError, NameError, NotImplementedError, TypeError),
)
_KEPT = "transient_reason"


def transient(error: BaseException) -> str:
    """Why the same may work a little later, such as "ConnectError", "HTTP 503" or "ESTALE"; empty: it will not."""
    kept: str | None = getattr(error, _KEPT, None)
    if kept is not None:
        return kept
    links = list(_chain(error))
    if any(_LASTING & {kind.__name__ for kind in type(link).__mro__} for link in links):
        return ""
    # The outermost one that decides: what lies deeper may have been dealt with.
    return next((reason for link in links if (reason := _reason(link)) is not None), "")


def annotate(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a child process. An error that it raises carries why it may pass to the parent process.

    Pickling would lose that: an error arrives in the parent without the errors that it came from.
    """
    try:
        return function(*args)
    except Exception as error:
        setattr(error, _KEPT, transient(error))
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _reason(error: BaseException) -> str | None:
    """Why this very error may pass; empty: it does not; None: only the error that it came from can say."""
    status = _status(error)
    if status:
        return f"HTTP {status}" if status in _STATUSES or status >= 500 else ""
    if isinstance(error, _OTHERS):
        return ""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in _ERRNOS:
        return errno.errorcode[number]
    if isinstance(error, ConnectionError | TimeoutError) or _named(error):
        return type(error).__name__
    # A full disk and the like. What is not found may be a copy that there is none of since the hub could not be asked.
    return "" if number is not None and not isinstance(error, FileNotFoundError) else None


def _named(error: BaseException) -> bool:
    return any(kind.__name__ in _NAMES.get(kind.__module__.partition(".")[0], ()) for kind in type(error).__mro__)


def _status(error: BaseException) -> int:
    """The status of the HTTP response behind an error; 0: there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # aiohttp has it on the error itself, the others on the response
        found = getattr(response, "status_code", None) or getattr(error, "status", None)
    return found if isinstance(found, int) else 0


_WORDS = {
    "Input should be": "expected",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    ", unable to interpret input": "",
}


def one_line(error: BaseException) -> str:
    """An error as one line for a person; of a config that was refused, each setting with what it got."""
    import pydantic

    if isinstance(error, pydantic.ValidationError):
        return "; ".join(_one_setting(one) for one in error.errors())
    return " ".join(str(error).split()) or type(error).__name__


def _one_setting(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no such setting"
    if error["type"] == "value_error":  # our own words, which say what came
        return f"{place}: {message}" if place else message
    for pydantics, ours in _WORDS.items():
        message = message.replace(pydantics, ours)
    return f"{place} is {error['input']!r}; {message[:1].lower()}{message[1:]}"
