"""What `prune` and `quantize` return: saved, pushed to a fake of the hub, and shown."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from calibrant.compress import Compression, prune, quantize
from calibrant.errors import ModelError, OutputError
from calibrant.evaluators import evaluate
from calibrant.models import open_model, pushing
from calibrant.testing import tiny_folder

from tests.hub import TOKEN, Hub, running
from tests.models.refused import refusal_of
from tests.refusing import refused
from tests.study.small import texts
from tests.test_notebook import HOSTILE, Tags

SMALL = {"samples": 4, "length": 32, "dtype": "float32"}
QUANTIZED = {"method": "gptq", "target": "w4g16", **SMALL}
PRUNED = {"method": "wanda", "target": 0.5, **SMALL}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    return texts(tmp_path / "given")


def compressed(given: dict[str, str], how: dict[str, Any], **more: Any) -> Compression:
    verb = quantize if how is QUANTIZED else prune
    return verb(given["model"], data=given["prose"], **how, **more)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file by its path, without what is another in every job: times and memory, and the seal
    of the document that has them.
    """
    files: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
    for name, content in files.items():
        if name.endswith("calibrant.json"):
            manifest = json.loads(content)
            del manifest["record"]["provenance"]
            del manifest["seal"]
            files[name] = json.dumps(manifest, sort_keys=True).encode()
    return files


def unsampled(model: PreTrainedModel) -> None:
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = False


def with_attentions(model: PreTrainedModel) -> None:
    model.config._output_attentions = True


@pytest.mark.parametrize("spoil", [unsampled, with_attentions])
def test_a_model_that_transformers_does_not_save_is_refused_before_any_work(
    spoil: Callable[[PreTrainedModel], None], given: dict[str, str], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(given["model"])
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoil(model)
    asked = {"data": given["prose"], "samples": 4, "length": 32}
    with refused(ModelError, given["model"]):
        prune(model, tokenizer, out=tmp_path / "out", **asked)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    done = prune(model, tokenizer, **asked)
    with refused(ModelError, given["model"]):
        done.save(tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("how", "exports"),
    [
        (PRUNED, []),
        (PRUNED, ["sparse", "imatrix"]),
        (QUANTIZED, ["compressed_tensors", "sparse"]),
    ],
)
def test_what_is_saved_from_memory_is_what_out_writes(
    how: dict[str, Any], exports: list[str], given: dict[str, str], tmp_path: Path
) -> None:
    compressed(given, how, out=tmp_path / "by-out", export=exports)
    done = compressed(given, how)
    assert done.out is None
    assert done.save(tmp_path / "by-save", exports) == tmp_path / "by-save"
    files = files_of(tmp_path / "by-save")
    assert files == files_of(tmp_path / "by-out")
    assert "calibrant.runs.npy" in files
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "by-save", dtype=torch.float32)
    for name, parameter in reopened.named_parameters():
        assert torch.equal(parameter, done.model.get_parameter(name)), name
    assert done.tokenizer("so they had tea")["input_ids"]


def test_it_is_saved_as_often_as_one_likes_and_measuring_changes_nothing(
    given: dict[str, str], tmp_path: Path
) -> None:
    done = compressed(given, QUANTIZED)
    task = f"agreement(source={given['verse']!r}, tokens=64, length=32)"
    evaluate(done.model, done.tokenizer, tasks=[task], reference=given["model"])
    first = files_of(done.save(tmp_path / "first"))
    assert first == files_of(done.save(tmp_path / "second"))
    with pytest.raises(OutputError):
        done.save(tmp_path / "first")


def test_a_model_that_came_as_an_object_is_the_one_that_is_saved(
    given: dict[str, str], tmp_path: Path
) -> None:
    opened = open_model(given["model"], "float32")
    done = quantize(opened.model, opened.tokenizer, data=given["prose"], **QUANTIZED)
    assert done.model is opened.model
    done.model.train()
    folder = done.save(tmp_path / "out", ["compressed_tensors"])
    assert done.model.training
    by_name = compressed(given, QUANTIZED).save(tmp_path / "by-name", ["compressed_tensors"])
    for file in ("model.safetensors", "compressed_tensors/model.safetensors"):
        assert (folder / file).read_bytes() == (by_name / file).read_bytes()


