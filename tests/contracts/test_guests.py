"""What another package adds goes through the front door like our own: the examples, each one
file, found by its entry point.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from calibrant.compress import Compression, prune, quantize
from calibrant.errors import InputError
from calibrant.lab.report import report
from calibrant.lab.stats import is_rounded
from calibrant.lab.study import Study
from calibrant.methods import MatrixMethod, methods
from calibrant.targets import parse_target
from calibrant.testing import check_edits, check_method, tiny_folder

from tests.study.small import texts
from tests.test_inputs import killed_behind
from tests.usual import usually

EXAMPLES = Path(__file__).parents[2] / "examples"
GUESTS = {
    "permute_hidden": "calibrant.transforms",
    "by_norms": "calibrant.allocations",
    "cheapest_blocks": "calibrant.methods",
    "round_up": "calibrant.methods",
    "shared_factor": "calibrant.methods",
    "least_used_experts": "calibrant.methods",
}
FAMILY = {"least_used_experts": "mixtral"}
"""The kind of model that a guest needs; all others get a llama."""
STEPS = {"least_used_experts": 1}
"""In how many steps it is done where all others need two or more."""
RECIPES = {
    "permute_hidden": {"method": "wanda", "target": 0.5, "transform": ("permute_hidden(seed=3)",)},
    "by_norms": {"method": "magnitude", "target": 0.5, "allocation": "by_norms"},
    "cheapest_blocks": {"method": "cheapest_blocks", "target": 0.5},
    "round_up": {"method": "round_up", "target": "w4g16"},
    "shared_factor": {"method": "shared_factor", "target": 0.5},
    "least_used_experts": {"method": "least_used_experts", "target": 0.25},
}
USUAL = ("permute_hidden", "cheapest_blocks", "round_up", "least_used_experts")
"""A transform, a method that tries and drops, and one that packs: the others take the same ways."""
KINDS_OF_TARGET = """
from dataclasses import dataclass
from typing import ClassVar

from calibrant.methods import Compressed, MatrixMethod
from calibrant.targets import Removal, Target, keep_highest

@dataclass(frozen=True)
class Keep(Removal):
    written: ClassVar[str] = "so many weights of each row that stay"
    example: ClassVar[str] = "keep 16"

    count: int

    @classmethod
    def read(cls, value):
        word, _, count = str(value).partition(" ")
        return cls(int(count)) if word == "keep" else None

    def __str__(self):
        return f"keep {self.count}"

    def keep(self, scores, group="row"):
        return keep_highest(scores, scores.shape[1] - self.count)

@dataclass(frozen=True)
class Signs(Target):
    written: ClassVar[str] = "a sign, and one size for the matrix"
    example: ClassVar[str] = "signs"

    @classmethod
    def read(cls, value):
        return cls() if value == "signs" else None

    def __str__(self):
        return "signs"

@dataclass(frozen=True, repr=False)
class ToSigns(MatrixMethod):
    accepts: ClassVar = (Signs,)

    def compress(self, weight, seen, target):
        return Compressed(weight.sign() * weight.abs().mean())
"""
"""A module with a target that removes, one that rounds, and a method for the latter."""
SMALL = {"samples": 4, "length": 16, "dtype": "float32"}
IDS = torch.arange(3, 40)[None]


def model_for(name: str, folder: Path, **sizes: int) -> Path:
    """A tiny model that the guest can do something to."""
    return tiny_folder(folder, FAMILY.get(name, "llama"), **sizes)


@pytest.fixture
def guests(plugged: Callable[..., None]) -> None:
    groups: dict[str, dict[str, str]] = {}
    for name, group in GUESTS.items():
        groups.setdefault(group, {})[name] = f"{name}:{name.title().replace('_', '')}"
    plugged(groups, **{name: (EXAMPLES / f"{name}.py").read_text() for name in GUESTS})


pytestmark = pytest.mark.usefixtures("guests")


def test_the_documentation_shows_the_example_as_it_is_and_its_method_keeps_the_contract(
    plugged: Callable[..., None],
) -> None:
    page = (EXAMPLES.parent / "docs/extending.md").read_text()
    assert {path.stem for path in EXAMPLES.glob("*.py")} == GUESTS.keys()
    code = (EXAMPLES / "cheapest_blocks.py").read_text().split('"""', 2)[2].strip()
    assert f"```python\n{code}\n```" in page
    shown = page.split("```python\n", 1)[1].split("```", 1)[0]
    plugged({"calibrant.methods": {"by_neighbours": "my_package:ByNeighbours"}}, my_package=shown)
    check_method(methods.build("by_neighbours"))


