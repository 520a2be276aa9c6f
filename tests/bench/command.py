"""The command `triptych`, as benchmarks run it."""

import signal
import subprocess
import sys
from pathlib import Path

from training import ROOT

TAIL = 3000
"""Characters of its output that an error shows."""


def triptych(*words: str, log: Path) -> None:
    """Run the command from the checkout's folder; stopped, it is stopped as by Ctrl-C and waited for.

    Args:
        words: its arguments.
        log: file that its output is appended to.

    Raises:
        RuntimeError: it failed; the message ends with the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    program = str(Path(sys.executable).parent / "triptych")
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [program, *words], cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if code:
        output = log.read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"triptych {' '.join(words)}: exit code {code}\n{output[-TAIL:]}")
