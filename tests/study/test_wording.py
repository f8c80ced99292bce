"""What is said of a study that can't be run: the one place where the sentences of this room
stand.
"""

from pathlib import Path

import pytest

from calibrant.errors import StudyError
from calibrant.lab.study import Study, read_study

SMALL = "model: smollm2\ndata: random_tokens\n"
SAID = [
    ("", "there is nothing in it; a study names at least a model and data"),
    ("just words", "'just words' is no study; write keys with values"),
    ("model: smollm2\ndata: [c4", "this is no YAML: expected ',' or ']'"),
    ("model: smollm2\ndata: c4: x", "a text with a colon and a space in it needs quotes"),
    (SMALL + "model: gpt2", "the key 'model' is there twice, first in line 1"),
    (SMALL + "target: 0.5\ntargets: 0.6", "leave one out"),
    (SMALL + "sed: 0", "perhaps you mean 'seed'"),
    (SMALL + "tasks: [losss]", "there is no task called 'losss', perhaps you mean 'loss'"),
    (SMALL + "task: loss\nevaluate: loss", "evaluate says the same as task; leave one out"),
    (SMALL + "samples: 0", "samples is 0; it must be a whole number of at least 1"),
    (
        SMALL + "samples: 4\ntokens: 64",
        "samples is 4 and tokens is 64, and a budget is a number of windows or of real tokens; "
        "leave one out",
    ),
    (SMALL + "masks: yes", "masks is 'yes'; it must be true or false"),
    ("model: smollm2\ndata: gsm9k", "there is no source called 'gsm9k', perhaps you mean 'gsm8k'"),
    (SMALL + "method: wnada", "there is no method called 'wnada', perhaps you mean 'wanda'"),
    (SMALL + "evaluate: [loss(source=wikitext, tokens=10)]", "a text with a comma needs quotes"),
    (SMALL + "target: 50", "perhaps you mean 0.5"),
    (
        SMALL + "method: rtn\ntarget: 0.5",
        "write a group for each kind of target, or leave the pair out with exclude",
    ),
    (SMALL + "baseline: python_docs", "'python_docs' is no set of the grid"),
    (
        SMALL + "exclude: [{target: 0.9}]",
        "0.9 isn't in the grid, so there is nothing to leave out",
    ),
]


@pytest.mark.parametrize(("text", "said"), SAID, ids=range(len(SAID)))
def test_a_mistake_in_a_file_is_answered_with_what_to_do(tmp_path: Path, text: str, said: str):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError) as raised:
        read_study(tmp_path / "study.yaml")
    assert said in str(raised.value)


def test_a_study_that_is_written_down_says_the_usual_windows_beside_its_tokens(tmp_path: Path):
    study = Study("smollm2", "random_tokens", tokens=64)
    assert "\nsamples: 128\n" in study.as_yaml()
    (tmp_path / "study.yaml").write_text(study.as_yaml())
    assert read_study(tmp_path / "study.yaml") == study
