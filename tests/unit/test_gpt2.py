"""GPT-2: sizes, equality with Hugging Face's, and options that must not change the loss."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybrid_ray.config import ModelConfig
from hybrid_ray.config.training import Preset
from hybrid_ray.errors import ConfigError
from hybrid_ray.models import GPT2, PRESETS, build_model, count_parameters, flops_per_token, generate

VOCAB = 257


def micro(*, seed: int = 0, vocab_size: int = VOCAB, **settings: object) -> GPT2:
    torch.manual_seed(seed)
    return build_model(ModelConfig(preset="micro", **settings), vocab_size=vocab_size, sequence_length=32)  # type: ignore[arg-type]


def batch(*, rows: int = 3, length: int = 32, vocab_size: int = VOCAB) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def gradients(model: GPT2) -> dict[str, Tensor]:
    tokens, targets = batch()
    model(tokens, targets).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    "preset, parameters",
    [("124M", 124_439_808), ("350M", 354_823_168), ("774M", 774_030_080), ("1.5B", 1_557_611_200)],
)
def test_ladder_sizes_are_those_of_gpt2(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(preset=preset), vocab_size=50_257, sequence_length=1024)
    assert count_parameters(model) == parameters


def test_tiny_sizes() -> None:
    nano = build_model(ModelConfig(preset="nano"), vocab_size=VOCAB, sequence_length=64)
    assert count_parameters(nano) == 170_624
    assert count_parameters(micro()) == 21_432


def test_position_table_grows_with_the_sequence() -> None:
    model = build_model(ModelConfig(preset="micro"), vocab_size=VOCAB, sequence_length=50)
    tokens, targets = batch(length=50)
    assert model(tokens, targets).isfinite()


def test_unknown_preset_is_named_with_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"preset is '128M' but .*: did you mean '124M'"):
        ModelConfig(preset="128M")  # type: ignore[arg-type]


def test_a_job_may_name_every_shape_there_is() -> None:
    assert get_args(Preset) == (*PRESETS, "cnn")


def test_loss_of_a_fresh_model_is_that_of_guessing() -> None:
    tokens, targets = batch()
    assert micro()(tokens, targets).item() == pytest.approx(torch.tensor(VOCAB).log().item(), abs=0.02)


def test_no_token_sees_a_later_one() -> None:
    model = micro()
    tokens, _ = batch()
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % VOCAB
    before, after = model.logits(tokens), model.logits(changed)
    assert torch.allclose(before[:, :20], after[:, :20], atol=1e-6)
    assert not torch.allclose(before[:, 20:], after[:, 20:], atol=1e-3)


def theirs(vocab_size: int = VOCAB) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    shape = PRESETS["micro"]
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(3)
    model: torch.nn.Module = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # far from their init, where biases are 0 and norms 1
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@torch.no_grad()
def copy_theirs(reference: torch.nn.Module, model: GPT2) -> None:
    """Their names have a prefix, and their Conv1D stores a linear layer's weight transposed."""
    for name, parameter in model.named_parameters():
        weight = reference.get_parameter(f"transformer.{name}")
        transposed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        parameter.copy_(weight.t() if transposed else weight)


def test_logits_and_gradients_equal_hugging_face_with_its_weights() -> None:
    reference, model = theirs(), micro()
    copy_theirs(reference, model)
    tokens, targets = batch()
    expected = reference(tokens).logits
    assert expected.std() > 0.3  # there is something to be equal to
    assert torch.allclose(model.logits(tokens), expected, atol=1e-4)
    loss = model(tokens, targets)
    their_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten())
    assert torch.allclose(loss, their_loss, atol=1e-5)
    loss.backward()
    their_loss.backward()
    their_gradient = reference.get_parameter("transformer.h.1.attn.c_attn.weight").grad
    mine = model.get_parameter("h.1.attn.c_attn.weight").grad
    assert mine is not None
    assert their_gradient is not None
    assert torch.allclose(mine.t(), their_gradient, atol=1e-5)


@pytest.mark.parametrize("settings", [{"loss_chunks": 5}, {"activation_checkpointing": True}])
def test_memory_options_change_neither_loss_nor_gradient(settings: dict[str, object]) -> None:
    plain, saving = micro(), micro(**settings)
    tokens, targets = batch()
    assert torch.allclose(plain(tokens, targets), saving(tokens, targets), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(plain(tokens, targets), saving(tokens, targets), atol=1e-6)
    expected, found = gradients(plain), gradients(saving)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)


def test_chunked_loss_saves_no_logits() -> None:
    def saved_bytes(model: GPT2) -> int:
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tokens, targets = batch(vocab_size=5000)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(tokens, targets)
        return sum(sizes.values())

    logits = 3 * 32 * 5000 * 4
    whole, chunked = saved_bytes(micro(vocab_size=5000)), saved_bytes(micro(vocab_size=5000, loss_chunks=4))
    assert whole - chunked > 0.9 * logits


def test_padding_rows_of_the_vocabulary_change_nothing() -> None:
    plain, padded = micro(), micro(pad_vocab_to=64)
    assert padded.wte.weight.shape[0] == 320
    weights = plain.state_dict()
    padded.load_state_dict({**weights, "wte.weight": torch.cat([weights["wte.weight"], padded.wte.weight[VOCAB:]])})
    tokens, targets = batch()
    assert padded.logits(tokens).shape[-1] == VOCAB
    assert torch.allclose(plain(tokens, targets), padded(tokens, targets), atol=1e-6)


def test_bf16_autocast_keeps_the_loss_in_fp32_and_close() -> None:
    model = micro()
    tokens, targets = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model(tokens, targets).item(), rel=2e-3)


def test_bf16_weights_give_an_fp32_loss() -> None:
    tokens, targets = batch()
    loss = micro().bfloat16()(tokens, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(micro()(tokens, targets).item(), rel=2e-3)


def test_dropout_acts_in_training_only() -> None:
    model = micro(dropout=0.5)
    tokens, targets = batch()
    assert model(tokens, targets) != model(tokens, targets)
    model.eval()
    assert model(tokens, targets) == model(tokens, targets) == micro()(tokens, targets)


def test_flops_formula_counts_what_is_computed() -> None:
    model = micro()
    tokens, targets = batch()
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(tokens, targets).backward()
    assert counter.get_total_flops() == flops_per_token(model.shape, VOCAB, 32) * tokens.numel()


def test_training_step_compiles_to_one_graph() -> None:
    explained = torch._dynamo.explain(micro())(*batch())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_generated_text_repeats_with_its_seed_and_leaves_training_alone() -> None:
    model = micro()
    start = torch.zeros(2, 1, dtype=torch.int64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(model, start, new_tokens=40, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert first.shape == (2, 41)
    assert torch.equal(first, generate(model, start, new_tokens=40, seed=1))
    assert not torch.equal(first, generate(model, start, new_tokens=40, seed=2))


def test_generating_the_likeliest_token_follows_the_logits() -> None:
    model = micro()
    start = torch.tensor([[5, 6, 7]])
    for settings in ({"temperature": 0.0}, {"top_k": 1}):
        assert generate(model, start, new_tokens=1, **settings)[0, -1] == model.logits(start)[0, -1].argmax()  # type: ignore[arg-type]
