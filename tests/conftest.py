"""What every test starts from: a GPT-2 of two blocks and a byte-level tokenizer, made here, and no network."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "TEST_ON_GPU" not in os.environ:  # make test-gpu
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from hypothesis import settings

# The same examples each time, however long a busy machine takes for one.
settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")
torch.set_num_threads(1)  # the models are too small for more, and the machine may be busy

SHARED = Path(__file__).parents[2] / "shared"
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a warm day by the sea, and nothing to do",
    "cold rain fell on the empty street all night",
    "she returned the book a week late",
]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from permafrost.data.tokens.tokenization import train_tokenizer

    return train_tokenizer(TEXTS, vocab_size=300, max_length=64)


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer):
    """2 blocks of 32 channels, window 64; dropout on, as in training."""
    from transformers import GPT2Config

    end = tiny_tokenizer.eos_token_id
    return GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        n_positions=64,
        vocab_size=len(tiny_tokenizer),
        bos_token_id=end,
        eos_token_id=end,
    )


@pytest.fixture
def tiny_backbone(tiny_config):
    from transformers import GPT2Model

    torch.manual_seed(0)
    return GPT2Model(tiny_config)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tiny_config, tiny_tokenizer) -> Path:
    """A pretrained GPT-2 on disk, as `save_pretrained` lays it out."""
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("tiny")
    GPT2LMHeadModel(tiny_config).save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data sets that lie beside the repository; skips where they do not."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets are not beside this clone (../shared)")
    return SHARED
