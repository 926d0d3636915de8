"""Asking the hub: again where that may help, and where it does not, one sentence that says what to do."""

from __future__ import annotations

import errno
import logging
import re
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from json import JSONDecodeError
from types import ModuleType
from typing import Any, TypeVar

Answer = TypeVar("Answer")

TIMEOUT = 30.0  # seconds that a small question may take; the client itself would wait for ever
WAITS = (1.0, 2.0, 4.0)  # seconds before asking again
LONGEST = 60.0  # seconds that a busy hub may tell us to wait
TRANSIENT = (408, 429, 500, 502, 503, 504)
PERSISTENT = ("/preupload/", "/info/lfs/objects/")  # requests that the client repeats itself, as it does HEAD and PUT
CONFLICT = (409, 412)
CHANGED = "somebody changed it in the meantime; look at it, and run the same command again"
CUT_SHORT = "Consistency check failed"  # how the client says that fewer bytes came than were promised
NO_XET = re.compile(r"\b404 .*/xet-(read|write)-token/")  # in what the Xet client says of a hub that has none
LONGEST_QUOTE = 300  # characters of what the hub says
LOGIN = "set HF_TOKEN or run `hf auth login`"
NOT_UNDERSTOOD = (ValueError, KeyError, TypeError, AttributeError, AssertionError)  # what malformed answers end in

log = logging.getLogger(__name__)


class Unanswered(OSError):
    """The hub gave no answer, or none for now; what lies in its cache may do."""


class NoRepository(FileNotFoundError):
    """There is none of that name, as far as this token may see."""


@dataclass(frozen=True)
class About:
    """What is asked about, for the sentence that says why not."""

    repo: str
    revision: str | None = None
    writing: bool = False

    @property
    def lead(self) -> str:
        if self.writing:
            return f"{self.repo} could not be written:"
        where = f"revision {self.revision} of {self.repo}" if self.revision else self.repo
        return f"{where} is not a folder here, and"


def ask(about: About, question: Callable[[], Answer]) -> Answer:
    """What `question`, a call of huggingface_hub, returns; asked up to four times, then refused in one sentence."""
    for wait in (*WAITS, None):
        try:
            return question()
        except Exception as error:  # the client raises its own, its transport's, and whatever malformed answers cause
            wait_out(error, about, wait)
    raise AssertionError("the last wait is None")


def wait_out(error: Exception, about: About, wait: float | None, statuses: Collection[int] = TRANSIENT) -> None:
    """Wait for as long as the hub says, or else `wait` seconds; refuse where that is hopeless, or `wait` None.

    statuses: answers that asking again may change.
    """
    pause = None if wait is None else pause_after(error, wait, statuses)
    if pause is None:
        raise refusal(error, about) from error
    log.warning("%s; trying again in %g s", what_happened(error), pause)
    time.sleep(pause)


def transport() -> ModuleType:
    """The package that this huggingface_hub speaks HTTP with: httpx or httpx2."""
    from huggingface_hub import errors

    return sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


