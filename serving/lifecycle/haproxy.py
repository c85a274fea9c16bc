"""HAProxy with limits: edits the configuration that Ray Serve renders, then becomes HAProxy.

Ray Serve starts this file as a program of its own, without site-packages: standard library only.
"""

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

_EDITED = "# Rendered by Ray Serve, edited by narrowgate.\n"
_HEALTH_PATHS = "/healthz /readyz /metrics"
_RESERVED_CONNECTIONS = 64
"""Connections of the health listener, in addition to those of the API's listener."""

_REQUEST_ID = "'^[!-~]{1,128}$'"
"""The ids that serving.gateway.middleware accepts, as HAProxy reads a pattern."""

_RAY_HEADERS = (
    "serve_multiplexed_model_id", "serve-multiplexed-model-id", "x-session-id",
    "x-request-timeout-seconds", "x-request-disconnect-disabled", "x-serve-router- -m beg",
)  # fmt: skip
"""Ray Serve obeys these, and answers 500 where they are not UTF-8. They are not a client's."""

# HAProxy's own refusals, in the shape of every other error.
_ERRORS = {
    400: ("Bad Request", "invalid_request_error", "invalid_request",
          "the request is malformed HTTP, or its line or headers exceed 16 KiB"),
    408: ("Request Timeout", "invalid_request_error", "request_timeout",
          "the request's headers did not arrive in time"),
    429: ("Too Many Requests", "rate_limit_error", "too_many_connections",
          "this address has too many connections"),
    500: ("Internal Server Error", "server_error", "internal_error", "the proxy failed"),
    502: ("Bad Gateway", "server_error", "unavailable",
          "the gateway closed the connection without an answer"),
    503: ("Service Unavailable", "server_error", "unavailable",
          "no gateway replica is ready"),
    504: ("Gateway Timeout", "server_error", "deadline_exceeded",
          "the gateway did not answer in time"),
}  # fmt: skip
_NO_HEALTH_PATH = {"error": {
    "message": "this port answers only health checks", "type": "not_found_error", "param": None,
    "code": "not_found", "fix": f"use one of {_HEALTH_PATHS}, or the port of the API",
}}  # fmt: skip
_FIXES = {
    400: "send well-formed HTTP/1.1 with shorter headers",
    408: "send the whole request at once",
    429: "reuse connections",
}
_RETRYABLE = {408, 429, 502, 503}


@dataclass(frozen=True, slots=True)
class Listeners:
    """The listeners of HAProxy and their limits.

    health_port: of the listener that answers only health paths and has reserved connections.
    max_connections: of the API's listener, in all; max_connections_per_address: from one address.
    header_timeout_s: for a request's headers. idle_timeout_s: longest silence within a request, and
    between two requests of a connection.
    """

    host: str
    health_port: int
    max_connections: int
    max_connections_per_address: int
    header_timeout_s: float
    idle_timeout_s: float

    @property
    def max_connections_in_all(self) -> int:
        """Return HAProxy's own limit: both listeners together."""
        return self.max_connections + _RESERVED_CONNECTIONS

    def write(self, path: Path) -> None:
        """Write the file that `main` reads."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file that `write` has written."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def limited(config: str, listeners: Listeners, folder: Path) -> str:
    """Return Ray's configuration with limits, deadlines, JSON errors and the health listener.

    folder: of the files of write_error_files. Raises ValueError where the configuration
    does not have the parts that are edited: Ray has changed its template.
    """
    edited = _bind(config, listeners.host)
    edited = _replace_once(edited, r"^defaults\n", "defaults\n" + _defaults(listeners, folder))
    # Ray turns 502, 503 and 504 into a plain 500; the files above state the reason.
    edited = re.sub(r"^ *errorfile 50[234] (?!.*ng-error).*\n", "", edited, flags=re.MULTILINE)
    edited = re.sub(
        r"^ *timeout (client|http-request|http-keep-alive) (?!.*# narrowgate).*\n", "", edited,
        flags=re.MULTILINE,
    )  # fmt: skip
    edited = _replace_once(
        edited, r"^frontend http_frontend\n( +bind .*\n)", _listener(listeners), keep=True
    )
    backend = _api_backend(edited)
    return edited.rstrip("\n") + "\n" + _health_listener(listeners, backend)


def _bind(config: str, host: str) -> str:
    """Bind the API's listener to the host and all others to the loopback address.

    The others are statistics and metrics, which require no key. Ray writes `*` for 0.0.0.0 and ::.
    """
    api = re.sub(r"^(frontend http_frontend\n +bind) \*:", rf"\1 {host}:", config, flags=re.M)
    return re.sub(
        r"(?<!frontend http_frontend\n)^( +bind) \*?:(\d+)", r"\1 127.0.0.1:\2", api, flags=re.M
    )


def _defaults(listeners: Listeners, folder: Path) -> str:
    lines = [
        f"    timeout http-request {_ms(listeners.header_timeout_s)} # narrowgate",
        f"    timeout client {_ms(listeners.idle_timeout_s)} # narrowgate",
        f"    timeout http-keep-alive {_ms(listeners.idle_timeout_s)} # narrowgate",
    ]
    lines += [f"    errorfile {status} {_error_file(folder, status)}" for status in _ERRORS]
    return "\n".join(lines) + "\n"


def _listener(listeners: Listeners) -> str:
    return (
        f"    maxconn {listeners.max_connections}\n"
        "    stick-table type ipv6 size 100k expire 1h store conn_cur\n"
        "    tcp-request connection track-sc0 src\n"
        f"    tcp-request connection reject if {{ sc0_conn_cur gt "
        f"{listeners.max_connections_per_address} }}\n"
    ) + _cleaned_headers()


def _cleaned_headers() -> str:
    """Return the rules that remove what a client may not tell Ray Serve or the gateway.

    Ray Serve echoes an id that the gateway replaces, so that the client would hold another one than
    the ledger. Of two ids none is the request's. The gateway speaks no other protocol than
    HTTP/1.1, and its parser reads no body behind a request to change it.
    """
    lines = [f"    http-request del-header {name}" for name in _RAY_HEADERS]
    lines += [
        "    http-request del-header upgrade",
        "    http-request del-header x-request-id if { req.fhdr_cnt(x-request-id) gt 1 }",
        "    http-request del-header x-request-id if { req.fhdr(x-request-id) -m found } "
        f"!{{ req.fhdr(x-request-id) -m reg {_REQUEST_ID} }}",
    ]
    return "\n".join(lines) + "\n"


def _health_listener(listeners: Listeners, backend: str | None) -> str:
    lines = [
        "frontend narrowgate_health",
        f"    bind {listeners.host}:{listeners.health_port}",
        f"    maxconn {_RESERVED_CONNECTIONS}",
        "    no log",
        "    http-request return status 404 content-type application/json "
        f"string '{json.dumps(_NO_HEALTH_PATH)}' if !{{ path {_HEALTH_PATHS} }}",
        "    option http-server-close",
        _cleaned_headers().rstrip("\n"),
    ]
    if backend is not None:
        lines.append(f"    default_backend {backend}")
    else:
        lines.append("    http-request return status 503 default-errorfiles")
    return "\n".join(lines) + "\n"


def _api_backend(config: str) -> str | None:
    """Return the backend to which Ray sends the API's requests, None while there is none."""
    found = re.search(r"^ +use_backend (\S+) if is_\1 *$", config, re.MULTILINE)
    return found.group(1) if found else None


