"""Training checkpoints: whole or absent, checked when read, and never a pickle.

    <run>/checkpoints/step-00001234/
        model.safetensors       weights and buffers of the component that is trained
        optimizer.safetensors   AdamW's moments, named after the parameters
        ema.safetensors         moving average of the trained weights, where the recipe asks for one
        state.json              step, component, configuration, recipe, position in the data
        manifest.json           sha256 of the files above, written last

The folder is written under a temporary name, fsynced and renamed, so that a crash leaves the previous one. The newest
complete folder is the one that counts; a damaged one is named and never passed over in silence.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envs.errors import InputError
from envs.files import new_folder, write_json_atomic
from envs.runs import console
from worldmodel.optimizer_state import state_of
from worldmodel.parallel import on_cpu

if TYPE_CHECKING:  # the functions below import them themselves: saving a whole model needs this module in turn
    from worldmodel.config import WorldModelConfig
    from worldmodel.dynamics import Dynamics
    from worldmodel.genie import GenieReduxG
    from worldmodel.latent_action import LatentActionModel
    from worldmodel.tokenizer import Tokenizer

FORMAT = "autoexplore-checkpoint-1"
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_AVERAGE = "ema.safetensors"


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Hex sha256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder whose hashes were checked, and its `state.json`."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def component(self) -> str:
        return str(self.state["component"])

    def weights(self) -> dict[str, Tensor]:
        """The tensors of `model.safetensors`, on the CPU: what training goes on from."""
        return _read_tensors(self.path / "model.safetensors")

    def average(self) -> dict[str, Tensor]:
        """The moving average of the trained weights; empty where the run has none."""
        file = self.path / _AVERAGE
        return _read_tensors(file) if file.exists() else {}

    def exported(self) -> dict[str, Tensor]:
        """The weights that everybody but training uses: with the moving average in place where there is one."""
        return self.weights() | self.average()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The tensors of `optimizer.safetensors`, on the CPU."""
        return _read_tensors(self.path / "optimizer.safetensors")


def save_checkpoint(
    run: Path,
    state: dict[str, Any],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    keep_last: int,
    average: dict[str, Tensor] | None = None,
    writer: bool = True,
) -> Path:
    """Write `<run>/checkpoints/step-<state["step"]>` atomically, then delete all but the newest `keep_last`.

    `state` is plain JSON data with at least `step`, `component` and `config`; the checkpoint of the step in its `best`
    is kept too. A complete checkpoint of the same step is left as it is: a step's state is a function of the run, so it
    holds the same. Where ranks share the weights all must call, and the one `writer` writes.
    """
    path = run / "checkpoints" / _name(state["step"])
    tensors, groups = state_of(module, optimizer)
    files = {"model.safetensors": on_cpu(module.state_dict()), "optimizer.safetensors": tensors}
    if average is not None:
        files[_AVERAGE] = on_cpu(average)
    if not writer:
        return path
    if not (path / "manifest.json").exists():
        with new_folder(path) as folder:
            for name, content in files.items():
                save_file(content, folder / name)
            write_json_atomic(folder / "state.json", {"format": FORMAT, **state, "optimizer": groups})
            hashes = {name: file_sha256(folder / name) for name in (*files, "state.json")}
            write_json_atomic(folder / "manifest.json", {"format": FORMAT, "sha256": hashes})
    best = (state.get("best") or {}).get("step")
    for old in _complete(run)[:-keep_last]:
        if old.name != _name(best):
            # Renamed first, so that a crash half-way leaves no folder that looks like a checkpoint.
            shutil.rmtree(old.replace(old.with_name(f".{old.name}.old.tmp")))
    return path


