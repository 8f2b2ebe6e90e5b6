"""What a process keeps between its runs: the open data set and, in the frozen regime, the learner."""

from __future__ import annotations

from egal_bench.dataset import Dataset, open_dataset
from egal_bench.learners.learner import Learner
from egal_bench.runs.task import Task


class Workspace:
    """Builds the learners of a process's runs. Each process of an engine has one."""

    def __init__(self) -> None:
        self._dataset: tuple[str, Dataset] | None = None
        self._frozen: tuple[tuple, Learner] | None = None

    def dataset(self, shards: str) -> Dataset:
        """Return the Dataset of the shard set `shards`, which stays open for the next run."""
        if self._dataset is None or self._dataset[0] != shards:
            self._dataset = shards, open_dataset(shards)
        return self._dataset[1]

    def learner(self, task: Task) -> Learner:
        """Return the learner of `task`, as the regime of its config asks."""
        return self._frozen_learner(task) if task.config.regime == "frozen" else self._finetune_learner(task)

    def _frozen_learner(self, task: Task) -> Learner:
        """Return the frozen learner; runs with the same features and settings share a linear one, which has no seed."""
        from egal_bench.learners.frozen import FrozenLearner
        from egal_bench.learners.frozen_episodes import FrozenEpisodesLearner
        from egal_bench.scoring.features import open_features

        assert task.features is not None
        if task.config.head == "prototypical":
            features = open_features(task.features)
            return FrozenEpisodesLearner(self.dataset(task.shards), features, task.config, task.streams())
        key = (task.shards, task.features, task.config)
        if self._frozen is None or self._frozen[0] != key:
            features = open_features(task.features)
            self._frozen = key, FrozenLearner(self.dataset(task.shards), features, task.config)
        return self._frozen[1]

    def _finetune_learner(self, task: Task) -> Learner:
        from egal_bench.learners.finetune import FinetuneLearner
        from egal_bench.models import network, weights

        dataset, streams = self.dataset(task.shards), task.streams()
        state, _ = weights.load(task.config.weights, task.config.backbone)
        built = network.of_config(task.config, dataset, int(streams["model"].generate_state(1)[0]), state)
        return FinetuneLearner(dataset, built, task.config, streams["loader"], task.config.device, task.scratch)
