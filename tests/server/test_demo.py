"""The demonstration model is a real model folder, the same one every time, and can only say readable things."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from server.demo import ensure_demo_model, write_model
from server.tokenizer import Tokenizer


def test_every_id_it_can_emit_is_text_on_its_own(demo_folder: Path):
    tokenizer = Tokenizer.load(str(demo_folder))
    config = json.loads((demo_folder / "generation_config.json").read_text())
    emitted = set(range(tokenizer.fast.get_vocab_size())) - set(config["suppress_tokens"]) - tokenizer.eos_token_ids
    assert len(emitted) > 500
    for token_id in emitted:
        text = tokenizer.decode([token_id])
        assert text, f"id {token_id} is no text"
        assert "\ufffd" not in text, f"id {token_id} is half a character"


def test_it_reads_any_text_and_keeps_it(demo_folder: Path):
    tokenizer = Tokenizer.load(str(demo_folder))
    text = "The clock, Ω≈ç√, 時計, 🕰️\n\ttab"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.fast.token_to_id("<s>")
    assert tokenizer.decode(ids) == text


def test_the_same_recipe_gives_the_same_weights(demo_folder: Path, tmp_path: Path):
    write_model(tmp_path)
    first, second = (
        hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in (demo_folder, tmp_path)
    )
    assert first == second


def test_it_is_made_on_first_use_and_found_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = ensure_demo_model()
    assert folder.parent == tmp_path / "tokenclock"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_demo_model() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half-made is left"


def test_it_has_a_chat_template(demo_folder: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What time is it?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<s><|user|>\nWhat time is it?</s>\n<|assistant|>\n"


def test_end_tokens_come_from_config_json_where_there_is_no_generation_config(demo_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(demo_folder, folder)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": [1, 5]}
    (folder / "config.json").write_text(json.dumps(config))
    assert Tokenizer.load(str(folder)).eos_token_ids == {1, 5}
