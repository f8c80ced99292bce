"""CD-MoE: layers of experts become plain feed-forward networks of the experts that matter most
(Cao et al. 2024, arXiv 2412.00069).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from calibrant.activations import Routing, Statistic
from calibrant.data import TokenBatch, divided
from calibrant.edits import Condense, Edit
from calibrant.errors import SpecError, TargetError
from calibrant.job import Job
from calibrant.methods._base import (
    MOST_PARTS,
    check_choice,
    check_least,
    check_positive,
)
from calibrant.methods._model_method import (
    PartMethod,
    as_share,
    check_blocks_together,
    count_of_share,
)
from calibrant.methods._searching import Choice, Space, Trials, eliminate
from calibrant.methods.experts._condensing import (
    ExpertSearch,
    divergence,
    layer_samples,
    order_of,
    plain_and_condensed,
    tuned,
)
from calibrant.models import Condensed, ModelView, condensed, expert_layers
from calibrant.numerics import six_digits
from calibrant.spec import MOST_STEPS, check_most
from calibrant.spec.foreign import LARGEST
from calibrant.targets import Parts, Target
from calibrant.walk.variants import AS_IT_IS, Variants, loss

GATES: Final = ("sent", "all", "fitted")
"""What the gate of an expert becomes: its mean over the tokens that were sent to it, as in CD-MoE's
code; its mean over all tokens; or that with which the layer's output errs least.
"""


@dataclass(frozen=True, repr=False)
class CDMoE(PartMethod):
    """Condenses the layers of experts of a share of the blocks: shared experts and the best few
    others stay, for every token, and no router.

    Of each layer `experts` are kept, one after the other the one with which the block's output is
    nearest to what it was: by the mean Jensen–Shannon divergence, each state being a softmax over
    its features. A kept expert is multiplied with the mean gate of the tokens that were sent to it,
    the shared one with its mean gate, where it has one. With `gates=all` the mean is over all
    tokens, with 0 for those that weren't sent to it; with `gates=fitted` (ours) gates are those
    with which the layer's output has the least squared error. Then layers are condensed, one after
    the other the one with which the last block's output moves least. With `experts=0` the shared
    experts alone stay.

    The search uses about `tokens` tokens, and so does the shared expert's mean gate. The other mean
    gates use all tokens. The notes have the divergence after each step, and what the model
    loses on these tokens and on as many others.

    With `steps`, what was kept of the condensed layers is trained for so many steps of AdamW, on
    the loss of one window after the other.

    A target of 0.25 condenses a quarter of the blocks that have experts. Of architectures whose
    configuration can't say that some blocks have no experts none is touched: a `ModelError` says
    so.

    Differs from CD-MoE's code in: padding never counts and tokens count by their weight, not text
    by text; the states of the last block decide on layers, not those of the last layer of experts;
    an expert that no token was sent to has no mean gate and isn't kept.
    """

    parts: ClassVar[Parts] = "blocks"
    observes: ClassVar[tuple[type[Statistic], ...]] = (Routing,)
    tries: ClassVar[bool] = True

    experts: int = 6
    gates: str = "sent"
    tokens: int = 2048
    steps: int = 0
    rate: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, experts=0, tokens=2, steps=0)
        check_choice(self, gates=GATES)
        check_positive(self, rate="1e-5 is usual")
        check_most(self, experts=MOST_PARTS, steps=MOST_STEPS, rate=1, seed=LARGEST)

    def tried(self, blocks: int, target: Target) -> int:
        """Return how many tokens the search for layers measures. The search for experts isn't
        counted: it runs each expert once, which takes far less than a forward of the model.
        """
        count = as_share(target, self.parts).quota(blocks)
        return self.tokens * (1 + sum(blocks - gone for gone in range(count)))

    def left_to_drop(self, job: Job) -> int:
        done = sum(len(edit.layers) for edit in job.done if isinstance(edit, Condense))
        return count_of_share(len(expert_layers(job.view)) + done, job.target, self.parts) - done

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        layers = expert_layers(view)
        if not layers:
            problem = f"{self} condenses experts, and {type(view.model).__name__} has none"
            raise TargetError(f"{problem}; choose a method for dense models", subject=str(self))
        least = min(layer.count for layer in layers)
        if self.experts > least:
            allowed = f"there are {least} experts in a layer; keep at most as many"
            raise SpecError(f"cd_moe(experts={self.experts}): {allowed}", subject="experts")
        count_of_share(len(layers), target, self.parts)
        # A model that can't be condensed is refused here, before anything is computed.
        condensed(view, {layers[0].block: Condensed(dict.fromkeys(range(self.experts), 1.0))})

    def edits(self, job: Job) -> Iterator[Edit]:
        check_blocks_together(self, job)
        if job.done:
            return
        count = self.left_to_drop(job)
        if not count:
            return
        searched, rest = divided(job.tokens(), self.tokens)
        kept, experts = self._search_experts(job, searched)
        chosen, course = self._search_layers(job, searched, kept, count)
        edit = Condense({block: kept[block] for block in sorted(chosen)}, {})
        if self.steps:
            edit = replace(edit, tuned=tuned(job, edit, self.steps, self.rate, self.seed))
        notes: dict[str, Any] = {
            "tokens": int(searched.mask.sum()),
            "layers": chosen,
            "course": course,
            "experts": experts,
            **self._losses(job, edit, searched),
        }
        if rest is not None:
            held_out, _ = divided(rest, self.tokens)
            losses = self._losses(job, edit, held_out)
            notes["held_out"] = {"tokens": int(held_out.mask.sum()), **losses}
        yield replace(edit, notes=notes)

    def _search_experts(
        self, job: Job, searched: TokenBatch
    ) -> tuple[dict[int, Condensed], dict[str, Any]]:
        """Search every layer for the experts that it keeps. Return the condensed layers, by block,
        and notes on each.
        """
        layers = expert_layers(job.view)
        routing: dict[int, Routing] = {}
        for block, seen in job.blocks(self.observes):
            if Routing in seen:
                routing[block.index] = seen[Routing]
        samples = layer_samples(job.view, layers, searched, job.ranks)
        kept: dict[int, Condensed] = {}
        notes: dict[str, Any] = {}
        for number, layer in enumerate(layers):
            # Taken out, so that the memory of a layer's samples is free after its search.
            layer_sample = samples.pop(layer.block)
            search = ExpertSearch(layer, layer_sample, routing[layer.block], job.ranks, self.gates)
            count = len(search.candidates)
            trials = Trials(
                Space.of(count, min(self.experts, count)),
                search.measure,
                (self.tokens,),
                job.journal,
                name=f"experts of {layer.block} ",
            )
            # Where no candidate is kept: the shared expert alone, or nothing.
            (shared_alone,) = trials.losses([(0,) * count])
            # A level of 1 is an expert that is kept: here `eliminate` adds one after the other.
            eliminate(trials, 1)
            kept[layer.block] = search.condensed_layer(order_of(trials.path))
            notes[str(layer.block)] = {
                "order": list(kept[layer.block].gates),
                "divergence": [six_digits(lost) for lost in (shared_alone, *trials.course)],
            }
            job.progress(f"{self.spec_name()} {job.target}; experts", number + 1, len(layers))
        return kept, notes

    def _search_layers(
        self, job: Job, searched: TokenBatch, kept: Mapping[int, Condensed], count: int
    ) -> tuple[list[int], list[float]]:
        """Search for the layers that are condensed. Return their blocks in the order in which they
        were chosen, and the divergence after each.
        """
        layers = expert_layers(job.view)
        by_block = plain_and_condensed(job.view, layers, kept)
        blocks = job.view.blocks
        variants = Variants(job.view, [by_block.get(block.index, (AS_IT_IS,)) for block in blocks])

        def measure(choices: Sequence[Choice], tokens: int) -> Sequence[float]:
            del tokens  # there is one stage
            # A level for each block, also for those without experts.
            by_choice: list[list[int]] = []
            for choice in choices:
                levels = [0] * len(blocks)
                for layer, level in zip(layers, choice, strict=True):
                    levels[layer.block] = level
                by_choice.append(levels)
            return variants.moved(by_choice, searched, divergence, job.ranks)

        def tell(best: float, done: int, total: int) -> None:
            job.progress(f"{self.spec_name()} {job.target}; best {best:.4g}", done, total)

        space = Space.of(len(layers), count)
        trials = Trials(space, measure, (self.tokens,), job.journal, tell, "layers ")
        eliminate(trials, 1)
        chosen = [layers[place].block for place in order_of(trials.path)]
        return chosen, [six_digits(lost) for lost in trials.course]

    def _losses(self, job: Job, edit: Edit, batch: TokenBatch) -> dict[str, float]:
        untouched = loss(job.view, batch, job.ranks)
        with job.trying(edit):
            lost = loss(job.view, batch, job.ranks)
        return {"untouched_loss": six_digits(untouched), "loss": six_digits(lost)}
