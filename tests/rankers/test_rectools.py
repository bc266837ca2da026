"""RecTools' encoders over our item table: the states are those of its own models with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sirius_rec.extras import missing
from sirius_rec.rankers.sequential.options import SequentialOptions
from sirius_rec.rankers.sequential.ranker import build_network
from sirius_rec.rankers.sequential.rectools import RECTOOLS_NETWORKS

N_ITEMS, LENGTH, WIDTH = 9, 5, 8
absent = missing("rectools")
pytestmark = pytest.mark.skipif(absent is not None, reason="needs RecTools (extra rectools)")


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = build_network(SequentialOptions(network=name, dimension=WIDTH, length=LENGTH), N_ITEMS).eval()
    with torch.no_grad():
        for weight in network.encoder.parameters():  # norms and biases too
            weight.normal_(std=0.3)
    return network


def theirs(name: str) -> object:
    """The model that RecTools' users build, on the catalogue 0 … N_ITEMS − 1 in its order."""
    import pandas as pd
    from rectools.dataset import Dataset
    from rectools.models import HSTUModel, SASRecModel
    from rectools.models.nn.transformers.ligr import LiGRLayers

    shape = {"n_factors": WIDTH, "n_blocks": 2, "n_heads": 2, "session_max_len": LENGTH, "epochs": 0}
    if name == "hstu":
        model = HSTUModel(**shape, relative_time_attention=False)
    elif name == "esasrec":
        model = SASRecModel(**shape, transformer_layers_type=LiGRLayers, use_key_padding_mask=True)
    else:
        model = SASRecModel(**shape, use_key_padding_mask=True)
    log = pd.DataFrame({"user_id": np.repeat([0, 1], [5, 6]), "item_id": [*range(5), 3, 4, 5, 6, 7, 8], "weight": 1.0,
                        "datetime": np.arange(11).astype("datetime64[s]")})  # fmt: skip
    model._build_model_from_dataset(Dataset.construct(log))
    assert model.data_preparator.get_known_item_ids().tolist() == list(range(N_ITEMS))
    return model.lightning_model.torch_model.eval()


@pytest.mark.parametrize("name", RECTOOLS_NETWORKS)
def test_scores_are_those_of_rectools_own_model(name: str) -> None:
    ours, model = made(name), theirs(name)
    missed = model.load_state_dict(ours.encoder.state_dict(), strict=False)
    assert not missed.unexpected_keys
    assert all(key.startswith("item_model.") for key in missed.missing_keys)
    table = model.item_model.item_net_blocks[0].ids_emb.weight
    with torch.no_grad():
        ours.items.weight.normal_()
        ours.items.weight[N_ITEMS] = 0
        table[0], table[1:] = 0, ours.items.weight[:N_ITEMS]
        items = torch.tensor([[N_ITEMS] * 3 + [2, 7], [1, 8, 0, 0, 5], [N_ITEMS] * 4 + [4]])
        wanted = model({"x": (items + 1) % (N_ITEMS + 1)})[:, -1, 1:]
        found = ours.scores(ours(items)[:, -1])
        slate = ours.scores(ours(items)[:, -1], torch.tensor([[3, 0], [1, 8], [2, 2]]))
        torch.testing.assert_close(slate, found.gather(1, torch.tensor([[3, 0], [1, 8], [2, 2]])))
        torch.testing.assert_close(found * (0.05 if name == "hstu" else 1.0), wanted)
        assert wanted.std() > 0.1


@pytest.mark.parametrize("name", RECTOOLS_NETWORKS)
def test_padding_and_what_comes_later_are_not_looked_at(name: str) -> None:
    network = made(name)
    with torch.no_grad():
        network.items.weight.normal_()
        states = network(torch.tensor([[N_ITEMS, 1, 2, 3, 4], [N_ITEMS, 1, 2, 8, 8]]))
        torch.testing.assert_close(states[0, 1:3], states[1, 1:3])
        assert not torch.allclose(states[0, 3], states[1, 3])
        before = network(torch.tensor([[N_ITEMS] * 3 + [1, 2]]))[0, -1]
        network.items.weight[N_ITEMS] = 7.0  # what stands for padding is seen by nobody
        torch.testing.assert_close(network(torch.tensor([[N_ITEMS] * 3 + [1, 2]]))[0, -1], before)


@pytest.mark.parametrize("name", RECTOOLS_NETWORKS)
def test_every_weight_of_the_encoder_is_trained(name: str) -> None:
    network = made(name).train()
    network(torch.tensor([[1, 2, 3, 4, 5]])).square().sum().backward()
    untouched = [n for n, weight in network.encoder.named_parameters() if weight.grad is None]
    assert not untouched


def test_hstu_takes_no_loss_of_products() -> None:
    with pytest.raises(ValueError, match="hstu compares angles: use sampled_softmax"):
        SequentialOptions(network="hstu", loss="shared_softmax")


def test_items_have_no_bias() -> None:
    network = made("esasrec")
    assert not network.bias.requires_grad
    assert (network.bias == 0).all()