def trained(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("model.norm.weight").add_(1.0)


def halved(model: torch.nn.Module) -> None:
    model.half()


def replaced(model: torch.nn.Module) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


@pytest.mark.parametrize("change", [trained, halved, replaced])
def test_a_model_that_was_changed_since_is_not_saved(
    change: Any, given: dict[str, str], tmp_path: Path
) -> None:
    done = compressed(given, PRUNED)
    change(done.model)
    refusal_of(done.save, tmp_path / "out", kind=OutputError)
    assert not (tmp_path / "out").exists()


def test_exports_that_need_what_was_not_kept_or_hold_something_else_are_refused(
    given: dict[str, str], tmp_path: Path
) -> None:
    written = compressed(given, QUANTIZED, out=tmp_path / "out")
    again = compressed(given, QUANTIZED, out=tmp_path / "out")
    assert again.already_done
    for done in (written, again):
        said = refusal_of(done.save, tmp_path / "new", ["sparse"], kind=OutputError)
        assert said.subject == "sparse"
        done.save(tmp_path / f"plain{done.already_done}")
    said = refusal_of(
        compressed(given, PRUNED).save, tmp_path / "new", "compressed_tensors", kind=OutputError
    )
    assert said.subject != ""
    assert not (tmp_path / "new").exists()


def test_it_shows_what_happened(given: dict[str, str], tmp_path: Path) -> None:
    done = compressed(given, QUANTIZED)
    assert len(repr(done)) < 500
    for told in ("gptq", "w4g16", given["prose"], "bits a weight"):
        assert told in repr(done)
    task = f"loss(source={given['verse']!r}, tokens=64, length=32)"
    dense = evaluate(given["model"], tasks=[task])
    measured = evaluate(done.model, done.tokenizer, tasks=[task])
    # A cell of a notebook runs again.
    for _ in range(2):
        done.add_scores(measured, dense)
    assert done.scores == [measured[0].score]
    page = done._repr_html_()
    for told in ("gptq", "w4g16", "prose.jsonl", "lm_head.weight (head)"):
        assert told in page
    for measurement in (*dense, *measured):
        assert f"<td>{measurement.score.value:.4f}</td>" in page
    card = (done.save(tmp_path / "out") / "README.md").read_text()
    assert f"{measured[0].score.value:.4f}" in card
    assert "% of the weights" in repr(compressed(given, PRUNED))


def test_whatever_a_model_is_called_is_shown_as_text(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", " ")
    done = quantize(str(tiny_folder(folder)), target="w4g16", dtype="float32")
    assert {"script", "img"}.isdisjoint(Tags(done._repr_html_()).found)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as hub:
        monkeypatch.setattr(pushing, "HfApi", partial(HfApi, endpoint=hub.url))
        monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
        # Its protocol is the only other one, and its client asks hosts of its own.
        monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.mark.allow_hosts(["127.0.0.1"])
# The hub's client calls its own HTTP library in an old way.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_pushed_model_is_the_saved_one(hub: Hub, given: dict[str, str], tmp_path: Path) -> None:
    done = compressed(given, QUANTIZED)
    address = done.push("somebody/small", exports=["compressed_tensors"])
    assert address == f"{hub.url}/somebody/small"
    assert hub.private["somebody/small"]
    folder = done.save(tmp_path / "out", exports=["compressed_tensors"])
    pushed = hub.repositories["somebody/small"]
    saved = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert pushed.keys() == saved
    for name in ("model.safetensors", "README.md", "compressed_tensors/model.safetensors"):
        assert pushed[name] == (folder / name).read_bytes()
    # The same model again takes the place of the first.
    assert done.push("somebody/small") == address
    said = refusal_of(compressed(given, PRUNED).push, "somebody/small", kind=OutputError)
    assert said.subject == "somebody/small"
    assert hub.repositories["somebody/small"] == pushed


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("name", ["small", "some body/small", "a/b/c", ""])
def test_a_name_that_is_none_is_refused(name: str, hub: Hub, given: dict[str, str]) -> None:
    refusal_of(compressed(given, PRUNED).push, name, kind=OutputError)
    assert hub.repositories == {}


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_who_may_not_write_or_reaches_no_hub_is_told(
    hub: Hub, given: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = compressed(given, PRUNED)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert re.search(
        "hf auth login", str(refusal_of(done.push, "somebody/small", kind=OutputError))
    )
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert re.search(
        "hf auth login", str(refusal_of(done.push, "somebody/small", kind=OutputError))
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(pushing, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:1"))
    refusal_of(done.push, "somebody/small", kind=OutputError)
    assert hub.repositories == {}
