"""Opening, viewing and saving causal language models."""

from calibrant.system.process import uncollected

with uncollected():
    from calibrant.models.changing import overwrite, will_change
    from calibrant.models.condensing import Condensed, condense, condensed
    from calibrant.models.devices import resolve_device, resolve_dtype
    from calibrant.models.experts import Choices, ExpertLayer, drop_experts, expert_layers
    from calibrant.models.heads import Heads
    from calibrant.models.objects import (
        evaluating,
        is_object,
        model_in,
        name_of,
        only_looks,
        opened_of,
        take_numbers,
        will_be_changed,
    )
    from calibrant.models.on_disk import read_when_run
    from calibrant.models.opening import (
        gguf_of,
        load,
        located,
        open_as_saved,
        open_model,
        open_tokenizer,
        outline_of,
        saved_dtype,
    )
    from calibrant.models.origin import (
        Origin,
        is_as_remembered,
        origin_of,
        remember,
        state_of,
    )
    from calibrant.models.saving import (
        Model,
        Opened,
        Tokenizer,
        check_output,
        check_savable,
        manifest_folder,
        read_manifest,
        save,
        saved,
    )
    from calibrant.models.shape import BlockShape, MatrixShape, ModelOutline, ModelShape, Storage
    from calibrant.models.snapshot import Snapshot
    from calibrant.models.stream import Stream
    from calibrant.models.viewing import (
        IN_MEMORY,
        Block,
        Dense,
        ModelView,
        Residence,
        Weight,
        check_finite,
        is_finite,
        view,
    )

__all__ = [
    "IN_MEMORY",
    "Block",
    "BlockShape",
    "Choices",
    "Condensed",
    "Dense",
    "ExpertLayer",
    "Heads",
    "MatrixShape",
    "Model",
    "ModelOutline",
    "ModelShape",
    "ModelView",
    "Opened",
    "Origin",
    "Residence",
    "Snapshot",
    "Storage",
    "Stream",
    "Tokenizer",
    "Weight",
    "check_finite",
    "check_output",
    "check_savable",
    "condense",
    "condensed",
    "drop_experts",
    "evaluating",
    "expert_layers",
    "gguf_of",
    "is_as_remembered",
    "is_finite",
    "is_object",
    "load",
    "located",
    "manifest_folder",
    "model_in",
    "name_of",
    "only_looks",
    "open_as_saved",
    "open_model",
    "open_tokenizer",
    "opened_of",
    "origin_of",
    "outline_of",
    "overwrite",
    "read_manifest",
    "read_when_run",
    "remember",
    "resolve_device",
    "resolve_dtype",
    "save",
    "saved",
    "saved_dtype",
    "state_of",
    "take_numbers",
    "view",
    "will_be_changed",
    "will_change",
]
