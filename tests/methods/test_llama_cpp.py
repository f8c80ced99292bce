"""llama-quantize by a recipe: the file that is written holds what llama.cpp made, byte for byte,
and the model holds the numbers of that.
"""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from calibrant.compress import quantize
from calibrant.compress.importance import imatrix
from calibrant.errors import OutputError, TargetError
from calibrant.methods import methods
from calibrant.models import open_model
from calibrant.targets import GgufRecipe, parse_target
from calibrant.testing import tiny_folder, tiny_model, tiny_tokenizer
from calibrant.testing.tiny import VOCABULARY, tiny_gguf

from tests.usual import usually

SMALL = {"samples": 2, "length": 16, "dtype": "float32"}
llama_cpp = pytest.mark.usefixtures("_llama_cpp")


def same_file(ours: Path, theirs: Path) -> dict[str, gguf.ReaderTensor]:
    """The tensors of `theirs`, which are those of `ours`, byte for byte."""
    read = [{str(t.name): t for t in gguf.GGUFReader(path).tensors} for path in (ours, theirs)]
    assert read[0].keys() == read[1].keys()
    for name, tensor in read[1].items():
        assert read[0][name].tensor_type == tensor.tensor_type, name
        np.testing.assert_array_equal(read[0][name].data, tensor.data, err_msg=name)
    return read[1]


def test_a_recipe_is_read_and_a_kind_is_not_one() -> None:
    assert parse_target("q4_k_m") == GgufRecipe("Q4_K_M")
    assert GgufRecipe.read("q4_0") is None
    with pytest.raises(TargetError) as refused:
        GgufRecipe("Q9_X")
    assert refused.value.subject == "Q9_X"


def test_a_kind_is_the_recipe_of_its_name_or_refused_with_those_that_have_it() -> None:
    method = methods.build("llama_cpp")
    assert method.aim(parse_target("q8_0")) == GgufRecipe("Q8_0")
    with pytest.raises(TargetError, match=r"q4_k is a kind of blocks.*write Q4_K_S or Q4_K_M"):
        method.aim(parse_target("q4_k"))
    with pytest.raises(TargetError) as refused:
        method.aim(parse_target(0.5))
    assert "q4_k" not in str(refused.value)


@llama_cpp
@pytest.mark.parametrize("recipe", usually(["Q4_K_M", "q8_0"], {"Q4_K_M"}))
def test_the_file_is_the_one_that_llama_quantize_makes(tmp_path: Path, recipe: str) -> None:
    from calibrant.llama_cpp import quantize_file

    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    done = quantize(
        str(template),
        data="python_docs",
        method="llama_cpp",
        target=recipe,
        out=tmp_path / "out",
        export="gguf",
        **SMALL,
    )
    means = {
        name: entry.importance.ravel()
        for name, entry in imatrix(str(template), data="python_docs", **SMALL).entries.items()
    }
    quantize_file(template, tmp_path / "theirs.gguf", recipe.upper(), means)
    same_file(tmp_path / "out" / "model.gguf", tmp_path / "theirs.gguf")
    ids = torch.arange(3, 35).reshape(2, 16)
    assert torch.equal(
        *(
            open_model(str(place), "float32", "cpu").model(ids).logits
            for place in (tmp_path / "out", tmp_path / "out" / "model.gguf")
        )
    )
    assert done.record.edits[0]["edit"] == "replace_parameters"
    packed = set(done.record.edits[0]["parameters"])
    assert "model.embed_tokens.weight" in packed
    assert packed.isdisjoint(entry["name"] for entry in done.record.dense)


MOE = {"moe_intermediate_size": 64, "hidden_size": 32}