def newest_checkpoint(run: Path) -> Path | None:
    """The complete checkpoint of the highest step in a run's folder, its hashes not yet checked; None without one."""
    complete = _complete(run)
    return complete[-1] if complete else None


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, which a run keeps; None where nothing was validated."""
    newest = newest_checkpoint(run)
    best = None if newest is None else _read_json(newest / "state.json").get("best")
    path = run / "checkpoints" / _name(best["step"]) if best else None
    return path if path is not None and (path / "manifest.json").exists() else None


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Check a checkpoint folder, or the newest one of a run's folder, and read its state.

    Raises InputError that names the file where one is missing, cut short or changed, and the checkpoint before it.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        newest = newest_checkpoint(path)
        if newest is None:
            raise InputError(f"{path} holds no complete checkpoint: train it first")
        path = newest
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint folder")
    manifest = _read_json(path / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not a training checkpoint of this version (format {manifest.get('format')!r})")
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict):
        raise InputError(f"{path / 'manifest.json'} holds no hashes: the checkpoint is damaged; {_advice(path)}")
    for name in sorted({*_FILES, *hashes}):
        file = path / name
        if not file.is_file() or file_sha256(file) != hashes.get(name):
            what = "differs from its sha256 in manifest.json" if file.is_file() else "is missing"
            raise InputError(f"{file} {what}: the checkpoint is damaged; {_advice(path)}")
    return Checkpoint(path, _read_json(path / "state.json"))


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """Copy weights into a module, all of them or none.

    Raises InputError before anything is copied where a name, shape or type differs: another architecture.
    """
    own = module.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        where = "only in the file" if name in weights else "missing in the file"
        raise InputError(f"{source}: weights of another architecture: {name} is {where}; use its own configuration")
    for name, tensor in own.items():
        here, there = (tuple(tensor.shape), tensor.dtype), (tuple(weights[name].shape), weights[name].dtype)
        if here != there:
            raise InputError(f"{source}: weights of another architecture: {name} is {there[0]}, the model's {here[0]}")
    module.load_state_dict(weights, strict=True)


def load_component(module: nn.Module, component: str, path: Path | str) -> None:
    """Give a tokenizer, lam or dynamics module the weights in a run's folder, a checkpoint or a saved world model."""
    weights, _, tokenizer = _component(Path(path), component)
    load_weights(module, weights, path)
    _note_tokenizer(module, tokenizer)


def load_tokenizer(path: Path | str, device: torch.device | str = "cpu") -> "Tokenizer":
    """The trained tokenizer, in eval mode, from a run's folder, a checkpoint or a saved world model.

    Raises InputError where there is none, it is damaged, or it belongs to another version.
    """
    from worldmodel.tokenizer import Tokenizer

    return _load(Tokenizer, "tokenizer", path, device)


def load_lam(path: Path | str, device: torch.device | str = "cpu") -> "LatentActionModel":
    """As `load_tokenizer`, for the latent action model; also one that was trained with a dynamics model."""
    from worldmodel.latent_action import LatentActionModel

    return _load(LatentActionModel, "lam", path, device)


def load_dynamics(path: Path | str, device: torch.device | str = "cpu") -> "Dynamics":
    """As `load_tokenizer`, for the dynamics model."""
    from worldmodel.dynamics import Dynamics

    return _load(Dynamics, "dynamics", path, device)


def join(tokenizer: Path | str, dynamics: Path | str) -> "GenieReduxG":
    """The world model of a tokenizer and a dynamics model on real actions, each a run's folder or a checkpoint.

    Raises InputError as `load_tokenizer`, and where the two do not belong together.
    """
    from worldmodel.genie import GenieReduxG

    return GenieReduxG(load_tokenizer(tokenizer), load_dynamics(dynamics))


def _load(kind: Any, component: str, path: Path | str, device: torch.device | str) -> Any:
    weights, config, tokenizer = _component(Path(path), component)
    module = kind(config)
    load_weights(module, weights, path)
    _note_tokenizer(module, tokenizer)
    return module.to(device).eval()


def _component(path: Path, component: str) -> tuple[dict[str, Tensor], "WorldModelConfig", str | None]:
    """A component's weights and configuration, hashes checked, and the hash of the tokenizer that it was trained on."""
    from worldmodel.config import WorldModelConfig
    from worldmodel.genie import load_world_model

    if (path / f"{component}.safetensors").exists():
        model = load_world_model(path)
        return getattr(model, component).state_dict(), model.cfg, encoder_sha256(model.tokenizer)
    found = open_checkpoint(path)
    config = WorldModelConfig.from_dict(found.state["config"])
    if found.state.get("joint_lam") and component in ("lam", "dynamics"):
        return _joint_part(found.exported(), component, config), config, found.state.get("tokenizer_sha256")
    if found.component != component:
        raise InputError(f"{found.path} holds a {found.component}, not a {component}: give another path")
    return found.exported(), config, found.state.get("tokenizer_sha256")


