"""docs/why.md: what makes a plan good, asked in pairs of plans that differ in one thing.

The text is `text/why.md`; each of its {names} becomes a table of that group, from the first stored
result of `evaluate` that drew all of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .analysis import Study
from .quality import image_name, signed, span, table, time

SCALES = 13  # of the schedule that the text is about
MIXED3, MIXED5 = "draft-3; -3@50 -2@40 -1@40", "draft-5; -5@60 -4@50 -3@45 -2@45 -1@45"
LAST3 = "draft-3; -1@45"
GROUPS = {  # each plan is compared with the first of its group
    "paper or sparse": ("moss3", "fastvar", "draft-2", "sparse3"),
    "after 3": (MIXED3, LAST3, "draft-3; -3@50; -1@35", "draft-3; -3@45; -2@30; -1@35"),
    "after 5": (MIXED5, "draft-5; -1@45", "draft-5; -5@80; -1@45", "draft-5; -5@80; -3@50; -1@35"),
    "guidance": (LAST3, "draft-3 cfg 1.5; -1@45 unguided", "draft-3 cfg 1.5; -1@45", "draft-2; -1@60"),
    "attention 3": (MIXED3, MIXED3 + " sa"),
    "attention 5": (MIXED5, MIXED5 + " sa"),
    "paper's attention": ("moss3", "moss3-sa"),
    "deep": ("moss4", "draft-3", "sparse4"),
}
DRAWN = "dense,draft-3,draft-5," + ",".join(dict.fromkeys(
    plan for name, group in GROUPS.items() if not re.match("paper|deep", name) for plan in group
))  # what `evaluate` draws for this page alone


def why(text: str, results: Sequence[dict[str, Any]]) -> str:
    """The page, from its text and all stored results of `evaluate`."""
    return re.sub(r"\{([a-z0-9' ]+)\}", lambda found: _answer(found[1], results), text)


def _answer(name: str, results: Sequence[dict[str, Any]]) -> str:
    """A group's table, or that it is not drawn yet; or the command that draws what no other result has."""
    if name == "command":
        line = "python -m comfy_moss evaluate --pixels 1M --cfg 1 --per-task 8 --seed 55 --name why --save"
        return f'{line} --methods "{DRAWN}"'
    group = GROUPS[name]
    drawn = (one for one in results if set(group) <= set(one["setting"]["methods"]))
    result = next((one for one in drawn if one["setting"]["scales"] == SCALES), None)
    return _table(Study(result), group) if result else f"Not drawn yet: `{', '.join(group)}`."


def _table(study: Study, group: Sequence[str]) -> str:
    setting, first = study.result["setting"], group[0]
    told = (
        f"{setting['prompts']} prompts from seed {setting['seed']}, guidance {setting['cfg']:g}, "
        f"{setting['scales']} scales; {study.result['hardware']['device']}; drawing times of {study.workers} "
        f"process{'es' * (study.workers > 1)} ([pictures](images/{image_name(study.result, 'grid')})):"
    )
    minus = "with textures, minus the first row's"
    work = [("of dense's work", lambda name: f"{study.work(name):.3f}")] * (study.work(first) is not None)
    rows = table([
        ("plan", lambda name: name if study.text(name) == name else f"{name}: `{study.text(name)}`"), *work,
        ("drawing", lambda name: time(study.seconds(name))),
        ("score", lambda name: span(study.score(name))),
        ("texture shown", lambda name: span(study.textured(name))),
        ("with textures", lambda name: span(study.faithfulness(name))),
        (minus, lambda name: "" if name == first else signed(study.faithfulness_difference(name, first))),
    ], group)
    return f"{told}\n\n{rows}"
