"""The check is itself checked: it passes what is right, and finds each kind of wrong."""

import dataclasses

import pytest
import torch

from calibrant.models import ModelView
from calibrant.testing import architectures
from calibrant.testing.architectures import check_architecture
from calibrant.testing.tiny import FAMILIES, tiny_model

from tests.models.refused import refusal_of
from tests.usual import usually


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_the_view_of_every_family_is_true(family):
    model = tiny_model(family)
    before = [p.clone() for p in model.parameters()]
    unreached = check_architecture(model)
    assert all("experts" in name for name in unreached)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def changed_view(monkeypatch, change) -> None:
    """Let the check see a view in which `change` altered the matrices and the dense parameters
    of the first block.
    """

    def view(model):
        seen = ModelView(model, "transformer.h")
        first = seen.blocks[0]
        weights, dense = change(list(first.weights), list(seen.dense))
        seen.blocks = (dataclasses.replace(first, weights=tuple(weights)), *seen.blocks[1:])
        seen.dense = tuple(dense)
        return seen

    monkeypatch.setattr(architectures, "view", view)


def turned(weights, dense):
    wrong = weights[1]
    return [
        weights[0],
        dataclasses.replace(wrong, transposed=False, shape=wrong.shape[::-1]),
        *weights[2:],
    ], dense


def one_left_out(weights, dense):
    return weights[1:], dense


def one_twice(weights, dense):
    return [*weights, weights[0]], dense


def one_in_both(weights, dense):
    return weights, [
        *dense,
        dataclasses.replace(dense[0], name="transformer.h.0.attn.c_attn.weight"),
    ]


def one_norm_left_out(weights, dense):
    return weights, [d for d in dense if d.name != "transformer.ln_f.weight"]


@pytest.mark.parametrize(
    ("change", "subject", "value"),
    [
        (turned, "transformer.h.0.attn.c_proj", "addmm"),
        (one_left_out, "transformer.h.0.attn.c_attn.weight", "0 of its 3072"),
        (one_twice, "transformer.h.0.attn.c_attn", "2 times"),
        (one_in_both, "transformer.h.0.attn.c_attn.weight", "3072 of its 3072"),
        (one_norm_left_out, "transformer.ln_f.weight", "0 of its 32"),
    ],
)
def test_a_view_that_is_wrong_is_found_out(monkeypatch, change, subject, value):
    changed_view(monkeypatch, change)
    said = refusal_of(check_architecture, tiny_model("gpt2"))
    assert said.subject == subject
    assert value in str(said)


def test_a_matrix_that_no_product_uses_or_that_does_not_keep_what_it_is_set_to_is_found_out(
    monkeypatch,
):
    model = tiny_model("llama")
    model.model.layers[1].spare = torch.nn.Linear(4, 4, bias=False)
    assert refusal_of(check_architecture, model).subject == "model.layers.1.spare"
    monkeypatch.setattr(architectures.Weight, "set", lambda self, matrix: None)
    assert (
        refusal_of(check_architecture, tiny_model("llama")).subject
        == "model.layers.0.self_attn.q_proj"
    )


def test_features_that_disagree_with_the_view_are_found_out(monkeypatch):
    products = architectures._Products

    class Wrong(products):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs)
            for address, found in self.seen.items():
                self.seen[address] = [
                    product._replace(inputs=product.inputs[..., :3]) for product in found
                ]
            return result

    monkeypatch.setattr(architectures, "_Products", Wrong)
    said = refusal_of(check_architecture, tiny_model("llama"))
    assert said.subject == "model.layers.0.self_attn.q_proj"
    assert "3 features" in str(said)
