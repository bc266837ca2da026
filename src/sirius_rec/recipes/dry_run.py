"""`sirius run --dry-run`: what a configuration would cost, counted on its own data before anything is trained.

Tokens are counted on a seeded sample of each stage's micro-batches, as trees, as rows whose candidates share a prompt,
and as separate rows. Operations follow from them and the model's size; hours from an assumed share of a device's peak,
or from the kernels that have to be launched one by one, for which a small model waits.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, first_line
from sirius_rec.recipes import starting
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.methods.arms import Arm
from sirius_rec.recipes.methods.sft import Sft
from sirius_rec.recipes.records import ALIGN_STREAM, SFT_STREAM, slate_records, stage_rows, training_rows
from sirius_rec.recipes.reference import drawn_at_most
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.story import prepare_data
from sirius_rec.schema import USER_ID, SlateName
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import tree_batches
from sirius_rec.scoring.tree import build_tree
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.options import StageOptions
from sirius_rec.training.records import PreferenceDataset, encode_records, training_set

# Dense bfloat16 operations per second (10^12) that makers name, and GiB of memory.
DEVICES: Final = {"a100": (312, 80), "h100": (989, 80), "h200": (989, 141), "l40s": (362, 48), "rtx4090": (165, 24)}
UTILISATION: Final = 0.35  # of the peak, assumed: what LoRA reaches on one device differs with everything
# Of a layer: forward and backward (5,475 were counted for a step of 30 layers on an H100), and forward alone (its share
# of torch's calls on a CPU, 40 %). A launch is assumed to take 10 µs; on that machine it took 12 to 24.
_KERNELS = {True: 180, False: 70}
_LAUNCH_S: Final = 10e-6
_SAMPLE = 1024  # rows of a stage that are counted
# Backbones whose files need a licence or a hub: known here, so that they can be counted without either.
_SHAPES: Final[dict[str, dict[str, int]]] = {
    "meta-llama/Llama-2-7b-hf": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                                 "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096},
    "meta-llama/Meta-Llama-3-8B-Instruct": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                                            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                                            "max_position_embeddings": 8192},
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Of a model: all parameters (an output layer tied to the embeddings counts once), those in its layers and in its
    output layer; trained ones; width, layers, context."""

    parameters: int
    layers: int
    head: int
    trained: int
    width: int
    depth: int
    context: int | None


@dataclass(frozen=True)
class Stage:
    """One training, or one scoring, of one seed. Tokens are of all its epochs; head_tokens: what the output layer
    reads. heaviest: tokens of the largest micro-batch counted. passes: micro-batches. operations: multiplications and
    additions."""

    name: str
    trains: bool
    examples: int
    epochs: int
    steps: int
    tokens_tree: int
    tokens_shared: int
    tokens_separate: int
    head_tokens: int
    heaviest: int
    passes: int
    operations: float

    def seconds(self, peak: float, depth: int) -> float:
        """On a device of `peak` operations a second, with a model of `depth` layers."""
        return max(self.operations / (peak * UTILISATION), self.passes * depth * _KERNELS[self.trains] * _LAUNCH_S)


