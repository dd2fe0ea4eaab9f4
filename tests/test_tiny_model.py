"""The model that tests sample with: what makes their episodes the same in number of turns, whatever is drawn."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.support import tiny_model


@pytest.mark.parametrize("seed", [0, 5])
def test_a_tiny_model_never_samples_a_token_that_the_tokenizer_added(tmp_path, seed):
    folder = tiny_model.make(tmp_path / "model", seed=seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    added = list(transformers.AutoTokenizer.from_pretrained(folder).added_tokens_decoder)
    ids = torch.randint(0, 4096, (2, 300), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        probabilities = torch.softmax(model(ids).logits, -1)
    assert len(added) == 9
    assert probabilities[..., added].max() < 1e-15
    assert probabilities.max(-1).values.mean() < 0.5, "it is still a model that says many things"
