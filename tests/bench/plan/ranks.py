"""Run `plan.measure` once a rank; the first hands back the figures."""

import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    count = json.loads(Path(sys.argv[1]).read_text())["ranks"]
    command = [sys.executable, "-m", "plan.measure", *sys.argv[1:]]
    ranks = [subprocess.Popen(command, env=os.environ | {"RANK": str(rank)}) for rank in range(count)]
    sys.exit(max(rank.wait() for rank in ranks))


if __name__ == "__main__":
    main()
