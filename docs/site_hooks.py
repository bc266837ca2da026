"""What mkdocs calls while it builds the site.

- The page of the command line is made from the commands themselves.
- Pages link to files outside docs/ (code, configurations, result files, README). Those files become pages of the site,
  so that its links work without a network and say what the checked-out code says.
- `docs/losses.md` in a text is a link to that page. Entries of the navigation whose page does not exist are left out.
"""

from __future__ import annotations

import os
import posixpath
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
COPIES = "repository"
COMMANDS = "command_line.md"
_SHIM, _OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "assets/frame_worker.js"
ESCAPED = "\\|"  # inside a cell of a table
# Files that are shown as code; images and results are copied as they are, Markdown becomes pages.
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "sh"}
_COPIED = {".json", ".png", ".svg", ".csv"}
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_MENTION = re.compile(r"(?<![\w/(\[])docs/([a-z_]+)\.md(?![\w)\]])")
_FENCED = re.compile(r"(^(`{3,}).*?^\2[ \t]*$)", re.M | re.S)
_KEPT = re.compile(r"(`[^`\n]+`|\[[^\]]*\]\([^)\s]*\))")  # inline code and links


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = _existing(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, COMMANDS, content=command_line()))
    pages = [(path, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "docs").rglob("*.md"))]
    wanted = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
    wanted += [target for path, text in pages for target in _outside(path, text)]
    done: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if path in done:
            continue
        done.add(path)
        if path.suffix == ".md":
            wanted += _outside(path, path.read_text(encoding="utf-8"))
        elif path.is_dir():
            wanted += _listed(path)
        files.append(_copy(path, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = page.file.src_uri
    if source.startswith(f"{COPIES}/") and not source.endswith(tuple(f"{end}.md" for end in _LANGUAGES)):
        here = ROOT / posixpath.dirname(source.removeprefix(f"{COPIES}/"))
    elif source.startswith(f"{COPIES}/"):
        return markdown
    else:
        here = ROOT / "docs" / posixpath.dirname(source)
    known = {file.src_uri for file in files}
    if source == "configuration.md":  # made of docstrings
        markdown = runpy.run_path(str(ROOT / "docs/site_docstrings.py"))["as_markdown"](markdown)

    def mention(found: re.Match[str]) -> str:
        page = f"{found[1]}.md"
        return f"[{found[0]}]({_relative(page, source)})" if page in known else found[0]

    def link(found: re.Match[str]) -> str:
        target, _, anchor = found[2].partition("#")
        path = _target(here, target)
        if path is None:
            return found[0]
        return f"{found[1]}{_relative(_uri(path), source)}{f'#{anchor}' if anchor else ''}{found[3]}"

    def prose(text: str) -> str:
        parts = _KEPT.split(text)
        parts[::2] = [_MENTION.sub(mention, part) for part in parts[::2]]
        return _LINK.sub(link, "".join(parts))

    return _outside_fences(markdown, prose)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The theme's search from the disk asks for a script in the network; ours lies beside the pages."""
    return output.replace(_SHIM, _relative(_OWN_SHIM, page.file.dest_uri))


def on_post_template(output: str, **kwargs: Any) -> str:
    return output.replace(_SHIM, f"/{_OWN_SHIM}")


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    done, at = [], 0
    for found in _FENCED.finditer(markdown):
        done += [change(markdown[at : found.start()]), found[0]]
        at = found.end()
    return "".join([*done, change(markdown[at:])])


def _existing(nav: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for entry in nav:
        title, page = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(page, list):
            kept.append({title: _existing(page)})
        elif page == COMMANDS or page.startswith(f"{COPIES}/") or (ROOT / "docs" / page).is_file():
            kept.append(entry)
    return kept


# Files outside docs/


def _target(here: Path, link: str) -> Path | None:
    """The file or folder of the repository that a relative link leads to; None for any other link."""
    if not link or "://" in link or link.startswith(("mailto:", "/")):
        return None
    path = Path(os.path.normpath(here / link))
    return path if path.is_relative_to(ROOT) and path.exists() else None


def _outside(page: Path, text: str) -> Iterator[Path]:
    for found in _LINK.finditer(text):
        path = _target(page.parent, found[2].partition("#")[0])
        if path is not None and not path.is_relative_to(ROOT / "docs"):
            yield path


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in {*_LANGUAGES, *_COPIED})


def _uri(path: Path) -> str:
    """Where a file of the repository stands among the site's sources."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_relative_to(ROOT / "docs"):
        return name.removeprefix("docs/")
    if path.is_dir():
        return f"{COPIES}/{name}/index.md"
    return f"{COPIES}/{name}" if path.suffix in {".md", *_COPIED} else f"{COPIES}/{name}.md"


def _copy(path: Path, config: MkDocsConfig) -> File:
    uri, name = _uri(path), path.relative_to(ROOT).as_posix()
    if path.suffix in _COPIED:
        return File.generated(config, uri, abs_src_path=str(path))
    if path.is_dir():
        content = f"# {name}/\n\n" + "".join(f"- [{file.name}]({file.name})\n" for file in _listed(path))
    elif path.suffix == ".md":
        content = path.read_text(encoding="utf-8")
    else:
        language = _LANGUAGES.get(path.suffix, "text")
        content = f"# {name}\n\n`````{language}\n{path.read_text(encoding='utf-8')}`````\n"
    return File.generated(config, uri, content=content)


def _relative(uri: str, source: str) -> str:
    return posixpath.relpath(uri, posixpath.dirname(source) or ".")


# The command line


def command_line() -> str:
    """The page of all commands, from what they say of themselves."""
    import typer

    from sirius_rec.cli import app

    parts = [
        "# Command line\n",
        "What `sirius COMMAND --help` prints. Exit codes: [Operations](operations.md#what-to-watch).\n",
    ]
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        parts += _command(f"sirius {name}", command, 2)
        for inner, below in getattr(command, "commands", {}).items():
            parts += _command(f"sirius {name} {inner}", below, 3)
    return "\n".join(parts)


def _command(path: str, command: Any, level: int) -> Iterator[str]:
    yield f"{'#' * level} {path}\n"
    for part in (command.help or "").split("\n\n"):
        text = " ".join(part.split())
        if text.startswith("Example: "):
            yield f"```sh\n{text.removeprefix('Example: ')}\n```\n"
        elif text:
            yield f"{_cell(text)}\n"
    context = command.context_class(command, info_name=path)
    said = [parameter.get_help_record(context) for parameter in command.params]
    rows = [f"| `{name.replace('|', ESCAPED)}` | {_cell(text)} |" for name, text in filter(None, said) if text]
    if rows:
        yield "| argument or option | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    """Words of a help text as Markdown: nothing of it is markup."""
    return re.sub(r"([\\\[\]*|])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
