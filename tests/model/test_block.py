"""One block at all positions, at one and at several is Transformers' own block; dropout drops what it says.

The reference is GPT2Block with its attention written out ("eager"), each row alone and without padding.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from permafrost.model.backbone import branch, trunk
from permafrost.model.block import drop, random_zeros, run_block

# Two ways to the same float32 sums; states are of size 1 to 5, gradients up to 30.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTHS = [9, 4, 1]
IS_PADDING = torch.arange(9) >= torch.tensor(LENGTHS)[:, None]
EVERYWHERE = None
ONE = torch.tensor([[8], [3], [0]])  # the last real one of each row
SEVERAL = torch.tensor([[5, 0, 8], [3, 1, 1], [0, 0, 0]])  # in no order, and some twice
READS = pytest.mark.parametrize("positions", [EVERYWHERE, ONE, SEVERAL], ids=["everywhere", "one", "several"])
ARCHITECTURES = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"n_head": 1},
        {"n_inner": 24},
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"activation_function": "gelu_pytorch_tanh"},
    ],
    ids=str,
)


def make_block(**changes) -> GPT2Block:
    """The second of three blocks; weights and biases large enough for every term to show."""
    config = GPT2Config(**{"n_embd": 32, "n_head": 4, "n_layer": 3, "attn_implementation": "eager", **changes})
    torch.manual_seed(0)
    block = GPT2Block(config, layer_idx=1).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    return block


def make_hidden() -> torch.Tensor:
    """(3, 9, 32), with numbers in the padding that would be seen wherever they came in."""
    hidden = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(1))
    return hidden.masked_fill(IS_PADDING[..., None], 100.0).requires_grad_()


def transformers_block(block: GPT2Block, hidden: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """(reads, C): what is read of all rows, end to end."""
    parts = []
    for row, length in enumerate(LENGTHS):
        mask = torch.full((length, length), float("-inf")).triu(1)
        states = block(hidden[row : row + 1, :length], attention_mask=mask[None, None])[0]
        parts.append(states if positions is None else states[positions[row]])
    return torch.cat(parts)


def our_block(block: GPT2Block, hidden: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    states = run_block(block, hidden, positions)
    return states[~IS_PADDING] if positions is None else states.flatten(0, 1)


def gradients(block: GPT2Block, hidden: torch.Tensor, states: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum that weighs every number that is read differently, by the inputs and by all weights."""
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*block.named_parameters(), strict=True)
    found = torch.autograd.grad((states * weights).sum(), [hidden, *parameters])
    return dict(zip(["inputs", *names], found, strict=True))


