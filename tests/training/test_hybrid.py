"""Virtual tokens: embedded through the projector, invisible to the rest of the model, whole on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sirius_rec.errors import RunError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.hybrid import HybridEncoder, marked_titles
from sirius_rec.prompts.templates import TEMPLATES
from sirius_rec.rankers.llm import LLMRanker
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import score_rows
from sirius_rec.training.backbones import add_lora, load_trained
from sirius_rec.training.hybrid import FILE, install, installed, load_projector, removed, save_projector

ITEMS = torch.arange(40.0).view(10, 4).sin() * 3


def rows(first: int, tokenizer: Any) -> list[PromptCompletions]:
    encoder = Encoder(tokenizer)
    answers = [encoder.completion(title) for title in ("Red", "Red House Painters", "Blur")]
    return [
        PromptCompletions([*encoder.prompt("Air"), first + 3, *encoder.prompt(" Can"), first], answers),
        PromptCompletions(encoder.prompt("Low and Pulp and more of it"), answers[:2]),
        PromptCompletions([first + 9], answers),
    ]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_packed_equals_naive_equals_embeddings_by_hand(
    tokenizer: Any, tiny_llama: Callable[..., Any], tied: bool, lora: bool
) -> None:
    model = tiny_llama(tokenizer, tie_word_embeddings=tied)
    if lora:
        model = add_lora(model, rank=2)
    hybrid = install(model, ITEMS)
    made = rows(hybrid.first_virtual, tokenizer)
    packed = score_rows(model, made, tokenizer.pad_token_id, mode="packed")
    naive = score_rows(model, made, tokenizer.pad_token_id, mode="naive")
    for one, other in zip(packed, naive, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # the third row by hand: one projected item, then the completion
    unit = ITEMS / ITEMS.square().mean().sqrt()
    with torch.no_grad():
        scale = hybrid.tokens.weight.square().mean().sqrt()
        item = hybrid.projector(unit[9]) * scale
        for answer, logp in zip(made[2].completions, packed[2], strict=True):
            inputs = torch.cat([item[None], hybrid.tokens(torch.tensor(answer))])[None]
            logits = torch.log_softmax(model(inputs_embeds=inputs).logits[0], -1)
            wanted = sum(float(logits[n, token]) for n, token in enumerate(answer))
            assert logp == pytest.approx(wanted, abs=1e-4)


def test_text_alone_is_what_it_was(tokenizer: Any, tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama(tokenizer)
    made = rows(0, tokenizer)[1:2]
    before = score_rows(model, made, tokenizer.pad_token_id)
    install(model, ITEMS)
    np.testing.assert_array_equal(score_rows(model, made, tokenizer.pad_token_id)[0], before[0])
    model.train()
    assert torch.isfinite(model(torch.tensor([made[0].prompt])).logits).all()


def test_projected_items_have_the_scale_of_tokens(tokenizer: Any, tiny_llama: Callable[..., Any]) -> None:
    hybrid = install(tiny_llama(tokenizer), 1e3 * torch.randn(500, 64))
    size = hybrid(hybrid.first_virtual + torch.arange(500)[None]).detach().square().mean().sqrt()
    assert 0.3 < float(size / hybrid.scale) < 3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_round_trip_over_disk(
    tokenizer: Any, tiny_llama: Callable[..., Any], tmp_path: Path, tied: bool, lora: bool
) -> None:
    """The folder holds a plain model that anybody can load; with the projector it scores what was saved."""
    plain = tiny_llama(tokenizer, tie_word_embeddings=tied)
    plain.save_pretrained(tmp_path / "base")
    model = add_lora(plain, rank=2) if lora else plain
    hybrid = install(model, ITEMS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    made = rows(hybrid.first_virtual, tokenizer)
    wanted = score_rows(model, made, tokenizer.pad_token_id)
    with removed(model):
        model.save_pretrained(tmp_path / "saved")
    save_projector(model, tmp_path / "saved")
    assert installed(model) is hybrid
    again = load_trained(tmp_path / "saved", tmp_path / "base")
    load_projector(again, tmp_path / "saved")
    for one, other in zip(score_rows(again, made, tokenizer.pad_token_id), wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    if not lora:  # the head is still tied, or still not
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert (base.lm_head.weight is base.get_input_embeddings().weight) == tied
        assert torch.equal(base.get_input_embeddings().weight, hybrid.tokens.weight)


def test_what_does_not_fit_is_refused(tokenizer: Any, tiny_llama: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_llama(tokenizer)
    install(model, ITEMS)
    save_projector(model, tmp_path)
    other = tiny_llama(tokenizer, vocab_size=len(tokenizer) + 8)
    with pytest.raises(RunError, match=f"trained on a backbone of {len(tokenizer)} token embeddings"):
        load_projector(other, tmp_path)
    tensors = load_file(tmp_path / FILE)
    tensors.pop("projector.0.bias")
    save_file(tensors, tmp_path / FILE, metadata={"first_virtual": str(len(tokenizer))})
    with pytest.raises(RunError, match="delete its folder"):
        load_projector(tiny_llama(tokenizer), tmp_path)
    (tmp_path / FILE).write_bytes(b"x")
    with pytest.raises(RunError, match="cannot be read"):
        load_projector(tiny_llama(tokenizer), tmp_path)


def test_ranker_contract(tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...]) -> None:
    """Batch = single, permuting candidates permutes scores (no slate in the prompt), empty history, slate of one, an
    item without an embedding; and answers are generated from hybrid prompts."""
    from sirius_rec.rankers.generation import generate_answers

    model = tiny_llama(tokenizer)
    hybrid = install(model, ITEMS)
    known = np.ones(10, dtype=bool)
    known[7] = False
    form = TEMPLATES["music"].__class__(**{**vars(TEMPLATES["music"]), "shows_slate": False})
    encoder = HybridEncoder(tokenizer, hybrid.first_virtual)
    ranker = LLMRanker(model, encoder, form, catalogue, shown=marked_titles(catalogue, known))
    histories = [np.array([3, 4]), np.array([], int), np.array([7, 1]), np.array([7])]
    slates = [np.array([0, 1, 2, 7]), np.array([5]), np.array([8, 6]), np.array([1, 2])]
    together = ranker.score(histories, slates)
    for history, slate, scores in zip(histories, slates, together, strict=True):
        np.testing.assert_allclose(ranker.score([history], [slate])[0], scores, atol=1e-5)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(ranker.score(histories[:1], [slates[0][order]])[0], together[0][order], atol=1e-5)
    plain = LLMRanker(model, Encoder(tokenizer), form, catalogue)
    np.testing.assert_allclose(plain.score(histories[3:], slates[3:])[0], together[3], atol=1e-5)
    assert np.abs(plain.score(histories[:1], slates[:1])[0] - together[0]).max() > 1e-3
    answers = generate_answers(
        model, encoder, ranker.prompts(histories, slates), [[catalogue[i] for i in s] for s in slates], ["Red"] * 4
    )
    assert len(answers) == 4


def test_projected_items_have_the_scale_that_the_first_layer_sees(tokenizer: Any) -> None:
    """Gemma multiplies its embeddings by √H as they come out, here by 8."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    hybrid = install(model, torch.randn(500, 64))
    entered: list[torch.Tensor] = []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    with torch.no_grad():
        model(torch.arange(hybrid.first_virtual)[None])
        model(hybrid.first_virtual + torch.arange(500)[None])
    tokens, items = (float(x.square().mean().sqrt()) for x in entered)
    assert 0.3 < items / tokens < 3
