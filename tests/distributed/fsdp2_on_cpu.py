"""`sirius` with FSDP2 over CPU processes: accelerate itself takes FSDP on devices only, and only asks for the kind.

    torchrun --nproc_per_node 2 fsdp2_on_cpu.py align CONFIG …

The rest (sharding by `fully_shard`, gathering, saving) is accelerate's own code, as on devices.
"""

from __future__ import annotations

import os
from typing import Any

SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def allow_cpu() -> None:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def say_what_was_sharded() -> None:
    """One line per process at the end of training, so that a run without shards cannot pass for one with them."""
    from sirius_rec.training.trainer import SiriusTrainer

    original = SiriusTrainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        kinds = {type(p).__name__ for p in self.model.parameters()}
        # In one piece: the other process writes to the same pipe.
        os.write(1, f"sharded: {' '.join(sorted(kinds))}\n".encode())
        return result

    SiriusTrainer.train = train  # type: ignore[method-assign]


if __name__ == "__main__":
    os.environ |= SETTINGS
    allow_cpu()
    say_what_was_sharded()
    from sirius_rec.cli import main

    main()
