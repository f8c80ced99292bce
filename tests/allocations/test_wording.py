"""What allocations refuse: by its subject, and the sentences that a user most likely meets."""

import pytest

from calibrant.allocations import allocations
from calibrant.compress import prune, quantize
from calibrant.errors import InputError, SpecError, TargetError
from calibrant.targets import parse_target
from calibrant.testing import tiny_folder

from tests.allocations.seen import matrices


@pytest.mark.parametrize(
    ("spec", "subject"),
    [
        ("evolved(levels=0)", "levels"),
        ("evolved(step=0)", "step"),
        ("evolved(tokens=[9, 3])", "tokens"),
        ("least_error(method=short_gpt)", "short_gpt"),
        ("least_error(method=7)", "7"),
        ("least_error(method=rsq)", "rsq"),
        (
            "least_error(method=rsq(importance=equal, expand=2))",
            "rsq(importance='equal', expand=2)",
        ),
        ("least_error(method=robust)", "robust"),
        ("least_error(step=1.5)", "step"),
        ("least_error(reach=0)", "reach"),
        ("least_error(per=row)", "per"),
        ("owl(times=0.0)", "times"),
        ("owl(spread=0.5)", "spread"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(spec: str, subject: str):
    with pytest.raises(SpecError) as refused:
        allocations.build(spec)
    assert refused.value.subject == subject


@pytest.mark.parametrize(
    ("spec", "target", "subject", "sentence"),
    [
        (
            "least_error",
            "2:4+w4g16",
            "2:4+w4g16",
            "has no targets next to it that could be shared out; ask for a sparsity, N:M or a grid",
        ),
        ("least_error(method=rtn)", "0.5", "0.5", "rtn can't be asked for 0.5"),
        (
            "owl",
            "w4g16",
            "w4g16",
            "owl shares a sparsity such as 0.6 or N:M such as 4:8, not w4g16; leave the "
            "allocation out",
        ),
        ("owl(spread=0.4)", "0.9", "0.9", "in blocks, to give 0.9; choose a smaller spread"),
    ],
)
def test_what_cannot_be_shared_is_one_sentence(spec: str, target: str, subject: str, sentence: str):
    with pytest.raises(TargetError) as refused:
        allocations.build(spec).share(matrices(), parse_target(target))
    assert refused.value.subject == subject
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("method", "target", "subject"), [("wanda", "2:4", "2:4"), ("short_gpt", 0.5, "evolved")]
)
def test_what_does_not_evolve_is_refused(
    tmp_path_factory: pytest.TempPathFactory, method: str, target: float | str, subject: str
):
    folder = tiny_folder(tmp_path_factory.mktemp("given") / "model")
    with pytest.raises(InputError) as refused:
        prune(
            str(folder),
            data="python_docs",
            method=method,
            target=target,
            allocation="evolved",
            samples=2,
            length=16,
        )
    assert refused.value.subject == subject


def test_a_method_that_changes_more_than_matrices_does_not_evolve(
    tmp_path_factory: pytest.TempPathFactory,
):
    """AWQ would be searched without its scales: only rounded."""
    folder = tiny_folder(tmp_path_factory.mktemp("given") / "model")
    sentence = (
        "evolved compresses matrices one by one to find shares, and awq changes more of a model "
        "than that; leave the allocation out"
    )
    with pytest.raises(TargetError) as refused:
        quantize(
            str(folder),
            data="python_docs",
            method="awq",
            target="w4g16",
            allocation="evolved",
            samples=2,
            length=16,
        )
    assert refused.value.subject == "evolved"
    assert str(refused.value) == sentence


def test_the_text_of_an_allocation_gives_it_back():
    for spec in (
        "uniform",
        "least_error(method=sparsegpt(damp=0.1), per='block')",
        "least_error(method=wanda, reach=5, errors='absolute')",
    ):
        assert str(allocations.build(spec)) == spec
