"""Checkpoints: complete or absent, verified when read, of one architecture, without pickles."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from envs.utils.artifact_dir import copy_weights
from envs.utils.atomic_io import file_sha256
from envs.utils.errors import InputError
from worldmodel import checkpoint
from worldmodel.config import TokenizerConfig, WorldModelConfig, preset
from worldmodel.loading import load_component, load_dynamics, load_tokenizer
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieReduxG
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.weights import encoder_sha256
from worldmodel.training.distributed import load_optimizer, training_state

WIDER = WorldModelConfig(
    frames=8, tokenizer=TokenizerConfig(patch=8, dim=48, heads=2, head_dim=16, codes=64, code_dim=8)
)


def trained_tokenizer() -> tuple[Tokenizer, torch.optim.Optimizer]:
    torch.manual_seed(0)
    tokenizer = Tokenizer(preset("debug"))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-3, fused=True)
    tokenizer(torch.rand(1, 3, 3, 64, 64)).losses["loss"].backward()
    optimizer.step()
    return tokenizer, optimizer


def save(run: Path, step: int, keep_last: int = 9) -> Path:
    tokenizer, optimizer = trained_tokenizer()
    tensors, groups = training_state(tokenizer, optimizer)
    state = {
        "step": step,
        "component": "tokenizer",
        "config": preset("debug").to_dict(),
        "optimizer": groups,
    }
    return checkpoint.write_checkpoint(run, state, tensors, keep_last=keep_last)


def test_weights_and_optimizer_come_back_bit_for_bit(tmp_path: Path) -> None:
    tokenizer, optimizer = trained_tokenizer()
    opened = checkpoint.open_checkpoint(save(tmp_path, 7))
    assert (opened.step, opened.component) == (7, "tokenizer")
    torch.manual_seed(1)
    restored = Tokenizer(preset("debug"))
    copy_weights(restored, opened.weights(), opened.path)
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name
    restored_optimizer = torch.optim.AdamW(restored.parameters(), lr=5.0, fused=True)
    load_optimizer(restored, restored_optimizer, opened)
    assert restored_optimizer.param_groups[0]["lr"] == 1e-3
    assert len(restored_optimizer.state) == len(optimizer.state) > 10
    for parameter, other in zip(tokenizer.parameters(), restored.parameters(), strict=True):
        state, other_state = optimizer.state[parameter], restored_optimizer.state[other]
        assert state.keys() == other_state.keys()
        assert all(torch.equal(state[name], other_state[name]) for name in state)


def test_the_newest_complete_one_is_opened_and_old_ones_are_deleted(tmp_path: Path) -> None:
    for step in (5, 10, 200):
        save(tmp_path, step, keep_last=2)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000010",
        "step-00000200",
    ]
    (tmp_path / "checkpoints/step-00000200/manifest.json").unlink()
    assert checkpoint.open_checkpoint(tmp_path).step == 10


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_and_the_one_before_it_are_named(
    tmp_path: Path, name: str, damage: str
) -> None:
    save(tmp_path, 10)
    file = save(tmp_path, 20) / name
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    for path in (tmp_path, tmp_path / "checkpoints/step-00000020"):
        with pytest.raises(InputError) as refusal:
            checkpoint.open_checkpoint(path)
        assert str(file) in str(refusal.value)
        assert "step-00000010, delete this folder" in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_the_checkpoint_to_continue_from_is_intact(tmp_path: Path) -> None:
    """After two damaged ones the third is named, and none is skipped silently."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    for step in (20, 30):
        file = tmp_path / f"checkpoints/step-000000{step}/model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    advice = "to continue from step-00000010, delete the damaged step-00000020, step-00000030"
    with pytest.raises(InputError, match=advice):
        checkpoint.open_checkpoint(tmp_path)
    (tmp_path / "checkpoints/step-00000010/state.json").write_text("{}")
    with pytest.raises(InputError, match="there is no earlier intact checkpoint"):
        checkpoint.open_checkpoint(tmp_path)


def test_a_manifest_with_a_flipped_bit_is_named(tmp_path: Path) -> None:
    """Each flipped bit raises an error about this checkpoint, or leaves the content equal."""
    file = save(tmp_path, 10) / "manifest.json"
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 4
        file.write_bytes(changed)
        refusals = []
        try:
            checkpoint.open_checkpoint(tmp_path)
        except InputError as error:
            refusals.append(str(error))
        assert all(str(file.parent) in line for line in refusals)
        assert refusals or json.loads(changed) == json.loads(whole), position
    file.write_bytes(whole)
    assert checkpoint.open_checkpoint(tmp_path).step == 10


