"""Fine-tune GPT-2: python train.py optimizer=adamw scheduler=cosine"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from permafrost.launch import run_job, run_program


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    return run_job(cfg)


if __name__ == "__main__":
    run_program(main, Path(__file__).with_name("conf"))
