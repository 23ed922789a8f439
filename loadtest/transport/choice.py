"""Which transport carries the requests of a run: ours, or a library's for what ours doesn't do or for comparison."""

from __future__ import annotations

from pathlib import Path

from loadtest.extras import require
from loadtest.transport.authorities import AUTHORITIES, Remedied
from loadtest.transport.base import Connect, Connection, Target
from loadtest.transport.stamps import ClockMap, stay_on
from loadtest.transport.tls import Tls, TlsError


def trusting(name: str, ca_file: Path | None, insecure: bool, http2: bool = False) -> Tls:
    """Whom the requests of a run trust, and whether they go over HTTP/2.

    Raises: TlsError where the transport can't be told, or the file can't be read; ModuleNotFoundError where HTTP/2's
    library isn't installed.
    """
    if http2:
        if name != "httpx":
            raise TlsError(f"--http2 is httpx's, {name} speaks HTTP/1.1: add --transport httpx, or leave --http2 out")
        require("h2")
    if name in AUTHORITIES and (ca_file or insecure):
        raise TlsError(f"--cacert and --insecure don't reach {name}: set {AUTHORITIES[name]}")
    tls = Tls(ca_file, verify=not insecure, http2=http2)
    tls.context()
    return tls


def connecting(name: str, tls: Tls, kernel_stamps: bool = True) -> Connect:
    """How a run opens its connections. One TLS context and one map of clocks serve all of them.

    Raises: ModuleNotFoundError where the transport's library isn't installed; TlsError at the first target under TLS.
    """
    clock_map = ClockMap() if kernel_stamps else None
    if kernel_stamps:
        stay_on()
    if name == "httpx":
        from loadtest.transport.httpx_client import HttpxConnection

        return lambda target: HttpxConnection(target, tls.context(), http2=tls.http2, clock_map=clock_map)
    if name == "boto3":
        return _nowhere  # a sagemaker:// URL brings its own
    if name == "huggingface_hub":
        from loadtest.transport.hub_client import HubConnection

        return lambda target: HubConnection(target)
    from loadtest.transport.gevent_socket import GeventConnection

    def gevent(target: Target) -> Connection:
        return GeventConnection(target, tls.context() if target.tls else None, clock_map=clock_map)

    return gevent


def _nowhere(target: Target) -> Connection:
    raise AssertionError(f"boto3 does not connect to {target.origin}")


def controlling(name: str, tls: Tls) -> Connect:
    """How what isn't timed is asked: by httpx, through the proxies that the timed requests of a transport take, which
    are the environment's for all but our own socket.
    """
    from loadtest.transport.httpx_client import HttpxConnection

    def ours(target: Target) -> Connection:
        return HttpxConnection(target, tls.context(), http2=tls.http2, proxies=name != "gevent")

    if name not in AUTHORITIES:
        return ours
    return lambda target: Remedied(ours(target), name, f"{target.host}:{target.port}")
