"""A made-up Neuron machine in a folder: its files, its packages' metadata, and an export; tests take away from it.

Placeholders have the shape of PyPI's own wheels, pins that of optimum-neuron 0.4.5's metadata.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from server.check import Finding, findings_for_neuron
from server.machine import Machine, read

INSTALLED = {
    "optimum-neuron": ("0.4.5", "optimum"),
    "optimum": ("2.0.0", "optimum"),
    "transformers": ("4.57.6", "transformers"),
    "huggingface-hub": ("0.36.2", "huggingface_hub"),
    "torch": ("2.8.0", "torch"),
    "torchvision": ("0.23.0", "torchvision"),
    "torch-xla": ("2.8.1", "torch_xla"),
    "torch-neuronx": ("2.8.0.2.10.16998+e9bf8a50", "torch_neuronx"),
    "neuronx-cc": ("2.21.33363.0+82129205", "neuronxcc"),
    "neuronx-distributed": ("0.15.22404+1f27bddf", "neuronx_distributed"),
    "libneuronxla": ("2.2.12677.0+cd78cd0f", "libneuronxla"),
    "protobuf": ("6.33.0", "google"),
    "numpy": ("1.26.4", "numpy"),
}
ASKED_FOR = """Requires-Python: >=3.10
Requires-Dist: transformers~=4.57.1
Requires-Dist: optimum~=2.0.0
Requires-Dist: huggingface_hub>=0.35.3
Provides-Extra: quality
Requires-Dist: ruff==0.13.0; extra == "quality"
Provides-Extra: neuronx
Requires-Dist: wheel; extra == "neuronx"
Requires-Dist: neuronx-cc==2.21.33363.0; extra == "neuronx"
Requires-Dist: torch-neuronx==2.8.0.2.10.16998; extra == "neuronx"
Requires-Dist: torch==2.8.0.*; extra == "neuronx"
Requires-Dist: torchvision==0.23.*; extra == "neuronx"
Requires-Dist: neuronx_distributed==0.15.22404; extra == "neuronx"
Requires-Dist: libneuronxla==2.2.12677.0; extra == "neuronx"
Requires-Dist: protobuf>=3.20.3; extra == "neuronx"
Requires-Dist: numpy<=1.26.4,>=1.22.2; extra == "neuronx"
"""
WRONG_PACKAGE = "WRONG PACKAGE. Please install the package from Neuron Repository - pip.repos.neuron.amazonaws.com"
MADE = {
    "_serialized_key": "NxDNeuronConfig",
    "optimum_neuron_version": "0.4.5",
    "neuronxcc_version": "2.21.33363.0+82129205",
    "target": "trn1",
    "tp_degree": 24,
    "pp_degree": 1,
    "ep_degree": 1,
    "batch_size": 4,
    "continuous_batching": True,
    "sequence_length": 2048,
    "on_device_sampling": True,
    "output_logits": False,
    "checkpoint_id": None,
    "start_rank_id": 0,
    "local_ranks_size": 24,
}
SHARD_BYTES = 1024
SHARDS = "checkpoint/weights"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def install(site: Path, name: str, version: str, module: str, more: str = "", body: str = "", code: str = "") -> None:
    stem = name.replace("-", "_")
    header = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}\n{body}"
    write(site / f"{stem}-{version}.dist-info" / "METADATA", header)
    write(site / module / "__init__.py", code)


def uninstall(site: Path, name: str) -> None:
    stem, module = name.replace("-", "_"), INSTALLED[name][1]
    for folder in (*site.glob(f"{stem}-*.dist-info"), site / module):
        shutil.rmtree(folder)


class World:
    """An inf2.48xlarge with all that it needs, and an export made on it; tests take away from it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.site, self.model = folder / "root", folder / "site", folder / "export"
        self.environ: dict[str, str] = {}
        self.put_devices("inf2.48xlarge", 12)
        for name, (version, module) in INSTALLED.items():
            install(self.site, name, version, module, more=ASKED_FOR if name == "optimum-neuron" else "")
        self.put_export()

    def put_devices(self, instance: str | None, devices: int) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.environ = {}
        self.put("proc/meminfo", "MemTotal:  402653184 kB\nMemAvailable:  390070272 kB\n")
        self.put("proc/devices", "Character devices:\n  1 mem\n245 neuron\n\nBlock devices:\n259 blkext\n")
        self.put("sys/module/neuron/version", "2.22.2.0\n")
        for other in ("null", "neuron", "neuron_debug"):
            self.put(f"dev/{other}", "")
        for device in range(devices):
            self.put(f"dev/neuron{device}", "")
            self.put(f"sys/devices/virtual/neuron_device/neuron{device}/core_count", "2\n")
        if instance:
            self.put("sys/devices/virtual/dmi/id/product_name", f"{instance}\n")

    def put(self, path: str, text: str) -> None:
        write(self.root / path, text)

    def hide(self, path: str) -> None:
        target = self.root / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    def put_export(self, **changed: Any) -> None:
        made = {key: value for key, value in (MADE | changed).items() if value is not ...}
        write(self.model / "config.json", '{"model_type": "llama"}')
        write(self.model / "neuron_config.json", json.dumps(made))
        write(self.model / "model.pt", "")
        write(self.model / "tokenizer.json", "{}")
        for rank in range(24):
            write(self.model / f"{SHARDS}/tp{rank}_sharded_checkpoint.safetensors", "x" * SHARD_BYTES)

    def machine(self) -> Machine:
        return read(self.root, self.environ, [str(self.site)])

    def findings(self, model: bool = True) -> tuple[Finding, ...]:
        return findings_for_neuron(self.machine(), self.model if model else None)
