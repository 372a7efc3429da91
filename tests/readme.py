"Build README.md from nbs/index.ipynb: markdown as it is, shown code fenced, text outputs below. `python tests/readme.py` writes it."
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def build() -> str:
    "The text of README.md."
    parts = []
    for cell in nbformat.read(ROOT/"nbs"/"index.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown": parts.append(cell.source)
        elif not cell.source.lstrip().startswith("#| hide"):
            if not cell.source.lstrip().startswith("#| echo: false"): parts.append(f"```python\n{cell.source}\n```")
            for o in cell.outputs:
                text = o.get("text") or o.get("data", {}).get("text/markdown") or o.get("data", {}).get("text/plain", "")
                parts.append(text.strip() if "text/markdown" in o.get("data", {}) else f"```\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__": (ROOT/"README.md").write_text(build(), encoding="utf-8")
