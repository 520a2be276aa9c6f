"""Stands where kubectl does: one cluster, as JSON in SERVICES, and a port-forward to TARGET that is lost once.

Every call's words go to a line of CALLS.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path


def main(words: list[str]) -> None:
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(json.dumps({"pid": os.getpid(), "words": words}) + "\n")
    options = {word.split("=")[0]: word.split("=")[1] for word in words if word.startswith("--")}
    if options["--context"] != "lab":
        sys.exit(f'error: context "{options["--context"]}" does not exist')
    if "get" in words:
        print(Path(os.environ["SERVICES"]).read_text())
    else:
        port, there = words[-1].split(":")
        forward(int(port or 0), there, Path(os.environ["SERVICES"]).with_suffix(".lost"))


def forward(port: int, there: str, lost: Path) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    print(f"Forwarding from 127.0.0.1:{listener.getsockname()[1]} -> {there}", flush=True)
    while True:
        here, _ = listener.accept()
        print(f"Handling connection for {port}", flush=True)
        target = socket.create_connection(("127.0.0.1", int(os.environ["TARGET"])))
        both = [threading.Thread(target=pass_on, args=pair, daemon=True) for pair in ((here, target), (target, here))]
        for one in both:
            one.start()
        if not lost.exists():
            for one in both:
                one.join()
            lost.touch()
            sys.exit("error: lost connection to pod")


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


main(sys.argv[1:])
