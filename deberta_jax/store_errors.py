"""What an error of a store means: a fault, which is raised, or an outage, which is waited for."""

import os
import re

from .errors import MissingFileError, UserError, one_line

# Names of exceptions that say that no access is possible, of packages that need not be installed.
_NO_CREDENTIALS = re.compile(
    r"(NoCredentials|PartialCredentials|CredentialRetrieval|DefaultCredentials|Refresh|TokenRetrieval|"
    r"UnauthorizedSSOToken|ProfileNotFound|NoAuthToken|ClientAuthentication)Error|ProfileNotFound"
)
_PACKAGES = ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs", "urllib3")
_OUTAGE_STATUS = (408, 425, 429, *range(500, 600))


class StoreError(UserError, OSError):
    """A store refuses or does not answer. The message is one line that names the address."""


def as_fault(address: str, verb: str, error: Exception) -> Exception | None:
    """Returns the error to raise, or None if another try may succeed."""
    names = [kind.__name__ for kind in type(error).__mro__]
    status = _status(error)
    if isinstance(error, PermissionError) or status in (401, 403) or any(map(_NO_CREDENTIALS.fullmatch, names)):
        return StoreError(
            f"cannot {verb} {address}: access denied ({reason(error)}); check the credentials of this machine and "
            "their permissions"
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return MissingFileError(f"cannot {verb} {address}: no such file or bucket ({reason(error)})")
    if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError) or (
        status is not None and status not in _OUTAGE_STATUS
    ):
        return StoreError(f"cannot {verb} {address}: {reason(error)}")
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if isinstance(error, OSError | EOFError) or packages & set(_PACKAGES):
        local = isinstance(error, OSError) and error.filename is not None and os.path.lexists(error.filename)
        return error if local else None  # of the local file that is copied
    return error


def _status(error: Exception) -> int | None:
    """Returns the status of HTTP in an error of one of the packages."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "code", None) or getattr(error, "status", None)
    digits = str(status)
    return int(digits) if digits.isdecimal() and 400 <= int(digits) < 600 else None


def reason(error: Exception) -> str:
    """Returns the first 300 characters of an error's message."""
    return f"{one_line(error):.300}"