def failed_request(error: BaseException) -> Any:
    """The exception among `error` and its causes that a request ended in, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, transport().HTTPError):
            return seen
        seen = seen.__cause__
    return None


def status_of(error: BaseException) -> int | None:
    return getattr(getattr(failed_request(error), "response", None), "status_code", None)


def pause_after(error: Exception, wait: float, statuses: Collection[int] = TRANSIENT) -> float | None:
    """Seconds after which to ask again, or None where that is hopeless, or the client has done it already."""
    failed, http = failed_request(error), transport()
    if failed is None:
        return wait if CUT_SHORT in str(error) else None
    if isinstance(failed, http.ConnectError):
        return None  # nobody is there
    response = getattr(failed, "response", None)
    request = response.request if response is not None else getattr(failed, "_request", None)
    if request is not None and (request.method in ("HEAD", "PUT") or any(p in str(request.url) for p in PERSISTENT)):
        return None
    if response is None:
        return wait
    if response.status_code not in statuses:
        return None
    asked = retry_after(response)
    return wait if asked is None else asked if asked <= LONGEST else None


def retry_after(response: Any) -> float | None:
    """Seconds that the answer says to wait, if it says so."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def refusal(error: Exception, about: About) -> Exception:
    """The exception to raise instead: one sentence, no token, no address of an upload."""
    from huggingface_hub import errors

    repo, revision = about.repo, about.revision
    if isinstance(error, errors.GatedRepoError):
        return ValueError(f"{repo} is gated; ask for access at {page(repo)}, then {LOGIN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return LookupError(f"{repo} has no revision {revision!r}; leave --revision out for its main branch")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return PermissionError(f"the hub asks who is writing to {repo}, and there is no token here; {LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        if about.writing:
            return NoRepository(f"there is no repository {repo} that this token may see; check the spelling")
        return NoRepository(  # the hub answers 401 for what it hides, so both are possible
            f"there is neither a folder {repo} here nor a public repository of that name on the hub; "
            f"check the spelling, or set HF_TOKEN if the repository is private"
        )
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{repo!r} is no name of a repository; pass ORG/NAME")
    sentence = f"{about.lead} {why_not(error, about)}"
    status = status_of(error)
    if status in TRANSIENT or (status is None and no_answer(error)):
        return Unanswered(sentence)
    return FileNotFoundError(sentence) if not about.writing else OSError(sentence)


def no_answer(error: Exception) -> bool:
    """Whether no answer came: no network, a connection that broke, or told to use none."""
    from huggingface_hub import errors

    return failed_request(error) is not None or isinstance(error, ConnectionError | errors.EntryNotFoundError)


def what_happened(error: BaseException) -> str:
    """What kept the hub from doing it."""
    if status := status_of(error):
        return f"the hub answered {status}"
    if CUT_SHORT in str(error):
        return "a file came cut short"
    failed = failed_request(error)
    if failed is None or isinstance(failed, transport().ConnectError):
        return "the hub cannot be reached"
    return "the connection to the hub broke off"


def why_not(error: Exception, about: About) -> str:
    """What kept the hub from doing it, and what to do."""
    from huggingface_hub import errors

    if NO_XET.search(str(error)):
        return "this hub has no Xet storage; set HF_HUB_DISABLE_XET=1 and run the same command again"
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the hub's cache has no complete copy; unset it, or pass a local folder"
    if status_of(error) or no_answer(error) or CUT_SHORT in str(error):
        return f"{what_happened(error)}; {remedy(error, about)}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, or set HF_HOME to a folder on another disk"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename} cannot be used ({error.strerror}); set HF_HOME to a folder that can"
    if about.writing and isinstance(error, ValueError) and not isinstance(error, JSONDecodeError):
        return f"the hub does not take it: {' '.join(str(error).split())[:LONGEST_QUOTE]}"
    if isinstance(error, NOT_UNDERSTOOD):
        return f"what {endpoint()} answers is not understood; is HF_ENDPOINT the address of a hub?"
    return f"the client stopped with {type(error).__name__}; try again"


def remedy(error: Exception, about: About) -> str:
    """What to do about an answer that is no success, or about none."""
    status = status_of(error)
    if status == 429 and (seconds := retry_after(failed_request(error).response)):
        return f"it is busy; try again in {seconds:g} s"
    if status in (401, 403, 404):
        return f"set HF_TOKEN to a token that may {'write to' if about.writing else 'read'} it"
    if status in CONFLICT:
        return CHANGED
    if status is None and not about.writing and CUT_SHORT not in str(error):
        return "there is no complete copy in its cache; connect, or pass a local folder"
    return "run the same command again later"


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def page(repo: str) -> str:
    """Where people look at a repository."""
    return f"{endpoint()}/{repo}"