def _replace_once(config: str, pattern: str, text: str, *, keep: bool = False) -> str:
    found = list(re.finditer(pattern, config, re.MULTILINE))
    if len(found) != 1:
        raise ValueError(f"{pattern!r} occurs {len(found)} times in HAProxy's configuration")
    (match,) = found
    replacement = match.group(0) + text if keep else text
    return config[: match.start()] + replacement + config[match.end() :]


def write_error_files(folder: Path) -> None:
    """Write HAProxy's error responses, whole HTTP messages with bodies in the API's shape."""
    for status, (reason, kind, code, message) in _ERRORS.items():
        error = {
            "message": message, "type": kind, "param": None, "code": code,
            "fix": _FIXES.get(status, "retry; the operator finds the cause in the logs"),
        }  # fmt: skip
        body = json.dumps({"error": error})
        head = [
            f"HTTP/1.1 {status} {reason}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-should-retry: {'true' if status in _RETRYABLE else 'false'}",
            "cache-control: no-cache",
            "connection: close",
        ]
        if status == 503:
            head.append("retry-after: 5")
        _error_file(folder, status).write_bytes(("\r\n".join(head) + "\r\n\r\n" + body).encode())


def _error_file(folder: Path, status: int) -> Path:
    return folder / f"ng-error-{status}.http"


def _ms(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def main(binary: str, folder: Path, listeners: Path, arguments: list[str]) -> None:
    """Edit the configuration named by -f and become HAProxy. Does not return.

    folder: for error responses; made where it is missing. listeners: the file of Listeners.write.

    Splicing is switched off (-dS): Ray's template sets `option splice-request`, and a request
    whose body was spliced is no longer watched for its client's end (HAProxy 2.8.25, seen for
    every request whose headers and body come in two packets, as httpx and openai send them); the
    engine would continue for clients that have disconnected.
    """
    if "-f" in arguments:
        # In its place: Ray knows its HAProxy processes by the path of the configuration.
        path = Path(arguments[arguments.index("-f") + 1])
        config = path.read_text(encoding="utf-8")
        if not config.startswith(_EDITED):
            folder.mkdir(parents=True, exist_ok=True)
            write_error_files(folder)
            edited = limited(config, Listeners.read(listeners), folder)
            path.write_text(_EDITED + edited, encoding="utf-8")
    os.execv(binary, [binary, "-dS", *arguments])  # noqa: S606  # HAProxy itself


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
