"""Many adapters on one base model behind one OpenAI-compatible endpoint."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["build"]


def build(args: dict[str, Any]) -> "Application":
    """The Ray Serve application for the fields of `triptych.recipe.serve.ServeConfig`; UserError if they do not do."""
    from triptych.serve.app import application  # torch, ray and vllm: seconds to import

    return application(args)
