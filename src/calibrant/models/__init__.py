"""Opening, viewing and saving causal language models."""

from calibrant.system.process import uncollected

with uncollected():
    from calibrant.models.changing import overwrite, will_change
    from calibrant.models.condensing import Condensed, condense, condensed
    from calibrant.models.devices import resolve_device, resolve_dtype
    from calibrant.models.experts import Choices, ExpertLayer, drop_experts, expert_layers
    from calibrant.models.heads import Heads
    from calibrant.models.on_disk import read_when_run
    from calibrant.models.opening import (
        gguf_of,
        load,
        located,
        open_model,
        open_tokenizer,
        outline_of,
        outlined,
        saved_dtype,
    )
    from calibrant.models.saving import (
        Model,
        Opened,
        check_output,
        manifest_folder,
        read_manifest,
        save,
        saved,
    )
    from calibrant.models.shape import BlockShape, MatrixShape, ModelOutline, ModelShape
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
    "Residence",
    "Snapshot",
    "Stream",
    "Weight",
    "check_finite",
    "check_output",
    "condense",
    "condensed",
    "drop_experts",
    "expert_layers",
    "gguf_of",
    "load",
    "located",
    "manifest_folder",
    "open_model",
    "open_tokenizer",
    "outline_of",
    "outlined",
    "overwrite",
    "read_manifest",
    "read_when_run",
    "resolve_device",
    "resolve_dtype",
    "save",
    "saved",
    "saved_dtype",
    "view",
    "will_change",
]
