"""TRL's SFTTrainer as an arm of sft.py. Runs in the peer's environment: python tests/bench/peers/trl_sft.py JOB.json"""

import sys
import tempfile

from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

from arm import SEED, Job
from harness import emit
from peers.trl_steps import Steps, training_arguments


def main() -> None:
    job, steps = Job.load(sys.argv[1]), Steps()
    set_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=job.model,
            args=SFTConfig(output_dir=folder, **training_arguments(job)),
            train_dataset=Dataset.from_list(job.read_rows()),
            peft_config=LoraConfig(
                r=job.rank, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[steps],
        )
        trainer.train()
    emit(steps.figures(trainer.state.log_history))


if __name__ == "__main__":
    main()