@pytest.mark.parametrize(
    "name", usually([name for name, group in GUESTS.items() if group == "calibrant.methods"], USUAL)
)
def test_a_guest_method_keeps_the_contract_of_edits(name: str, tmp_path: Path) -> None:
    method, target = (
        methods.build(name),
        parse_target({"cheapest_blocks": 0.67}.get(name, RECIPES[name]["target"])),
    )
    check_edits(method, target, str(model_for(name, tmp_path / "model")))
    if isinstance(method, MatrixMethod):
        check_method(method, None if name == "round_up" else [target])


@pytest.mark.parametrize("name", usually(GUESTS, USUAL))
def test_what_is_saved_is_what_was_made(name: str, tmp_path: Path) -> None:
    """Plain transformers opens it, and it gives the same logits."""
    done = compressed(str(model_for(name, tmp_path / "model")), name, out=tmp_path / "out")
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(reopened(IDS).logits, done.opened.model(IDS).logits)
    manifest = json.loads((tmp_path / "out" / "calibrant.json").read_text())
    assert manifest["id"] == done.record.run.id
    assert compressed(str(tmp_path / "model"), name, out=tmp_path / "out").already_done


def compressed(model: str, name: str, **how: Any) -> Compression:
    """What the command that is for the recipe's target makes of a model."""
    verb = quantize if str(RECIPES[name]["target"]).startswith("w") else prune
    return verb(model, data="random_tokens", **RECIPES[name], **SMALL, **how)


@pytest.mark.parametrize("name", usually(GUESTS, ("cheapest_blocks",)))
def test_killed_behind_a_step_it_comes_to_the_same_end(name: str, tmp_path: Path) -> None:
    model = str(model_for(name, tmp_path / "model", num_hidden_layers=4))
    whole = compressed(model, name)
    for step in range(STEPS.get(name, 2)):
        out = tmp_path / f"out{step}"
        with killed_behind(step):
            compressed(model, name, out=out)
        assert not out.exists()
        kept = tmp_path.glob(f".{out.name}.calibrant-partial/edits-*.safetensors")
        assert len(list(kept)) == step + 1
        again = compressed(model, name, out=out)
        assert again.record.plain() | {"provenance": {}} == whole.record.plain() | {
            "provenance": {}
        }
        state, wanted = again.opened.model.state_dict(), whole.opened.model.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", usually(GUESTS, ["cheapest_blocks"]))
