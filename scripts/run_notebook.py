"""Run the code cells of a notebook in order; with `--write`, store their output in it.

    python -m scripts.run_notebook examples/quickstart.ipynb --write

Jupyter is not needed: a cell is Python code, and the image or value at its end is its result.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def execute(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one cell -> its outputs in the notebook format."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        shown: dict[str, Any] = {"text/plain": [repr(value).split(" at 0x")[0]]}
        if hasattr(value, "_repr_png_"):
            shown["image/png"] = base64.b64encode(value._repr_png_()).decode()
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown})
    return outputs


def run(path: Path) -> dict[str, Any]:
    """Run a notebook -> its content with fresh outputs."""
    notebook = json.loads(path.read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code, start=1):
        cell["outputs"], cell["execution_count"] = execute("".join(cell["source"]), names), count
    return notebook


if __name__ == "__main__":
    path = Path(sys.argv[1])
    notebook = run(path)
    if "--write" in sys.argv:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