def fixed_zeros(hidden: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout whose mask is a function of p and the place in the last dimension: channels, or the keys attended to."""
    places = torch.arange(hidden.shape[-1]) * 7 % 10
    return hidden * (places >= 10 * p).to(hidden.dtype) / (1 - p)


@pytest.fixture
def fixed_dropout(monkeypatch):
    """The same masks for our block and for Transformers' own."""

    def dropout(hidden, p=0.5, training=True, inplace=False):
        return fixed_zeros(hidden, p) if training else hidden

    monkeypatch.setattr("permafrost.model.block.random_zeros", fixed_zeros)
    monkeypatch.setattr(functional, "dropout", dropout)


def training_block() -> GPT2Block:
    return make_block(attn_pdrop=0.5, resid_pdrop=0.2).train()


@READS
@ARCHITECTURES
def test_the_output_is_that_of_transformers(changes, positions):
    block, hidden = make_block(**changes), make_hidden()
    ours, theirs = our_block(block, hidden, positions), transformers_block(block, hidden, positions)
    torch.testing.assert_close(ours, theirs, **CLOSE)


@READS
@ARCHITECTURES
def test_the_gradients_are_those_of_transformers(changes, positions):
    block, hidden = make_block(**changes), make_hidden()
    ours = gradients(block, hidden, our_block(block, hidden, positions))
    theirs = gradients(block, hidden, transformers_block(block, hidden, positions))
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@READS
def test_padding_gets_no_gradient(positions):
    block, hidden = make_block(), make_hidden()
    to_inputs = gradients(block, hidden, our_block(block, hidden, positions))["inputs"]
    assert not to_inputs[IS_PADDING].any()
    assert to_inputs[0, 0].any()


@READS
def test_with_the_same_masks_dropout_is_that_of_transformers(fixed_dropout, positions):
    block, hidden = training_block(), make_hidden()
    ours, theirs = our_block(block, hidden, positions), transformers_block(block, hidden, positions)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert not torch.allclose(ours, our_block(block.eval(), hidden, positions), **CLOSE)


@READS
def test_with_the_same_masks_the_gradients_under_dropout_are_those_of_transformers(fixed_dropout, positions):
    block, hidden = training_block(), make_hidden()
    ours = gradients(block, hidden, our_block(block, hidden, positions))
    theirs = gradients(block, hidden, transformers_block(block, hidden, positions))
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("positions", [ONE, SEVERAL], ids=["one", "several"])
def test_with_the_same_masks_what_is_read_is_a_part_of_the_whole(fixed_dropout, positions):
    block, hidden = training_block(), make_hidden()
    whole = run_block(block, hidden)
    expected = torch.stack([states[places] for states, places in zip(whole, positions, strict=True)])
    torch.testing.assert_close(run_block(block, hidden, positions), expected, **CLOSE)


@READS
@pytest.mark.parametrize("which", ["attn_pdrop", "resid_pdrop"])
def test_each_dropout_of_a_block_in_training_is_at_work(which, positions):
    block, hidden = make_block(**{"attn_pdrop": 0.0, "resid_pdrop": 0.0, which: 0.5}).train(), make_hidden()
    torch.manual_seed(5)
    assert not torch.equal(run_block(block, hidden, positions), run_block(block, hidden, positions))
    block.eval()
    assert torch.equal(run_block(block, hidden, positions), run_block(block, hidden, positions))


@READS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_under_bf16_autocast_it_is_the_same_block(fixed_dropout, positions, training):
    block, hidden = training_block().train(training), make_hidden()
    expected = transformers_block(block, hidden, positions)
    for wants_gradient in (True, False):  # without, oneDNN multiplies in another way
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(wants_gradient):
            states = our_block(block, hidden, positions)
        # 8 bits of mantissa at each of five products
        assert (states - expected).norm() < 0.02 * expected.norm()


@READS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_with_weights_in_bf16_it_is_the_same_block(fixed_dropout, positions, training):
    block, hidden = training_block().train(training), make_hidden()
    expected = transformers_block(block, hidden, positions)
    states = our_block(block.bfloat16(), hidden.bfloat16(), positions)
    assert states.dtype == torch.bfloat16
    # 8 bits of mantissa at each of five products, and in the weights
    assert (states - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_p(p):
    torch.manual_seed(0)
    share = (random_zeros(torch.ones(200_001), p) == 0).double().mean().item()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 200_001) ** 0.5)  # 5 standard errors


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_neighbours_are_dropped_independently(distance):
    """Four elements share one 64-bit draw."""
    torch.manual_seed(0)
    dropped = random_zeros(torch.ones(200_000), 0.5) == 0
    both = (dropped[:-distance] & dropped[distance:]).double().mean().item()
    assert both == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 200_000) ** 0.5)  # 5 standard errors


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_what_is_kept_is_scaled_so_that_the_mean_stays(p):
    torch.manual_seed(0)
    values = random_zeros(torch.full((1000,), 3.0), p)
    # p in 65,536ths: for p = 0.9 that is off by 6e-6 of 0.1
    torch.testing.assert_close(
        values[values != 0], torch.full_like(values[values != 0], 3 / (1 - p)), rtol=1e-4, atol=0
    )
    mean = random_zeros(torch.ones(200_000), p).double().mean().item()
    assert mean == pytest.approx(1, abs=5 * (p / (1 - p) / 200_000) ** 0.5)  # 5 standard errors


