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
MIXED = "draft-5; -5@80 -4@50 -2@50 -1@35"  # plan20's bounds in one pass
GUIDED = "draft-3 cfg 1.5; -3@30 -2@20 -1@20"  # moss3 with guidance
GROUPS = {  # each plan is compared with the first of its group
    "leaving out": ("moss3", "fastvar", "draft-2", "sparse3"),
    "passes": (MIXED, "plan20", "plan15", "sparse3"),
    "deep": ("moss5", "moss4", "draft-3", "plan10"),
    "guidance": ("moss3", GUIDED),
    "dense": ("dense", "dense cfg 1.5", "plan20", "plan15"),
    "attention": ("moss3", "moss3-sa"),
}


def why(text: str, results: Sequence[dict[str, Any]]) -> str:
    """The page, from its text and all stored results of `evaluate`."""
    return re.sub(r"\{([a-z0-9' ]+)\}", lambda found: _answer(found[1], results), text)


def _answer(name: str, results: Sequence[dict[str, Any]]) -> str:
    """A group's table, or that it is not drawn yet."""
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
