"""Two ranks against one process. The ranks are real: copies of this process that meet as torchrun
lets them, or what torchrun starts of this file.

A start costs seconds, so one start works through all cases, and each rank leaves what it found in a
file.
"""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from calibrant import __version__
from calibrant.activations import BlockChange, FeatureMaxima, Routing, Seen
from calibrant.cli import _frame
from calibrant.compress import prune, quantize
from calibrant.data import TokenBatch
from calibrant.errors import CalibrantError, NumericsError
from calibrant.methods import methods
from calibrant.models import view
from calibrant.results.outcomes import Journal
from calibrant.targets import parse_target
from calibrant.testing import tiny_folder, tiny_model
from calibrant.walk import walk, walk_blocks, walking
from calibrant.walk.block_statistics import ExpertOutputs, TokenKinds
from calibrant.walk.ranks import ALONE, Ranks, _Joined, joined

RANKS = 2
LENGTHS = (12, 7, 12, 10, 3)
SIZES = {
    "mixtral": {"num_local_experts": 16, "num_hidden_layers": 2},
    "olmoe": {"num_experts": 16, "num_hidden_layers": 2},
}
BATCHES = {
    "three micro-batches": (24, False),
    "weighted, five": (1, True),
    "one, so that a rank has nothing": (4096, False),
}
SMALL: dict[str, Any] = {"samples": 6, "length": 700, "dtype": "float32"}
"""Six windows of which each fills more than half a micro-batch's tokens, and so is one."""


def padded_batch(weighted: bool) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(3, 100, mask.shape, generator=generator).masked_fill(~mask, 0)
    weights = torch.rand(mask.shape, generator=generator) if weighted else torch.ones(mask.shape)
    weights[weights < 0.2] = 0.0
    return TokenBatch(
        ids=ids, mask=mask, weights=weights * mask, fingerprint="sha256:test", facts={}
    )


def pruned(family: str, propagate: str, method: str, batch: str, ranks: Ranks) -> dict[str, Tensor]:
    """The matrices of a tiny model by name, in the order in which they were visited."""
    seen_by, found = view(tiny_model(family, **SIZES.get(family, {}))), dict[str, Tensor]()
    built, (tokens_per_pass, weighted) = methods.build(method), BATCHES[batch]
    asked = seen_by, padded_batch(weighted), built.observes, propagate
    for weight, seen in walk(*asked, tokens_per_pass=tokens_per_pass, ranks=ranks):
        weight.set(built.compress(weight.get(), seen, parse_target("0.5")).weight)
        found[weight.name] = weight.get().clone()
    return found


def cases(every: bool) -> list[tuple[str, str, str, str]]:
    """Family, propagation, method and batch of what is pruned."""
    few, many = "three micro-batches", "weighted, five"
    found = [("llama", "arrival", "wanda", batch) for batch in BATCHES]
    found += [
        ("llama", "reference", "wanda", few),
        ("llama", "dense", "wanda", few),
        ("mixtral", "arrival", "wanda", few),
    ]
    found += [("llama", "arrival", "sparsegpt", few)]
    if every:
        found += [
            ("mixtral", "reference", "wanda", few),
            ("mixtral", "dense", "wanda", few),
            ("mixtral", "arrival", "sparsegpt", few),
        ]
        found += [
            (family, "arrival", "wanda", many) for family in ("mixtral", "gpt2", "gemma3")
        ]  # experts, transposed, windowed
        found += [("llama", propagate, "sparsegpt", few) for propagate in ("reference", "dense")]
    return found


def all_pruned(ranks: Ranks, every: bool) -> dict[tuple[str, ...], dict[str, Tensor]]:
    return {case: pruned(*case, ranks) for case in cases(every)}


def behaved(ranks: Ranks) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What the blocks and routers of tiny models did, block by block: all that the statistics
    hold.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for family, batches in (("llama", ["three micro-batches"]), ("mixtral", BATCHES)):
        for batch in batches:
            tokens_per_pass, weighted = BATCHES[batch]
            asked = (
                view(tiny_model(family, **SIZES.get(family, {}))),
                padded_batch(weighted),
                (BlockChange, Routing, TokenKinds, ExpertOutputs),
            )
            several = [
                seen
                for _, seen in walk_blocks(*asked, tokens_per_pass=tokens_per_pass, ranks=ranks)
            ]
            found[family, batch] = [
                {kind.__name__: vars(one) for kind, one in seen.items()} for seen in several
            ]
    return found


