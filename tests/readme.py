"Build README.md from nbs/index.ipynb: markdown as it is, and what cells flagged `echo: false` print. `python tests/readme.py` writes it."
import contextlib
import io
import os
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def build() -> str:
    "The text of README.md."
    parts, names = [], {}
    for cell in nbformat.read(ROOT/"nbs"/"index.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown": parts.append(cell.source)
        elif cell.source.startswith("#| echo: false"):
            here = os.getcwd()
            os.chdir(ROOT/"nbs")
            try:
                with contextlib.redirect_stdout(io.StringIO()) as out: exec(cell.source, names)
            finally: os.chdir(here)
            parts.append(out.getvalue().strip())
    text = "\n\n".join(parts) + "\n"
    for folder in ("studies", "images"): text = text.replace(f"]({folder}/", f"](nbs/{folder}/")  # links, seen from the root
    return text


if __name__ == "__main__": (ROOT/"README.md").write_text(build(), encoding="utf-8")
