"""README.md of a saved model: what it is, what it was trained on, and the exact prompt it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sirius_rec import __version__, atomic
from sirius_rec.recipes.run import Run
from sirius_rec.training.gguf import HUB_NAMES

_CARD = """---
library_name: {library}
{base}tags: [recommendation, sirius-rec]
---

# {name}

A language-model recommender, trained by sirius-rec {version} in the run `{run}`; this is its {checkpoint} checkpoint.

- Data: source `{source}`, fingerprint `{fingerprint}`, {rows:,} examples for this stage
- Objective: `{objective}`
- {ranks_by}{chat}

The prompt, exactly as it was shown:

```text
{prompt}```

Rank with it: `sirius rank --model RUN {options} --input requests.jsonl --out ranked.jsonl`. It knows the catalogue and
users of its data and no others; the licence of the base model and the terms of the data apply.
"""


def write_card(
    folder: Path,
    run: Run,
    objective: Mapping[str, Any],
    records: Sequence[Any],
    *,
    name: str,
    ranks_by: str,
    options: str,
) -> None:
    """Replace whatever README.md a library left in `folder`, a stage's best/ or last/.

    name: for people. ranks_by: how candidates are ranked. options: of `sirius rank`, that serve this model.
    """
    adapter, base = (folder / "adapter_config.json").is_file(), run.config.backbone.model
    text = _CARD.format(
        library="peft" if adapter else "transformers",
        base="" if base == "tiny" else f"base_model: {HUB_NAMES.get(base, base)}\n",
        name=f"{name} of {run.config.name}",
        ranks_by=ranks_by,
        options=options,
        version=__version__,
        run=run.folder.path.resolve().name,
        checkpoint=folder.name,
        source=run.config.data.source,
        fingerprint=run.dataset.fingerprint,
        rows=len(records),
        objective=json.dumps({key: value for key, value in objective.items() if value is not None}),
        chat=", in the tokenizer's chat template" if run.config.prompts.chat else "",
        prompt=f"{records[0]['prompt']}",
    )
    atomic.write_text(folder / "README.md", text)
