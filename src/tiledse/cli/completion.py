"""What the Tab key completes beside verbs and options: MODEL, without loading a library of networks."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path

from ..documents import read_json

_FORMS = ("timm:", "torchvision:", "effdet:", "zoo:")
_ZOO = Path(__file__).parents[1] / "networks" / "zoo" / "index.json"
_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)", re.M)

# What stands before the word that bash completes, up to a colon, at which it breaks words.
_before = ""


def complete_model(incomplete: str) -> list[str]:
    """MODEL texts that begin as what was typed; none leaves it to the shell, which completes files.

    Example:
        >>> complete_model("tim")
        ['timm:']
        >>> complete_model("timm:regnetx_00")
        ['timm:regnetx_002', 'timm:regnetx_004', 'timm:regnetx_004_tv', 'timm:regnetx_006', 'timm:regnetx_008']
    """
    typed = _before + incomplete
    form, colon, _ = typed.partition(":")
    names = _FORMS if not colon else [f"{form}:{name}" for name in _names(form)]
    return [name[len(_before) :] for name in names if name.startswith(typed)]


def _names(form: str) -> list[str]:
    if form == "zoo":
        return sorted(entry["name"] for entry in read_json(_ZOO.read_bytes())["networks"])
    spec = find_spec("timm") if form == "timm" else None
    if spec is None or spec.origin is None:
        return []
    # timm's own sources say which names it has. To import it takes seconds, which is too long for a Tab.
    sources = sorted(Path(spec.origin).parent.glob("models/*.py"))
    return sorted(name for source in sources for name in _REGISTERED.findall(source.read_text("utf-8")))


def join_words(environ: MutableMapping[str, str]) -> None:
    """Undo what bash does to words with a colon: it hands ``timm:x`` over as ``timm``, ``:`` and ``x``.

    The word to be completed keeps only what stands behind the last colon, for that is all that bash replaces.

    Args:
        environ: The environment, in which bash passes the words and the place of the cursor.

    Example:
        >>> given = {"COMP_WORDS": "tiledse\\nfind\\ntimm\\n:\\nx\\n--in", "COMP_CWORD": "5"}
        >>> join_words(given)
        >>> given["COMP_WORDS"].split(), given["COMP_CWORD"]
        (['tiledse', 'find', 'timm:x', '--in'], '3')
    """
    global _before
    words: list[str] = []
    split = environ.get("COMP_WORDS", "").split("\n")[: int(environ.get("COMP_CWORD", 0)) + 1]
    for place, word in enumerate(split):
        after_colon = place > 0 and split[place - 1] == ":" and word != ""
        if words and (word == ":" or after_colon):
            words[-1] += word
        else:
            words.append(word)
    before, colon, words[-1] = words[-1].rpartition(":")
    _before = before + colon
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(words), str(len(words) - 1)