@pytest.mark.parametrize("dropout", [nn.Dropout(0.0).train(), nn.Dropout(0.5).eval()], ids=["p=0", "eval"])
def test_without_dropout_the_input_itself_comes_back(dropout):
    hidden = torch.ones(3)
    assert drop(hidden, dropout) is hidden


def test_the_gradient_is_the_mask():
    torch.manual_seed(0)
    hidden = torch.randn(50, 7).requires_grad_()
    dropped = random_zeros(hidden, 0.3)
    dropped.sum().backward()
    assert torch.equal(dropped, hidden * hidden.grad)
    assert 0 < (hidden.grad == 0).sum() < 350


def test_dropout_goes_by_torchs_seed():
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append([random_zeros(torch.ones(40), 0.5) for _ in range(2)])
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[0][1])
    assert not torch.equal(draws[0][0], draws[2][0])


@pytest.mark.parametrize("shape", [(1,), (2, 1), (3,), (4,), (5,), (3, 5, 7)], ids=str)
def test_every_element_of_any_size_is_sometimes_dropped_and_sometimes_kept(shape):
    torch.manual_seed(0)
    draws = torch.stack([random_zeros(torch.ones(shape), 0.5) for _ in range(60)])  # all alike once in 2^59 draws
    assert draws.shape[1:] == shape
    assert (draws == 0).any(0).all()
    assert (draws == 2).any(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dropout_keeps_the_type(dtype):
    assert random_zeros(torch.ones(8, dtype=dtype), 0.5).dtype == dtype


@pytest.fixture(scope="module")
def gpt2_small() -> GPT2Model:
    """GPT-2's architecture, but for a vocabulary of 300; not trained."""
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(vocab_size=300, bos_token_id=0, eos_token_id=0)).eval()


@pytest.mark.parametrize("depth", [0, 10, 12])
def test_gpt2_small_cut_anywhere_is_whole(gpt2_small, depth):
    ids = torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(1))
    last = torch.tensor([[6], [3]])
    with torch.no_grad():
        expected = gpt2_small(input_ids=ids).last_hidden_state
        states = trunk(gpt2_small, ids, depth)
        torch.testing.assert_close(branch(gpt2_small, states, depth), expected, rtol=0, atol=1e-5)
        read = branch(gpt2_small, states, depth, last)
    torch.testing.assert_close(read, torch.stack([expected[0, 6:7], expected[1, 3:4]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("short_row", [0, 256], ids=["fused", "written out"])
def test_in_bfloat16_states_and_gradients_are_near_those_of_float32(monkeypatch, short_row):
    """bfloat16 keeps 8 bits: each way is within 3 % of float32, by the norm of all that is compared."""
    monkeypatch.setattr("permafrost.model.block.SHORT_ROW", short_row)
    torch.manual_seed(0)
    block, hidden = make_block(), torch.randn(3, 9, 32)

    def states_and_gradients(half: bool) -> torch.Tensor:
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            states = run_block(block, hidden)
        states.square().sum().backward()
        return torch.cat([states.flatten(), *(weight.grad.flatten() for weight in block.parameters())]).detach()

    exact, half = states_and_gradients(False), states_and_gradients(True)
    assert 0 < (half - exact).norm() < 0.03 * exact.norm()


def test_only_where_short_rows_train_in_bfloat16_is_attention_written_out(monkeypatch):
    fused = []

    def seen(query, *arguments, **named):
        fused.append(query.shape[-2])
        return attention(query, *arguments, **named)

    attention = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", seen)
    block = make_block().eval()
    run_block(block, torch.randn(1, 8, 32))  # float32
    with torch.autocast("cpu", torch.bfloat16):
        run_block(block, torch.randn(1, 9, 32))
        run_block(block, torch.randn(1, 513, 32))
        with torch.inference_mode():
            run_block(block, torch.randn(1, 10, 32))
    assert fused == [8, 513, 10]