def dry_run(
    config: Config, *, device: str, tokenizer: str | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """What `config` would take: {"data", "model", "stages", "memory_gib", "device", "hours", "prompt", "longest",
    "not_counted"}.

    tokenizer: a folder or hub id whose tokenizer counts, where the backbone's own cannot be had. The data is prepared
    in a temporary folder, or taken from `data.prepared`; nothing of the run is written.

    ConfigError for an unknown device, without SFT and arms, or for a backbone whose size or tokenizer cannot be found
    out.
    """
    if device not in DEVICES:
        raise ConfigError(f"--on {device}: choose one of {', '.join(DEVICES)}")
    if not config.trains_language_model:
        raise ConfigError("--dry-run: counts SFT and arms, and this configuration has neither: run it")
    quiet()
    size = model_size(config)
    with tempfile.TemporaryDirectory() as folder:
        path = RunFolder(Path(folder) / "run")
        path.path.mkdir()
        path.write_config(config)
        run = Run(path, config)
        prepare_data(config, path, say)
        starting.carry_tokenizer(run)
        if tokenizer is not None:
            from sirius_rec.training.backbones import load_tokenizer

            run.__dict__["tokenizer"] = load_tokenizer(tokenizer)
        stages, samples = [], []
        for stage, sample in _stages(run, size):
            stages.append(stage)
            samples.append(sample)
            say(f"counted {stage.name}")
        dataset = run.dataset
        data = {"source": config.data.source, "items": dataset.n_items, "slates": list(dataset.slate_names),
                "rows": {split: dataset.examples(split).height for split in ("train", "val", "test")}}  # fmt: skip
        further = _not_counted(run)
    peak, room = DEVICES[device]
    seconds = {stage.name: stage.seconds(peak * 1e12, size.depth) for stage in stages}
    trained = [stage.heaviest for stage in stages if stage.trains]
    return {
        "data": data, "model": {"name": config.backbone.model, **asdict(size)}, "seeds": len(config.seeds),
        "stages": [{**asdict(stage), "hours": seconds[stage.name] / 3600} for stage in stages],
        "memory_gib": memory(config, size, max(trained)) if trained else None,
        "device": {"name": device, "memory_gib": room, "peak_tflops": peak, "utilisation": UTILISATION},
        "hours": len(config.seeds) * sum(seconds.values()) / 3600,
        "longest": max(row.longest_path for sample in samples for row in sample.rows), "prompt": samples[0].prompt,
        "not_counted": further,
    }  # fmt: skip


def _not_counted(run: Run) -> list[str]:
    """What a run of this configuration takes time for beside the stages."""
    config = run.config
    further = [name for name in run.test_slates if name not in run.sized_test_slates or name in run.retrieved_slates]
    named = {
        "attention itself": True,
        "the tiny backbone's pretraining": config.backbone.name == "tiny" and config.backbone.pretrain is not None,
        "answers by generation": config.evaluation.generation_rows > 0,
        f"rankings of {', '.join(further)}": bool(further),
        "methods beside SFT and arms": bool(config.methods),
    }
    return [what for what, there in named.items() if there]


def model_size(config: Config) -> Size:
    """Counted without weights: from the configuration of the backbone, or what is known of it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    backbone = config.backbone
    if backbone.name == "tiny":
        tiny = backbone.tiny
        made: Any = LlamaConfig(
            hidden_size=tiny.hidden_size, intermediate_size=tiny.intermediate_size, num_hidden_layers=tiny.layers,
            num_attention_heads=tiny.heads, vocab_size=tiny.vocab_size, max_position_embeddings=tiny.context,
        )  # fmt: skip
    elif backbone.name in _SHAPES and not Path(backbone.name).is_dir():
        made = LlamaConfig(**_SHAPES[backbone.name], tie_word_embeddings=False)
    else:
        from sirius_rec.training.gguf import model_folder

        try:
            made = AutoConfig.from_pretrained(model_folder(backbone.model))
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise ConfigError(f"backbone.name: no configuration of '{backbone.model}' ({reason})") from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    head = model.get_output_embeddings().weight.numel()
    inside = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n and "lm_head" not in n)
    every = trained = sum(p.numel() for p in model.parameters())
    if backbone.lora is not None:
        from sirius_rec.training.backbones import add_lora

        with torch.device("meta"):
            model = add_lora(model, **backbone.lora.model_dump())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = made.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    return Size(every, inside, head, trained, text.hidden_size, text.num_hidden_layers, context)


@dataclass(frozen=True)
class _Sample:
    """Some rows of a stage. n_rows: of an epoch. prompt: the first one's text."""

    rows: list[PromptCompletions]
    users: list[Any] | None
    n_rows: int
    prompt: str


def _stages(run: Run, size: Size) -> Iterator[tuple[Stage, _Sample]]:
    """Trainings and scorings of one seed, in their order."""
    config, seed, again, scored = run.config, run.config.seeds[0], dict[int, _Sample](), False
    for method in build_methods(config).values():
        if not isinstance(method, Sft | Arm) or (isinstance(method, Sft) and method.takes_over):
            continue
        stream = SFT_STREAM if isinstance(method, Sft) else ALIGN_STREAM
        loss = {"loss": "sft", "score_unsampled": 0} if isinstance(method, Sft) else method.loss_options()
        if stream not in again:
            if isinstance(method, Sft) and config.sft.targets == "all":
                again[stream] = _reading(run, method, seed)
            else:
                again[stream] = _sample(run, method.training, seed, stream)
        sample = again[stream]
        if isinstance(method, Arm) and method.objective.needs_reference and not scored:
            scored = True
            met = len(training_rows(run, method.training, seed, stream))
            if drawn := _drawn(config, sample, met):
                yield _scoring(config, drawn, met, size, "reference"), sample
        yield _training(config, method.training, loss, sample, size, method.key), sample
    if (looks := _looks(run)) and (held_out := run.validation_slates) is not None:
        rows = run.validation_rows
        sample = _of_slates(run, held_out, rows)
        yield _scoring(config, sample.rows, len(rows) * looks, size, f"validation, {looks} times"), sample
    for name in run.sized_test_slates if config.trains_language_model else ():
        if name in run.retrieved_slates:
            continue
        wanted, models = run.tested_rows(name), 1 + len(config.arms)
        sample = _of_slates(run, SlateName.parse(name), wanted)
        called = f"scoring {name} by {models} models"
        yield _scoring(config, sample.rows, len(wanted) * models, size, called), sample


def _looks(run: Run) -> int:
    """How often trainings rank the validation rows: after each epoch, and before the first where nobody has yet."""
    config, count = run.config, 0
    for method in build_methods(config).values():
        if isinstance(method, Sft) and not method.takes_over:
            count += config.sft.trained_epochs + 1
        elif isinstance(method, Arm):
            count += config.align.trained_epochs + (not method.objective.needs_reference)
    return count


def _of_slates(run: Run, name: SlateName, rows: np.ndarray) -> _Sample:
    """Rows of slates that are ranked."""
    records = slate_records(run.dataset, name, run.template, rows[: _SAMPLE // 4], run.shown)
    return _Sample(encode_records(records, run.encoder), None, len(rows), records[0]["prompt"])


def _sample(run: Run, stage: StageOptions, seed: int, stream: int) -> _Sample:
    """Rows of a stage: whole users where steps are made of users' rows."""
    every = np.asarray(training_rows(run, stage, seed, stream))
    users = None
    if run.config.training.share == "user":
        users = run.dataset.examples("train")[USER_ID].to_numpy()[every]
    some = stage.changed(epochs=1, stop_after=None, examples_per_epoch=min(_SAMPLE, len(every)))
    chosen = stage_rows(len(every), some, seed, 0, users)
    records = slate_records(run.dataset, run.train_slates, run.template, every[chosen], run.shown)
    epoch = min(stage.examples_per_epoch or len(every), len(every))
    owners = None if users is None else users[chosen].tolist()
    return _Sample(encode_records(records, run.encoder), owners, epoch, records[0]["prompt"])


def _reading(run: Run, method: Sft, seed: int) -> _Sample:
    """Records of whole histories (`sft.targets: all`): pieces of them where steps are made of these."""
    found = method.reading(run, seed)
    records, stage = found["records"], found["stage"]
    pieces = np.array([record["user"] for record in records]) if run.config.training.share == "user" else None
    some = stage.changed(epochs=1, stop_after=None, examples_per_epoch=min(_SAMPLE, len(records)))
    chosen = stage_rows(len(records), some, seed, 0, pieces).tolist()
    records = [records[n] for n in chosen]
    owners = None if pieces is None else pieces[chosen].tolist()
    return _Sample(encode_records(records, run.encoder), owners, stage.examples_per_epoch, records[0]["prompt"])


def _counted(rows: Sequence[PromptCompletions]) -> np.ndarray:
    """Tokens of a batch as a tree, with shared prompts, and separate; and those that the output layer reads."""
    tree = build_tree(rows)
    shared, separate = (
        sum(length) for length in zip(*((r.packed_length, r.length("naive")) for r in rows), strict=True)
    )
    return np.array([tree.n_nodes, shared, separate, len(tree.keep_N)])


def _training(
    config: Config, stage: StageOptions, loss: dict[str, Any], sample: _Sample, size: Size, name: str
) -> Stage:
    micro = min(stage.micro_batch_size or stage.batch_size, len(sample.rows))
    args = SiriusConfig(output_dir="unused", per_device_train_batch_size=micro, use_cpu=True, **loss)
    dataset = training_set(sample.rows, args, sample.users)
    batches = []
    for start in range(0, len(sample.rows) - micro + 1, micro):
        draws = [dataset[slot] for slot in range(start, start + micro)]
        batches.append(_counted([sample.rows[draw.row].only(draw.columns.tolist()) for draw in draws]))
    share = sample.n_rows / (len(batches) * micro) * stage.trained_epochs
    tokens, shared, separate, head = (int(n * share) for n in np.sum(batches, axis=0))
    # Forward 2 and backward 4 for each weight and token; a frozen base needs no gradient of its own weights, and
    # checkpointing runs the layers forward once more.
    lora = config.backbone.lora is not None
    layers = 4.0 if lora else 6.0
    operations = (
        layers + (2 if stage.gradient_checkpointing else 0)
    ) * size.layers * tokens + layers * size.head * head
    steps = math.ceil(sample.n_rows / stage.batch_size) * stage.trained_epochs
    heaviest = int(np.max(batches, axis=0)[0])
    passes = math.ceil(sample.n_rows / micro) * stage.trained_epochs
    return Stage(
        name,
        True,
        sample.n_rows,
        stage.trained_epochs,
        steps,
        tokens,
        shared,
        separate,
        head,
        heaviest,
        passes,
        operations,
    )


def _drawn(config: Config, sample: _Sample, met: int) -> list[PromptCompletions]:
    """The sample's rows with the candidates whose log π_ref is read; none where no arm reads any. met: rows that
    alignment meets."""
    most = drawn_at_most(config, min(len(row.completions) for row in sample.rows) - 1)
    if most is None:
        return []
    draws = PreferenceDataset(sample.rows, negatives=0, score_unsampled=most)
    columns_R = draws.columns_drawn(math.ceil(config.align.epochs * sample.n_rows / met))  # epochs that a row is in
    return [row.only(columns.tolist()) for row, columns in zip(sample.rows, columns_R, strict=True)]


def _scoring(config: Config, rows: Sequence[PromptCompletions], n_rows: int, size: Size, name: str) -> Stage:
    batches = [_counted([rows[r] for r in batch]) for batch in tree_batches(rows, config.evaluation.batch_tokens)]
    tokens, shared, separate, head = (int(n * n_rows / len(rows)) for n in np.sum(batches, axis=0))
    operations = 2.0 * (size.layers * tokens + size.head * head)
    passes = math.ceil(len(batches) * n_rows / len(rows))
    return Stage(name, False, n_rows, 1, 0, tokens, shared, separate, head, 0, passes, operations)


def memory(config: Config, size: Size, tokens: int) -> float:
    """GiB of a training step: weights, gradients and AdamW's state of what is trained, activations by formula.

    Activations of a layer: 34 bytes per token and unit of width in half precision (Korthikanti et al. 2022, without
    the squares that no kernel here keeps), twice that in float32; with checkpointing each layer's input, and one
    layer's own.
    """
    half = config.backbone.dtype == "bfloat16"
    base = 0.5 if config.backbone.quantization else 2.0 if half and config.backbone.lora is not None else 4.0
    weights = size.parameters * base + (size.trained * 4.0 if config.backbone.lora is not None else 0)
    state = size.trained * 12.0
    per_layer = tokens * size.width * (34 if half else 68)
    checkpointed = config.align.gradient_checkpointing or config.sft.gradient_checkpointing
    inputs = tokens * size.width * (2 if half else 4) * size.depth
    activations = per_layer + inputs if checkpointed else per_layer * size.depth
    return float((weights + state + activations) / 2**30)
