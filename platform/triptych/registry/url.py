"""Where a recipe's adapters are registered."""

from triptych import storage
from triptych.errors import UserError
from triptych.recipe import Recipe


def registry_url(recipe: Recipe) -> str:
    """SQLAlchemy URL of the recipe's registry.

    Raises:
        UserError: runs go to an object store, which holds no SQLite file, and the recipe names no registry.
    """
    if recipe.storage.registry:
        return recipe.storage.registry
    runs = storage.absolute(recipe.storage.runs)
    if "://" in runs:
        raise UserError(f"storage.registry: needed where storage.runs is an object store ({runs}); a SQLAlchemy URL")
    return f"sqlite:///{runs}/registry.db"