def largest(ranks: Ranks) -> dict[str, Tensor]:
    """The largest inputs of the matrices of a tiny model."""
    tokens_per_pass, weighted = BATCHES["weighted, five"]
    asked = view(tiny_model("mixtral", **SIZES["mixtral"])), padded_batch(weighted)
    arrivals = walk(*asked, (FeatureMaxima,), "dense", tokens_per_pass=tokens_per_pass, ranks=ranks)
    return {weight.name: seen[FeatureMaxima].maxima for weight, seen in arrivals}


def static_scales(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What is said of inputs, keys and values whose scales are found on the data, by target."""
    found: dict[str, list[dict[str, Any]]] = {}
    for target in ("FP8", "FP8(range=mse)", "NVFP4", "kv_int8(per=head)"):
        done = quantize(**asked_of(folder, target=target))
        found[target] = [
            edit
            for edit in done.record.edits
            if "scale" in edit or edit["edit"] == "quantize_cache"
        ]
    return found


def failure(of: Callable[[], object]) -> tuple[str, str]:
    """What was raised, and what it says."""
    try:
        of()
    except (CalibrantError, KeyError, KeyboardInterrupt) as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def asked_of(folder: Path, **how: Any) -> dict[str, Any]:
    return {"model": str(folder / "model"), "data": str(folder / "mine.jsonl"), **SMALL, **how}


def failures(rank: int, folder: Path) -> dict[str, tuple[str, str]]:
    """What this rank raises where rank 1 fails, or the ranks don't do the same."""
    asked = asked_of(folder)
    arrived = walking.MicroBatch.arrived

    def broken(error: Exception) -> Callable[[], object]:
        def arrive(part: Any, product: Any, *rest: Any) -> Seen:
            if rank == 1 and "layers.1" in product.weight.name:
                raise error
            return arrived(part, product, *rest)

        walking.MicroBatch.arrived = arrive
        return lambda: prune(**asked)

    found = {
        "input": failure(
            broken(NumericsError("the activations that reach up_proj hold NaN", subject="up_proj"))
        )
    }
    found["fault"] = failure(broken(KeyError("layer")))
    walking.MicroBatch.arrived = arrived
    found["other"] = failure(lambda: prune(**asked, target=(0.5, 0.6)[rank]))
    return found


def interrupted(folder: Path) -> dict[str, Any]:
    """A prune of which the first rank is interrupted after two blocks, and which is asked again."""
    asked = asked_of(folder, out=folder / "out")

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    raised = failure(lambda: prune(**asked, progress=stop))
    again = prune(**asked)
    facts = (
        again.continued_from,
        again.already_done,
        again.record.run.id,
        again.record.provenance["ranks"],
    )
    return {"raised": raised, "again": facts, "done": prune(**asked).already_done}


SEARCH: dict[str, Any] = {
    "method": "evop(tokens=[700, 2100], greedy=false, population=4, generations=3)",
    "target": 0.5,
}


def searched(rank: int, folder: Path) -> dict[str, Any]:
    """A search in which the first rank is interrupted once it has measured, and which is asked
    again.
    """
    asked = asked_of(folder, out=folder / "searched", **SEARCH)
    add, added = Journal.add, 0

    def interrupting(journal: Journal, results: Mapping[str, Any]) -> None:
        nonlocal added
        add(journal, results)
        added += 1
        if rank == 0 and added == 1:
            raise KeyboardInterrupt

    Journal.add = interrupting  # type: ignore[method-assign]
    raised = failure(lambda: prune(**asked))
    Journal.add = add  # type: ignore[method-assign]
    return {"raised": raised, "edits": prune(**asked).record.edits}


def commanded(folder: Path) -> list[object]:
    """The exit codes of a command that works and of one whose output folder is taken."""
    sizes = "--samples 6 --length 700 --dtype float32 --json"
    words = f"prune {folder / 'model'} --data {folder / 'mine.jsonl'} {sizes}".split()
    _frame.PATIENCE, codes = 0.1, list[object]()
    for target in ("0.5", "0.75"):
        sys.argv = ["calibrant", *words, "--out", str(folder / "told"), "--target", target]
        try:
            _frame.main()
        except SystemExit as ended:
            codes.append(ended.code)
    return codes


def main(folder: Path, every: bool) -> None:
    """What every rank does. The last case loses rank 1."""
    rank, found = int(os.environ["RANK"]), dict[str, Any]()
    with joined() as ranks:
        found["pruned"], found["behaved"] = all_pruned(ranks, every), behaved(ranks)
        found["largest"] = largest(ranks)
    found["scales"] = static_scales(folder)
    found["failures"], found["interrupted"], found["codes"] = (
        failures(rank, folder),
        interrupted(folder),
        commanded(folder),
    )
    found["searched"] = searched(rank, folder)
    torch.save(found, folder / f"found-{rank}.pt")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it as soon as it misses rank 1

    def lose() -> None:
        with joined() as ranks:
            ranks.agree("the start", 0)
            if rank == 1:
                os._exit(3)
            ranks.agree("the end", 0)

    torch.save({**found, "lost": failure(lose)}, folder / f"found-{rank}.pt")


@pytest.fixture(scope="module", params=["copies", pytest.param("torchrun", marks=pytest.mark.slow)])
def way(request: pytest.FixtureRequest) -> str:
    """How the ranks are started."""
    return request.param


@pytest.fixture(scope="module")
def folder(way: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    tiny_folder(made / "model", "llama", num_hidden_layers=4)
    told = "and then some more words follow until the window is full " * 30
    (made / "mine.jsonl").write_text(
        "\n".join(
            json.dumps({"text": f"line {i} says that {i} and {i} make {2 * i}, {told}"})
            for i in range(40)
        )
    )
    return made


def copied(rank: int, port: int, folder: Path) -> None:
    """Be a rank, as torchrun would have started it."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ |= {"TORCHELASTIC_RUN_ID": "copies", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for number, name in ((1, "said.out"), (2, "said.err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    main(folder, every=False)


def run_copies(folder: Path) -> tuple[str, str]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    running = [
        multiprocessing.get_context("fork").Process(target=copied, args=(rank, store.port, folder))
        for rank in range(RANKS)
    ]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return (folder / "said.out").read_text(), (folder / "said.err").read_text()


def run_torchrun(folder: Path) -> tuple[str, str]:
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        "--nproc-per-node",
        str(RANKS),
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("CALIBRANT")
    } | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, __file__, str(folder)]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def printed(way: str, folder: Path) -> tuple[str, str]:
    return run_copies(folder) if way == "copies" else run_torchrun(folder)


@pytest.fixture(scope="module")
def found(printed: tuple[str, str], folder: Path) -> list[dict[str, Any]]:
    """What the ranks found, each its own."""
    files = [folder / f"found-{rank}.pt" for rank in range(RANKS)]
    assert all(file.is_file() for file in files), printed[1]
    return [torch.load(file, weights_only=False) for file in files]


@pytest.fixture(scope="module")
def alone(way: str) -> Mapping[tuple[str, ...], Mapping[str, Tensor]]:
    return all_pruned(ALONE, every=way == "torchrun")


def test_wanda_is_one_processs_to_the_bit(
    found: list[dict[str, Any]], alone: Mapping[tuple[str, ...], Mapping[str, Tensor]]
) -> None:
    for case, expected in alone.items():
        for rank in found if "wanda" in case else []:
            got = rank["pruned"][case]
            assert list(got) == list(expected), f"{case}: other matrices, or another order"
            for name, matrix in expected.items():
                assert torch.equal(got[name], matrix), (case, name)
    reached = alone["mixtral", "arrival", "wanda", "three micro-batches"]
    assert len(reached) < len(view(tiny_model("mixtral", **SIZES["mixtral"])).weights), (
        "the test wants experts that no token reaches"
    )


def test_what_blocks_and_routers_did_is_one_processs_to_the_bit(
    found: list[dict[str, Any]],
) -> None:
    for case, expected in behaved(ALONE).items():
        kinds = (
            ["BlockChange", "Routing", "TokenKinds", "ExpertOutputs"]
            if "mixtral" in case
            else ["BlockChange"]
        )
        assert [list(seen) for seen in expected] == [kinds] * len(expected)
        for rank in found:
            for got, want in zip(rank["behaved"][case], expected, strict=True):
                assert list(got) == list(want), case
                for kind, sums in want.items():
                    assert got[kind].keys() == sums.keys()
                    same = [
                        torch.equal(v, got[kind][n]) if isinstance(v, Tensor) else v == got[kind][n]
                        for n, v in sums.items()
                    ]
                    assert all(same), (case, kind)


def test_the_largest_inputs_are_one_processs_to_the_bit(found: list[dict[str, Any]]) -> None:
    expected = largest(ALONE)
    for rank in found:
        assert rank["largest"].keys() == expected.keys()
        for name, maxima in expected.items():
            assert torch.equal(rank["largest"][name], maxima), name


def test_static_scales_of_inputs_are_one_processs_to_the_bit(
    found: list[dict[str, Any]], folder: Path
) -> None:
    expected = static_scales(folder)
    assert [len(scales) for scales in expected.values()] == [28, 28, 28, 4]
    for one in found:
        assert one["scales"] == expected


def test_sparsegpt_keeps_the_same_weights(
    found: list[dict[str, Any]], alone: Mapping[tuple[str, ...], Mapping[str, Tensor]]
) -> None:
    for case, expected in alone.items():
        if "sparsegpt" in case:
            first, second = (rank["pruned"][case] for rank in found)
            assert list(first) == list(second) == list(expected)
            assert all(torch.equal(first[name], second[name]) for name in expected), (
                f"{case}: the ranks came to different matrices"
            )
            equal = sum(
                int(((first[name] == 0) == (matrix == 0)).sum())
                for name, matrix in expected.items()
            )
            assert equal / sum(matrix.numel() for matrix in expected.values()) >= 0.999, case


def test_one_that_fails_or_does_something_else_or_is_lost_ends_all(
    found: list[dict[str, Any]],
) -> None:
    for case, kinds, told in (
        ("input", ["NumericsError", "NumericsError"], "up_proj"),
        ("fault", ["RankError", "KeyError"], "layer"),
        ("other", ["RankError", "RankError"], "'sha256:"),
    ):
        raised = [rank["failures"][case] for rank in found]
        assert [kind for kind, _ in raised] == kinds
        assert all(told in text for _, text in raised), raised
    assert "rank 1" in found[0]["failures"]["fault"][1]
    kind, text = found[0]["lost"]
    assert (kind, "another rank was lost" in text) == ("RankError", True), text


def test_an_interrupted_prune_goes_on_from_the_blocks_that_all_read(
    found: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    whole = prune(**asked_of(folder, out=tmp_path / "out"))
    for rank in found:
        assert rank["interrupted"]["raised"][0] == "KeyboardInterrupt"
        assert rank["interrupted"]["again"] == (2, False, whole.record.run.id, RANKS)
        assert rank["interrupted"]["done"]
    assert (folder / "out/model.safetensors").read_bytes() == (
        tmp_path / "out/model.safetensors"
    ).read_bytes()
    kept = [
        json.loads((made / "out/calibrant.json").read_text())["record"]
        for made in (folder, tmp_path)
    ]
    assert kept[0] | {"provenance": 0} == kept[1] | {"provenance": 0}
    assert not list(folder.glob(".out*")), "something was left behind"


def test_a_search_goes_on_from_what_the_first_rank_had_measured(
    found: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    whole = prune(**asked_of(folder, out=tmp_path / "out", **SEARCH))
    for rank in found:
        assert rank["searched"]["raised"][0] == "KeyboardInterrupt"
        assert rank["searched"]["edits"] == whole.record.edits
    assert (folder / "searched/model.safetensors").read_bytes() == (
        tmp_path / "out/model.safetensors"
    ).read_bytes()


def test_on_the_command_line_the_first_speaks_for_all(
    found: list[dict[str, Any]], printed: tuple[str, str]
) -> None:
    assert [rank["codes"] for rank in found] == [[0, 2]] * RANKS
    out, err = printed
    told, refused = [json.loads(line) for line in out.splitlines()]
    assert told["provenance"]["ranks"] == RANKS
    assert err.count(refused["error"]["message"]) == 1
    assert "Traceback" not in err.partition("closing signal")[0]


def test_the_package_can_be_started_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["calibrant", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("calibrant", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"calibrant {__version__}\n"


def test_each_rank_takes_its_share_and_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [object.__new__(_Joined) for _ in range(3)]
    for number, one in enumerate(ranks):
        one.rank, one.size = number, len(ranks)
    for items in ([], [7], [1, 2, 3, 4, 5]):
        shares = [one.share(items) for one in ranks]
        assert [item for share in shares for item in share] == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    for there, auto in ((True, "cuda:1"), (False, "auto")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert [ranks[2].device(asked) for asked in ("auto", "cuda", "cuda:0", "cpu")] == [
            auto,
            "cuda:1",
            "cuda:0",
            "cpu",
        ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), every=True)
