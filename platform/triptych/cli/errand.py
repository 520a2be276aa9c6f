"""On the cluster: `python -m triptych.cli.errand` runs the verb that a laptop sent with a job, and sends the answer."""

import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from triptych import cli, storage
from triptych.cluster.errands import FOLDER, Answer, Errand, asked, tell


def main() -> None:
    """Answer the errand in the working folder, and exit as its verb did."""
    errand = asked()
    os.environ.pop("TRIPTYCH_ADDRESS", None)  # the cluster is here
    os.environ["COLUMNS"] = str(errand.width)
    answer = _run(errand) if errand.arguments else _look(errand)
    tell(answer)
    sys.exit(answer.code)


def _look(errand: Errand) -> Answer:
    from triptych.cluster.nodes import look

    with redirect_stdout(sys.stderr):
        return Answer(0, json.dumps(look(errand.path)))


def _run(errand: Errand) -> Answer:
    if errand.run is not None and "TRIPTYCH_REGISTRY" not in os.environ:
        os.environ["TRIPTYCH_REGISTRY"] = _registry_of(errand.run)
    sys.argv = ["triptych", *errand.arguments]
    printed = io.StringIO()
    code = 0
    try:
        with redirect_stdout(printed):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if code == 0 and errand.brings:
        file = printed.getvalue().strip()
        storage.write_bytes(str(Path(FOLDER, file.rsplit("/", 1)[-1])), storage.read_bytes(file))
    return Answer(code, printed.getvalue())


def _registry_of(run: str) -> str:
    """The registry that a run's recipe names."""
    from triptych.observe.runs import read_run
    from triptych.recipe import Recipe
    from triptych.registry.url import registry_url

    return registry_url(Recipe.model_validate(read_run(run).recipe))


if __name__ == "__main__":
    main()
