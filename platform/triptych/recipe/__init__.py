"""What a run is: closed typed models, YAML in and out, dotted overrides."""

from triptych.recipe.base import Closed, Count, Fraction, Name, Positive
from triptych.recipe.data import Data, Source
from triptych.recipe.errors import Problem, RecipeError
from triptych.recipe.graph import ready, stage_order
from triptych.recipe.load import dump_recipe, load_recipe, load_recipe_text, load_yaml
from triptych.recipe.matrix import Lora
from triptych.recipe.method import Full, Method
from triptych.recipe.model import Dtype, Model
from triptych.recipe.ppo import Importance, Kl, Ppo
from triptych.recipe.recipe import Recipe, Storage, TrackerName
from triptych.recipe.rollout import Rollout, Sampling
from triptych.recipe.space import overrides_of, with_values
from triptych.recipe.stages import (
    Classification,
    Labelling,
    PpoStage,
    QuestionAnswering,
    Reward,
    Sft,
    Stage,
    Supervised,
    TokenClassification,
    workers_of,
    workers_path,
)
from triptych.recipe.sweep import Asha, Dimension, Sweep, Values
from triptych.recipe.training import Batch, EarlyStopping, Memory, Optimizer, Training, Workers

__all__ = [
    "Asha",
    "Batch",
    "Classification",
    "Closed",
    "Count",
    "Data",
    "Dimension",
    "Dtype",
    "EarlyStopping",
    "Fraction",
    "Full",
    "Importance",
    "Kl",
    "Labelling",
    "Lora",
    "Memory",
    "Method",
    "Model",
    "Name",
    "Optimizer",
    "Positive",
    "Ppo",
    "PpoStage",
    "Problem",
    "QuestionAnswering",
    "Recipe",
    "RecipeError",
    "Reward",
    "Rollout",
    "Sampling",
    "Sft",
    "Source",
    "Stage",
    "Storage",
    "Supervised",
    "Sweep",
    "TokenClassification",
    "TrackerName",
    "Training",
    "Values",
    "Workers",
    "dump_recipe",
    "load_recipe",
    "load_recipe_text",
    "load_yaml",
    "overrides_of",
    "ready",
    "stage_order",
    "with_values",
    "workers_of",
    "workers_path",
]
