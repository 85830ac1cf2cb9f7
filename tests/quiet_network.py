"""Run by a child process, before anything else: from then on every way out of this machine is refused and told."""

from __future__ import annotations

import ipaddress
import sys

ASKED = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
NOT_AN_ADDRESS = ("localhost", "", None)


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Raise for an event of the network that is not about this machine itself."""
    if event not in ASKED:
        return
    where = arguments[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else arguments[1]
    host = where[0] if isinstance(where, tuple) else where
    if isinstance(where, str) and where.startswith("/"):  # a socket in a folder
        return
    if not _is_here(host):
        sys.stderr.write(f"NETWORK {event} {where}\n")
        raise ConnectionRefusedError(f"{event} to {where}")


def _is_here(host: object) -> bool:
    if host in NOT_AN_ADDRESS:
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


sys.addaudithook(refuse)
