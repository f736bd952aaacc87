"""The folder of a run and its logger.

Every long command writes the same files: `config.json` (its settings), `metrics.jsonl` (one JSON
object per logged step) and `tensorboard/` (the same scalars). The metrics file is authoritative. A
resumed run first removes the rows after the step it resumes from, so that no step is logged twice.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DataType
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.errors import InputError


class RunDir:
    """The folder `path` of a new run or, with `resume`, of the run to continue.

    Raises: InputError if the folder already holds a run and `resume` is false.
    """

    def __init__(
        self, path: Path | str, config: Any = None, *, resume: bool = False, resume_step: int = 0
    ) -> None:
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        if (self.path / "config.json").exists() and not resume:
            raise InputError(
                f"{self.path} already holds a run: give another --out, or --resume to continue it"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            config = dataclasses.asdict(config)
        settings = json.loads(json.dumps(config or {}, default=str))
        write_json_atomic(self.path / "config.json", settings)
        rows = read_metrics(self.path) if resume else []
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= resume_step]
        write_atomic(self.metrics_path, "".join(kept).encode())
        self._file = self.metrics_path.open("a", buffering=1)
        # TensorBoard's own writer: torch's would load torch into every process that imports this.
        self._writer = EventFileWriter(str(self.path / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step to both files. Names contain slashes, e.g. `train/loss`."""
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step, *scalars)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Log a line of text to TensorBoard's text page."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DataType.DT_STRING, string_val=[text.encode()])
        self._add(step, Summary.Value(tag=name, metadata=metadata, tensor=tensor))

    def log_picture(self, step: int, name: str, data: bytes, height: int, width: int) -> None:
        """Log a PNG or an animated GIF to TensorBoard's page of images."""
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        self._add(step, Summary.Value(tag=name, image=image))

    def _add(self, step: int, *values: Any) -> None:
        event = Event(step=step, wall_time=time.time(), summary=Summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._writer.close()

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a run's `metrics.jsonl`, without a last line cut short by a crash."""
    file = Path(path) / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
