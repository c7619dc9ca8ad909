"""A whole job, and one run of it."""

import re
from dataclasses import asdict, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hybrid_ray.config.evaluation import (
    MOST_SEEDS,
    Arm,
    CompareConfig,
    ConfirmConfig,
    FrontierConfig,
    ObjectiveConfig,
)
from hybrid_ray.config.hybrid import HybridConfig
from hybrid_ray.config.ladder import LadderConfig
from hybrid_ray.config.named import NamedSetting
from hybrid_ray.config.search import BudgetConfig, ResourcesConfig, SearchConfig
from hybrid_ray.config.section import Listed, Seed, section
from hybrid_ray.config.task import TaskConfig
from hybrid_ray.config.training import DataConfig, ModelConfig, TrainConfig

__all__ = ["JobConfig", "PublishedName", "RunConfig"]

PublishedName = Literal["mnist_cnn_conservative", "mnist_cnn_aggressive", "gpt2_small_50_steps"]


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError("must match [A-Za-z0-9._-]+ and not begin with a dot, because a folder gets this name")
    return name


@section
class JobConfig:
    """A whole job, as written in ``jobs/*.yaml``."""

    name: Annotated[str, AfterValidator(_folder_name)] = Field(
        default="study", description="Name of the study and of its folder; default: the name of the job file"
    )
    # So that workers and a resumed study find the modules too. It does not affect results.
    folders: Listed[str] = field(
        default=(),
        compare=False,
        metadata={"description": "Folders of the modules that the job names; filled in when the job is read"},
    )
    # Confirmation and comparison add less than 3 x MOST_SEEDS (`evaluation.confirm.fresh_seeds`), which must be a Seed.
    seed: int = Field(
        default=0, ge=0, le=2**31 - 3 * MOST_SEEDS, description="Seed of initial weights, data order and dropout"
    )
    studies_dir: str = Field(default="studies", description="Folder that holds the studies")
    published: PublishedName | None = Field(
        default=None, description="A published table to show next to the results of a comparison"
    )
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    frontier: FrontierConfig = field(default_factory=FrontierConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    @property
    def named(self) -> dict[str, str]:
        """All ``package.module:Name`` values in the job, by setting (``search.scheduler``)."""
        found = {f"search.{place}": name for place, name in self.search.named.items()}
        for place, arms in (("confirm.arms", self.confirm.arms), ("compare.arms", self.compare.arms)):
            found |= {f"{place}.{index}": arm for index, arm in enumerate(arms)}
        found["task.factory"] = self.task.factory or ""
        found["hybrid.predictor"] = self.hybrid.predictor.name
        found["train.optimizer"] = self.train.optimizer_name
        return {place: name for place, name in found.items() if ":" in name}

    @property
    def scheduler(self) -> NamedSetting:
        """``search.scheduler``, or its default for the job's objective.

        In mode ``net`` that is none: a run's net speedup is known only at its end, with a fully decayed learning rate,
        and a projection made half-way does not predict it.
        """
        return self.search.scheduler or ("none" if self.objective.mode == "net" else "asha")

    @property
    def model_name(self) -> str:
        """The model's name in messages and reports."""
        return self.task.factory or self.model.preset

    def run(self, *, arm: Arm = "hybrid", seed: int | None = None, hybrid: HybridConfig | None = None) -> "RunConfig":
        """One run of this job. Seed and hybrid settings default to the job's own."""
        settings = hybrid or self.hybrid
        return RunConfig(
            arm=arm,
            seed=self.seed if seed is None else seed,
            task=self.task,
            model=self.model,
            data=self.data,
            train=self.train,
            hybrid=settings,
            workers=self.resources.workers,
            folders=self.folders,
        )


@section
class RunConfig:
    """One training of one model with one seed, for any arm. Holds everything that determines the final weights."""

    arm: str = "hybrid"  # an `Arm`, or a user's own
    seed: Seed = 0
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    replay: str | None = None  # result.json of the hybrid run whose phases and displacement norms are replayed
    workers: int = Field(default=1, ge=1)
    folders: Listed[str] = field(default=(), compare=False)  # the job's own

    def as_dict(self) -> dict[str, Any]:
        """Everything that defines the run, as plain values. Built-in tasks need only ``model`` and ``data``."""
        plain = asdict(self)
        del plain["folders"]
        if self.task.factory is None:
            del plain["task"]
        return plain

    @property
    def micro_batch_size(self) -> int:
        """Examples in one forward pass on one worker."""
        micro = self.train.micro_batch_size
        if micro == "auto":
            raise ValueError("micro_batch_size is still 'auto' but is resolved before a run is made (study/plan.py)")
        return micro or self.train.batch_size // self.workers

    @property
    def accumulate(self) -> int:
        """Micro-batches per worker and real step: accumulate x workers x micro-batch = batch size."""
        return self.train.batch_size // (self.workers * self.micro_batch_size)

    @property
    def optimizer_settings(self) -> TrainConfig:
        """``train`` with the learning rate of this run, which ``hybrid.lr_factor`` may change."""
        return replace(self.train, learning_rate=self.train.learning_rate * self.hybrid.lr_factor)
