"""Entry point of a job on the cluster: runs the verb that a laptop sent, and sends the result back."""

import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from triptych import cli, storage
from triptych.cluster.remote_call import FOLDER, CallResult, RemoteCall, read_call, write_result


def main() -> None:
    """Run the call in the working folder, and exit as its verb did."""
    call = read_call()
    os.environ.pop("TRIPTYCH_ADDRESS", None)  # the cluster is here
    os.environ["COLUMNS"] = str(call.width)
    result = _run(call) if call.arguments else _inspect(call)
    write_result(result)
    sys.exit(result.code)


def _inspect(call: RemoteCall) -> CallResult:
    from triptych.cluster.nodes import cluster_facts

    with redirect_stdout(sys.stderr):
        return CallResult(0, json.dumps(cluster_facts(call.path)))


def _run(call: RemoteCall) -> CallResult:
    if call.run is not None and "TRIPTYCH_REGISTRY" not in os.environ:
        os.environ["TRIPTYCH_REGISTRY"] = _registry_of(call.run)
    sys.argv = ["triptych", *call.arguments]
    printed = io.StringIO()
    code = 0
    try:
        with redirect_stdout(printed):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if code == 0 and call.brings:
        file = printed.getvalue().strip()
        storage.write_bytes(str(Path(FOLDER, file.rsplit("/", 1)[-1])), storage.read_bytes(file))
    return CallResult(code, printed.getvalue())


def _registry_of(run: str) -> str:
    """The registry that a run's recipe names."""
    from triptych.observe.runs import read_run
    from triptych.recipe import Recipe
    from triptych.registry import registry_url

    return registry_url(Recipe.model_validate(read_run(run).recipe))


if __name__ == "__main__":
    main()