def tiny_moe_gguf(path: Path) -> Path:
    """A tiny Qwen3-MoE as a GGUF file, its tensors named and divided by hand."""
    model, writer = tiny_model("qwen3_moe", **MOE), gguf.GGUFWriter(path, "qwen3moe")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tiny_tokenizer().convert_ids_to_tokens(list(range(VOCABULARY))))
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 256)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
    }
    names |= {
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate": "ffn_gate_inp",
    }
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if "experts" in parts:
            half = tensor.shape[1] // 2
            pieces = (
                {"ffn_gate_exps": tensor[:, :half], "ffn_up_exps": tensor[:, half:]}
                if "gate_up_proj" in parts
                else {"ffn_down_exps": tensor}
            )
            for own, piece in pieces.items():
                writer.add_tensor(f"blk.{parts[2]}.{own}.weight", piece.contiguous().numpy())
        elif parts[1] == "layers":
            writer.add_tensor(
                f"blk.{parts[2]}.{names['.'.join(parts[3:-1])]}.weight", tensor.numpy()
            )
        else:
            known = {
                "model.embed_tokens.weight": "token_embd",
                "model.norm.weight": "output_norm",
                "lm_head.weight": "output",
            }
            writer.add_tensor(f"{known[name]}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@llama_cpp
@pytest.mark.parametrize("recipe", usually(["Q4_0", "Q8_0", "IQ4_NL"], {"Q4_0"}))
def test_experts_too_are_those_that_llama_quantize_makes(tmp_path: Path, recipe: str) -> None:
    from calibrant.llama_cpp import quantize_file

    folder, template = (
        str(tiny_folder(tmp_path / "folder", "qwen3_moe", **MOE)),
        tiny_moe_gguf(tmp_path / "moe.gguf"),
    )
    method, export = f"llama_cpp(like='{template}')", f"gguf(like='{template}')"
    done = quantize(
        folder,
        data="python_docs",
        method=method,
        target=recipe,
        out=tmp_path / "out",
        export=export,
        **SMALL,
    )
    made = imatrix(folder, data="python_docs", **SMALL)
    assert (
        made.entries["blk.0.ffn_up_exps.weight"].counts == 0
    ).any()  # an expert without tokens is quantized unweighted
    quantize_file(
        template,
        tmp_path / "theirs.gguf",
        recipe,
        {name: entry.importance.ravel() for name, entry in made.entries.items()},
    )
    theirs = same_file(tmp_path / "out" / "model.gguf", tmp_path / "theirs.gguf")
    assert {
        theirs[f"blk.1.ffn_{part}_exps.weight"].tensor_type.name for part in ("gate", "up")
    } == {recipe}
    experts = [matrix for matrix in done.record.weights if "experts" in matrix["name"]]
    assert len(experts) == 3 * 32 * 2
    assert all(matrix["bits_a_weight"] >= 4.5 for matrix in experts)
    saved = open_model(str(tmp_path / "out"), "float32", "cpu").model.get_parameter(
        "model.layers.1.mlp.experts.gate_up_proj"
    )
    gate, up = (
        gguf.dequantize(
            theirs[f"blk.1.ffn_{part}_exps.weight"].data,
            theirs["blk.1.ffn_up_exps.weight"].tensor_type,
        )
        for part in ("gate", "up")
    )
    np.testing.assert_array_equal(saved.detach().numpy(), np.concatenate([gate, up], axis=1))


@pytest.mark.parametrize(
    ("target", "kind"),
    [("w4g32", "Q4_0"), pytest.param("w8g32", "Q8_0", marks=pytest.mark.slow), ("w4g16", "BF16")],
)
def test_codes_of_experts_are_stored_as_they_are(tmp_path: Path, target: str, kind: str) -> None:
    folder, template = (
        str(tiny_folder(tmp_path / "folder", "qwen3_moe", **MOE)),
        tiny_moe_gguf(tmp_path / "moe.gguf"),
    )
    quantize(
        folder,
        data=None,
        method="rtn",
        target=target,
        out=tmp_path / "out",
        export=f"gguf(like='{template}')",
        dtype="bfloat16",
    )
    there = {str(t.name): t for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    dense = open_model(str(tmp_path / "out"), "bfloat16", "cpu").model.get_parameter
    names = {
        "ffn_gate_exps": ("gate_up_proj", slice(0, 64)),
        "ffn_up_exps": ("gate_up_proj", slice(64, 128)),
        "ffn_down_exps": ("down_proj", slice(0, 32)),
    }
    for own, (parameter, rows) in names.items():
        tensor = there[f"blk.2.{own}.weight"]
        assert tensor.tensor_type.name == kind
        saved = dense(f"model.layers.2.mlp.experts.{parameter}").detach()[:, rows].float().numpy()
        back = (
            torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16().float()
        )  # each value is rounded once
        np.testing.assert_array_equal(back.numpy().reshape(saved.shape), saved)


@llama_cpp
def test_a_file_of_the_same_model_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, add = str(tiny_folder(tmp_path / "folder")), gguf.GGUFWriter.add_token_list
    with pytest.raises(TargetError, match="folder is no GGUF file"):
        quantize(
            folder,
            data="python_docs",
            method="llama_cpp",
            target="Q4_K_M",
            out=tmp_path / "out",
            **SMALL,
        )
    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_token_list",
        lambda writer, tokens: add(writer, [*tokens[:3], *reversed(tokens[3:])]),
    )
    other = tiny_gguf(tmp_path / "other.gguf", "F32")
    with pytest.raises(OutputError, match=r"other\.gguf"):
        quantize(
            folder,
            data="python_docs",
            method=f"llama_cpp(like='{other}')",
            target="Q4_0",
            out=tmp_path / "out",
            **SMALL,
        )
    assert not (tmp_path / "out").exists()