def _joint_part(weights: dict[str, Tensor], component: str, config: "WorldModelConfig") -> dict[str, Tensor]:
    """The weights of one part of a joint run. Its LAM changed to the last step: the dynamics learns the hash here."""
    from worldmodel.latent_action import LatentActionModel

    parts = {
        part: {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
        for part in ("lam", "dynamics")
    }
    if component == "dynamics":
        lam = LatentActionModel(config)
        load_weights(lam, parts["lam"], "lam")
        parts["dynamics"]["lam_hash"] = torch.tensor(list(bytes.fromhex(encoder_sha256(lam))), dtype=torch.uint8)
    return parts[component]


def encoder_sha256(model: "Tokenizer | LatentActionModel") -> str:
    """Hash of all in a tokenizer that decides its token ids, or in a latent action model that decides its actions.

    Training the decoder alone does not change it.
    """
    from worldmodel.latent_action import LatentActionModel

    decoder = {id(parameter) for parameter in model.decoder_parameters()}
    weights = {name: value for name, value in model.named_parameters() if id(value) not in decoder}
    part = "lam" if isinstance(model, LatentActionModel) else "tokenizer"
    config = model.cfg.to_dict()
    sizes = hashlib.sha256(json.dumps({name: config[name] for name in ("size", "frames", part)}).encode())
    codebook = model.codebook.detach()
    if not codebook.is_cpu:  # the last bit of a norm is another one there
        codebook = nn.functional.normalize(model.quantizer.rows.detach().cpu().float(), dim=-1)
    return tensors_sha256({**weights, f"codebook of {sizes.hexdigest()}": codebook})


def check_tokenizer(tokenizer: "Tokenizer", dynamics: "Dynamics", source: Path | str = "tokenizer") -> None:
    """Raises InputError, with both hashes, unless the tokenizer makes the tokens that the dynamics was trained on.

    A dynamics model that was not loaded from a run knows only the codes: then these must be the same.
    """
    wanted = getattr(dynamics, "tokenizer_sha256", None)
    same_codes = torch.allclose(dynamics.codebook.cpu(), tokenizer.codebook.detach().cpu(), atol=1e-6)
    got = encoder_sha256(tokenizer) if wanted else tensors_sha256({"codebook": tokenizer.codebook})
    if same_codes and wanted in (None, got):
        return
    wanted = wanted or tensors_sha256({"codebook": dynamics.codebook})
    raise InputError(
        f"{source}: not the tokenizer that the dynamics was trained with: expected the one with sha256 {wanted[:16]}, "
        f"got {got[:16]}"
    )


def _note_tokenizer(module: nn.Module, sha256: str | None) -> None:
    """Let a loaded component remember which tokenizer made its tokens; kept beside the weights, not among them."""
    module.tokenizer_sha256 = sha256  # type: ignore[assignment]


def remove_leftovers(run: Path) -> None:
    """Delete temporary folders that a crash during a save left in a run, and name checkpoints without a manifest."""
    for folder in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(folder)
    for folder in (run / "checkpoints").glob("step-*"):
        if not (folder / "manifest.json").exists():
            console.print(f"{folder} is incomplete (it has no manifest.json) and is left out", soft_wrap=True)


def _name(step: int | None) -> str:
    return "" if step is None else f"step-{step:08d}"


def _complete(run: Path) -> list[Path]:
    return sorted(file.parent for file in (run / "checkpoints").glob("step-*/manifest.json"))


def _advice(path: Path) -> str:
    """What to do about a damaged checkpoint: the newest whole one before it is offered, and never taken unasked."""
    older = [other for other in _complete(path.parent.parent) if other.name < path.name]
    if path.parent.name == "checkpoints":
        for number, other in enumerate(reversed(older)):
            try:
                open_checkpoint(other)
            except InputError:
                continue
            damaged = [f"{path.name}", *(folder.name for folder in reversed(older[len(older) - number :]))]
            these = "this folder" if number == 0 else f"the damaged {', '.join(sorted(damaged))}"
            return f"to go on from the one before it, {other.name}, delete {these}"
    return "there is no earlier one beside it"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: the checkpoint is incomplete; {_advice(path.parent)}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); {_advice(path.parent)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; {_advice(path.parent)}")
    return value
