"""What a failed request to a tracking server means, in words: its cause on one line, and what the user can do about it."""

import re

LOST_RUN = (
    "The server does not know this run: it was deleted there for good (`mlflow gc`), or the server lost its database. `nnfleet sync` makes "
    "it anew from its run folder, once no job of it runs, and delivers everything again."
)
REFUSED = "The server answers and refuses this: see its message above, and its log."
UNREACHABLE = "Check that the server runs and can be reached from here (`nnfleet up` starts a local one)."
DISK_FULL = (
    "The disk is full, or a quota is used up, where the server keeps its data, or here in the folder for temporary files: free space "
    "there. `nnfleet up --artifacts FOLDER` puts the local server's artifacts elsewhere."
)
_TOO_LARGE = (
    "A proxy before the server takes no file of this size: raise its limit (nginx: client_max_body_size 0), or name the server itself."
)
_TOO_SLOW = (
    "A proxy before the server did not wait for it any longer: raise its time limits (nginx: proxy_read_timeout, proxy_send_timeout), or "
    "name the server itself. Where small requests fail too, check that the server runs."
)
_FAILED = (
    "The server failed at it: see its log; most often a disk is full or a quota is used up. Free space there; `nnfleet up "
    "--artifacts FOLDER` puts the local server's artifacts elsewhere."
)
_PAGE = re.compile(r"(<!doctype\s+html[^>]*>\s*)?<html\b.*(</html>|$)", re.IGNORECASE | re.DOTALL)
_BY_STATUS = {413: _TOO_LARGE, 500: _FAILED, 502: _TOO_SLOW, 503: _TOO_SLOW, 504: _TOO_SLOW, 507: DISK_FULL}


def reason(err: BaseException) -> str:
    """What went wrong, on one line: where the network failed, what the system says of it, without the layers in between."""
    layer = next((one for one in (err, err.__cause__, err.__context__) if _is_of_requests(one)), None)
    whose = "the proxy: " if type(layer).__name__ == "ProxyError" else ""
    while layer is not None and (_is_of_requests(layer) or not isinstance(layer, OSError)):
        within = next((part for part in layer.args if isinstance(part, BaseException)), None)
        layer = layer.__cause__ or layer.__context__ or within
    if isinstance(layer, OSError):
        return f"{whose}{layer.strerror or layer}"
    return " ".join(_PAGE.sub(_title, str(err)).split()) or type(err).__name__


def _title(page: re.Match[str]) -> str:
    """What a proxy's HTML page calls itself."""
    title = re.search(r"<title>(.*?)</title>", page[0], re.IGNORECASE | re.DOTALL)
    return title[1] if title else "(a web page)"


def _is_of_requests(err: BaseException | None) -> bool:
    return type(err).__module__.startswith("requests.")


def advice(err: BaseException) -> str:
    """What to do about a failed request. Pure."""
    if getattr(err, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return LOST_RUN
    if _is_disk_full(err):
        return DISK_FULL
    return advice_for(_status_of(err)) or (REFUSED if is_answer(err) else UNREACHABLE)


def advice_for(status: int) -> str:
    """What to do about an HTTP status; empty where it says nothing by itself. Pure."""
    return _BY_STATUS.get(status, "")


def _status_of(err: BaseException) -> int:
    """The HTTP status of the answer; MLflow's client keeps that of an answer after which it tries again only in its text."""
    given_up = re.search(r"too many (\d{3}) error responses", str(err))
    return int(given_up[1]) if given_up else int(getattr(getattr(err, "response", None), "status_code", 0) or 0)


def _is_disk_full(err: BaseException) -> bool:
    said = f"{err} {getattr(getattr(err, 'response', None), 'text', '')}"
    return any(words in said for words in ("No space left on device", "Disk quota exceeded", "database or disk is full"))


def is_answer(err: BaseException) -> bool:
    """True for an error that MLflow's server sent as such; False when it is away, or something else answers in its place."""
    return type(err).__name__ == "RestException" and "error_code" in getattr(err, "json", {})


def local_artifacts_text(experiment: str, uri: str, location: str) -> str:
    """Why an experiment whose artifacts lie at a path is refused."""
    return (
        f"mlflow: experiment {experiment!r} at {uri} has its artifacts in {location}, which each client takes for a path of its own "
        "machine: checkpoints would stay on the head's disk and count as published. Start the server with --artifacts-destination PLACE, "
        "without --no-serve-artifacts and --default-artifact-root, and name a new experiment under `tracking: {experiment: NAME}`, as an "
        "experiment keeps its place. Where the head and the server share this very path, write `tracking: {local_artifacts: true}`."
    )
