"""Many adapters on one base model behind one OpenAI-compatible endpoint."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["build"]


def build(args: dict[str, Any]) -> "Application":
    """The Ray Serve application for the fields of a `ServeConfig`; UserError if they are invalid."""
    from pydantic import ValidationError

    from triptych.errors import UserError
    from triptych.recipe.serve import ServeConfig
    from triptych.serve.preflight import check

    try:
        config = ServeConfig.model_validate(args)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise UserError("serve arguments: " + "; ".join(faults)) from error
    checked = check(config)
    from triptych.serve.app import application  # torch, ray and vllm: seconds to import

    return application(*checked)
