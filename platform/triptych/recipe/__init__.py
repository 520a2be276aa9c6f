"""Recipes: closed typed models of a run, YAML in and out, dotted overrides."""

from triptych.recipe.algorithm import Importance, Kl, Ppo
from triptych.recipe.base import Closed, Count, Fraction, Name, Positive, with_effect
from triptych.recipe.data import Data, Origin, Source
from triptych.recipe.errors import Problem, RecipeError
from triptych.recipe.evaluation import Evaluation, FigureGate
from triptych.recipe.graph import ready, stage_order
from triptych.recipe.kinds import KINDS, LabellingStage, Stage
from triptych.recipe.load import dump_recipe, load_recipe, load_recipe_text, load_yaml
from triptych.recipe.matrix import Lora
from triptych.recipe.method import Full, Method
from triptych.recipe.model import Dtype, Model
from triptych.recipe.recipe import Recipe, Storage, TrackerName
from triptych.recipe.reward import ModelReward
from triptych.recipe.rl import Rl
from triptych.recipe.rl_training import RlTraining
from triptych.recipe.rollout import Engines, Rollout, Sampling
from triptych.recipe.space import overrides_of, with_values
from triptych.recipe.stage import (
    CLASSIFIER,
    CRITIC,
    POLICY,
    REFERENCE,
    REWARD,
    TEACHER,
    HeadSpec,
    RoleSpec,
    StageBase,
    TrainedStage,
    member_roles,
    method_of,
)
from triptych.recipe.supervised import ADAPTERS, PolicyStage, SupervisedStage
from triptych.recipe.sweep import Asha, Dimension, Sweep, Values
from triptych.recipe.training import BatchSettings, EarlyStopping, Memory, Optimizer, Training, TrainingBase, Workers
from triptych.recipe.work_shape import WorkShape

__all__ = [
    "ADAPTERS",
    "CLASSIFIER",
    "CRITIC",
    "KINDS",
    "POLICY",
    "REFERENCE",
    "REWARD",
    "TEACHER",
    "Asha",
    "BatchSettings",
    "Closed",
    "Count",
    "Data",
    "Dimension",
    "Dtype",
    "EarlyStopping",
    "Engines",
    "Evaluation",
    "FigureGate",
    "Fraction",
    "Full",
    "HeadSpec",
    "Importance",
    "Kl",
    "LabellingStage",
    "Lora",
    "Memory",
    "Method",
    "Model",
    "ModelReward",
    "Name",
    "Optimizer",
    "Origin",
    "PolicyStage",
    "Positive",
    "Ppo",
    "Problem",
    "Recipe",
    "RecipeError",
    "Rl",
    "RlTraining",
    "RoleSpec",
    "Rollout",
    "Sampling",
    "Source",
    "Stage",
    "StageBase",
    "Storage",
    "SupervisedStage",
    "Sweep",
    "TrackerName",
    "TrainedStage",
    "Training",
    "TrainingBase",
    "Values",
    "WorkShape",
    "Workers",
    "dump_recipe",
    "load_recipe",
    "load_recipe_text",
    "load_yaml",
    "member_roles",
    "method_of",
    "overrides_of",
    "ready",
    "stage_order",
    "with_effect",
    "with_values",
]
