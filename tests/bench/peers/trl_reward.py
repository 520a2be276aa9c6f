"""TRL's RewardTrainer as an arm of reward.py. In its environment: python tests/bench/peers/trl_reward.py JOB.json"""

import sys
import tempfile

from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import RewardConfig, RewardTrainer  # type: ignore[import-not-found]

from arm import SEED, Job
from harness import emit
from peers.trl_steps import Steps, training_arguments


def main() -> None:
    job, steps = Job.load(sys.argv[1]), Steps()
    set_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=job.model,
            args=RewardConfig(output_dir=folder, **training_arguments(job)),
            train_dataset=Dataset.from_list(job.read_rows()),
            peft_config=LoraConfig(
                r=job.rank,
                lora_alpha=job.alpha,
                target_modules="all-linear",
                task_type="SEQ_CLS",
                modules_to_save=["score"],
            ),
            callbacks=[steps],
        )
        trainer.train()
    emit(steps.figures(trainer.state.log_history))


if __name__ == "__main__":
    main()
