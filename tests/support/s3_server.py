"""A server for s3:// on this machine (moto), which can be made to fail."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

Fault = Literal["503", "reset"]


class S3Server:
    """A server with one empty bucket.

    Attributes:
      environment: variables with which fsspec uses the server.
      fault: how it fails, if it does: every request gets the status 503, or no answer.
      failed: number of requests that failed.
      requests: methods and paths of the requests that did not fail.
    """

    bucket = "bucket"

    def __init__(self, url: str) -> None:
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }
        self.fault: Fault | None = None
        self.failed = 0
        self.requests: list[tuple[str, str]] = []


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Runs a server in a thread. Its content is gone at the end."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: Any) -> None: ...

    application = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        if state.fault is None:
            state.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            return application(environ, start_response)
        state.failed += 1
        if state.fault == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        start_response("503 Slow Down", [("Content-Length", "0")])
        return [b""]

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Silent)
    state = S3Server(f"http://127.0.0.1:{server.port}")
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].reset()
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(state.bucket, "us-east-1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
