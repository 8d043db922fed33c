"""No network but the loopback, in every process that has this folder in PYTHONPATH: refused, and
noted in $NETWORK_LOG."""

import os
import sys

PLACE_OF_HOST = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.connect": 1, "socket.sendto": 1}


def refuse(event, arguments):
    if event not in PLACE_OF_HOST:
        return
    host = arguments[PLACE_OF_HOST[event]]
    host = host[0] if isinstance(host, tuple) else host
    # A name that begins with a slash, or with NUL, is of a socket in the file system.
    if host and str(host) != "localhost" and not str(host).startswith(("127.", "::1", "/", "b'", "\0")):
        with open(os.environ["NETWORK_LOG"], "a") as file:
            file.write(f"{event} {host}\n")
        raise ConnectionRefusedError(f"no network: {host}")


sys.addaudithook(refuse)
