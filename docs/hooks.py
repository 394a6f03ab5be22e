"""Makes pages of the notebooks by running them, and shows examples in docstrings as code.

MkDocs calls the functions of this file; mkdocstrings uses the class.
"""

import base64
import importlib
import inspect
import os
import re
from pathlib import Path

import griffe
import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent / "notebooks"
PARTS = ("ops", "nn", "models", "data", "wsol", "wsol.methods", "wsol.metrics", "erf", "report")
PACKAGES = ("cba_fast", *(f"cba_fast.{part}" for part in PARTS))
# While pages are written, `CBA_DOCS_RUN=0 mkdocs serve` shows the notebooks without their results.
RUN = os.environ.get("CBA_DOCS_RUN", "1") != "0"


class ReadableDocstrings(griffe.Extension):
    """Writes docstrings in the words that the site knows."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        """Let the examples of one object show as code, and its references to others as names."""
        if not obj.is_alias and obj.docstring:
            text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            text = re.sub(r":\w+:`~[\w.]+\.(\w+)`", r"`\1`", text)
            obj.docstring.value = re.sub(r":\w+:`([\w.]+)`", r"`\1`", text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add pages that the navigation does not name to its how-to section."""
    named = re.findall(r"[\w-]+\.md", str(config.nav))
    section = next(part["How to"] for part in config.nav if "How to" in part)
    section += [p.name for p in sorted(Path(__file__).parent.glob("*.md")) if p.name not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, with the results of a run, and one for each package."""
    for source in sorted(NOTEBOOKS.glob("*.py")):
        text, pictures = page(source)
        name = f"notebooks/{source.stem}"
        files.append(File.generated(config, f"{name}.md", content=text))
        for number, picture in enumerate(pictures, 1):
            files.append(File.generated(config, f"{name}-{number}.png", content=picture))
    for package in PACKAGES:
        content = api_page(package)
        files.append(File.generated(config, f"api/{package}.md", content=content))
    return files


def api_page(package: str) -> str:
    """Return a page with all functions and classes that a package exports."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", ("accelerate", "restore", "tune"))  # of cba_fast itself
    parts = [f"# {package}", inspect.cleandoc(module.__doc__)]
    for name in names:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            options = f"    options: {{heading: {package}.{name}, toc_label: {name}}}"
            parts.append(f"::: {value.__module__}.{value.__qualname__}\n{options}")
    return "\n\n".join(parts) + "\n"


def page(source: Path) -> tuple[str, list[bytes]]:
    """Run a notebook and return its page in Markdown and its pictures; an error ends the build."""
    notebook = jupytext.read(source)
    if RUN:
        kernel = NotebookClient(notebook, timeout=120, kernel_name="python3")
        kernel.execute()
    parts, pictures = [], []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        # Standard error has progress, and notes on widgets that are not there.
        shown = [o for o in cell.get("outputs", ()) if o.get("name") != "stderr"]
        pngs = [o["data"]["image/png"] for o in shown if "image/png" in o.get("data", {})]
        text = "".join(_text(o) for o in shown).rstrip()
        if text:
            parts.append(f"```text\n{text}\n```")
        for png in pngs:
            pictures.append(base64.b64decode(png))
            parts.append(f"![Picture of the cell above]({source.stem}-{len(pictures)}.png)")
    made = f"docs/notebooks/{source.name}"
    parts.append(
        f"---\n\nThis page was made by running `{made}`; `python -m jupytext --to notebook {made}` "
        "makes a notebook of that file."
    )
    return "\n\n".join(parts) + "\n", pictures


def _text(output: dict) -> str:
    """Return what a cell printed or returned; nothing for a picture."""
    data = output.get("data", {})
    return output.get("text", "" if "image/png" in data else data.get("text/plain", ""))
