"""mkdocs: pages that are made of the code and of files outside docs/, and links that lead from one to the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from website.reference import PAGES

ROOT = Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """Put a line for each verb into the navigation, and pages of docs/ that nobody placed yet behind all others."""
    from tiledse.cli.verbs import VERBS

    placed = (ROOT / "mkdocs.yml").read_text("utf-8")
    new = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in placed]
    if new:
        config.nav.append({"More": new})

    own = ["verbs.md", *({verb: f"verbs/{verb}.md"} for verb in VERBS)]
    config.nav = [
        {"Verbs": own} if isinstance(entry, dict) and "Verbs" in entry else entry for entry in config.nav
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page a verb, the reference, pages from outside docs/, and what pages show of results/."""
    from website import paper, reference

    made = {f"verbs/{verb}.md": text for verb, text in reference.verbs().items()}
    made["verbs.md"] = reference.overview()
    made["api.md"] = reference.api()
    made["paper-tables.md"] = paper.tables()
    for name, path in PAGES.items():
        made[name] = (ROOT / path).read_text("utf-8")
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for page in [file for file in files if file.src_uri.endswith(".md") and file.src_uri not in made]:
        for link in re.findall(r"\]\(\.\./(results/[^)\s]+)\)", page.content_string):
            target = ROOT / link
            if target.is_file() and files.get_file_from_path(link) is None:
                files.append(File.generated(config, link, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that lead out of docs/ lead to the page made of that file, or are text where there is none."""
    outside = page.file.src_uri in PAGES
    depth = "" if outside else "../"
    for name, path in PAGES.items():
        markdown = markdown.replace(f"]({depth}{path})", f"]({name})")
    if outside:
        markdown = markdown.replace("](docs/", "](")

    def kept(found: re.Match[str]) -> str:
        link = found[2].partition("#")[0]
        if files.get_file_from_path(link.removeprefix("../")) is not None and link.startswith("../results/"):
            return f"[{found[1]}]({found[2].removeprefix('../')})"
        return (
            f"{found[1]} (`{link.removeprefix('../')}` in the repository)"
            if _leads_out(link, page)
            else found[0]
        )

    return re.sub(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)", kept, markdown)


def _leads_out(link: str, page: Any) -> bool:
    """Whether a link leads out of docs/, or to a page that the site does not show."""
    if link.rpartition("/")[2] == "CONTRIBUTING.md":
        return True
    depth = page.file.src_uri.count("/")
    return link.startswith("../" * (depth + 1))