def test_a_pickle_in_place_of_weights_is_refused_unread(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return Path.touch, (marker,)

    (path / "model.safetensors").write_bytes(pickle.dumps(Payload()))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = file_sha256(path / "model.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"model\.safetensors: not a safetensors file"):
        load_tokenizer(path)
    assert not marker.exists()


@pytest.mark.parametrize("change", ["shape", "missing", "extra", "type"])
def test_another_architecture_is_refused_and_nothing_is_copied(change: str) -> None:
    weights = {
        name: value.clone() + 1 for name, value in Tokenizer(preset("debug")).state_dict().items()
    }
    last = list(weights)[-1]
    if change == "shape":
        weights[last] = torch.zeros(*weights[last].shape, 2)
    elif change == "missing":
        del weights[last]
    elif change == "extra":
        weights["zzz"] = torch.zeros(1)
    else:
        weights[last] = weights[last].double()
    tokenizer = Tokenizer(preset("debug"))
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    with pytest.raises(InputError, match="another architecture"):
        copy_weights(tokenizer, weights, "file")
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_components_load_from_a_run_a_checkpoint_and_a_saved_model(tmp_path: Path) -> None:
    path = save(tmp_path / "run", 3)
    torch.manual_seed(4)
    model = GenieReduxG(load_tokenizer(tmp_path / "run"), Dynamics(preset("debug")))
    model.save(tmp_path / "model")
    loaded = [load_tokenizer(place) for place in (tmp_path / "run", path, tmp_path / "model")]
    for tokenizer in loaded:
        assert not tokenizer.training
        assert encoder_sha256(tokenizer) == encoder_sha256(loaded[0])
        for name, value in tokenizer.state_dict().items():
            assert torch.equal(value, loaded[0].state_dict()[name]), name
    dynamics = load_dynamics(tmp_path / "model")
    assert torch.equal(dynamics.head.weight, model.dynamics.head.weight)
    with pytest.raises(InputError, match="holds a tokenizer, not a dynamics"):
        load_dynamics(path)
    with pytest.raises(InputError, match="no such checkpoint"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match="another architecture"):
        load_component(Tokenizer(WIDER), "tokenizer", path)


def test_encoder_hash_covers_what_decides_token_ids() -> None:
    tokenizer, _ = trained_tokenizer()
    before = encoder_sha256(tokenizer)
    with torch.no_grad():
        for parameter in tokenizer.decoder_parameters():
            parameter.add_(1)
        tokenizer.set_progress(0.5)
    assert encoder_sha256(tokenizer) == before
    with torch.no_grad():
        tokenizer.to_code.weight[0, 0] += 1e-3
    assert encoder_sha256(tokenizer) != before


KILLED_SAVES = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from envs.utils.artifact_dir import remove_partial_checkpoints
from worldmodel import checkpoint
from worldmodel.training.distributed import training_state
run = Path(sys.argv[1])
module = torch.nn.Linear(400, 400)
optimizer = torch.optim.AdamW(module.parameters(), fused=True)
module(torch.ones(1, 400)).sum().backward()
optimizer.step()
random.seed(0)
def save(step):
    with torch.no_grad():
        module.bias.fill_(step)
    tensors, groups = training_state(module, optimizer)
    state = {"step": step, "component": "x", "config": {}, "optimizer": groups}
    checkpoint.write_checkpoint(run, state, tensors, keep_last=2)
started = time.perf_counter()
save(1)
save(2)
save(3)
usual = (time.perf_counter() - started) / 3
step, before = 4, 2
for kill in range(20):
    child = os.fork()
    if child == 0:
        try:
            for number in range(step, step + 1000):
                save(number)
        finally:
            os._exit(0)
    time.sleep(usual * (1 + 2 * random.random()))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    remove_partial_checkpoints(run)
    opened = checkpoint.open_checkpoint(run)
    assert (opened.weights()["bias"] == opened.step).all()
    assert opened.step >= step - 1
    folders = list((run / "checkpoints").iterdir())
    assert all((folder / "manifest.json").exists() for folder in folders), folders
    # Each save deletes old ones at its end, so that a killed one can leave one more than before.
    assert len(folders) <= (3 if opened.step > step else before + 1), folders
    before = len(folders)
    print("survived")
    step = opened.step + 1
# A save that completes deletes what killed ones left.
save(step)
assert len(list((run / "checkpoints").iterdir())) == 2
"""


def test_a_save_killed_at_20_random_points_leaves_the_newest_complete_one(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED_SAVES, tmp_path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("survived") == 20