def test_a_study_has_it_beside_ours_with_its_report_and_page(name: str, tmp_path: Path) -> None:
    """Two draws of two sets."""
    how, given = RECIPES[name], texts(tmp_path / "texts")
    study = Study(
        models=str(model_for(name, tmp_path / "small", num_hidden_layers=2)),
        data=["random_tokens", given["prose"]],
        methods=[str(how["method"])],
        targets=[how["target"]],
        groups={"guest": {}, "beside": {"method": "wanda", "target": 0.5}},
        seeds=[0, 1],
        evaluate=[f"loss(source={given['verse']!r}, tokens=200, length=64)"],
        transforms=how.get("transform", ()),
        allocation=how.get("allocation", "uniform"),
        **SMALL,
    )
    assert not study.run(tmp_path / "whole").failures
    found = report(tmp_path / "whole")
    assert str(found)
    found.write_html(tmp_path / "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()


def test_targets_of_another_package_have_the_verb_that_their_class_says(
    plugged: Callable[..., None], tmp_path: Path
) -> None:
    kinds_of_target = {"keep": "kinds_of_target:Keep", "signs": "kinds_of_target:Signs"}
    to_signs = {"to_signs": "kinds_of_target:ToSigns"}
    plugged(
        {"calibrant.targets": kinds_of_target, "calibrant.methods": to_signs},
        kinds_of_target=KINDS_OF_TARGET,
    )
    model = str(tiny_folder(tmp_path / "model"))
    kept = prune(model, method="magnitude", target="keep 16", **SMALL).record
    rows = sum(weight["shape"][0] for weight in kept.weights)
    size = sum(math.prod(weight["shape"]) for weight in kept.weights)
    assert math.isclose(kept.sparsity, 1 - 16 * rows / size)
    assert quantize(model, method="to_signs", target="signs", **SMALL).record.weights
    with pytest.raises(InputError, match="use calibrant quantize"):
        prune(model, method="to_signs", target="signs", **SMALL)
    with pytest.raises(InputError, match="use calibrant prune"):
        quantize(model, method="magnitude", target="keep 16", **SMALL)
    # What a report says of them.
    assert not is_rounded("keep 16")
    assert is_rounded("signs")


def test_a_transform_keeps_the_function(tmp_path: Path) -> None:
    from calibrant.models import open_model, view
    from calibrant.transforms import transforms

    opened = open_model(str(tiny_folder(tmp_path / "model")), "float32")
    with torch.no_grad():
        before = opened.model(IDS).logits
        transforms.build("permute_hidden(seed=5)").apply(view(opened.model), {})
        assert (opened.model(IDS).logits - before).abs().max() < 1e-6
        assert not torch.equal(opened.model(IDS).logits, before)


def test_an_allocation_that_looks_has_data_in_its_identity_and_shares_whose_mean_was_asked_for(
    tmp_path: Path,
) -> None:
    model = str(tiny_folder(tmp_path / "model"))
    plain, other = (
        prune(model, data=data, method="magnitude", target=0.5, **SMALL).record
        for data in ("random_tokens", "full_stops")
    )
    assert plain.run.id == other.run.id
    shared, elsewhere = (
        prune(
            model, data=data, method="magnitude", target=0.5, allocation="by_norms", **SMALL
        ).record
        for data in ("random_tokens", "full_stops")
    )
    assert shared.run.id != elsewhere.run.id
    assert len({round(weight["sparsity"], 2) for weight in shared.weights}) > 3
    assert shared.sparsity == 0.5


@pytest.mark.parametrize(
    ("family", "how", "told"),
    [
        ("llama", {"method": "wanda", "target": 0.9, "allocation": "by_norms"}, "not 0.9"),
        ("llama", {"method": "cheapest_blocks", "target": "2:4"}, "2:4"),
        (
            "llama",
            {"method": "shared_factor", "target": 0.5, "allocation": "by_norms"},
            "shared_factor",
        ),
        (
            "llama",
            {"method": "wanda", "target": 0.5, "transform": ("permute_hiden",)},
            "permute_hiden",
        ),
        ("mixtral", {"method": "least_used_experts", "target": 0.75}, "at most 0.5"),
        (
            "gpt2",
            {"method": "wanda", "target": 0.5, "transform": ("permute_hidden",)},
            "GPT2LMHeadModel",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work_and_nothing_stays(
    family: str, how: dict[str, object], told: str, tmp_path: Path
) -> None:
    sizes = {"num_local_experts": 4} if family == "mixtral" else {}
    model = tiny_folder(tmp_path / "model", family, **sizes)
    with pytest.raises(InputError) as refused:
        prune(str(model), data="random_tokens", out=tmp_path / "out", **how, **SMALL)
    assert told in str(refused.value)
    assert list(tmp_path.iterdir()) == [model]
