"""MkDocs hooks: pages include the repository's own Markdown and what the program itself says.

A line of a page that is one of these is replaced:

- ``{{ README.md }}``: the file; ``{{ README.md # Methods }}``: the text of one section, without its heading;
  ``{{ README.md # }}``: what precedes the first section.
- ``{{ commands }}``: the ``--help`` of every command.
- ``{{ methods }}``: the docstrings of the methods that the page has no section for.
- ``{{ beside }}``: the published values of tables 1 and 2 beside ours.
- ``{{ status }}``: what was run of each table and figure; each of its pages is the README.md of the experiment.

tutorial.py, a notebook in jupytext's percent format, becomes the page tutorial.md.

Links in an included file lead to the page that includes the whole of it, pictures are copied, and a link to anything
else in the repository becomes its text. A section that does not exist ends the build.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks.fedmoe")
EXPERIMENTS = sorted(path.parent.name for path in ROOT.glob("experiments/*/README.md"))
# Files that a page includes as a whole.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "extending.md",
    "docs/tutorial.py": "tutorial.md",
    "configs/data/README.md": "data.md",
    "configs/regimes/README.md": "protocols.md",
    **{f"experiments/{name}/README.md": f"experiments/{name}.md" for name in EXPERIMENTS},
}
_LINE = re.compile(r"^\{\{ *([^}#]+?) *(?:(#) *([^}]*?))? *\}\}$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_PICTURES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/*/*.png"))


def on_files(files: Any, config: Any) -> Any:
    """Add the experiments' pages, and the pictures in them."""
    for name in EXPERIMENTS:
        content = f"{{{{ experiments/{name}/README.md }}}}\n"
        files.append(File.generated(config, f"experiments/{name}.md", content=content))
    notebook = (ROOT / "docs" / "tutorial.py").read_text(encoding="utf-8")
    files.append(File.generated(config, "tutorial.md", content=_notebook(notebook)))
    for picture in _PICTURES:
        files.append(File.generated(config, f"pictures/{picture}", abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the lines in double braces."""
    here = page.file.src_uri

    def replace(found: re.Match[str]) -> str:
        name, of_section, section = found.groups()
        if name in _SPECIAL:
            return _SPECIAL[name](markdown, here)
        text = (ROOT / name).read_text(encoding="utf-8")
        if of_section:
            text = _section(name, text, section)
        elif markdown.startswith("# "):  # the page has a title of its own
            text = f"#{text}"
        return _links(text, name, here)

    return _LINE.sub(replace, markdown)


def _notebook(text: str) -> str:
    """The Markdown of a notebook's cells, which begin with # %%; what precedes the first one is jupytext's."""
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    cells = []
    for kind, cell in zip(parts[::2], parts[1::2], strict=True):
        words = re.sub(r"^# ?", "", cell.strip(), flags=re.MULTILINE)
        cells.append(words if "[markdown]" in kind else f"```python\n{cell.strip()}\n```")
    return "\n\n".join(cells) + "\n"


def _section(name: str, text: str, section: str) -> str:
    """The text below a heading of the second level; "" stands for what precedes them all."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    titles = dict(zip(parts[1::2], parts[2::2], strict=True))
    if not section:
        return re.sub(r"\A# .+\n", "", parts[0])
    if section not in titles:
        raise PluginError(f"{name} has no section {section!r}; it has {', '.join(titles)}")
    return titles[section]


def _links(text: str, source: str, here: str) -> str:
    """Point an included file's links to pages, outside of code."""

    def point(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        place = os.path.normpath(PurePosixPath(source).parent / path)
        place = place if (ROOT / place).is_file() else f"{place}/README.md"
        to = f"pictures/{place}" if place in _PICTURES else PAGES.get(place)
        if to is None:
            return words
        end = f"#{anchor}" if anchor else ""
        return f"{mark}[{words}]({os.path.relpath(to, PurePosixPath(here).parent)}{end})"

    parts = _CODE.split(_LINK.sub(lambda found: found[0].replace("`", "\0"), text))  # code in a link's words is no code
    pointed = [part if i % 2 else _LINK.sub(point, part) for i, part in enumerate(parts)]
    return "".join(pointed).replace("\0", "`")


def _commands(markdown: str, here: str) -> str:
    """The help of each command, as it is printed on 80 columns, which a page shows without scrolling."""
    os.environ["COLUMNS"] = "80"
    from fedmoe.cli.settings import COMMANDS, build_parser

    told = []
    for name, command in COMMANDS.items():
        text = build_parser(name).jsonargparse.format_help().replace(str(Path.home()), "~").replace("\b", "")
        text = re.sub(r"\Ausage: .*?\n\n.*?\n\n", "", text, flags=re.DOTALL)  # every option again; and what it is about
        told.append(f"## {name}\n\n{command.about}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(told)


def _methods(markdown: str, here: str) -> str:
    """A section for each method that has none on the page."""
    from fedmoe import methods

    told = set(re.findall(r"^::: fedmoe\.methods\.(\w+)", markdown, re.MULTILINE))
    return "\n".join(
        f"::: fedmoe.methods.{name}\n" for name in methods.__all__ if name not in told and name != "Method"
    )


def _status(markdown: str, here: str) -> str:
    """A row for each experiment that has numbers to give: what was run in the published setting, and of the presets."""
    rows = ["| | published setting | presets with numbers |", "|---|---|---|"]
    for name in EXPERIMENTS:
        text = (ROOT / "experiments" / name / "README.md").read_text(encoding="utf-8")
        if "\n## Our numbers\n" not in text:
            continue
        title = text.splitlines()[0].removeprefix("# ")
        numbers = _section(name, text, "Our numbers").strip()
        first = _links(numbers.split("\n\n")[0].replace("\n", " "), f"experiments/{name}/README.md", here)
        if first.startswith("|"):  # numbers at once: a benchmark of ours
            rows.append(f"| [{title}](experiments/{name}.md) | not of the paper | the package's own data |")
            continue
        presets = re.findall(r"^### Preset (.+)$", numbers, re.MULTILINE)
        presets = presets or list(dict.fromkeys(re.findall(r"PRESET=([\w-]+)", numbers)))
        rows.append(f"| [{title}](experiments/{name}.md) | {first} | {'; '.join(presets) or 'none'} |")
    return "\n".join(rows) + "\n"


def _beside(markdown: str, here: str) -> str:
    """Published mean ± std over seeds beside those of the embedded presets, as far as a README has them."""
    published = yaml.safe_load((ROOT / "experiments" / "published.yaml").read_text(encoding="utf-8"))
    parts = []
    for table in ("table1", "table2"):
        text = (ROOT / "experiments" / table / "README.md").read_text(encoding="utf-8")
        preset = text.partition("### Preset embedded")[2].partition("*controls*")[0]
        rows = re.findall(r"^\| ([^|]+?) \| \**([\d.]+ ± [\d.]+)", preset, re.MULTILINE)
        ours = {_key(label): value for label, value in rows}
        values = published[table]
        columns = values.pop("columns")
        parts.append(
            f"| [{text.splitlines()[0].removeprefix('# ')}](experiments/{table}.md) | {' | '.join(columns)} | digits |"
        )
        parts.append("|---|" + "---:|" * (len(columns) + 1))
        for name, pairs in values.items():
            cells = " | ".join(f"{mean:.2f} ± {std:.2f}" for mean, std in pairs)
            parts.append(f"| `{name}` | {cells} | {ours.get(name, 'not run')} |")
        parts.append("")
    return "\n".join(parts)


def _key(label: str) -> str:
    """The name in published.yaml of a row's label, such as pfedmoap_lambda_0.5 for pFedMoAP (λ = 0.5)."""
    name, _, number = label.partition("(λ = ")
    key = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return f"{key}_lambda_{float(number.rstrip(')')):.1f}" if number else key


_SPECIAL = {"beside": _beside, "commands": _commands, "methods": _methods, "status": _status}
