"""What is kept of word groups, against loops in float64; a planted neuron; labels that say
nothing; refusals.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from calibrant.data import held_out
from calibrant.errors import DataError, ModelError, NumericsError, SpecError
from calibrant.evaluators import Subject
from calibrant.evaluators._forgotten import Forgotten
from calibrant.evaluators._responses import STEPS, pattern, projections_of
from calibrant.evaluators._word_groups import grouped, lemma, read_list, spherical, words_of
from calibrant.evaluators.words import Words
from calibrant.results.items import from_bytes, outcomes_of, table_of, to_bytes
from calibrant.system.progress import silent
from calibrant.testing import tiny_model, tiny_tokenizer

from tests.evaluators import planted
from tests.refusing import refused

LENGTH = 48
WORDS_A_DOCUMENT, BLOCKS, NEURONS = 60, 3, 64


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.texts(tmp_path_factory.mktemp("texts") / "made.jsonl", words=WORDS_A_DOCUMENT)


@pytest.fixture(scope="module")
def dense() -> PreTrainedModel:
    return planted.planted()


@pytest.fixture(scope="module")
def damaged(dense: PreTrainedModel) -> PreTrainedModel:
    """The same with the smaller half of some weights gone."""
    model = planted.planted()
    with torch.no_grad():
        for weight in (
            model.model.layers[0].mlp.gate_proj.weight,
            model.model.layers[1].self_attn.v_proj.weight,
        ):
            weight[weight.abs() < weight.abs().median()] = 0
    return model


def words(texts: Path, **options: int | str) -> Words:
    return Words(
        source=str(texts),
        **{"tokens": 100_000, "length": LENGTH, "least": 5, "shuffles": 3, **options},
    )


def read(
    texts: Path, model: PreTrainedModel, dense: PreTrainedModel, **options: int | str
) -> Forgotten:
    return words(texts, **options).read(Subject(model, planted.tokenizer(), dense), whole=True)


def activations(model: PreTrainedModel, ids: list[int]) -> list[np.ndarray]:
    """What arrives at each down projection, `[token, neuron]`, and last the nats of each token
    but the first: by hand.
    """
    caught: list[np.ndarray] = []
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, args: caught.append(args[0][0].numpy())
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    for handle in handles:
        handle.remove()
    nats = [
        float(np.log(np.exp(row).sum()) - row[target])
        for row, target in zip(logits, ids[1:], strict=False)
    ]
    return [*caught, np.array(nats)]


def by_hand(
    texts: Path, model: PreTrainedModel, dense: PreTrainedModel, shuffles: int
) -> dict[str, dict[str, float]]:
    """For each word: the share of its response kept, and how many nats a token the words behind
    it rose. Loops over words, blocks and neurons.
    """
    source, format = held_out(str(texts), None)
    chance, spoken = np.random.default_rng(0), planted.tokenizer()
    windows: list[tuple[str, list[str], list[int]]] = []
    documents = [(row.name, format.render(row).split()) for row in source.rows("measure")]
    for begin in range(0, WORDS_A_DOCUMENT, LENGTH):
        for name, every in documents:
            own = every[begin : begin + LENGTH]
            if len(own) > 1:
                windows.append((name, own, spoken.convert_tokens_to_ids(own)))
    theirs, ours = ([activations(one, ids) for _, _, ids in windows] for one in (dense, model))
    orders = [[chance.permutation(len(own)) for _ in range(shuffles)] for _, own, _ in windows]
    names = sorted({word for _, own, _ in windows for word in own})
    total = {word: sum(own.count(word) for _, own, _ in windows) for word in names}
    variance = {
        word: sum(own.count(word) * (1 - own.count(word) / len(own)) for _, own, _ in windows)
        for word in names
    }
    freedom = sum(len(own) - 1 for _, own, _ in windows)

    def centred(rows: np.ndarray) -> np.ndarray:
        return rows - rows.mean(0)

    real: dict[tuple[str, int], np.ndarray] = {}
    scores: dict[int, list[tuple[str, int, int, float]]] = {}
    by_chance: dict[int, list[float]] = {}
    deviations = [
        np.sqrt(sum((centred(caught[b]) ** 2).sum(0) for caught in theirs) / freedom)
        for b in range(BLOCKS)
    ]
    for b in range(BLOCKS):
        for word in names:
            sums = sum(
                centred(caught[b])[[w == word for w in own]].sum(0)
                for caught, (_, own, _) in zip(theirs, windows, strict=True)
            )
            real[word, b] = sums / total[word] / deviations[b]
            kind = total[word].bit_length()
            scores.setdefault(kind, []).extend(
                (word, b, j, z)
                for j, z in enumerate(sums / deviations[b] / np.sqrt(variance[word]))
            )
            for s in range(shuffles):
                moved = sum(
                    centred(caught[b])[[own[at] == word for at in order[s]]].sum(0)
                    for caught, (_, own, _), order in zip(theirs, windows, orders, strict=True)
                )
                by_chance.setdefault(kind, []).extend(
                    np.abs(moved / deviations[b] / np.sqrt(variance[word]))
                )
    chosen: set[tuple[str, int, int]] = set()
    for kind, every in scores.items():
        # Benjamini and Hochberg as they state it: the largest k for which the k-th smallest p-value
        # is at most k/m of the rate.
        shuffled = np.floor(np.array(by_chance[kind]) * STEPS)
        ordered = sorted(every, key=lambda one: -np.floor(abs(one[3]) * STEPS))
        p = [
            (1 + (shuffled >= np.floor(abs(z) * STEPS)).sum()) / (1 + len(shuffled))
            for *_, z in ordered
        ]
        largest = max((k for k in range(1, len(p) + 1) if p[k - 1] <= 0.05 * k / len(p)), default=0)
        chosen |= {(word, b, j) for word, b, j, _ in ordered[:largest]}
    found: dict[str, dict[str, float]] = {}
    for word in names:
        own_sums = [
            sum(
                centred(caught[b])[[w == word for w in own]].sum(0)
                for caught, (_, own, _) in zip(ours, windows, strict=True)
            )
            for b in range(BLOCKS)
        ]
        neurons = [(b, j) for b in range(BLOCKS) for j in range(NEURONS) if (word, b, j) in chosen]
        pairs = [
            (real[word, b][j], own_sums[b][j] / total[word] / deviations[b][j]) for b, j in neurons
        ]
        behind = [
            ours[w][-1][at] - theirs[w][-1][at]
            for w, (_, own, _) in enumerate(windows)
            for at, one in enumerate(own[:-1])
            if one == word
        ]
        if pairs:
            found[word] = {
                "kept": sum(a * b for a, b in pairs) / sum(a * a for a, _ in pairs),
                "neurons": len(pairs),
                "next": float(np.mean(behind)),
                "count": total[word],
            }
    return found


def test_it_is_what_loops_in_float64_give(
    texts: Path, dense: PreTrainedModel, damaged: PreTrainedModel
) -> None:
    expected = by_hand(texts, damaged, dense, 3)
    forgotten = read(texts, damaged, dense)
    table = forgotten.table()
    assert set(table["word"]) == set(expected)
    assert len(expected) > 15
    for at, word in enumerate(table["word"]):
        assert table["count"][at] == expected[word]["count"]
        assert table["neurons"][at] == expected[word]["neurons"]
        assert float(forgotten.kept[forgotten.dense.groups.names.index(word)]) == pytest.approx(
            expected[word]["kept"], rel=1e-5
        )
        assert table["raised_next"][at] == pytest.approx(expected[word]["next"], abs=2e-5)
    score = forgotten.measurement().score
    assert score.value == pytest.approx(
        np.mean([each["kept"] for each in expected.values()]), rel=1e-5
    )
    assert 0.2 < score.value < 0.999


def test_removing_the_planted_neuron_damages_its_word_and_no_other(
    texts: Path, dense: PreTrainedModel
) -> None:
    model = planted.planted()
    with torch.no_grad():
        model.model.layers[planted.BLOCK].mlp.gate_proj.weight[planted.NEURON] = 0
    forgotten = read(texts, model, dense)
    damage = {
        word: 1 - float(kept)
        for word, kept in zip(forgotten.dense.groups.names, forgotten.kept, strict=True)
    }
    own = damage.pop(planted.WORD)
    assert own > 0.05
    assert max(map(abs, damage.values())) < own / 20
    at = forgotten.dense.groups.names.index(planted.WORD)
    assert int(forgotten.lost_by_block[:, at].argmax()) == planted.BLOCK
    assert forgotten.lost_by_block[: planted.BLOCK].nan_to_num().abs().max() == 0
    assert (
        forgotten.table()["block"][forgotten.table()["word"].index(planted.WORD)] == planted.BLOCK
    )


def test_labels_that_say_nothing_are_found_to_say_nothing(
    texts: Path, dense: PreTrainedModel
) -> None:
    forgotten = read(texts, dense, dense)
    assert forgotten.dense.pattern.found > 0.3 * forgotten.dense.pattern.tested, (
        "the words themselves do"
    )
    neurons, windows = projections_of(dense), forgotten.dense.readings[:25]
    chance, found, any_found = np.random.default_rng(1), [], 0
    for repeat in range(8):
        readings = [
            (window, labels[torch.from_numpy(chance.permutation(len(labels)))])
            for window, labels in windows
        ]
        of = pattern(
            dense, neurons, readings, forgotten.dense.groups, 3, repeat, "shuffled", silent
        )
        found.append(of.found / of.tested)
        any_found += of.found > 0
    assert any_found <= 3, (
        "of 8 with a chance of 5 % each, more than 3 are there four times in ten thousand"
    )
    assert max(found) < 0.01


def test_outcomes_add_up_and_come_back_from_a_file(
    texts: Path, dense: PreTrainedModel, damaged: PreTrainedModel, tmp_path: Path
) -> None:
    forgotten = read(texts, damaged, dense)
    measured = forgotten.measurement()
    assert sum(o.value for o in measured.outcomes) / sum(
        o.weight for o in measured.outcomes
    ) == pytest.approx(measured.score.value)
    assert sum(o.weight for o in measured.outcomes) == pytest.approx(measured.score.facts["groups"])
    raised = sum(o.facts["raised"] for o in measured.outcomes) / sum(
        o.facts["tokens"] for o in measured.outcomes
    )
    assert measured.beside[0].value == pytest.approx(raised)
    ids = [row.name for row in held_out(str(texts), None)[0].rows("measure")]
    assert {o.item for o in measured.outcomes} == set(ids)
    kept = from_bytes(to_bytes(table_of(measured.outcomes)))
    assert outcomes_of(kept) == measured.outcomes
    facts = json.loads(json.dumps(dict(measured.score.facts)))
    for name in ("rank_next", "rank_documents"):
        assert -1 <= facts[f"{name}_low"] <= facts[f"{name}_high"] <= 1
        assert {name, f"{name}_at_equal_frequency"} <= set(facts)
    # Each block's part of what was lost adds up to the damage.
    assert (1 - forgotten.lost_by_block.sum(0)).numpy() == pytest.approx(
        forgotten.kept.numpy(), rel=1e-9
    )


def test_lemmas_clusters_and_lists(tmp_path: Path, texts: Path, dense: PreTrainedModel) -> None:
    known = dict.fromkeys(
        ("walk", "walked", "walks", "big", "bigger", "bus", "buses", "lie", "lying", "as"), 1
    )
    assert [
        lemma(word, known) for word in ("walked", "walks", "buses", "as", "bigger", "sing")
    ] == ["walk", "walk", "bus", "as", "bigger", "sing"]
    assert Words().digest() == ""
    listed = tmp_path / "moods.txt"
    listed.write_text("others", encoding="utf-8")
    digest = Words(groups=str(listed)).digest()
    listed.write_text("Bala, bano  # a comment\n[bad]\nzeri\nzela zeno\n", encoding="utf-8")
    assert read_list(str(listed)) == {
        "bala": "moods",
        "bano": "moods",
        "zeri": "bad",
        "zela": "bad",
        "zeno": "bad",
    }
    assert Words(groups=str(listed)).digest() not in (digest, ""), (
        "another list is another measurement"
    )
    forgotten = read(texts, dense, dense, groups=str(listed))
    assert sorted(forgotten.table()["word"]) == ["bad", "moods"]
    windows = [window for window, _ in forgotten.dense.readings]
    said = [word for window in windows for word in window.words]
    assert dict(
        zip(forgotten.dense.groups.names, forgotten.dense.pattern.counts.tolist(), strict=True)
    ) == {
        "bad": sum(word in ("zeri", "zela", "zeno") for word in said),
        "moods": sum(word in ("bala", "bano") for word in said),
    }
    clusters = grouped("clusters", windows, 1, 300, dense, planted.tokenizer())
    assert set(clusters.numbers) == set(planted.WORDS), "fewer words than clusters: each is its own"
    assert len(set(clusters.numbers.values())) == len(planted.WORDS)
    points = torch.tensor(
        [[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [0.1, 0.9], [-1.0, 0.0]], dtype=torch.float64
    )
    labels = spherical(points, 3)
    assert labels[0] == labels[1] != labels[2] == labels[3] != labels[4] != labels[0]


def test_a_word_is_read_at_its_last_token(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"{i} (Naïve) naïveté, don't"}) for i in range(40)),
        encoding="utf-8",
    )
    task, spoken = Words(source=str(path), tokens=400, length=512), tiny_tokenizer()
    windows = words_of(task.windows(spoken), task.rows(), task.held_out()[1], spoken)
    for each in windows:
        assert each.words[1:] == ("naïve", "naïveté", "don", "t")
        ended = [spoken.decode(each.window.ids[: place + 1]) for place in each.places]
        assert [text.rpartition(" ")[2].strip("(,'") for text in ended[1:3]] == ["Naïve", "naïveté"]
        assert [text[-3:] for text in ended[3:]] == ["don", "n't"]
    short = Words(source=str(path), tokens=4000, length=12)
    cut = words_of(short.windows(spoken), short.rows(), short.held_out()[1], spoken)
    assert any(len(each.words) < 2 for each in cut), "a word that a window's end cuts isn't read"
    assert all(0 <= place < len(each.window.ids) for each in cut for place in each.places)


def test_experts_are_refused_by_the_block_s_name() -> None:
    model = tiny_model("mixtral")
    with refused(ModelError, "model.layers.0"):
        Words(source="python_docs", tokens=300, length=64, least=2).measure(
            Subject(model, tiny_tokenizer(), model)
        )


def test_what_cannot_be_read_is_refused_by_name(
    texts: Path, dense: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken, task = planted.tokenizer(), words(texts)
    fewer = tiny_model("llama", torch.float64, num_hidden_layers=2)
    with refused(ModelError, "neurons"):
        task.measure(Subject(fewer, spoken, dense))
    with refused(SpecError, task):
        task.measure(Subject(dense, spoken))
    with refused(SpecError, "lemas"):
        words(texts, groups="lemas").measure(Subject(dense, spoken, dense))
    with pytest.raises(DataError, match="5000"):
        words(texts, least=5000).measure(Subject(dense, spoken, dense))
    broken = planted.planted()
    with torch.no_grad():
        broken.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with refused(NumericsError, task.measured):
        task.measure(Subject(broken, spoken, dense))
    skipped = planted.planted()
    neurons = projections_of(skipped)
    monkeypatch.setattr(
        "calibrant.evaluators.words.projections_of", lambda model: neurons
    )  # found before forward was replaced
    monkeypatch.setattr(
        skipped.model.layers[1].mlp, "forward", torch.zeros_like
    )  # computes without calling its matrices
    with refused(ModelError, "model.layers.1.mlp.down_proj"):
        task.measure(Subject(skipped, spoken, dense))


def test_lists_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    empty, twice, latin = (tmp_path / name for name in ("empty.txt", "twice.txt", "latin.txt"))
    empty.write_bytes(b"# nothing\n")
    twice.write_bytes(b"good\n[bad]\ngood\n")
    latin.write_bytes(b"good\nna\xefve\n")
    with refused(DataError, empty):
        read_list(str(empty))
    with refused(DataError, "good"):
        read_list(str(twice))
    with pytest.raises(DataError, match="line 2"):
        read_list(str(latin))
